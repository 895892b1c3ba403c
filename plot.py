"""Draw the runs, the answers and the network, as PNG and SVG.

    python plot.py .
    python plot.py logs/base-s0.csv logs/base-s1.csv logs/tiny-s0.csv
    python plot.py best.pt --out figures --dark
    python plot.py logs/base-s0-find-lr.csv

From the CSV files of runs: losses, accuracies, learning rate and seconds; runs
that differ in the seed alone are one curve, with a band of one standard
deviation. From a checkpoint: samples, errors, confusion matrices, the scores
by digit and addend, reliability, the sum over the addends, the architecture.
From the CSV file of `train.py --find-lr`: the sweep. From a folder: its CSV
files and its best.pt. The last lines name the files that were written.
"""

import re
import sys
from functools import partial
from pathlib import Path

from support import cli, flags

FORMATS = ("png", "svg")


def make_parser():
    parser = cli.Parser(__doc__, " FILE|FOLDER ...")
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE|FOLDER", help="CSV files, checkpoints, or folders of runs")
    add("--out", default="figures", metavar="FOLDER", help="where the figures go; those of the same name are replaced")
    add("--format", nargs="+", choices=FORMATS, default=list(FORMATS), help="of the files")
    add("--dark", action="store_true", help="light on dark; the names then end in -dark")
    add("--dataset", choices=flags.DATASETS, help="instead of the one that the checkpoint was trained on")
    add("--data-dir", default="data", metavar="FOLDER", help="where the data sets are")
    add("--device", choices=cli.DEVICES, default="auto", help="auto: CUDA, else MPS, else the CPU")
    return parser


if __name__ == "__main__":
    cli.begin_script(make_parser)  # answers --help and a mistyped flag before PyTorch is imported, which takes seconds

import torch
from tqdm import tqdm

from data import ADDENDS, DIGITS, SUMS, load_digits
from evaluate import load_model, mean_probabilities, pair_outputs, score
from support import figures
from support.architecture import draw_architecture
from support.calibration import BINS, calibration
from support.curves import read_files
from support.device import choose_device
from support.run_figures import draw_runs, draw_sweep

MOST = len(figures.MARKERS)  # groups of runs in a figure


# ---------------------------------------------------------------------------------------------------------------------
# Answers of a network


class Answered:
    """A network's answers to the test set; `digit` and `sum` are probabilities, [N, 10, 10] and [N, 10, 19]."""

    def __init__(self, path, args):
        device = choose_device(args.device)
        self.model, state = load_model(path)
        self.images, self.digits, self.dataset = load_digits(args.dataset or state["dataset"], args.data_dir, False)
        self.name = state["args"]["model"]
        outputs = pair_outputs(self.model.to(device), self.images, device=device)
        self.model.cpu()
        self.digit, self.sum = mean_probabilities([self.model], [outputs])
        self.digit_answers, self.sum_answers = self.digit.argmax(-1), self.sum.argmax(-1)
        self.sums = self.digits.unsqueeze(1) + torch.arange(ADDENDS)
        self.right = (self.digit_answers == self.digits.unsqueeze(1)) & (self.sum_answers == self.sums)


def draw_samples(answered, theme):
    """25 test images with an addend each: the first with right answers, and 5 with wrong ones between them.

    Its text is large, as a README shows it at half its size.
    """
    wrong = (~answered.right).nonzero()
    wrong = wrong[torch.linspace(0, len(wrong) - 1, min(5, len(wrong))).long()] if len(wrong) else wrong
    images = [n for n in range(min(1000, len(answered.images))) if n not in wrong[:, 0].tolist()]
    first = [(n, n * 7 % ADDENDS) for n in images if answered.right[n, n * 7 % ADDENDS]]
    chosen = first[: 25 - len(wrong)]
    for place, pair in enumerate(wrong.tolist()):
        chosen.insert(5 * place + 2 * place % 5, tuple(pair))
    figure, axes = figures.new_figure(11, 5, 5)
    _, blue, orange, *_ = figures.COLOURS[theme]
    for panel, (n, addend) in zip(axes, chosen, strict=False):
        right = bool(answered.right[n, addend])
        figures.show_image(panel, answered.images[n], theme, blue if right else orange, not right)
        said = f"{answered.digit_answers[n, addend]}, {answered.sum_answers[n, addend]}"
        mark, colour = ("✓", blue) if right else ("✗", orange)
        panel.set_title(f"{answered.digits[n]} + {addend} → {said} {mark}", loc="center", color=colour, fontsize=13)
        if not right:
            panel.set_xlabel(f"right: {answered.digits[n]}, {answered.sums[n, addend]}", fontsize=13)
    for panel in axes[len(chosen) :]:
        panel.set_axis_off()
    figure.suptitle(f"image + number → answers of {answered.name} ({answered.dataset} test)\n"
                    f"{len(chosen) - len(wrong)} right (✓, solid frame) and {len(wrong)} wrong pairs (✗, dashed) were "
                    f"chosen;\njoint accuracy {100 * answered.right.double().mean():.2f} %", fontsize=15)  # fmt: skip
    return figure


