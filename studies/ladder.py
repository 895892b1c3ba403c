"""Search the fast recipe, one change at a time, and the batch size and rate of
the fastest public recipe; each row is timed, and scored on held-out images.

    python -m studies.ladder --json logs/records/ladder-cpu.json
    python -m studies.ladder --quick     few images: shows only that it runs

Seed s trains on the training images of MNIST without the s-th of twelve parts
and is scored on that part; the test set is not read. A seed trains everything
in turn, so that a slow phase of a shared machine affects all alike, and the
differences to the recipe are paired by seed. The seconds are those of the
epoch, its random draws included. The public recipe is that of
studies/rivals.py in our memory layout and in bfloat16.
"""

import functools
import json
import sys

from support import cli
from support.flags import DATASETS

SEEDS, QUICK_SEEDS, PARTS = 8, 2, 12


def make_parser():
    parser = cli.Parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="few images: shows only that it runs")
    seeds = f"each with its own held-out part (default: {SEEDS}, quick: {QUICK_SEEDS})"
    parser.add_argument("--seeds", type=cli.integer(2, PARTS), help=seeds)
    parser.add_argument("--device", choices=cli.DEVICES, default="auto", help="as train.py takes it")
    parser.add_argument("--dataset", choices=DATASETS, default="auto", help="as train.py takes it")
    parser.add_argument("--data-dir", default="data", metavar="FOLDER", help="as train.py takes it")
    parser.add_argument("--json", type=cli.output_file, metavar="FILE", help="write the figures here too")
    return parser


if __name__ == "__main__":
    cli.begin_script(make_parser)  # answers --help and a mistyped flag before PyTorch is imported, which takes seconds

import torch
import torch.nn as nn
import torch.nn.functional as F

import model
from data import load_digits, prepare
from evaluate import answers, pair_outputs, score
from studies import rivals
from studies.changes import changed
from studies.combine import VIEWS, moved
from studies.measure import Run, held_out, keep_memory, seconds_of
from studies.speed_tables import PUBLISHED_RIVAL, ladder_tables
from support.device import choose_device, set_deterministic
from support.files import write_atomically
from support.runlog import environment

QUICK_IMAGES = 1536
RECIPE = "the recipe"


def whiten(run, images):
    """Start the first layer as airbench does (K. Jordan, arXiv 2404.00498): whitening filters of patches, ±."""
    weight = next(run.model.parameters())
    patches = F.unfold(prepare(images[:5000]), 5, stride=2).transpose(1, 2).reshape(-1, 25)
    values, vectors = torch.linalg.eigh(patches[patches.std(1) > 0].T.cov())
    half = len(weight) // 2
    filters = (vectors / (values + 0.01).sqrt()).T.flip(0)[:half].view(half, 1, 5, 5)
    with torch.no_grad():
        weight.copy_(torch.cat([filters, -filters]))


def freeze(run, images):
    """Whiten the first layer and train it no more, which saves its backward pass."""
    whiten(run, images)
    next(run.model.parameters()).requires_grad_(False)


def identity(run, images):
    """Start the other convolutions as the identity on their first channels."""
    for layer in run.model.modules():
        if isinstance(layer, nn.Conv2d) and layer.in_channels > 1:
            nn.init.dirac_(layer.weight[: layer.in_channels])


class Shrink(nn.Module):
    """Scales the images of the first `steps` steps of training to `side` pixels."""

    def __init__(self, side, steps):
        super().__init__()
        self.side, self.steps = side, steps

    def forward(self, image):
        if not self.training or self.steps == 0:
            return image
        self.steps -= 1
        return F.interpolate(image, self.side, mode="bilinear")


