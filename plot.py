"""Draw the runs, the answers and the network, as PNG and SVG.

    python plot.py .
    python plot.py logs/base-s0.csv logs/base-s1.csv logs/tiny-s0.csv
    python plot.py best.pt --out figures --dark
    python plot.py logs/base-s0-find-lr.csv

From the CSV files of runs: losses, accuracies, learning rate and seconds; runs
that differ in the seed alone are one curve, with a band of one standard
deviation. From a checkpoint: samples, errors, confusion matrices, the scores
by digit and addend, reliability, the sum over the addends, the architecture.
From the CSV file of `train.py --find-lr`: the sweep. From a folder: all of
these that it holds. The last lines name the files that were written.
"""

import sys
from functools import partial
from pathlib import Path

from support import cli, flags

FORMATS = ("png", "svg")


def make_parser():
    parser = cli.Parser(__doc__, " FILE|FOLDER ...")
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE|FOLDER", help="CSV files, checkpoints, or folders of them")
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
from evaluate import answers, load_model, mean_probabilities, pair_outputs, score
from support import curves, figures
from support.curves import group_of
from support.device import choose_device, count
from support.layers import connections, layers_of
from support.sweep import suggestions

BINS = 15  # of the reliability curve
MOST = len(figures.MARKERS)  # groups of runs in a figure


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def draw_runs(groups, theme):
    """Losses, accuracies, learning rate and seconds of {name: list of runs}."""
    figure, axes = figures.new_figure(10.5, 4, 2)
    scalar = any("sum_encoding=scalar" in run.log for runs in groups.values() for run in runs)
    sum_unit = "loss of the sum's encoding" if scalar else "cross-entropy, nats"
    right = "pairs right, % (log error)"
    # The first epoch's errors are many times the last's: on a linear scale they flatten what follows.
    panels = [
        ("digit loss", "log", "cross-entropy, nats (log)", {"training": "digit_loss", "validation": "val_digit_loss"}),
        ("sum loss", "log", f"{sum_unit} (log)", {"training": "sum_loss", "validation": "val_sum_loss"}),
        ("digit accuracy", "error", right, {"training": "train_digit_accuracy", "validation": "digit_accuracy"}),
        ("sum accuracy", "error", right, {"training": "train_sum_accuracy", "validation": "sum_accuracy"}),
        ("joint accuracy: both right", "error", right, {"validation": "joint_accuracy"}),
        ("training time", "linear", "seconds per epoch", {"training": "seconds"}),
    ]
    kinds = set()
    for panel, (title, scale, unit, columns) in zip(axes, panels, strict=False):
        panel.set(title=title, xlabel="epoch", ylabel=unit)
        panel.xaxis.get_major_locator().set_params(integer=True)
        drawn = curves_of(groups, columns)
        kinds |= {kind for _, kind, _ in drawn}
        draw_curves(panel, drawn, len(groups), scale, theme)
    draw_schedules(axes[6], groups, theme)
    draw_key(axes[7], groups, kinds, theme)
    for panel in axes[:7]:
        panel.grid(linewidth=0.5)
    return figure


def curves_of(groups, columns):
    """(number of the group, kind, `Curve`) of all that is recorded; columns: {kind: column}.

    Kinds are "training", "validation" and "test": the test's column is that of the validation.
    """
    found = []
    for number, runs in enumerate(groups.values()):
        found += [(number, kind, curves.curve(runs, column)) for kind, column in columns.items()]
        if "validation" in columns:
            found.append((number, "test", curves.test_point(runs, columns["validation"])))
    return [entry for entry in found if entry[2]]


