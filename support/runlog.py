"""What a log says: its header, a line for each epoch, and the columns of its CSV."""

import contextlib
import datetime
import platform
import re
import shlex
import subprocess
import textwrap
from importlib import metadata
from pathlib import Path

import torch

from support import processes
from support.checkpoint import ACCURACIES, TRAIN_ACCURACIES, VAL_LOSSES
from support.cli import printable
from support.device import describe_device

HEADINGS = """\
                 training                                validation
epoch  end rate  digit loss  sum loss  digit %    sum %  digit loss  sum loss  digit %    sum %  joint %  seconds"""
COLUMNS = (
    *("split", "epoch", "learning_rate", "digit_loss", "sum_loss", *TRAIN_ACCURACIES),
    *(*VAL_LOSSES, *ACCURACIES, "seconds"),
)


def versions():
    """Library versions, without importing torchvision, which takes as long as torch."""
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for name in ("torchvision", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit():
    """The commit of these scripts, with -dirty behind it where a script was changed since; unknown where git does not
    track them."""
    git = ["git", "-C", str(Path(__file__).resolve().parent.parent)]

    def answer(*words):
        return subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        answer("ls-files", "--error-unmatch", "train.py")  # fails where the repository is that of a folder above
        dirty = answer("diff", "--name-only", "HEAD", "--", "*.py", ":!tests")
        return answer("rev-parse", "--short", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def environment(device):
    """Date (UTC), commit, versions and device, each as a text."""
    return {
        "date": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}",
        "commit": commit(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "device": describe_device(device, processes.world_size()),
    }


def make_header(command, args, dataset, device, model, training, validation, notes):
    """What it takes to repeat the run, as lines of text.

    `command` are the words after "python"; `args` are the stored arguments, a dict; `notes` are requested options that
    were unavailable.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    flags = " ".join(f"{name}={value}" for name, value in args.items())
    wrapped = textwrap.wrap(flags, 108, break_long_words=False, break_on_hyphens=False)
    entries = [
        ("command", f"{processes.launcher()} {printable(shlex.join(command))}"),
        *environment(device).items(),
        ("data set", f"{dataset}: {training:,d} training and {validation:,d} validation images"),
        ("model", f"{args['model']}, {parameters:,d} parameters"),
        ("arguments", f"\n{'':12s}".join(wrapped)),
        *(("note", note) for note in notes),
    ]
    return "\n".join(f"{name:11s} {text}" for name, text in entries)


def continuation(header, epoch, device, notes):
    """The lines of the log that say where the run with this header continued after `epoch`."""
    here = environment(device)
    words = "; ".join([here["date"], f"commit {here['commit']}", here["versions"], here["device"]])
    lines = [f"{'continued':11s} after epoch {epoch}; {words}"]
    if re.findall(r"^device +(.*)$", header, re.MULTILINE) != [here["device"]]:
        lines.append(f"{'note':11s} trained on more than one device, so the seconds are not comparable")
    return "\n".join(lines + [f"{'note':11s} {note}" for note in notes])


def log_head(state):
    """The log up to its first epoch."""
    return "\n".join([state["header"], *state["continued"], "", HEADINGS])


def table_line(row):
    """One epoch as a line under HEADINGS, with dashes for what the epoch has not."""

    def loss(name):
        value = row.get(name)
        return "-" if value is None else f"{value:.4f}" if value < 1e5 else f"{value:.1e}"

    def accuracies(names):
        return "".join(f"  {'-' if row.get(name) is None else f'{100 * row[name]:.3f}':>7s}" for name in names)

    return (
        f"{row['epoch']:5d}  {row['learning_rate']:8.6f}  {loss('digit_loss'):>10s}  {loss('sum_loss'):>8s}"
        f"{accuracies(TRAIN_ACCURACIES)}  {loss('val_digit_loss'):>10s}  {loss('val_sum_loss'):>8s}"
        f"{accuracies(ACCURACIES)}  {row['seconds']:7.1f}"
    )
