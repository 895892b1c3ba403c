"""Compare ways to answer from two heads, several views and several networks.

    python -m studies.combine --validation --ckpt logs/base-s*-last.pt
    python -m studies.combine --ckpt a-best.pt b-best.pt --json FILE

Answers of "each head" are its most probable class, as in evaluate.py.
"Consistent" answers are a digit and its sum with the addend: those for which
the product of the two heads' probabilities is highest. "5 views" are the image
and the image moved by one pixel to each side. Of several views or networks,
the mean is taken of the probabilities p, or of log p. Each network is scored
by itself, and all of them as an ensemble. Choose with --validation, and leave
the test set for the end.
"""

import itertools
import json
import statistics
import sys
import textwrap

from support import cli
from support.flags import DATASETS


def make_parser():
    parser = cli.Parser(__doc__, " [FILE ...]")
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help="the same as --ckpt")
    add("--ckpt", nargs="+", metavar="FILE", help="checkpoints of trained networks (default: best.pt)")
    add("--validation", action="store_true", help="score what the training held out, not the test set")
    add("--dataset", choices=DATASETS, help="instead of the one that the checkpoints were trained on")
    add("--data-dir", default="data", metavar="FOLDER", help="as train.py takes it")
    add("--device", choices=cli.DEVICES, default="auto", help="as train.py takes it")
    add("--json", type=cli.output_file, metavar="FILE", help="write the figures here too")
    return parser


if __name__ == "__main__":
    cli.begin_script(make_parser)  # answers --help and a mistyped flag before PyTorch is imported, which takes seconds

import torch
import torch.nn.functional as F

from data import ADDENDS
from evaluate import consistent_answers, pair_outputs, score
from studies.errors import joint_wrong
from studies.markdown import mean_sd, table
from studies.robustness import load_images, load_networks
from studies.search import SCORES, verdict
from support.device import choose_device, count
from support.files import write_atomically
from support.runlog import environment

VIEWS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # pixels to the right and down
MEANS, ANSWERS = ("p", "log p"), ("each head", "consistent")

# ---------------------------------------------------------------------------------------------------------------------
# Answers


def moved(images, right, down):
    """Images [N, 1, 28, 28] moved by these numbers of pixels, black where nothing comes in."""
    return F.pad(images, (right, -right, down, -down))


def probabilities_of(model, images, device):
    """The network's probabilities of each view: a list of (digit [N, 10, 10], sum [N, 10, 19])."""
    found = []
    for right, down in VIEWS:
        digit_logits, sum_logits = pair_outputs(model, moved(images, right, down), device=device)
        found.append((model.digit_probabilities(digit_logits), model.sum_probabilities(sum_logits)))
    return found


def mean(parts, kind):
    """The mean of tensors of probabilities, all of one shape; that of their logarithms does not sum to 1."""
    if kind == "p":
        return sum(parts) / len(parts)
    return (sum(part.clamp_min(torch.finfo(part.dtype).tiny).log() for part in parts) / len(parts)).exp()


def answers_of(networks, views, kind, answers):
    """(digit_predictions, sum_predictions) [N, 10] of an ensemble; networks: a list of `probabilities_of`."""
    parts = [view for network in networks for view in network[:views]]
    digit_probabilities, sum_probabilities = (mean(part, kind) for part in zip(*parts, strict=True))
    if answers == "consistent":
        return consistent_answers(digit_probabilities, sum_probabilities, torch.arange(ADDENDS))
    return digit_probabilities.argmax(-1), sum_probabilities.argmax(-1)