def draw_curves(panel, drawn, groups, scale, theme):
    """What `curves_of` found for so many groups: dashed for training, solid for validation, stars for the test.

    scale: "linear", "log", or "error" for accuracies, drawn by the logarithm of the error.
    """
    if not drawn:
        panel.set(xticks=[], yticks=[])
        panel.text(0.5, 0.5, "not recorded", transform=panel.transAxes, ha="center", va="center")
        return
    if scale == "error":
        drawn = [(number, kind, curves.errors(found)) for number, kind, found in drawn]
    edge = 0
    if scale != "linear":
        edge = figures.log_axis(panel, [found[1:] for *_, found in drawn], accuracy=scale == "error")
    single = max(found.x[-1] for *_, found in drawn) == 1  # one epoch: groups side by side, with their values
    for number, kind, found in drawn:
        colour, marker = figures.look(theme, number)
        mean, low, high = ([max(edge, value) for value in values] for values in found[1:])
        x = [0.5 + (number + 0.5) / groups] if single else found.x
        look = {"training": dict(linestyle="--", markerfacecolor=figures.GROUNDS[theme][0]), "validation": {}}
        look["test"] = dict(marker="*", markersize=11, markeredgecolor="none", linestyle="none")
        panel.plot(x, mean, **dict(color=colour, marker=marker, zorder=3) | look[kind])
        if len(x) > 1:
            panel.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        elif low != high:
            panel.vlines(x, low, high, color=colour, linewidth=1.5)
        if single and groups <= 3:  # more values would lie on one another
            text = f"{100 - found.mean[0]:.2f}" if scale == "error" else f"{found.mean[0]:.3g}"
            side = dict(xytext=(-8, 0), ha="right") if kind == "test" else dict(xytext=(8, 0), ha="left")
            panel.annotate(text, (x[0], mean[0]), textcoords="offset points", va="center", **side)
    if single:
        panel.set(xlim=(0.5, 1.5), xticks=[1])
    if scale == "linear":
        panel.set_ylim(0, 1.1 * panel.get_ylim()[1])


def draw_schedules(panel, groups, theme):
    """The learning rate over the steps, from the log; at the ends of the epochs where there is none."""
    schedules = [curves.schedule(runs[0]) for runs in groups.values()]
    panel.set(title="learning rate", ylabel="learning rate", xlabel="step" if all(schedules) else "epoch")
    for number, runs in enumerate(groups.values()):
        colour, marker = figures.look(theme, number)
        ends = curves.curve(runs, "learning_rate")
        if all(schedules):
            steps, rates = schedules[number]
            panel.plot(steps, rates, color=colour)
            panel.plot(steps[::125], rates[::125], color=colour, marker=marker, linestyle="none")
        elif ends:  # a damaged file may hold none
            panel.plot(ends.x, ends.mean, color=colour, marker=marker)
    panel.set_ylim(0, 1.05 * panel.get_ylim()[1])


def draw_key(panel, groups, kinds, theme):
    """What colours, strokes and markers mean; `kinds` are those that were drawn."""
    page, text, _ = figures.GROUNDS[theme]
    for number, (name, runs) in enumerate(groups.items()):
        colour, marker = figures.look(theme, number)
        label = f"{name}, {count(len(runs), 'run')}{': mean ± s.d.' if len(runs) > 1 else ''}"
        panel.plot([], [], color=colour, marker=marker, label=label)
    looks = {
        "validation": dict(marker="o", label="validation, without label smoothing"),
        "training": dict(marker="o", linestyle="--", markerfacecolor=page,
                         label="training, while it learned:\nsmoothed, augmented"),
        "test": dict(linestyle="none", marker="*", markersize=9, label="test, best epoch"),
    }  # fmt: skip
    for kind, look in looks.items():
        if kind in kinds:
            panel.plot([], [], color=text, **look)
    panel.set_axis_off()
    panel.legend(loc="center left", frameon=False, labelspacing=0.7, handlelength=3)


