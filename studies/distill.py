"""Train a network on the probabilities of its teachers in place of the labels.

    python -m studies.distill --teachers a-best.pt b-best.pt -- --model tiny

After "--" come the flags of train.py; label smoothing is 0 here unless it is
among them. The teachers take turns: in each step one sees the augmented
images. Its probabilities of the digits are the digit's target; shifted by the
addend, they are the sum's (G. Hinton et al., arXiv 1503.02531). Cross-entropy
is linear in its target, so over the turns the gradient is on average that of
the mean of all teachers. The run writes the files of train.py but last.pt,
since train.py would continue it without its teachers: interrupted, it starts
again, under another --run-name. --precision applies to the pupil; the teachers
use what "auto" chooses for the device. After each epoch, the statistics of
batch norm are estimated anew for the averaged weights.
"""

import itertools
import sys
from unittest.mock import patch

from support import cli


def make_parser():
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--teachers", nargs="+", required=True, metavar="FILE", help="checkpoints of trained networks")
    add("flags", nargs="*", metavar="-- FLAGS", help="flags of train.py")
    return parser


if __name__ == "__main__":
    cli.begin_script(make_parser)  # answers --help and a mistyped flag before PyTorch is imported, which takes seconds

import torch
from torch.optim.swa_utils import update_bn

import train
from data import DIGITS, SUMS, Batches
from evaluate import load_model
from model import TwoHeadNet
from support import processes
from support.device import choose_device, choose_precision, set_deterministic
from support.flags import SIZES
from support.run_files import RunFiles

STATISTICS_BATCHES = 100  # 12,800 images in batches of 128, drawn as in training
TRAIN_EPOCH = train.train_epoch


def taught_batches(teachers):
    """The subclass of Batches that yields probabilities as targets: digit [B, 10], sum [B, K, 19], or [B, 19].

    The teachers compute in what `--precision auto` means on the device, whatever the precision of their pupil.
    """

    class TaughtBatches(Batches):
        def epoch(self, epoch):
            bfloat16 = choose_precision("auto", self.device) == "bfloat16"
            for step, (image, addend, *_) in enumerate(super().epoch(epoch)):
                teacher = teachers[(epoch + step) % len(teachers)]
                first = addend if addend.dim() == 1 else addend[:, 0]  # the digit's answer hardly depends on the addend
                with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
                    taught = teacher.digit_probabilities(teacher(image, first)[0].float())
                yield image, addend, taught, shifted(taught, addend)

    return TaughtBatches


def shifted(probabilities, addend):
    """Probabilities of the digit [B, 10], or [B, K, 10], -> of its sum with the addend [B] or [B, K]: [B, 19] or
    [B, K, 19]."""
    positions = addend.unsqueeze(-1) + torch.arange(DIGITS, device=addend.device)
    if addend.dim() == probabilities.dim():
        probabilities = probabilities.unsqueeze(1).expand(-1, addend.shape[1], -1)
    return probabilities.new_zeros(*addend.shape, SUMS).scatter(-1, positions, probabilities)


def train_epoch(args, model, network, optimizer, averaged, batches, epoch):
    """As `train_epoch` of train.py; then batch norm's statistics for the averaged weights are estimated anew, on
    training images (P. Izmailov et al., arXiv 1803.05407). `averaged` holds the mean of the statistics of each step's
    weights, which are not those of the mean of the weights."""
    figures = TRAIN_EPOCH(args, model, network, optimizer, averaged, batches, epoch)
    if averaged:
        images = (image for image, *_ in itertools.islice(Batches.epoch(batches, epoch), STATISTICS_BATCHES))
        update_bn(images, averaged.module.encoder)
    return figures


def train_arguments(flags):
    """The arguments of train.py for these flags, without label smoothing unless they ask for it. Raises UserError."""
    return train.parse_arguments(["--label-smoothing", "0", *flags])[0]


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(map(str, argv))
    args = make_parser().parse_args(argv)
    run = train_arguments(args.flags)
    if run.resume or run.dry_run or run.find_lr or run.sum_encoding != "onehot" or processes.world_size() > 1:
        raise cli.UserError("--resume, --dry-run, --find-lr, another --sum-encoding and torchrun do not work here")
    if run.model not in SIZES:
        raise cli.UserError(f"--model {run.model} brings its own targets; choose from {', '.join(SIZES)}")
    device = choose_device(run.device)
    set_deterministic(run.deterministic, device)
    teachers = [load_model(path)[0].to(device, memory_format=torch.channels_last) for path in args.teachers]
    files = RunFiles(run.out, run.run_name)
    with (
        cli.sigterm_as_interrupt(),
        files.claimed(None),
        patch.object(TwoHeadNet, "Batches", taught_batches(teachers)),
        patch.object(train, "train_epoch", train_epoch),
        patch.object(files, "save_last", lambda state: None),
    ):
        train.train(run, None, device, files, ["-m", "studies.distill", *argv])


if __name__ == "__main__":
    sys.exit(cli.run_script(main))