def smaller_first(run, images):
    """Scale the cropped images from 24 to 20 pixels in the first half of the steps, and the last map back to 3 × 3."""
    layers = run.model.encoder
    layers.insert(1, Shrink(20, len(run.batches) // 2))
    (flatten,) = (n for n, layer in enumerate(layers) if isinstance(layer, model.FlattenLast))
    layers.insert(flatten, nn.AdaptiveAvgPool2d(3))


def harder(run, images, share):
    """Train on that share of the images of each batch, those with the highest loss of the digit at that time."""
    epoch, network = run.batches.epoch, run.model

    def harder_part(number):
        for batch in epoch(number):
            image, addend, digit, _ = batch
            network.eval()
            bfloat16 = run.args.precision == "bfloat16"
            with torch.no_grad(), torch.autocast(image.device.type, torch.bfloat16, enabled=bfloat16):
                logits = network(image, addend[:, 0])[0]
            network.train()
            losses = F.cross_entropy(logits.float(), digit, reduction="none")
            chosen = losses.topk(round(share * len(digit))).indices
            yield [part[chosen] for part in batch]

    run.batches.epoch = harder_part


# Row: what differs from train.py --model fast. "start" is called before the first step; "share" of the images;
# "shifts": scored on five shifts; the others as in studies/changes.py.
CHANGES = {
    RECIPE: {},
    **{f"K = {k}": dict(addends_per_image=k) for k in (1, 2, 10)},
    **{f"batches of {size}": dict(batch_size=size) for size in (192, 256, 384, 512)},
    **{f"rate {rate}": dict(learning_rate=rate) for rate in (0.02, 0.045)},
    "no label smoothing": dict(label_smoothing=0.0),
    "label smoothing 0.1": dict(label_smoothing=0.1),
    "label smoothing 0.2": dict(label_smoothing=0.2),
    "weight decay 0.1": dict(weight_decay=0.1),
    "average of the last ninth": dict(averaging_eta=8.0),
    "augmentation 0.5": dict(augment=0.5),
    "float32": dict(precision="float32"),
    "SGD, Nesterov momentum, rate 0.3": dict(optimizer="sgd", nesterov=True, learning_rate=0.3, weight_decay=5e-4),
    **{f"Muon, rate {rate}": dict(optimizer="muon", learning_rate=rate) for rate in (0.01, 0.03)},
    "half of the images": dict(share=0.5),
    "3/4 of the images": dict(share=0.75),
    "harder half of each batch of 640": dict(batch_size=640, start=functools.partial(harder, share=0.5)),
    "harder 3/4 of each batch of 427": dict(batch_size=427, start=functools.partial(harder, share=0.75)),
    "images of 20 pixels for half of the steps": dict(start=smaller_first),
    **{
        f"channels {first}, {second}": dict(network=dict(layers=((first, 0, True), (second, 0, False))))
        for first, second in ((24, 64), (40, 80), (48, 64), (48, 96))
    },
    "three layers": dict(network=dict(layers=((32, 0, True), (32, 1, False), (96, 0, False)))),
    "hidden layer of 64": dict(network=dict(hidden=64)),
    "images not cropped": dict(network=dict(crop=0)),
    "first layer whitened": dict(start=whiten),
    "first layer whitened and frozen": dict(start=freeze),
    "second layer starts as identity": dict(start=identity),
    "scored on five shifts": dict(shifts=True),
    "the recipe before": dict(
        batch_size=256,
        addends_per_image=10,
        learning_rate=0.04,
        label_smoothing=0.1,
        weight_decay=0.1,
        network=dict(crop=0, layers=((32, 0, True), (32, 1, False), (64, 0, True))),
    ),
}
RIVAL = {
    f"batches of {size}, rate {rate}": dict(batch_size=size, rate=rate)
    for size in (128, 256, 512)
    for rate in (0.005, 0.01, 0.02)
} | {f"{PUBLISHED_RIVAL}, flattened in place": dict(flatten=model.FlattenLast)}


# ---------------------------------------------------------------------------------------------------------------------
# Training and scoring


def ours(change, training, held, seed, device):
    """Train the fast recipe with a change; {"seconds", "scoring", "accuracy", "digit"}, accuracies in %."""
    change = dict(change)
    start, share = change.pop("start", None), change.pop("share", 1)
    shifts = VIEWS if change.pop("shifts", False) else VIEWS[:1]
    training = [table[: round(share * len(table))] for table in training]  # they are in random order
    with changed("fast", change) as (arguments, _):
        run = Run("fast", training, device, seed=seed, **arguments)
        if start:
            start(run, training[0])
        seconds = run.seconds()
    outputs = []

    def predict():
        for right, down in shifts:
            outputs.append(pair_outputs(run.scored, moved(held[0], right, down), device=device))

    scoring = seconds_of(predict, device)
    scores = score(*answers([run.scored] * len(outputs), outputs), held[1])
    accuracies = dict(accuracy=100 * scores["joint_accuracy"], digit=100 * scores["digit_accuracy"])
    return dict(seconds=seconds, scoring=scoring) | accuracies


def theirs(setting, training, held, seed, device):
    """Train the rival; {"seconds", "accuracy"} of the digit, in %."""
    recipe = rivals.FastestPublicRecipe(*training, device, torch.channels_last, bfloat16=True, seed=seed, **setting)
    return dict(seconds=seconds_of(recipe.train, device), accuracy=100 * recipe.accuracy(*held))


def main(argv=None):
    args = make_parser().parse_args(argv)
    keep_memory()
    device = choose_device(args.device)
    set_deterministic(False, device)
    images, digits, dataset = load_digits(args.dataset, args.data_dir, train=True)
    if args.quick:
        images, digits = images[:QUICK_IMAGES], digits[:QUICK_IMAGES]
    jobs = {("ours", what): functools.partial(ours, change) for what, change in CHANGES.items()}
    jobs |= {("rival", what): functools.partial(theirs, setting) for what, setting in RIVAL.items()}
    training, held = held_out("ladder", images, digits, 0, PARTS)
    ours({}, training, held, 0, device)  # warm-up
    taken = {job: [] for job in jobs}
    for seed in range(args.seeds or (QUICK_SEEDS if args.quick else SEEDS)):
        training, held = held_out("ladder", images, digits, seed, PARTS)
        for job, train_one in jobs.items():
            taken[job].append(train_one(training, held, seed, device))
        print(f"seed {seed}: {taken['ours', RECIPE][-1]}", flush=True)
    rows = [
        {"kind": kind, "what": what} | {name: [figures[name] for figures in rounds] for name in rounds[0]}
        for (kind, what), rounds in taken.items()
    ]
    record = environment(device) | {"data set": f"{dataset}: {len(images):,d} images", "rows": rows}
    print("\n\n".join(ladder_tables(record).values()))
    if args.json:
        write_atomically(args.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(cli.run_script(main))