def draw_sweep(sweep, theme):
    """The loss over the learning rate, with where it falls fastest and where it begins to rise."""
    figure, (panel,) = figures.new_figure(4.2)
    _, blue, orange, green, *_ = figures.COLOURS[theme]
    rates, smoothed = sweep.learning_rate, sweep.smoothed_loss
    panel.plot(rates, sweep.loss, ".", color="#8B949E", label="each step")
    panel.plot(rates, smoothed, color=blue, linewidth=2, label="smoothed")
    decades = torch.tensor(rates, dtype=torch.float64).log10()
    try:
        marks = suggestions(torch.tensor(smoothed, dtype=torch.float64), decades)
    except cli.UserError:  # it falls nowhere, which the curve shows
        marks = ()
    looks = (("falls fastest", orange, "v", "--"), ("begins to rise", green, "s", ":"))
    for rate, (word, colour, marker, line) in zip(marks, looks, strict=False):
        nearest = min(range(len(rates)), key=lambda step, rate=rate: abs(rates[step] - rate))
        panel.axvline(rate, color=colour, linestyle=line, linewidth=1)
        panel.plot(rate, smoothed[nearest], marker, color=colour, markersize=8, label=f"{word}: {rate:.2g}")
    panel.set(xscale="log", xlabel="learning rate", ylabel="total training loss per pair, nats")
    panel.set_ylim(0.9 * min(smoothed), 1.25 * smoothed[0])
    panel.set_title("learning-rate sweep: the rate grows with every step")
    panel.grid(linewidth=0.5)
    panel.legend(loc="lower left")
    return figure


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
        self.digit_answers, self.sum_answers = answers([self.model], [outputs])
        self.sums = self.digits.unsqueeze(1) + torch.arange(ADDENDS)
        self.right = (self.digit_answers == self.digits.unsqueeze(1)) & (self.sum_answers == self.sums)


def show_image(panel, image, theme, frame, dashed=False):
    """An image of a digit without axes, in a frame of this colour."""
    panel.imshow(image[0].numpy(), cmap="gray_r" if theme == "light" else "gray", vmin=0, vmax=255)
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set(
        visible=True, color=frame, linewidth=2.5, linestyle=(0, (2, 2)) if dashed else "solid", capstyle="butt"
    )


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
        show_image(panel, answered.images[n], theme, blue if right else orange, not right)
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
    """The images misread with the most addends, the worst first: mean confidence in the wrong digit."""
    digit = answered.digit.mean(dim=1)
    confidence, read = digit.max(dim=1)
    wrong = (read != answered.digits).nonzero().flatten()
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:30]
    figure, axes = figures.new_figure(9.6, 5, 6)
    orange = figures.COLOURS[theme][2]
    for panel, n in zip(axes, worst.tolist(), strict=False):
        show_image(panel, answered.images[n], theme, orange)
        panel.set_title(f"{answered.digits[n]} read as {read[n]}", loc="center")
        panel.set_xlabel(f"{100 * confidence[n]:.1f} % sure, no. {n}")
    for panel in axes[len(worst) :]:
        panel.set_axis_off()
    shown = f"the {len(worst)} most confident of {len(wrong)}" if len(wrong) > len(worst) else f"all {len(wrong)}"
    figure.suptitle(f"misread digits of {answered.name}, {shown} among {len(answered.digits):,d} {answered.dataset} "
                    "test images\nprobability of the digit read, mean over the ten addends")  # fmt: skip
    return figure


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