def draw_errors(answered, theme):
    """The images misread by the mean of their probabilities over the addends, those with the surest answers first."""
    digit = answered.digit.mean(dim=1)
    confidence, read = digit.max(dim=1)
    wrong = (read != answered.digits).nonzero().flatten()
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][: figures.SHEET]
    entries = [
        (answered.images[n], f"{answered.digits[n]} read as {read[n]}", f"{100 * confidence[n]:.1f} % sure, no. {n}")
        for n in worst.tolist()
    ]
    shown = f"the {len(worst)} most confident of {len(wrong)}" if len(wrong) > len(worst) else f"all {len(wrong)}"
    title = f"misread digits of {answered.name}, {shown} among {len(answered.digits):,d} {answered.dataset} test images"
    return figures.contact_sheet(entries, theme, f"{title}\nprobability of the digit read, mean over the ten addends")


def draw_confusion(answered, theme):
    """Confusion matrices of digit and sum; the right answers are left out of the colours."""
    figure, axes = figures.new_figure(10.5, 2, 1, height_ratios=(1, 1.25))
    for panel, word, right, read, size in (
        (axes[0], "digit", answered.digits.unsqueeze(1).expand(-1, ADDENDS), answered.digit_answers, DIGITS),
        (axes[1], "sum", answered.sums, answered.sum_answers, SUMS),
    ):
        cells = torch.bincount((right * size + read).flatten(), minlength=size**2).view(size, size)
        text = [[f"{value:,d}" if value else "" for value in row] for row in cells.tolist()]
        off = cells.double().fill_diagonal_(0)
        figures.heat_map(panel, off.numpy(), theme, "wrong pairs", max(1.0, off.max().item()), text)
        panel.set(xlabel=f"{word} answered", ylabel=f"right {word}")
        for text in panel.texts if word == "sum" else ():
            text.set_fontsize(6.5)
        right_pairs = int(cells.trace())
        panel.set_title(f"{word}: {int(cells.sum()) - right_pairs:,d} of {int(cells.sum()):,d} pairs wrong")
    figure.suptitle(f"{answered.name}, {answered.dataset} test; the diagonal (right) is counted but not coloured")
    return figure


def draw_grid(answered, theme):
    """Joint errors by digit and addend."""
    grid = score(answered.digit_answers, answered.sum_answers, answered.digits)["joint_accuracy_grid"]
    wrong = [[float("nan") if cell is None else 100 * (1 - cell) for cell in row] for row in grid]
    figure, (panel,) = figures.new_figure(5.4)
    text = [["–" if cell is None else f"{100 * cell:.2f}" for cell in row] for row in grid]
    high = max([cell for row in wrong for cell in row if cell == cell] + [0.01])
    figures.heat_map(panel, wrong, theme, "pairs with a wrong answer, %", high, text)
    panel.set(xlabel="addend", ylabel="digit")
    panel.set_title(f"{answered.name}: joint accuracy in % by digit and addend ({answered.dataset} test)")
    return figure


def draw_reliability(answered, theme):
    """Accuracy over confidence of both heads, and where the confidences lie."""
    figure, axes = figures.new_figure(6.4, 2, 2, height_ratios=(2.4, 1), sharex="col")
    heads = (
        ("digit", answered.digit, answered.digit_answers == answered.digits.unsqueeze(1)),
        ("sum", answered.sum, answered.sum_answers == answered.sums),
    )
    for number, (word, probabilities, right) in enumerate(heads):
        colour, marker = figures.COLOURS[theme][number + 1], figures.MARKERS[number]
        confidence, accuracy, share, error = calibration(probabilities.max(-1).values.flatten(), right.flatten())
        panel, below = axes[number], axes[number + 2]
        panel.plot([0, 100], [0, 100], color=figures.GROUNDS[theme][1], linestyle=":", label="calibrated")
        panel.plot(100 * confidence, 100 * accuracy, color=colour, marker=marker, label=f"{word} head")
        panel.set_title(f"{word}: expected calibration error {100 * error:.2f} %")
        panel.set(xlim=(0, 102), ylim=(0, 102), ylabel="pairs right, %")
        panel.legend(loc="upper left")
        below.bar((100 * confidence).tolist(), (100 * share).tolist(), width=100 / BINS / 2, color=colour)
        below.set(yscale="log", ylabel="share of pairs, %", xlabel="confidence, %: probability of the answer")
        for part in (panel, below):
            part.grid(linewidth=0.5)
            part.set_axisbelow(True)
    pairs = len(answered.digits) * ADDENDS
    figure.suptitle(f"reliability of {answered.name} on {pairs:,d} {answered.dataset} test pairs")
    return figure


