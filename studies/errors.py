"""What trained networks misread, and how far their probabilities can be trusted.

    python -m studies.errors --ckpt logs/tiny.pt
    python -m studies.errors --ckpt a.pt b.pt c.pt --ensemble --json errors.json
    python -m studies.errors --ckpt best.pt --figure errors.svg

An image counts as misread where the digit with the highest probability, a mean
over the ten addends, is not its label. The temperature of each head divides
the logarithm of its probabilities. It is fitted on the images that the run
held out (--val-size) by minimising the cross-entropy, and applied to the test
set (C. Guo et al., arXiv 1706.04599, section 4.2).
"""

import json
import sys

from support import cli


def make_parser():
    parser = cli.Parser(__doc__, " [FILE ...]")
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help="the same as --ckpt")
    add("--ckpt", nargs="+", metavar="FILE", help="checkpoints, each looked at (default: best.pt)")
    add("--ensemble", action="store_true", help="and the mean of their probabilities")
    add("--data-dir", default="data", metavar="FOLDER", help="where the data sets are")
    add("--device", choices=cli.DEVICES, default="auto", help="auto: CUDA, else MPS, else the CPU")
    add("--json", type=cli.output_file, metavar="FILE", help="write everything, each misread image too")
    add("--figure", type=cli.output_file, metavar="FILE",
        help="draw what most checkpoints misread, .svg or .png, with FILE-dark for dark pages")  # fmt: skip
    return parser


if __name__ == "__main__":
    cli.begin_script(make_parser)  # answers --help and a mistyped flag before PyTorch is imported, which takes seconds

import torch

from data import ADDENDS, load_digits, split_indices
from evaluate import answers, mean_probabilities, pair_outputs, score
from studies.error_tables import HEADS, draw_misread, errors_tables
from studies.robustness import load_networks
from support import figures
from support.calibration import BINS, calibration
from support.checkpoint import ACCURACIES
from support.device import choose_device
from support.files import write_atomically
from support.runlog import environment

# Indices in MNIST's test set: of five people asked, fewer than three chose the label (C. Northcutt et al., arXiv
# 2103.14749; the votes are in mturk/mnist_mturk.json of github.com/cleanlab/label-errors).
JUDGED_WRONG = (947, 1621, 1901, 2130, 2462, 2597, 2654, 3520, 3558, 5937, 6651, 6783, 8527, 9679, 9729)
VAL_SIZE = 5000  # training images that stand in for held-out ones where a run held out none
TEMPERATURES = (0.05, 20.0)  # where one is looked for


# ---------------------------------------------------------------------------------------------------------------------
# Calibration


def log_probabilities(models, outputs):
    """Logarithms (digit [N, 10, 10], sum [N, 10, 19]) float64 of the mean probabilities of the networks' outputs."""
    pairs = mean_probabilities(models, outputs)
    return [part.clamp_min(torch.finfo(part.dtype).tiny).double().log() for part in pairs]


def targets(digits):
    """The right (digits, sums) of all pairs of these images, both [N, 10] int64."""
    sums = digits.unsqueeze(1) + torch.arange(ADDENDS)
    return digits.unsqueeze(1).expand_as(sums), sums


def fit_temperature(log_p, target):
    """The temperature T in TEMPERATURES at which softmax(log_p / T) has the least mean cross-entropy.

    log_p [..., classes] float64, target [...] int64. The cross-entropy is convex in 1 / T, so its slope is bisected.
    """
    low, high = (1 / temperature for temperature in reversed(TEMPERATURES))
    right = log_p.gather(-1, target.unsqueeze(-1)).mean()
    for _ in range(40):
        middle = (low * high) ** 0.5
        expected = ((middle * log_p).softmax(-1) * log_p).sum(-1).mean()
        low, high = (middle, high) if expected <= right else (low, middle)
    return 1 / (low * high) ** 0.5


def reliability(log_p, target):
    """{"ece", "loss"} of logarithms of probabilities: expected calibration error, a fraction; cross-entropy in nats."""
    confidence, answer = log_p.max(-1)
    error = calibration(confidence.exp().flatten(), (answer == target).flatten())[3]
    return {"ece": error, "loss": -log_p.gather(-1, target.unsqueeze(-1)).mean().item()}


def calibrate(fitted_on, fitted_target, log_p, target):
    """The temperature of a head, fitted on the first two arguments, and its `reliability` on the other two without it
    ("before") and with it ("after")."""
    temperature = fit_temperature(fitted_on, fitted_target)
    after = reliability((log_p / temperature).log_softmax(-1), target)
    return {"temperature": temperature, "before": reliability(log_p, target), "after": after}


# ---------------------------------------------------------------------------------------------------------------------
# Errors


def misread(models, outputs, digits):
    """The misread images, as dicts: index, label, answer, its probability, and how many of the ten pairs are wrong."""
    probabilities = mean_probabilities(models, outputs)[0].mean(dim=1)
    confidence, answer = probabilities.max(dim=1)
    wrong_pairs = joint_wrong(*answers(models, outputs), digits).sum(dim=1)
    return [
        {
            "index": n,
            "label": int(digits[n]),
            "answer": int(answer[n]),
            "confidence": confidence[n].item(),
            "wrong_pairs": int(wrong_pairs[n]),
        }
        for n in (answer != digits).nonzero().flatten().tolist()
    ]


def joint_wrong(digit_answers, sum_answers, digits):
    """Whether one of the two answers of a pair is wrong, [N, 10] bool."""
    right_digits, right_sums = targets(digits)
    return (digit_answers != right_digits) | (sum_answers != right_sums)


