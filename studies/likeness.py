"""A rebuilt design beside its published log: figure by figure, and as one distance.

published_logs.csv holds the figures of the write-ups' own logs and curves (design, epoch, quantity, value); those of
average-pooling were read off its vector graphics. The runs of studies/replay.py have the same quantities.
"""

import csv
import functools
import statistics
import textwrap
from pathlib import Path
from typing import NamedTuple

from support.files import read_text

PUBLISHED = Path(__file__).parent / "published_logs.csv"
SECOND_LOG = " (second log)"  # of argmax-regression, whose two logs are of the same code


def read_figures(path):
    """{design: {quantity: {epoch: value}}} of published_logs.csv or of the CSV of a replay; an epoch is a text."""
    found = {}
    for row in csv.DictReader(read_text(path).splitlines()):
        epochs = found.setdefault(row["design"], {}).setdefault(row["quantity"], {})
        epochs[row["epoch"]] = float(row["value"])
    return found


@functools.cache
def published_figures(design):
    """[{quantity: {epoch: value}}] of the design's log, or two; [] where there is none."""
    figures = read_figures(PUBLISHED)
    return [figures[name] for name in (design, design + SECOND_LOG) if name in figures]


def read_replay(path):
    """{quantity: {epoch: value}} of one replayed run."""
    (figures,) = read_figures(path).values()
    if "test_digit_accuracy" in figures:  # one write-up gives it in per cent
        for head in ("digit", "sum"):
            values = figures[f"test_{head}_accuracy"]
            figures[f"test_{head}_percent"] = {epoch: 100 * value for epoch, value in values.items()}
    return figures


def is_of_an_epoch(quantity):
    """Whether a quantity sums up an epoch, and is neither of its last batch nor given to the run by its recipe."""
    return not quantity.startswith("last_batch") and quantity != "learning_rate"


def distance(design, run):
    """Mean relative deviation of a run from the design's log, as a fraction.

    Over the epochs that the run has, then over the quantities that sum up an epoch, of both logs where there are two.
    """
    means = []
    for log in published_figures(design):
        for quantity in filter(is_of_an_epoch, log):
            pairs = [(run[quantity][epoch], value) for epoch, value in log[quantity].items() if epoch in run[quantity]]
            if pairs:
                means.append(statistics.mean(abs(ours - value) / abs(value) for ours, value in pairs))
    return statistics.mean(means)


def compare(design, runs):
    """The published figures beside those of the runs, a run for each seed, as a list of Figure.

    Of those that all runs have, and without the learning rates, which the recipe gives to the run.
    """
    found = []
    for number, log in enumerate(published_figures(design)):
        for quantity in log.keys() - {"learning_rate"}:
            label = quantity.replace("_", " ") + number * " (log 2)"
            for epoch, published in log[quantity].items():
                ours = [run[quantity][epoch] for run in runs if epoch in run.get(quantity, {})]
                if len(ours) == len(runs) >= 2:
                    spread = statistics.mean(ours), statistics.stdev(ours)
                    found.append(Figure(label, "loss" in quantity, published, *spread))
    return sorted(found, key=lambda figure: figure.label)


class Figure(NamedTuple):
    """One published figure, and the mean and standard deviation of the seeds."""

    label: str
    is_loss: bool
    published: float
    mean: float
    deviation: float

    @property
    def near(self):
        """Whether the mean is within 1 % of the published figure."""
        return abs(self.mean - self.published) <= 0.01 * abs(self.published)

    @property
    def within(self):
        """Whether the mean is within three standard deviations of the published figure, or, of a loss, within 1 %."""
        return abs(self.mean - self.published) <= 3 * self.deviation or (self.is_loss and self.near)


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def likeness_rows(compared):
    """A row for each quantity: published and rebuilt in the first and in the last epoch, and how many are within."""
    rows = []
    for label in dict.fromkeys(figure.label for figure in compared):
        figures = [figure for figure in compared if figure.label == label]
        cells = []
        for figure in (figures[0], figures[-1]):
            cells += [short(figure.published), f"{short(figure.mean)} ± {short(figure.deviation)}"]
        within = sum(figure.within for figure in figures)
        rows.append([label, *cells, f"{within} of {len(figures)}"])
    return rows


def short(value):
    """A figure with four significant digits, from 1,000 on as an integer."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def summary(compared):
    """The lines that say how many of the published figures are reproduced; `compared`: {design: list of Figure}."""
    within = {design: sum(figure.within for figure in figures) for design, figures in compared.items()}
    near = sum(figure.near for figures in compared.values() for figure in figures)
    total = sum(map(len, compared.values()))
    parts = ", ".join(f"`{design}` {within[design]} of {len(figures)}" for design, figures in compared.items())
    text = (
        f"**{sum(within.values())} of {total} published figures are reproduced**: the mean of the seeds is within "
        f"three of their standard deviations, or, for a loss, within 1 %. {parts}. By a second count, "
        f"which a wide spread cannot raise, {near} of the {total} have a mean within 1 % of the published figure."
    )
    return "\n".join(textwrap.wrap(text, 118, break_on_hyphens=False))
