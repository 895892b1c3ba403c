"""Score one checkpoint, or several as an ensemble, on every test image with every addend.

    python evaluate.py --ckpt best.pt
    python evaluate.py --ckpt seed0.pt seed1.pt seed2.pt --json scores.json

Joint accuracy counts the pairs with both answers right, one by one. Prints, for the default network on MNIST, after
half a second of scoring on two cores of an AMD EPYC:

    mnist test: joint accuracy   99.543 %     457 of 100,000 wrong  95 % interval 99.396 to 99.654 %
"""

import json
import math
import sys
from pathlib import Path

import torch

import cli
from checkpoint import load_checkpoint, write_atomically
from data import ADDENDS, DATASETS, DIGITS, MEAN, STD, load_digits, prepare
from published import build_model


@torch.inference_mode()
def predict_pairs(models, images, batch_size=500, device="cpu"):
    """Answers of a network, or of several as the mean of their probabilities, for every image with every addend.

    models: a list; images [N, 1, 28, 28] uint8. Returns (digit_predictions, sum_predictions), both [N, 10] int64 on
    the CPU; column a is the addend a. The networks are left in the mode, training or not, that they came in.
    """
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    all_addends = torch.arange(ADDENDS, device=device)
    predictions = []
    for batch in images.split(batch_size):
        image = prepare(batch.to(device))
        addend = all_addends.expand(len(image), ADDENDS)
        digit_probabilities = sum_probabilities = 0
        for model in models:
            digit_logits, sum_logits = model(image, addend)
            digit_probabilities = digit_probabilities + model.digit_probabilities(digit_logits)
            sum_probabilities = sum_probabilities + model.sum_probabilities(sum_logits)
        predictions.append(torch.stack([digit_probabilities.argmax(-1), sum_probabilities.argmax(-1)]))
    for model, mode in zip(models, modes, strict=True):
        model.train(mode)
    digit_predictions, sum_predictions = torch.cat(predictions, dim=1).cpu()
    return digit_predictions, sum_predictions


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
    """95 % interval (low, high) of the mean of `right` [N, 10] bool, over images.

    The ten pairs of an image stand or fall together, so the variance is that of the images' means; it gives the
    effective number of pairs for Wilson's interval (E. B. Wilson, JASA 22, 1927), which is right near 100 % too.
    """
    means = right.double().mean(dim=1)
    n, p = len(means), means.mean().item()
    variance = means.var(correction=0).item() / n
    effective = p * (1 - p) / variance if variance > 0 else n
    z = 1.959964
    centre = (p + z * z / (2 * effective)) / (1 + z * z / effective)
    half = z / (1 + z * z / effective) * math.sqrt(p * (1 - p) / effective + z * z / (4 * effective**2))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def restore_model(state):
    """The network of a checkpoint's `state`, with its (averaged) weights, in eval mode."""
    args = state["args"]
    model = build_model(args["model"], args["faults"], args["addend_encoding"], args["sum_encoding"])
    model.load_state_dict(state["weights"])
    return model.eval()


def load_model(path):
    """(model, state) of the checkpoint at `path`. Raises CheckpointError, or UserError for a network unknown here."""
    state = load_checkpoint(path)
    if state["normalisation"] != [MEAN, STD]:
        raise cli.UserError(
            f"{path} was trained with the normalisation {state['normalisation']}, here is {[MEAN, STD]}"
        )
    try:
        return restore_model(state), state
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        cause = " ".join(str(error).split())[:500]
        raise cli.UserError(f"{path} holds no network that this version can build: {cause}") from None


def short_report(scores, dataset):
    """The three accuracies in three aligned lines, each with the data set's name."""
    lines = []
    for name in ("digit", "sum", "joint"):
        low, high = scores[f"{name}_interval"]
        lines.append(
            f"{dataset} test: {name + ' accuracy':15s} {100 * scores[f'{name}_accuracy']:7.3f} %  "
            f"{scores[f'{name}_misses']:6,d} of {scores['pairs']:,d} wrong  "
            f"95 % interval {100 * low:.3f} to {100 * high:.3f} %"
        )
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
    parser = cli.Parser(__doc__)
    parser.add_argument("--ckpt", nargs="+", default=["best.pt"], metavar="FILE", help="several make an ensemble")
    parser.add_argument(
        "--dataset", choices=DATASETS, help="instead of the data set that the checkpoint was trained on"
    )
    parser.add_argument("--data-dir", default="data", help="folder of the data sets")
    parser.add_argument("--device", choices=cli.DEVICES, default="auto", help="auto: CUDA, else MPS, else the CPU")
    parser.add_argument("--batch-size", type=cli.integer(1), default=500, help="images at a time, ten pairs each")
    parser.add_argument("--json", metavar="FILE", help="write every score here too, as fractions")
    args = parser.parse_args(argv)
    if args.json and Path(args.json).resolve() in [Path(path).resolve() for path in args.ckpt]:
        parser.error(f"--json {args.json} would write over a checkpoint")

    device = cli.choose_device(args.device)
    loaded = [load_model(path) for path in args.ckpt]
    datasets = sorted({state["dataset"] for _, state in loaded})
    if args.dataset is None and len(datasets) > 1:
        raise cli.UserError(f"the checkpoints were trained on {' and '.join(datasets)}; choose with --dataset")
    images, digits, dataset = load_digits(args.dataset or datasets[0], args.data_dir, train=False)
    models = [model.to(device, memory_format=torch.channels_last) for model, _ in loaded]
    scores = score(*predict_pairs(models, images, args.batch_size, device), digits)

    names = ", ".join(dict.fromkeys(state["args"]["model"] for _, state in loaded))
    ensemble = f", ensemble of {len(models)}" if len(models) > 1 else ""
    print(f"{dataset} test set, {names}{ensemble}: {scores['images']:,d} images x {ADDENDS} addends\n")
    print(full_report(scores, dataset))
    if args.json:
        record = {"dataset": dataset, "ckpt": [Path(path).name for path in args.ckpt], "model": names, **scores}
        write_atomically(args.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(cli.run_script(main))
