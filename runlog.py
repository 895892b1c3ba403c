"""The record of a run: its log as text and as CSV, and the folder that it has to itself while it writes them."""

import contextlib
import csv
import io
import os
import platform
import shlex
import subprocess
from pathlib import Path

import numpy as np
import torch
import torchvision

import cli
import processes
from checkpoint import write_atomically

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

HEADINGS = "epoch  learning rate  digit loss  sum loss  val digit %  val sum %  val joint %  seconds"


def versions():
    """Versions of what the run stands on."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": np.__version__,
    }


def make_header(argv, args, dataset, device, model, training, validation, notes=()):
    """What it takes to repeat the run, as lines of text; `notes` on what is not as it was asked for."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{processor()}, {torch.get_num_threads()} threads"
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    several = f", {processes.world()} processes" if processes.world() > 1 else ""
    where = ("data_dir", "out", "resume")  # not what the run is, and nobody else's folders
    flags = " ".join(f"{name}={value}" for name, value in vars(args).items() if name not in where and value is not None)
    return "\n".join(
        [
            f"command     {shlex.join(['python', 'train.py', *argv])}",
            f"commit      {commit()}",
            f"versions    {', '.join(f'{name} {version}' for name, version in versions().items())}",
            f"device      {device.type}: {name}{several}",
            f"data set    {dataset}: {training:,d} training and {validation:,d} validation images",
            f"model       {args.model}, {parameters:,d} parameters",
            f"arguments   {flags}",
            *(f"note        {note}" for note in notes),
            "",
        ]
    )


def processor():
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit():
    """The commit of these scripts, with -dirty behind it where a script was changed since."""
    git = ["git", "-C", str(Path(__file__).resolve().parent)]

    def answer(*words):
        return subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return answer("rev-parse", "--short", "HEAD") + ("-dirty" if answer("diff", "HEAD", "--", "*.py") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def table_line(row):
    """One epoch as a line under HEADINGS."""
    accuracies = [row.get(f"{name}_accuracy") for name in ("digit", "sum", "joint")]
    cells = [f"{'-':>9s}" if value is None else f"{100 * value:9.3f}" for value in accuracies]
    return (
        f"{row['epoch']:5d}  {row['learning_rate']:13.6f}  {row['digit_loss']:10.4f}  {row['sum_loss']:8.4f}"
        f"    {cells[0]}  {cells[1]}    {cells[2]}  {row['seconds']:7.1f}"
    )


def write_log(folder, run_name, header, history, ending=(), test_scores=None):
    """Write logs/RUN.txt and logs/RUN.csv whole, as they stand after an epoch or at the end."""
    lines = [header, HEADINGS, *map(table_line, history), *ending]
    write_atomically(folder / "logs" / f"{run_name}.txt", "\n".join(lines) + "\n")
    columns = ["split", "epoch", "learning_rate", "digit_loss", "sum_loss"]
    columns += ["digit_accuracy", "sum_accuracy", "joint_accuracy", "seconds"]
    rows = [{"split": "validation"} | row for row in history]
    if test_scores:
        rows.append({"split": "test"} | test_scores)
    text = io.StringIO()
    table = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomically(folder / "logs" / f"{run_name}.csv", text.getvalue())


@contextlib.contextmanager
def lock(folder):
    """Claim the output folder for this process; the claim ends with the process, however that ends."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise cli.UserError(
                f"another run is training in {folder.resolve()}; wait for it or choose another --out"
            ) from None
        yield
    finally:
        os.close(handle)


def holds_epochs(log):
    """Whether a log is there with an epoch in it; that of a run that ended before its first may be written over."""
    return log.exists() and not log.read_text().endswith(HEADINGS + "\n")


def remove_leftovers(folder):
    """Remove the temporary files that a killed run of this folder, which is locked, may have left."""
    for pattern in (".best.pt.*.tmp", ".last.pt.*.tmp", "logs/.*.tmp"):
        for path in folder.glob(pattern):
            path.unlink()