def calibration(confidence, right):
    """(mean confidence, accuracy, share) of the bins that hold pairs, and the expected calibration error.

    The confidence, the largest probability, is cut into BINS equal bins; the error is the mean distance of accuracy and
    confidence over the bins, weighted by their pairs (C. Guo et al., arXiv 1706.04599).
    """
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    counts = torch.bincount(bins, minlength=BINS).double()
    sums = [torch.bincount(bins, values.double(), minlength=BINS) for values in (confidence, right)]
    there = counts > 0
    confidences, accuracies = (values[there] / counts[there] for values in sums)
    share = counts[there] / counts.sum()
    return confidences, accuracies, share, ((accuracies - confidences).abs() * share).sum().item()


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
    """The sum head as the addend runs from 0 to 9: for the first image of a 7, and for the image it doubts most."""
    confidence = answered.digit.mean(dim=1).max(dim=1).values
    sevens = (answered.digits == 7).nonzero().flatten().tolist()
    chosen = [*sevens[:1], int(confidence.argmin())]
    figure, axes = figures.new_figure(3.5 * len(chosen), len(chosen), 2, width_ratios=(1, 3.2))
    for row, n in enumerate(chosen):
        picture, panel = axes[2 * row], axes[2 * row + 1]
        show_image(picture, answered.images[n], theme, figures.GROUNDS[theme][2])
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
                    "an image that is clear, and the one that it is least sure of")  # fmt: skip
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# The network itself


def draw_architecture(model, name, theme):
    """The parts of the network as boxes with their layers, from left to right in the order in which they depend."""
    inputs = torch.zeros(1, 1, 28, 28), torch.zeros(1, dtype=torch.int64)
    links, layers = connections(model, *inputs), layers_of(model, *inputs)
    boxes = {"image": ["1×28×28"], "addend": ["0 to 9"]}
    for layer in layers:
        numbers = f"{layer.parameters:,d}" if layer.parameters else ""
        shape = "×".join(map(str, layer.shape))
        boxes.setdefault(layer.name.split(".")[0], []).append((layer.kind, shape, numbers))
    boxes |= {"digit": ["10 logits"], "sum": ["19 logits"]}
    boxes = {part: aligned(lines) for part, lines in boxes.items() if any(part in link for link in links)}
    depths = {}
    for part in boxes:  # in the order in which they compute
        depths[part] = max([depths[source] + 1 for source, target in links if target == part], default=0)
    return arrange(boxes, depths, links, name, sum(layer.parameters for layer in layers), theme)


def aligned(lines):
    """Lines of a box: columns of kind, shape and parameters padded to their width."""
    if isinstance(lines[0], str):
        return lines
    kind, shape, numbers = (max(map(len, column)) for column in zip(*lines, strict=True))
    return [f"{a:{kind}s} {b:>{shape}s} {c:>{numbers}s}".rstrip() for a, b, c in lines]


def arrange(boxes, depths, links, name, parameters, theme):
    """Draw the boxes in columns by depth, and an arrow for each link."""
    columns = [[part for part in boxes if depths[part] == depth] for depth in range(max(depths.values()) + 1)]
    widths = [max(len(line) for part in column for line in [part, *boxes[part]]) + 2 for column in columns]
    gap = 4  # characters between columns
    total = sum(widths) + gap * (len(columns) - 1)
    size = min(10, 0.97 * 72 * figures.WIDTH / (total + 1) / 0.602)  # points; a character is 0.602 of that wide
    heights = [sum(len(boxes[part]) + 1.8 for part in column) + 2.0 * (len(column) - 1) for column in columns]
    height = max(heights)
    figure = figures.Figure(figsize=(figures.WIDTH, height * size * 1.45 / 72 + 0.7))
    panel = figure.add_axes((0.01, 0.01, 0.98, 0.99 - 0.5 / figure.get_figheight()))
    panel.set(xlim=(-0.5, total + 0.5), ylim=(height + 0.2, -0.2))
    panel.set_axis_off()
    page, text, _ = figures.GROUNDS[theme]
    font, colours, places, x = dict(size=size, va="center", family="DejaVu Sans Mono"), figures.COLOURS[theme], {}, 0
    for column, width, tall in zip(columns, widths, heights, strict=True):
        y = (height - tall) / 2
        for part in column:
            lines = boxes[part]
            deep = len(lines) + 1.8
            edge = {"image": colours[1], "addend": colours[1], "digit": colours[2], "sum": colours[2]}.get(part, text)
            panel.add_patch(figures.rounded_box((x, y), width, deep, edge, page))
            panel.text(x + 1, y + 0.75, part.replace("_", " "), weight="bold", **font)
            for number, words in enumerate(lines):
                panel.text(x + 1, y + 1.8 + number, words, **font)
            places[part] = (x, y + deep / 2, x + width)
            y += deep + 2.0
        x += width + gap
    for source, target in links:
        start, end = (places[source][2], places[source][1]), (places[target][0], places[target][1])
        panel.annotate("", end, start, arrowprops=dict(arrowstyle="-|>", color=text, linewidth=1.2))
    figure.suptitle(f"{name}: {parameters:,d} parameters (layer, output shape, parameters)", x=0.01, ha="left")
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


