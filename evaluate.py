"""Score one checkpoint, or several as an ensemble, on the whole test set.

    python evaluate.py --ckpt best.pt
    python evaluate.py --ckpt seed0.pt seed1.pt seed2.pt --json scores.json
    python evaluate.py --ckpt best.pt --dataset-folder my-digits

Every test image is paired with every addend: 100,000 pairs. Joint accuracy
counts the pairs with both answers right. To score the default network on MNIST
takes half a second on two cores, after the imports. Among other scores, it
prints:

    mnist test: joint accuracy   99.568 %     432 of 100,000 wrong
"""

import json
import math
import sys
from pathlib import Path

from support import cli, flags


def make_parser():
    parser = cli.Parser(__doc__, " [FILE ...]")
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help="the same as --ckpt")
    add("--ckpt", nargs="+", metavar="FILE", help="checkpoint; several make an ensemble (default: best.pt)")
    add("--dataset", choices=flags.DATASETS, help="instead of the one that the checkpoint was trained on")
    add("--dataset-folder", metavar="FOLDER", help="score your own images, named by their digit: 7_anything.png")
    add("--data-dir", default="data", metavar="FOLDER", help="where the data sets are")
    add("--device", choices=cli.DEVICES, default="auto", help="auto: CUDA, else MPS, else the CPU")
    add("--batch-size", type=cli.integer(1), default=500, help="images at a time, ten pairs each")
    add(
        "--json",
        type=cli.output_file,
        metavar="FILE",
        help="write every score to this file too, accuracies as fractions",
    )
    return parser


if __name__ == "__main__":
    cli.begin_script(make_parser)  # answers --help and a mistyped flag before PyTorch is imported, which takes seconds

import torch
from tqdm import tqdm

from data import ADDENDS, DIGITS, MEAN, STD, load_digits, load_folder, prepare
from model import build_model
from support.checkpoint import CheckpointError, check_weights_file, copy_tensors, load_checkpoint
from support.device import choose_device
from support.files import write_atomically


@torch.inference_mode()
def pair_outputs(model, images, batch_size=500, device="cpu"):
    """Raw outputs of a network for every image with every addend, in eval mode.

    images [N, 1, 28, 28] uint8. Returns (digit_logits [N, 10, 10], sum_logits [N, 10, 19]) on the CPU; the second
    dimension is the addend. The network is left in the mode, training or not, that it came in.
    """
    mode = model.training
    model.eval()
    all_addends = torch.arange(ADDENDS, device=device)
    outputs = []
    for batch in tqdm(images.split(batch_size), "scoring", unit="batch", delay=2, leave=False, disable=None):
        image = prepare(batch.to(device))
        outputs.append(model(image, all_addends.expand(len(image), ADDENDS)))
    model.train(mode)
    digit_logits, sum_logits = (torch.cat(parts).cpu() for parts in zip(*outputs, strict=True))
    return digit_logits, sum_logits


def mean_probabilities(models, outputs):
    """Probabilities (digit [N, 10, 10], sum [N, 10, 19]) from the `pair_outputs` of each network, as their mean."""
    digit_probabilities = sum_probabilities = 0
    for model, (digit_logits, sum_logits) in zip(models, outputs, strict=True):
        digit_probabilities = digit_probabilities + model.digit_probabilities(digit_logits) / len(models)
        sum_probabilities = sum_probabilities + model.sum_probabilities(sum_logits) / len(models)
    return digit_probabilities, sum_probabilities


def answers(models, outputs):
    """The most probable digits and sums, (digit_predictions, sum_predictions), both [N, 10] int64."""
    digit_probabilities, sum_probabilities = mean_probabilities(models, outputs)
    return digit_probabilities.argmax(-1), sum_probabilities.argmax(-1)


def predict_pairs(models, images, batch_size=500, device="cpu"):
    """Answers of a network, or of several as the mean of their probabilities, for every image with every addend.

    models: a list; images [N, 1, 28, 28] uint8. Returns (digit_predictions, sum_predictions), both [N, 10] int64 on
    the CPU; column a is the addend a. The networks are left in the mode, training or not, that they came in.
    """
    return answers(models, [pair_outputs(model, images, batch_size, device) for model in models])