def score_ways(ensembles, digits):
    """A row for each way: "networks", "views", "mean", "answers", and lists of SCORES in %, a value for each ensemble.

    ensembles: lists of as many networks each, as `answers_of` takes them. "difference" is that of the joint accuracy,
    as a mean over the ensembles, to the first way, and "half" half of its 95 % interval over the images.
    """
    rows, first = [], None
    for views, kind, answers in itertools.product((1, len(VIEWS)), MEANS, ANSWERS):
        size = len(ensembles[0])
        if size * views == 1 and kind != "p":
            continue  # nothing to take the mean of
        said = [answers_of(networks, views, kind, answers) for networks in ensembles]
        scores = [score(*pair, digits) for pair in said]
        wrong = torch.stack([joint_wrong(*pair, digits).double() for pair in said]).mean((0, 2))  # of each image
        first = wrong if first is None else first
        gains = 100 * (first - wrong)
        way = {"networks": size, "views": views, "mean": kind if size * views > 1 else "", "answers": answers}
        way |= {name: [100 * each[name] for each in scores] for name in SCORES}
        rows.append(way | {"difference": gains.mean().item(), "half": 1.96 * gains.std().item() / len(gains) ** 0.5})
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# The table


def combine_tables(record):
    """{"combine": Markdown} of a record: the machine, then the ways, of one network and of the ensemble."""
    lines, size = [], None
    for row in record["rows"]:
        difference = f"{row['difference']:+.3f} ± {row['half']:.3f}", verdict(row["difference"], row["half"])
        difference, size = ("", "") if row["networks"] != size else difference, row["networks"]  # the first way
        digit, agreement = (f"{statistics.mean(row[name]):.3f}" for name in ("digit_accuracy", "head_agreement"))
        way = [str(row["networks"]), row["answers"], str(row["views"]), row["mean"]]
        lines.append([*way, digit, mean_sd(row["joint_accuracy"], 3), *difference, agreement])
    words = (
        "{device}; {versions}; commit {commit}; {data set}. Of {number}, each by itself, mean ± standard deviation; "
        "differences with 95 % interval over the images."
    ).format(**record, number=count(len(record["networks"]), "network"))
    headings = ["networks", "answers", "views", "mean of", "digit %", "joint %", "difference", "", "agree %"]
    return {"combine": f"{textwrap.fill(words, 118)}\n\n{table(headings, lines)}"}


def consistent_rows(record, name):
    """{"rows": [a row for the networks of a record by themselves, and one for their ensemble]}: joint accuracy and
    agreement with the answers of each head, joint accuracy with consistent ones, their difference, and with those of
    5 views."""
    rows = []
    for size in (1, len(record["networks"])):
        ways = [row for row in record["rows"] if row["networks"] == size and row["mean"] in ("", "p")]
        ways = {(row["answers"], row["views"]): row for row in ways}
        heads, one, five = (ways[way] for way in (("each head", 1), ("consistent", 1), ("consistent", len(VIEWS))))
        agreement = f"{statistics.mean(heads['head_agreement']):.3f}"
        joint = [mean_sd(way["joint_accuracy"], 3) for way in (heads, one, five)]
        difference = f"{one['difference']:+.3f} ± {one['half']:.3f}"
        rows.append([name if size == 1 else f"{size} {name}", joint[0], agreement, joint[1], difference, joint[2]])
    return {"rows": rows}


def main(argv=None):
    args = make_parser().parse_args(argv)
    paths = [*args.files, *(args.ckpt or [])] or ["best.pt"]
    cli.refuse_overwriting(paths, json=args.json)
    device = choose_device(args.device)
    loaded = load_networks(paths)
    images, digits, data_set = load_images(args, loaded)
    models = [model.to(device, memory_format=torch.channels_last) for model, _ in loaded]
    found = [probabilities_of(model, images, device) for model in models]
    rows = score_ways([[network] for network in found], digits)
    if len(found) > 1:
        rows += score_ways([found], digits)
    networks = [{"name": name} for name in cli.run_names(paths)]
    record = environment(device) | {"data set": data_set, "networks": networks, "rows": rows}
    print(combine_tables(record)["combine"])
    if args.json:
        write_atomically(args.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(cli.run_script(main))