def read_files(names):
    """(groups of runs that share a figure, sweeps, checkpoints) of these files and folders; each file is read once.

    The first is a list of {name: list of runs}, the second of (path, sweep), the third of paths. Files that are named
    share a figure, runs of a folder have one for each name; what is no run there is skipped with a warning. Raises
    UserError.
    """
    named, groups, sweeps, checkpoints = {}, {}, [], []
    for name in map(Path, names):
        found = [name]
        if name.is_dir():
            logs = name / "logs" if (name / "logs").is_dir() else name
            found = [*sorted(logs.glob("*.csv")), *name.glob("best.pt")]
            if not found:
                raise cli.UserError(f"{name} holds no CSV file of a run and no best.pt")
        for path in found:
            if path.suffix == ".pt":
                checkpoints.append(path)
                continue
            if path.suffix != ".csv":
                raise cli.UserError(f"{path} is neither a folder nor a .csv or .pt file")
            try:
                table = curves.read(path)
            except cli.UserError as error:
                if path is name:
                    raise
                cli.warn(f"skipped: {error}")
                continue
            if isinstance(table, curves.Sweep):
                sweeps.append((path, table))
            else:
                figure = named if path is name else groups.setdefault((path.parent, group_of(path)), {})
                figure.setdefault(group_of(path), []).append(table)
    return [figure for figure in (named, *groups.values()) if figure], sweeps, checkpoints


def figures_of(runs, sweeps, checkpoints, args, theme):
    """Yield (name, function that draws it) of each figure of what `read_files` returned."""
    for groups in runs:
        if len(groups) > MOST:
            raise cli.UserError(f"{len(groups)} different runs do not fit into a figure; name at most {MOST}")
        yield "-".join(["curves", *groups]), partial(draw_runs, groups, theme)
    for path, sweep in sweeps:
        yield path.stem, partial(draw_sweep, sweep, theme)
    for path in checkpoints:
        answered = Answered(path, args)
        for name, draw in PICTURES.items():
            yield f"{path.stem}-{name}", partial(draw, answered, theme)


def write_figures(args, only=None):
    """Draw what the arguments ask for and print the names of the files; `only`: those of these names."""
    figures.require_matplotlib()
    theme, written = "dark" if args.dark else "light", set()
    inputs = read_files(args.files)
    total = len(inputs[0]) + len(inputs[1]) + len(inputs[2]) * len(PICTURES)
    drawn = figures_of(*inputs, args, theme)
    with figures.style(theme):
        for name, draw in tqdm(drawn, "drawing", total, unit="figure", delay=2, leave=False, disable=None):
            if only is not None and name not in only:
                continue
            if name in written:
                raise cli.UserError(f"two of the inputs give the figure {name}; draw one of them into another --out")
            written.add(name)
            Path(args.out).mkdir(parents=True, exist_ok=True)
            stem = Path(args.out) / f"{name}{'-dark' if args.dark else ''}"
            tqdm.write("\n".join(map(str, figures.save(draw(), stem, args.format))))  # above the progress bar
            sys.stdout.flush()


def main(argv=None):
    write_figures(make_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(cli.run_script(main))