def consistent_answers(digit_probabilities, sum_probabilities, addends):
    """The most probable answers that agree: the digit, and digit + addend, with the highest product of probabilities.

    digit_probabilities [..., 10], sum_probabilities [..., 19], addends [...] int64 or of a shape that broadcasts to it.
    Returns (digit_predictions, sum_predictions), both [...] int64.
    """
    sums = (addends.unsqueeze(-1) + torch.arange(DIGITS, device=addends.device)).expand_as(digit_probabilities)
    of_sums = sum_probabilities.gather(-1, sums)
    # --sum-encoding scalar has one possible sum, which decides the digit, unless no digit gives it.
    digits = (digit_probabilities * of_sums.clamp_min(torch.finfo(of_sums.dtype).tiny)).argmax(-1)
    return digits, digits + addends


def mean_losses(models, outputs, digits):
    """{"digit_loss", "sum_loss"}: means over the N * 10 pairs, without label smoothing; None where not finite.

    A network's losses are those that it was trained with: cross-entropy, in nats, unless its sum has another encoding.
    Several networks have the cross-entropy of the mean of their probabilities.
    """
    digits = digits.cpu()
    sums = digits.unsqueeze(1) + torch.arange(ADDENDS)
    if len(models) == 1:
        digit_logits, sum_logits = outputs[0]
        losses = models[0].digit_loss(digit_logits, digits), models[0].sum_loss(sum_logits, sums)
    else:
        targets = [digits.unsqueeze(1).expand_as(sums), sums]
        pairs = zip(mean_probabilities(models, outputs), targets, strict=True)
        right = [probabilities.gather(-1, target.unsqueeze(-1)) for probabilities, target in pairs]
        losses = [-share.clamp_min(torch.finfo(share.dtype).tiny).log().mean() for share in right]
    values = [loss.item() if loss.isfinite() else None for loss in losses]
    return dict(zip(("digit_loss", "sum_loss"), values, strict=True))


def score(digit_predictions, sum_predictions, digits):
    """Every score of the predictions [N, 10], [N, 10] for images of `digits` [N], as a dict of plain values.

    Accuracies are fractions of the N * 10 pairs; joint means both right. `None` where nothing is there to count.
    """
    digits, addends = digits.cpu().unsqueeze(1), torch.arange(ADDENDS)
    digit_right, sum_right = digit_predictions == digits, sum_predictions == digits + addends
    joint_right = digit_right & sum_right
    pairs = joint_right.numel()
    scores = {"images": len(digits), "pairs": pairs}
    for name, right in (("digit", digit_right), ("sum", sum_right), ("joint", joint_right)):
        scores[f"{name}_accuracy"] = int(right.sum()) / pairs
        scores[f"{name}_misses"] = pairs - int(right.sum())
        scores[f"{name}_interval"] = interval(right)
    digits_wrong = pairs - int(digit_right.sum())
    scores["sum_accuracy_given_digit_right"] = ratio(int(joint_right.sum()), pairs - digits_wrong)
    scores["sum_accuracy_given_digit_wrong"] = ratio(int((sum_right & ~digit_right).sum()), digits_wrong)
    scores["head_agreement"] = int((sum_predictions == digit_predictions + addends).sum()) / pairs
    scores["images_all_right"] = int(joint_right.all(dim=1).sum())
    # rows by digit, columns by addend
    grid = [joint_right[digits.squeeze(1) == digit].sum(dim=0).tolist() for digit in range(DIGITS)]
    counts = torch.bincount(digits.flatten(), minlength=DIGITS).tolist()
    scores["joint_accuracy_grid"] = [[ratio(n, counts[digit]) for n in row] for digit, row in enumerate(grid)]
    confusion = torch.bincount((digits * DIGITS + digit_predictions).flatten(), minlength=DIGITS**2)
    order = confusion.argsort(descending=True, stable=True).tolist()
    scores["confused_digits"] = [
        {"digit": cell // DIGITS, "predicted": cell % DIGITS, "pairs": int(confusion[cell])}
        for cell in order
        if cell // DIGITS != cell % DIGITS and confusion[cell]
    ]
    return scores


def ratio(part, whole):
    """part / whole, None where whole is 0."""
    return part / whole if whole else None


def interval(right):
    """95 % interval (low, high) of the mean of `right` [N, 10] bool.

    Wilson's interval (E. B. Wilson, JASA 22, 1927), which holds near 100 % too, for N independent observations: the ten
    pairs of an image are highly correlated. Where they are not, the interval is conservative.
    """
    n, p, z = len(right), right.double().mean().item(), 1.959964
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n**2))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def load_model(path):
    """(model, state) of the checkpoint at `path`: the network in eval mode, with its averaged weights.

    Raises CheckpointError for a file that is not one, is damaged, or is of a network unknown here.
    """
    state = load_checkpoint(path)
    check_weights_file(state, path, [MEAN, STD])
    names = [state["args"].get(name) for name in ("model", "addend_encoding", "sum_encoding")]
    try:
        model = build_model(*names)
    except ValueError as error:
        raise CheckpointError(f"{path} does not fit model.py, which has changed since then: {error}") from None
    copy_tensors(state["weights"], model.state_dict(), path, "weights")
    return model.eval(), state