def draw_addition(answered, theme):
    """The sum head as the addend runs from 0 to 9: for the first image of a 7, and for the one whose digit
    is least sure."""
    confidence = answered.digit.mean(dim=1).max(dim=1).values
    sevens = (answered.digits == 7).nonzero().flatten().tolist()
    chosen = [*sevens[:1], int(confidence.argmin())]
    figure, axes = figures.new_figure(3.5 * len(chosen), len(chosen), 2, width_ratios=(1, 3.2))
    for row, n in enumerate(chosen):
        picture, panel = axes[2 * row], axes[2 * row + 1]
        figures.show_image(picture, answered.images[n], theme, figures.GROUNDS[theme][2])
        digit = answered.digit[n].mean(dim=0)
        first, second = digit.argsort(descending=True)[:2].tolist()
        picture.set_title(f"a {answered.digits[n]}, no. {n}", loc="center")
        picture.set_xlabel(f"read as {first} ({100 * digit[first]:.1f} %)\nor {second} ({100 * digit[second]:.1f} %)")
        figures.heat_map(panel, 100 * answered.sum[n].numpy(), theme, "probability, %", 100)
        panel.plot(answered.sums[n], range(ADDENDS), "s", markersize=15, markerfacecolor="none",
                   markeredgecolor="#D55E00", markeredgewidth=1.5, label="right sum")  # fmt: skip
        panel.set(xlabel="sum", ylabel="addend")
        panel.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, borderaxespad=0.2)
    figure.suptitle(f"what the sum head of {answered.name} answers as the addend runs from 0 to 9:\n"
                    "an image that is clear, and the one whose digit is least sure")  # fmt: skip
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# The command


PICTURES = {
    "samples": draw_samples,
    "errors": draw_errors,
    "confusion": draw_confusion,
    "grid": draw_grid,
    "reliability": draw_reliability,
    "addition": draw_addition,
    "architecture": lambda answered, theme: draw_architecture(answered.model, answered.name, theme),
}


def figures_of(runs, sweeps, checkpoints, args, theme):
    """[(name, function that draws it)] of the figures of what `read_files` returned. Raises UserError for too many runs
    and for two figures of one name, besides what reading checkpoints and data raises."""
    found = []
    for groups in runs:
        if len(groups) > MOST:
            raise cli.UserError(f"{len(groups)} different runs do not fit into a figure; name at most {MOST}")
        name = re.sub(r"[/\\:]+", "-", "-".join(["curves", *groups]))[:200]
        found.append((name, partial(draw_runs, groups, theme)))
    found += [(path.stem, partial(draw_sweep, sweep, theme)) for path, sweep in sweeps]
    for path in checkpoints:
        answered = Answered(path, args)
        found += [(f"{path.stem}-{name}", partial(draw, answered, theme)) for name, draw in PICTURES.items()]
    names = [name for name, _ in found]
    for name in names:
        if names.count(name) > 1:
            raise cli.UserError(f"two of the inputs give the figure {name}; draw one of them into another --out")
    return found


def write_figures(args, only=None):
    """Draw what the arguments ask for and print the names of the files; `only`: those of these names."""
    figures.require_matplotlib()
    theme = "dark" if args.dark else "light"
    found = figures_of(*read_files(args.files), args, theme)  # all is read before the first figure is replaced
    chosen = [(name, draw) for name, draw in found if only is None or name in only]
    with figures.style(theme):
        for name, draw in tqdm(chosen, "drawing", unit="figure", delay=2, leave=False, disable=None):
            Path(args.out).mkdir(parents=True, exist_ok=True)
            stem = Path(args.out) / f"{name}{'-dark' if args.dark else ''}"
            saved = figures.save(draw(), stem, args.format)
            if sys.stdout:  # None: closed
                tqdm.write("\n".join(map(str, saved)))  # above the progress bar
                sys.stdout.flush()


def main(argv=None):
    write_figures(make_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(cli.run_script(main))
