"""What the CSV files of runs and sweeps hold, checked; runs that differ in the seed alone become one curve."""

import csv
import math
import re
import statistics
from collections import namedtuple
from pathlib import Path

from support import runlog, sweep
from support.cli import UserError, one_line, warn
from support.files import read_text
from support.flags import SCHEDULES
from support.optim import learning_rate_at

Run = namedtuple("Run", "epochs test log")  # a dict for each epoch; a dict, empty before the end; the log's text
Sweep = namedtuple("Sweep", sweep.COLUMNS)  # lists of floats, a value for each step
Curve = namedtuple("Curve", "x mean low high")  # lists; the band is the mean ± the standard deviation


def read(path):
    """What the CSV file at `path` holds: a `Run`, or of train.py --find-lr a `Sweep`. Raises UserError."""
    try:
        headings, *rows = [*csv.reader(read_text(path).splitlines())] or [[]]
    except csv.Error as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if any(len(row) != len(headings) for row in rows):
        raise UserError(f"{path} is cut short or damaged: its lines differ in length")
    return (sweep_of if headings == list(sweep.COLUMNS) else run_of)(path, headings, rows)


def run_of(path, headings, rows):
    """The `Run` of a table, with the log beside its file where there is one. Raises UserError."""
    if headings != list(runlog.COLUMNS):
        raise UserError(f"{path} is not a CSV file of train.py: its first line is {one_line(','.join(headings))[:80]}")
    epochs, test = [], {}
    for row in rows:
        split, *cells = row
        values = {name: number(cell, path) for name, cell in zip(headings[1:], cells, strict=True) if cell}
        if split == "test":
            test = values
        elif split == "validation" and values.get("epoch") == len(epochs) + 1 and not test:
            epochs.append(values)
        else:
            raise UserError(f"{path} is damaged: its epochs are not in order")
    if not epochs:
        raise UserError(f"{path} holds no epoch")
    log = Path(path).with_suffix(".txt")
    return Run(epochs, test, read_text(log) if log.is_file() else "")


def sweep_of(path, headings, rows):
    """The `Sweep` of a table. Raises UserError."""
    if len(rows) < 3:
        raise UserError(f"{path} holds too few steps")
    return Sweep(*([number(row[n], path) for row in rows] for n in range(len(headings))))


def number(cell, path):
    """The cell as a finite float of at least 0. Raises UserError."""
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise UserError(f"{path} is damaged: {one_line(cell)[:40]!r} is not a figure of a run")
    return value


def group_of(path):
    """The name of a run without its seed, and without the time that names a run by default: base-s3 is of base."""
    return re.sub(r"-s\d+(-\d{8}-\d{6})?$", "", Path(path).stem)


def read_files(names):
    """(groups of runs that share a figure, sweeps, checkpoints) of these files and folders.

    A file that lies in several of the folders is read once, a sweep or a checkpoint also where it is named besides.

    The first is a list of {name: list of runs}, the second of (path, sweep), the third of paths. Files that are named
    share a figure, where runs of one name in several folders are told apart by the folder; runs of a folder have a
    figure for each name, and what is no run there is skipped with a warning. Raises UserError.
    """
    named, groups, sweeps, checkpoints, seen = {}, {}, {}, {}, set()
    names = {name.resolve(): name for name in map(Path, names)}.values()  # each once
    files = [name.name for name in names]
    several = {group_of(name) for name in files if files.count(name) > 1}  # runs of one name, in several folders
    for name in names:
        found = [name]
        if name.is_dir():
            logs = name / "logs" if (name / "logs").is_dir() else name
            found = [*sorted(logs.glob("*.csv")), *name.glob("best.pt")]
            if not found:
                raise UserError(f"{name} holds no CSV file of a run and no best.pt")
        for path in found:
            if path is not name:
                if path.resolve() in seen:
                    continue
                seen.add(path.resolve())
            if path.suffix == ".pt":
                checkpoints[path.resolve()] = path
                continue
            if path.suffix != ".csv":
                raise UserError(f"{path} is neither a folder nor a .csv or .pt file")
            try:
                table = read(path)
            except (OSError, UserError) as error:
                if path is name:
                    raise
                warn(f"skipped: {error}")
                continue
            group = group_of(path)
            if isinstance(table, Sweep):
                sweeps[path.resolve()] = path, table
            elif path is not name:
                groups.setdefault((path.parent, group), {}).setdefault(group, []).append(table)
            else:
                named.setdefault(str(path.with_name(group)) if group in several else group, []).append(table)
    figures = [figure for figure in (named, *groups.values()) if figure]
    return figures, [*sweeps.values()], [*checkpoints.values()]


def curve(runs, column):
    """The `Curve` of a column over the epochs, from the runs that have it; None where none has."""
    values = {}
    for run in runs:
        for row in run.epochs:
            if column in row:
                values.setdefault(int(row["epoch"]), []).append(row[column])
    if not values:
        return None
    epochs = sorted(values)
    return Curve(epochs, *spread([values[epoch] for epoch in epochs]))


def test_point(runs, column):
    """The `Curve` of a single point: a column of the test of the finished runs, at their last epoch; None without."""
    values = [run.test[column] for run in runs if column in run.test]
    return Curve([max(len(run.epochs) for run in runs)], *spread([values])) if values else None


def spread(samples):
    """(means, lower, upper edges of the band) of a list of lists of values."""
    means = [statistics.mean(values) for values in samples]
    deviations = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in samples]
    low, high = ([m + sign * d for m, d in zip(means, deviations, strict=True)] for sign in (-1, 1))
    return means, low, high


def errors(accuracy):
    """The `Curve` of the pairs wrong, in %, from one of accuracies, which are fractions."""
    mean, high, low = ([100 - 100 * value for value in values] for values in accuracy[1:])
    return Curve(accuracy.x, mean, low, high)


def logged_arguments(text):
    """{name: value as text} of a log's arguments. Raises LookupError without any."""
    (lines,) = re.findall(r"^arguments +(.*(?:\n {12}.*)*)", text, re.MULTILINE) or [""]
    logged = dict(re.findall(r"(\w+)=(.*?)(?= \w+=|$)", " ".join(lines.split())))
    if not logged:
        raise LookupError("no arguments")
    return logged


def schedule(run):
    """(steps, rates): the learning rate over the steps of a run, from the arguments in its log; None without a log."""
    images = re.search(r"^data set .*?: ([\d,]{1,12}) training", run.log, re.MULTILINE)
    try:
        words = logged_arguments(run.log)
        epochs, batch, peak = int(words["epochs"]), int(words["batch_size"]), float(words["learning_rate"])
        steps = epochs * -(-int(images.group(1).replace(",", "")) // batch)
        kind = words["schedule"]
    except (AttributeError, LookupError, ValueError, ZeroDivisionError):
        return None
    if kind not in SCHEDULES or not 0 < steps < 10**8 or not 0 < peak < math.inf:
        return None
    shown = sorted({round(n * (steps - 1) / 1000) for n in range(1001)})
    return shown, [learning_rate_at(step, steps, peak, kind) for step in shown]