def agreement(digit_answers, sum_answers, digits):
    """How many pairs the heads agree on (sum = digit + addend), rightly or in the "same error"; and those they do not.

    "digit only" and "sum only" are right in one head; in "two errors" both are wrong, and the sum is not that of the
    digit that was read.
    """
    right_digits, right_sums = targets(digits)
    digit_right, sum_right = digit_answers == right_digits, sum_answers == right_sums
    same = sum_answers == digit_answers + torch.arange(ADDENDS)
    kinds = {
        "agree": same,
        "both right": digit_right & sum_right,
        "same error": same & ~digit_right,
        "digit only": digit_right & ~sum_right,
        "sum only": sum_right & ~digit_right,
        "two errors": ~(same | digit_right | sum_right),
    }
    return {kind: int(pairs.sum()) for kind, pairs in kinds.items()}


def accuracies(digit_answers, sum_answers, digits):
    """The three accuracies of `evaluate.score`."""
    scores = score(digit_answers, sum_answers, digits)
    return {name: scores[name] for name in ACCURACIES}


def look_at(models, fitting, testing, judged):
    """Everything about a network, or several as an ensemble, as plain values.

    fitting and testing are (list of `pair_outputs`, digits [N]) of the images for the temperatures and of the test
    images. judged: indices of the test images that the second accuracies leave out; without any, those are None.
    """
    outputs, digits = testing
    fitted_on = zip(log_probabilities(models, fitting[0]), targets(fitting[1]), strict=True)
    tested_on = zip(log_probabilities(models, outputs), targets(digits), strict=True)
    heads = zip(HEADS, fitted_on, tested_on, strict=True)
    said = answers(models, outputs)
    kept = torch.ones(len(digits), dtype=torch.bool)
    kept[list(judged)] = False
    return {
        "calibration": {head: calibrate(*fitted, *tested) for head, fitted, tested in heads},
        "scores": accuracies(*said, digits),
        "scores_without": accuracies(*(values[kept] for values in (*said, digits))) if judged else None,
        "agreement": agreement(*said, digits),
        "misread": misread(models, outputs, digits),
    }


def look_at_all(loaded, ensemble, training, test, judged, device):
    """The list of the networks, and with `ensemble` of all of them as one, for the record; see `load_all`.

    training and test are (images, digits); for judged see `look_at`.
    """
    # Runs that hold out fewer images hold out the first of those that the others do.
    held = split_indices(len(training[0]), max(size or VAL_SIZE for *_, size in loaded))[1]
    models = [model.to(device, memory_format=torch.channels_last) for _, model, _ in loaded]
    held_outputs = [pair_outputs(model, training[0][held], device=device) for model in models]
    outputs = [pair_outputs(model, test[0], device=device) for model in models]

    groups = [(name, [number]) for number, (name, *_) in enumerate(loaded)]
    if ensemble:
        groups.append(("ensemble", list(range(len(loaded)))))
    networks = []
    for name, members in groups:
        sizes = [loaded[number][2] for number in members]
        first = held[: min(size or VAL_SIZE for size in sizes)]
        fitting = [[part[: len(first)] for part in held_outputs[number]] for number in members], training[1][first]
        testing = [outputs[number] for number in members], test[1]
        row = {"name": name, "ensemble": len(members) > 1, "fitted_on": len(first), "seen": 0 in sizes}
        networks.append(row | look_at([models[number] for number in members], fitting, testing, judged))
    return networks


# ---------------------------------------------------------------------------------------------------------------------
# The command


def load_all(paths):
    """([(name, network, images held out)], data set) of these checkpoints; 0 held out: it was trained on all.

    Raises UserError for checkpoints of several data sets, besides what `load_networks` raises.
    """
    loaded = load_networks(paths)
    datasets = {state["dataset"] for _, state in loaded}
    if len(datasets) > 1:
        raise cli.UserError(f"the checkpoints were trained on {' and '.join(sorted(datasets))}; give those of one")
    sizes = [state["args"]["val_size"] for _, state in loaded]
    for path, size in zip(paths, sizes, strict=True):
        if size == 0:
            cli.warn(f"{path} was trained with --val-size 0: its temperatures are fitted on images that it has seen")
    models = [model for model, _ in loaded]
    return list(zip(cli.run_names(paths), models, sizes, strict=True)), datasets.pop()


def main(argv=None):
    args = make_parser().parse_args(argv)
    paths = [*args.files, *(args.ckpt or [])] or ["best.pt"]
    if args.ensemble and len(paths) == 1:
        raise cli.UserError("--ensemble needs two checkpoints or more")
    cli.refuse_overwriting(paths, json=args.json, figure=figures.theme_files(args.figure))
    if args.figure:
        figures.check_format(args.figure)

    if args.ensemble and "ensemble" in cli.run_names(paths):
        raise cli.UserError("a checkpoint has the name ensemble; rename it")
    device = choose_device(args.device)
    loaded, dataset = load_all(paths)
    training, test = (load_digits(dataset, args.data_dir, train=part)[:2] for part in (True, False))
    judged = JUDGED_WRONG if dataset == "mnist" else ()
    networks = look_at_all(loaded, args.ensemble, training, test, judged, device)
    record = environment(device) | {"data set": f"{dataset} test: {len(test[1]):,d} images, {BINS} bins"}
    record |= {"judged_wrong": list(judged), "networks": networks}

    parts = errors_tables(record)
    if not args.ensemble:
        del parts["errors-ensemble"]
    print("\n\n".join(parts.values()))
    if args.json:
        write_atomically(args.json, json.dumps(record, indent=1) + "\n")
    if args.figure:
        figures.save_themes(lambda theme: draw_misread(record, test[0], theme), args.figure)


if __name__ == "__main__":
    sys.exit(cli.run_script(main))
