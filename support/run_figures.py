"""The figures of runs: their curves, from the CSV files and the logs, and the sweep of `train.py --find-lr`."""

import re

import torch

from support import curves, figures
from support.cli import UserError
from support.device import count
from support.flags import SIZES
from support.sweep import suggestions


def draw_runs(groups, theme):
    """Losses, accuracies, learning rate and seconds of {name: list of runs}."""
    figure, axes = figures.new_figure(10.5, 4, 2)
    logs = [run.log for runs in groups.values() for run in runs]
    models = {name for log in logs for name in re.findall(r"\bmodel=([^\s+]+)", log)}
    # a number as the sum, or a network that is not one of ours, has a loss of its own
    other = any("sum_encoding=scalar" in log for log in logs) or models - set(SIZES)
    sum_unit = "the network's own loss" if other else "cross-entropy, nats"
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
        label = label.replace("$", r"\$")  # or two of them would enclose a formula
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
    except UserError:  # it falls nowhere, which the curve shows
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
