"""Score checkpoints on corrupted images: 13 kinds, each at the strengths 1 to 5.

    python -m studies.robustness --ckpt best.pt
    python -m studies.robustness --ckpt a-best.pt b-best.pt --json FILE
    python -m studies.robustness --quick    few images: shows only that it runs

Each checkpoint is scored by itself on the same corrupted test images, every
image with every addend. A checkpoint of the default network takes a minute on
a core. Files whose names differ in the seed alone, as base-s0-best.pt and
base-s1-best.pt, are averaged in the tables. To choose among networks, score
them with --validation and leave the test set for the end.

The corruptions are those of support/corruptions.py.
"""

import json
import re
import statistics
import sys
import textwrap
from functools import partial
from pathlib import Path

from support import cli
from support.flags import DATASETS


def make_parser():
    parser = cli.Parser(__doc__, " [FILE ...]")
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help="the same as --ckpt")
    add("--ckpt", nargs="+", metavar="FILE", help="checkpoints, each scored by itself (default: best.pt)")
    add("--quick", action="store_true", help="few images: shows only that it runs")
    add("--validation", action="store_true", help="score what the training held out, not the test set")
    add("--dataset", choices=DATASETS, help="instead of the one that the checkpoints were trained on")
    add("--data-dir", default="data", metavar="FOLDER", help="as train.py takes it")
    add("--device", choices=cli.DEVICES, default="auto", help="as train.py takes it")
    add("--json", type=cli.output_file, metavar="FILE", help="write the figures here too")
    add("--figure", type=cli.output_file, metavar="FILE",
        help="draw the curves, .svg or .png, with FILE-dark for dark pages")  # fmt: skip
    return parser


if __name__ == "__main__":
    cli.begin_script(make_parser)  # answers --help and a mistyped flag before PyTorch is imported, which takes seconds

import torch
from tqdm import tqdm

from data import generator_for, load_digits, split_indices
from evaluate import answers, load_model, pair_outputs, score
from studies.markdown import mean_sd, table
from support import figures
from support.checkpoint import check, number, whole
from support.corruptions import KINDS, STRENGTHS, corrupt
from support.curves import group_of
from support.device import choose_device, count
from support.files import write_atomically
from support.runlog import environment

QUICK_IMAGES = 100
HEADS = ("digit", "sum", "joint")
CLEAN, MEAN, MIDDLE = "clean", "mean of all kinds", 3


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def score_all(models, images, digits, device):
    """For each of the models the rows {"kind", "strength", "digit", "sum", "joint"}, accuracies in %.

    images [N, 1, 28, 28] uint8, digits [N]. The first row is of the clean images, of strength 0; the last are the means
    over the kinds at each strength. The corrupted images are the same for every model and every call.
    """
    rows = [[] for _ in models]
    cases = [(CLEAN, 0), *((kind, strength) for kind in KINDS for strength in STRENGTHS)]
    for kind, strength in tqdm(cases, "scoring", unit="corruption", delay=2, leave=False, disable=None):
        shown = images
        if kind != CLEAN:
            shown = corrupt(images, kind, strength, generator_for(f"robustness {kind}", 0, strength))
        for model, mine in zip(models, rows, strict=True):
            scores = score(*answers([model], [pair_outputs(model, shown, device=device)]), digits)
            mine.append({"kind": kind, "strength": strength} | {h: 100 * scores[f"{h}_accuracy"] for h in HEADS})
    for mine in rows:
        for strength in STRENGTHS:
            alike = [row for row in mine if row["strength"] == strength]
            means = {head: statistics.mean(row[head] for row in alike) for head in HEADS}
            mine.append({"kind": MEAN, "strength": strength} | means)
    return rows


def grouped(record):
    """{(name, share): [{(kind, strength): row} of each run]}: the runs of a record, those of other seeds together.

    The name is that of the file without the seed; the share is that of corrupted images in the training.
    """
    groups = {}
    for network in record["networks"]:
        name, last = re.fullmatch(r"(.*?)(?:-best|(-last))?(?:\.pt)?", network["checkpoint"]).groups()
        name = group_of(f"{name}.pt") + (", last epoch" if last else "")
        rows = {(row["kind"], row["strength"]): row for row in network["rows"]}
        groups.setdefault((name, network["corrupted"]), []).append(rows)
    return groups


def label(name, share):
    """A group of `grouped` in words."""
    return f"{name}, share {share:g}" if share else name


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def robustness_tables(record):
    """{name: Markdown} of a record: "means", over the kinds, side by side; "robustness", with each group's table."""
    groups = grouped(record)
    head = "{device}; {versions}; commit {commit}; {data set}. Joint accuracy in %, mean ± standard deviation."
    lines = []
    for strength in (0, *STRENGTHS):
        case = (MEAN, strength) if strength else (CLEAN, 0)
        cells = [mean_sd([run[case]["joint"] for run in runs]) for runs in groups.values()]
        lines.append([f"strength {strength}" if strength else CLEAN, *cells])
    names, shares = zip(*groups, strict=True)
    if any(shares):
        lines.insert(0, ["share corrupted", *(f"{share:g}" for share in shares)])
    headings = [f"{name} ({count(len(runs), 'run')})" for name, runs in zip(names, groups.values(), strict=True)]
    means = [textwrap.fill(head.format(**record), 118), table([MEAN, *headings], lines)]
    parts = [*means]
    for group, runs in groups.items():
        parts += [
            f"{label(*group)}, joint accuracy in % at the strengths 1 to 5, and both answers at {MIDDLE}:",
            detail(runs),
        ]
    return {"means": "\n\n".join(means), "robustness": "\n\n".join(parts)}


