"""How like its published log a rebuilt design is: figure by figure, and as one distance.

published_logs.csv holds the figures of the write-ups' own logs and curves (design, epoch, quantity, value); those of
average-pooling were read off its vector graphics. The runs of studies/replay.py have the same quantities.
"""

import csv
import io
import statistics
from pathlib import Path

from support.files import read_text

PUBLISHED = Path(__file__).parent / "published_logs.csv"
SECOND_LOG = " (second log)"  # of argmax-regression, whose two logs are of the same code


def read_figures(path):
    """{design: {quantity: {epoch: value}}} of published_logs.csv or of the CSV of a replay; an epoch is a text."""
    found = {}
    for row in csv.DictReader(io.StringIO(read_text(path))):
        epochs = found.setdefault(row["design"], {}).setdefault(row["quantity"], {})
        epochs[row["epoch"]] = float(row["value"])
    return found


def published_figures(design):
    """{quantity: {epoch: value}} of the design's log, or logs as a list: [] where there is none."""
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

    Over the epochs that the run has, then over the quantities that sum up an epoch; of two logs, the mean.
    """
    means = []
    for log in published_figures(design):
        for quantity in filter(is_of_an_epoch, log):
            pairs = [(run[quantity][epoch], value) for epoch, value in log[quantity].items() if epoch in run[quantity]]
            if pairs:
                means.append(statistics.mean(abs(ours - value) / abs(value) for ours, value in pairs))
    return statistics.mean(means)


def compare(design, runs):
    """The published figures beside those of the runs, a run for each seed.

    Returns (quantity, epoch, published, mean, deviation, within) of each figure that all runs have. `within`: the mean
    lies within three standard deviations of the seeds of the published figure, or, for a loss, within 1 % of it.
    """
    rows = []
    for log in published_figures(design):
        for quantity, epochs in log.items():
            for epoch, value in epochs.items():
                ours = [run[quantity][epoch] for run in runs if epoch in run.get(quantity, {})]
                if len(ours) < max(2, len(runs)):
                    continue
                mean, deviation = statistics.mean(ours), statistics.stdev(ours)
                near = "loss" in quantity and abs(mean - value) <= 0.01 * abs(value)
                rows.append((quantity, epoch, value, mean, deviation, near or abs(mean - value) <= 3 * deviation))
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def likeness_rows(design, runs):
    """A row for each quantity: published and rebuilt in the first and in the last epoch, and how many are within."""
    rows, compared = [], compare(design, runs)
    for quantity in dict.fromkeys(row[0] for row in compared):
        figures = [row for row in compared if row[0] == quantity]
        first, last = figures[0], figures[-1]
        cells = [f"{short(figure[2])} | {short(figure[3])} ± {short(figure[4])}" for figure in (first, last)]
        within = sum(figure[5] for figure in figures)
        rows.append([quantity.replace("_", " "), *" | ".join(cells).split(" | "), f"{within} of {len(figures)}"])
    return rows


def short(value):
    """A figure with four digits at least, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def summary(compared):
    """The line that says how many of the published figures are reproduced; `compared`: {design: rows of compare}."""
    counted = {design: [row for row in rows if row[0] != "learning_rate"] for design, rows in compared.items() if rows}
    within = {design: sum(row[5] for row in rows) for design, rows in counted.items()}
    total, all_figures = sum(within.values()), sum(map(len, counted.values()))
    parts = ", ".join(f"`{design}` {within[design]} of {len(rows)}" for design, rows in counted.items())
    return (
        f"**{total} of {all_figures} published figures are reproduced** within three standard deviations of the seeds, "
        f"or within 1 % for a loss: {parts}."
    )