def short_report(scores, dataset):
    """The three accuracies in three aligned lines and the losses in one, each with the data set's name."""
    lines = []
    for name in ("digit", "sum", "joint"):
        low, high = scores[f"{name}_interval"]
        lines.append(
            f"{dataset} test: {name + ' accuracy':15s} {100 * scores[f'{name}_accuracy']:7.3f} %  "
            f"{scores[f'{name}_misses']:6,d} of {scores['pairs']:,d} wrong  "
            f"95 % interval {100 * low:.3f} to {100 * high:.3f} %"
        )
    losses = [("-" if scores[f"{name}_loss"] is None else f"{scores[f'{name}_loss']:.4f}") for name in ("digit", "sum")]
    lines.append(f"{dataset} test: {'losses':15s} digit {losses[0]}, sum {losses[1]}, without label smoothing")
    return "\n".join(lines)


def full_report(scores, dataset):
    """Everything in `scores` as text."""

    def percent(fraction):
        return "     -   " if fraction is None else f"{100 * fraction:7.3f} %"

    lines = [
        short_report(scores, dataset),
        "",
        f"sum accuracy where the digit is right  {percent(scores['sum_accuracy_given_digit_right'])}",
        f"sum accuracy where the digit is wrong  {percent(scores['sum_accuracy_given_digit_wrong'])}",
        f"heads agree (sum = digit + addend)     {percent(scores['head_agreement'])}",
        f"joint accuracy of consistent answers   {percent(scores['consistent_joint_accuracy'])}",
        f"images with all ten addends right      {scores['images_all_right']:,d} of {scores['images']:,d}",
        "",
        "joint accuracy in % by digit (down) and addend (across)",
        "     " + "".join(f"{addend:7d}" for addend in range(ADDENDS)),
    ]
    for digit, row in enumerate(scores["joint_accuracy_grid"]):
        lines.append(f"{digit:5d}" + "".join("      -" if cell is None else f"{100 * cell:7.2f}" for cell in row))
    lines += ["", "most confused digits"]
    for entry in scores["confused_digits"][:5]:
        lines.append(f"    a {entry['digit']} read as {entry['predicted']}: {entry['pairs']:,d} pairs")
    return "\n".join(lines if scores["confused_digits"] else lines[:-2])


def main(argv=None):
    args = make_parser().parse_args(argv)
    paths = [*args.files, *(args.ckpt or [])] or ["best.pt"]
    cli.refuse_overwriting(paths, json=args.json)
    if args.dataset and args.dataset_folder is not None:
        raise cli.UserError("--dataset and --dataset-folder exclude each other")

    device = choose_device(args.device)
    loaded = [load_model(path) for path in paths]
    datasets = sorted({state["dataset"] for _, state in loaded})
    if args.dataset_folder is not None:
        images, digits, name = load_folder(args.dataset_folder)
        cli.refuse_overwriting(Path(args.dataset_folder).glob("[0-9]*"), json=args.json)
        dataset = f"folder {name or Path.cwd().name}"  # it may be called mnist, and "." has no name
    elif args.dataset is None and len(datasets) > 1:
        raise cli.UserError(f"the checkpoints were trained on {' and '.join(datasets)}; choose with --dataset")
    else:
        images, digits, dataset = load_digits(args.dataset or datasets[0], args.data_dir, train=False)
    models = [model.to(device, memory_format=torch.channels_last) for model, _ in loaded]
    outputs = [pair_outputs(model, images, args.batch_size, device) for model in models]
    scores = score(*answers(models, outputs), digits) | mean_losses(models, outputs, digits)
    consistent = consistent_answers(*mean_probabilities(models, outputs), torch.arange(ADDENDS))
    scores["consistent_joint_accuracy"] = score(*consistent, digits)["joint_accuracy"]

    names = ", ".join(dict.fromkeys(state["args"]["model"] for _, state in loaded))
    ensemble = f", ensemble of {len(models)}" if len(models) > 1 else ""
    print(f"{dataset} test set, {names}{ensemble}: {scores['images']:,d} images x {ADDENDS} addends\n")
    print(full_report(scores, dataset))
    if args.json:
        record = {"dataset": dataset, "ckpt": [Path(path).name for path in paths], "model": names, **scores}
        write_atomically(args.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(cli.run_script(main))