def detail(runs):
    """The table of one group: all kinds at all strengths, as means over the runs."""

    def mean(kind, strength, head):
        return f"{statistics.mean(run[kind, strength][head] for run in runs):.2f}"

    lines = [[CLEAN, mean(CLEAN, 0, "joint"), *[""] * 4, mean(CLEAN, 0, "digit"), mean(CLEAN, 0, "sum")]]
    for kind in (*KINDS, MEAN):
        joint = [mean(kind, strength, "joint") for strength in STRENGTHS]
        lines.append([kind, *joint, mean(kind, MIDDLE, "digit"), mean(kind, MIDDLE, "sum")])
    return table(["corruption", *map(str, STRENGTHS), f"digit, {MIDDLE}", f"sum, {MIDDLE}"], lines)


# ---------------------------------------------------------------------------------------------------------------------
# Figure


def draw(record, theme):
    """Joint accuracy over the strength, a panel for each kind: the mean of a group's runs in a band of all of them."""
    figure, axes = figures.new_figure(6.6, 3, 5, sharex=True, sharey=True)
    groups = grouped(record)
    for panel, kind in zip(axes, (*KINDS, MEAN), strict=False):
        for n, runs in enumerate(groups.values()):
            colour, marker = figures.look(theme, n % len(figures.MARKERS))
            cases = [(CLEAN, 0), *((kind, strength) for strength in STRENGTHS)]
            values = [[run[case]["joint"] for run in runs] for case in cases]
            x = [strength for _, strength in cases]
            panel.fill_between(x, [*map(min, values)], [*map(max, values)], color=colour, alpha=0.25, linewidth=0)
            panel.plot(x, [*map(statistics.mean, values)], color=colour, marker=marker)
        panel.set_title(kind)
        panel.set(ylim=(0, 103), xticks=range(6))
        panel.grid(linewidth=0.5)
    for n, (group, runs) in enumerate(groups.items()):
        colour, marker = figures.look(theme, n % len(figures.MARKERS))
        text = textwrap.fill(f"{label(*group)}, {count(len(runs), 'run')}", 20)
        axes[-1].plot([], [], color=colour, marker=marker, label=text)
    axes[-1].set_axis_off()
    axes[-6].tick_params(labelbottom=True)  # the panel above the key
    axes[-1].legend(loc="center left", frameon=False)
    figure.supxlabel("strength of the corruption; 0: clean images", fontsize="medium")
    figure.supylabel("joint accuracy, %", fontsize="medium")
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# The command


def load_networks(paths):
    """[(model, state)] of the checkpoints, as `load_model` returns each. Raises UserError for a damaged argument and
    for files of the same name."""
    cli.run_names(paths)
    loaded = [load_model(path) for path in paths]
    for path, (_, state) in zip(paths, loaded, strict=True):
        share, held = state["args"].get("augment_corruptions", 0.0), state["args"].get("val_size")
        check(number(share) and share <= 1 and whole(held, 0), path, "args")
    return loaded


def load_images(args, loaded, limit=None):
    """(images, digits, the data set in words) to score the networks on: those of the test, or with args.validation
    those that all runs held out; only the first `limit`. Raises UserError."""
    datasets = sorted({state["dataset"] for _, state in loaded})
    if args.dataset is None and len(datasets) > 1:
        raise cli.UserError(f"the checkpoints were trained on {' and '.join(datasets)}; choose with --dataset")
    size = min(state["args"]["val_size"] for _, state in loaded)  # of one order of the images: held out by all
    if args.validation and not size:
        raise cli.UserError("--validation: a checkpoint was trained on all images; score it on the test set")
    images, digits, dataset = load_digits(args.dataset or datasets[0], args.data_dir, train=args.validation)
    if args.validation:
        if size >= len(images):
            raise cli.UserError(f"--validation: {size} images held out, and {dataset} has {len(images)}")
        _, held = split_indices(len(images), size)
        images, digits = images[held], digits[held]
    images, digits = images[:limit], digits[:limit]
    return images, digits, f"{dataset}: {len(images):,d} {'validation' if args.validation else 'test'} images"


def main(argv=None):
    args = make_parser().parse_args(argv)
    paths = [*args.files, *(args.ckpt or [])] or ["best.pt"]
    cli.refuse_overwriting(paths, json=args.json, figure=figures.theme_files(args.figure))
    if args.figure:
        figures.check_format(args.figure)
    device = choose_device(args.device)
    loaded = load_networks(paths)
    images, digits, data_set = load_images(args, loaded, QUICK_IMAGES if args.quick else None)
    models = [model.to(device, memory_format=torch.channels_last) for model, _ in loaded]
    networks = [
        {
            "checkpoint": Path(path).name,
            "model": state["args"]["model"],
            "corrupted": state["args"].get("augment_corruptions", 0.0),  # checkpoints from before the flag lack it
            "rows": rows,
        }
        for path, (_, state), rows in zip(paths, loaded, score_all(models, images, digits, device), strict=True)
    ]
    record = environment(device) | {"data set": data_set, "networks": networks}
    print(robustness_tables(record)["robustness"])
    if args.json:
        write_atomically(args.json, json.dumps(record, indent=1) + "\n")
    if args.figure:
        figures.save_themes(partial(draw, record), args.figure)


if __name__ == "__main__":
    sys.exit(cli.run_script(main))
