"""Draw the figures of the pages from logs/records/ and logs/tiny.pt.

    python -m studies.figures

Each rebuilt design beside its published log goes to studies/DESIGN.svg, the
misread images to studies/errors.svg, the curves of robustness to
studies/robustness.svg, those of plot.py to docs/figures/; those that a page
shows are drawn for dark pages too.

The published log is a line with dots, where there is one; the seeds of ours
are thin lines in a band from the lowest to the highest.
"""

import json
import sys
from functools import partial
from pathlib import Path

from support import cli

ROOT = Path(__file__).resolve().parent.parent


def make_parser():
    parser = cli.Parser(__doc__)
    parser.add_argument("--out", default=str(ROOT), metavar="FOLDER", help="where studies/ and docs/figures/ are")
    parser.add_argument("--data-dir", default=str(ROOT / "data"), metavar="FOLDER", help="as train.py takes it")
    return parser


if __name__ == "__main__":
    cli.begin_script(make_parser)  # answers --help and a mistyped flag before PyTorch is imported, which takes seconds

import plot
import support.figures
from data import load_digits
from studies import robustness
from studies.error_tables import draw_misread
from studies.likeness import published_figures, read_replay
from studies.tables import reading
from support.device import count
from support.files import read_text

RECORDS = ROOT / "logs" / "records"
SHOWN = ("curves-base-tiny", *(f"tiny-{name}" for name in ("samples", "errors", "addition", "architecture")))
PANELS = {  # quantity: label of its axis
    "narrow-trunk": {
        "train_digit_percent": "digits right in training, %",
        "train_sum_percent": "sums right in training, %",
        "epoch_loss": "loss, summed over 469 batches",
    },
    "shared-softmax-lenet": {
        "train_digits_right": "digits right of 60,000",
        "train_sums_right": "sums right of 60,000",
        "epoch_loss": "loss, summed over 938 batches",
    },
    "argmax-regression": {
        "train_digit_percent": "digits right, %",
        "train_sum_percent": "sums right, %",
        "epoch_loss": "loss, summed over 1,875 batches",
    },
    "average-pooling": {
        "learning_rate": "learning rate",
        "val_loss": "validation loss",
        "val_total_accuracy": "product of the accuracies",
    },
    "two-branch-lenet": {
        "test_digit_loss_total": "digit loss, summed over the test",
        "test_sum_loss_total": "sum loss, summed over the test",
        "last_batch_train_loss": "training loss of the last batch",
    },
}
PANELS["two-softmax-lenet"] = PANELS["shared-softmax-lenet"]


def draw(design, runs):
    """The figure of one design; call it within support.figures.style("light")."""
    _, rebuilt, published, *_ = support.figures.COLOURS["light"]
    figure, panels = support.figures.new_figure(2.7, 1, 3)
    logs = published_figures(design)
    for axes, (quantity, label) in zip(panels, PANELS[design].items(), strict=True):
        for log in logs:
            epochs = [epoch_number(epoch) for epoch in log.get(quantity, {})]
            axes.plot(epochs, list(log.get(quantity, {}).values()), "o-", color=published, markersize=2.5, lw=1)
        curves = [run[quantity] for run in runs]
        values = [[curve[epoch] for curve in curves] for epoch in curves[0]]
        epochs = [epoch_number(epoch) for epoch in curves[0]]
        axes.fill_between(epochs, [*map(min, values)], [*map(max, values)], color=rebuilt, alpha=0.25, lw=0)
        for curve in curves:
            axes.plot(epochs, list(curve.values()), color=rebuilt, lw=0.8)
        axes.set_title(label, fontsize=9, fontweight="normal")
        axes.set_xlabel("step" if quantity == "learning_rate" else "epoch")
        if quantity == "epoch_loss" and max(map(max, values)) > 5 * min(map(min, values)):
            lines = [list(log[quantity].values()) for log in (*logs, *runs) if quantity in log]
            support.figures.log_axis(axes, [(line, line, line) for line in lines])
        axes.grid(alpha=0.3)
    handles, labels = [axes.plot([], [], color=rebuilt)[0]], [f"rebuilt, {count(len(runs), 'seed')}"]
    if logs:
        handles.insert(0, axes.plot([], [], "o-", color=published, markersize=2.5)[0])
        labels.insert(0, "published" + " (two logs)" * (len(logs) > 1))
    else:
        labels[0] += "; there is no published log"
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


def epoch_number(text):
    """The number in "3" or in "step 49"."""
    return int(text.split()[-1])


def draw_errors(data_dir, record, theme):
    """The figure of a record of studies/errors.py, of MNIST."""
    return draw_misread(record, load_digits("mnist", data_dir, train=False)[0], theme)


def main(argv=None):
    args = make_parser().parse_args(argv)
    support.figures.require_matplotlib()
    for design in PANELS:
        paths = sorted(RECORDS.glob(f"{design}-published-s*.csv"))
        if paths:
            (Path(args.out) / "studies").mkdir(parents=True, exist_ok=True)
            with reading(" or ".join(map(str, paths))), support.figures.style("light"):
                runs = [read_replay(path) for path in paths]
                print(*support.figures.save(draw(design, runs), Path(args.out) / "studies" / design, ["svg"]))
    errors = "errors", RECORDS / "errors-large-cpu.json", partial(draw_errors, args.data_dir)
    for name, record, draw_record in (errors, ("robustness", RECORDS / "robustness-cpu.json", robustness.draw)):
        if record.exists():
            with reading(record):
                draw_theme = partial(draw_record, json.loads(read_text(record)))
                support.figures.save_themes(draw_theme, Path(args.out) / "studies" / f"{name}.svg")
    runs = [str(path) for size in ("base", "tiny") for path in sorted(RECORDS.glob(f"{size}-s*.csv"))]
    place = ["--out", str(Path(args.out) / "docs" / "figures"), "--format", "svg", "--data-dir", args.data_dir]
    words = [str(ROOT / "logs" / "tiny.pt"), *runs, *place]
    plot.write_figures(plot.make_parser().parse_args(words))
    plot.write_figures(plot.make_parser().parse_args([*words, "--dark"]), only=SHOWN)


if __name__ == "__main__":
    sys.exit(cli.run_script(main))
