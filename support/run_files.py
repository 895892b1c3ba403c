"""The files of a run: its log as text and as CSV, and its checkpoints.

A run named RUN writes logs/RUN.txt, logs/RUN.csv, logs/RUN-best.pt and logs/RUN-last.pt in its folder. best.pt and
last.pt beside logs/ are copies of the checkpoints of the newest run.
"""

import argparse
import contextlib
import csv
import io
import os
import shlex
import sys
from pathlib import Path

from support import processes
from support.checkpoint import ACCURACIES, CheckpointError, load_checkpoint, save_checkpoint, whole
from support.cli import UserError, file_name
from support.files import lock, read_text, write_atomically
from support.runlog import COLUMNS, log_head, table_line


class RunFiles:
    """The files of the run `name` in `folder`."""

    def __init__(self, folder, name):
        self.folder, self.logs, self.name = Path(folder), Path(folder) / "logs", name
        self.text, self.csv = self.logs / f"{name}.txt", self.logs / f"{name}.csv"
        self.best, self.last = self.logs / f"{name}-best.pt", self.logs / f"{name}-last.pt"

    @contextlib.contextmanager
    def claimed(self, resumed):
        """Lock the folder for a run, new or continued from the checkpoint `resumed`, and check that it may write there.

        Processes other than 0 print nothing and write nothing. Raises UserError.
        """
        with contextlib.ExitStack() as stack:
            if processes.rank() > 0:
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
                stack.enter_context(contextlib.redirect_stderr(nowhere))
                yield
                return
            self.refuse_unwritable()
            made = [folder for folder in (self.logs, *self.logs.parents) if not folder.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(self.folder))
            self.logs.mkdir(exist_ok=True)
            stack.callback(remove_empty, made)
            self.refuse_to_lose_files(resumed)
            self.remove_leftovers()
            yield

    def refuse_unwritable(self):
        """Raise UserError where the folder or its logs/ cannot be written to, or cannot be made."""
        for wanted in (self.folder, self.logs):
            nearest = next(place for place in (wanted, *wanted.parents) if place.exists())
            found = nearest if nearest == wanted else f"{wanted} cannot be made: {nearest}"
            if not nearest.is_dir():
                raise UserError(f"{found} is not a folder; choose another --out")
            if not os.access(nearest, os.W_OK):
                raise UserError(f"{found} cannot be written to; choose another --out")

    def refuse_to_lose_files(self, resumed):
        """Raise UserError where this run would replace files of another. `resumed`: the checkpoint, or None."""
        self.refuse_to_overwrite(resumed)
        self.refuse_to_lose_copies(resumed)

    def refuse_to_overwrite(self, resumed):
        """Raise UserError where the folder holds another run of this name. `resumed`: the checkpoint, or None."""
        if resumed is None:
            without_log = not self.text.exists() and (self.best.exists() or self.csv.exists())
            if self.last.exists() or self.holds_epochs() or without_log:
                advice = f" or --resume {shlex.quote(str(self.last))}" if self.last.exists() else ""
                raise UserError(f"there is a run {self.name} in {self.logs}; choose another --run-name{advice}")
            return
        try:
            last = load_checkpoint(self.last)
        except CheckpointError:  # none, or damaged
            if self.holds_epochs():
                other = not read_text(self.text).startswith(f"{resumed['header']}\n")
            elif self.best.exists():
                other = load_other(self.best).get("args") != resumed["args"]
            else:
                other = self.csv.exists() and not self.text.exists()
            if other:
                message = f"{self.logs} holds another run of the name {self.name}; choose another --out"
                raise UserError(message) from None
            return
        self.refuse_to_go_back(self.last, last, resumed)

    def refuse_to_go_back(self, path, last, resumed):
        """Raise UserError where `last`, the checkpoint at `path`, is of another run than `resumed`, or further."""
        if last.get("header") != resumed["header"]:
            raise UserError(f"{path} is of another run of the name {self.name}; choose another --out")
        if whole(last.get("epoch"), resumed["epoch"] + 2):  # a kill between the two files leaves one of difference
            raise UserError(f"{path} is already at epoch {last['epoch']}; --resume that, or choose another --out")

    def refuse_to_lose_copies(self, resumed):
        """Raise UserError where best.pt or last.pt, which this run replaces, cannot be kept as that of its own run."""
        for path, own, state in self.copies():
            ours = own in (self.best, self.last)
            if ours and resumed is not None:
                kept = resumed
                if path.name == "last.pt":
                    self.refuse_to_go_back(path, state, resumed)
            elif own.exists():
                kept = load_other(own)
                if kept.get("header") != state.get("header"):
                    kept = {}
                elif whole(state.get("epoch"), kept["epoch"] + 1 if whole(kept.get("epoch"), 0) else 0):
                    raise UserError(f"{path} is of a later epoch than {own}; move it, or choose another --out")
            elif ours:
                kept = {}
            else:
                continue  # `keep_copies_of_others` keeps it
            if kept.get("args") != state["args"]:
                name = state["args"]["run_name"]
                raise UserError(f"{path} is of another run of the name {name}; move it, or choose another --out")

    def copies(self):
        """[(path, the file of the run that it is a copy of, state)] of best.pt and last.pt. Raises UserError for a file
        that is not of a run."""
        found = []
        for kind in ("best", "last"):
            path = self.folder / f"{kind}.pt"
            if not path.exists():
                continue
            try:
                state = load_checkpoint(path)
                own = getattr(RunFiles(self.folder, file_name(state["args"]["run_name"])), kind)
            except (argparse.ArgumentTypeError, AttributeError, CheckpointError, LookupError, TypeError) as error:
                cause = str(error) if isinstance(error, CheckpointError) else f"{path} is not of a run"
                raise UserError(f"{cause}; a run would replace it: move it, or choose another --out") from None
            found.append((path, own, state))
        return found

    def holds_epochs(self):
        """Whether the log holds an epoch; that of a run that ended before its first may be replaced."""
        if not self.text.exists():
            return False
        lines = read_text(self.text).splitlines()
        return not (lines and lines[-1].startswith("epoch ") and lines[-1].endswith("seconds"))

    def is_finished(self, state):
        """Whether the log is of this run, and has its test scores."""
        if not (self.text.exists() and self.csv.exists()):
            return False
        ours = read_text(self.text).startswith(f"{state['header']}\n")
        return ours and "\ntest," in read_text(self.csv)

    def remove_leftovers(self):
        """Remove the temporary files that a killed run of this folder, which is locked, may have left."""
        for pattern in (".best.pt.*.tmp", ".last.pt.*.tmp", "logs/.*.tmp"):
            for path in self.folder.glob(pattern):
                path.unlink()

    def keep_copies_of_others(self):
        """Copy the best.pt and last.pt of another run, which this run replaces, to that run's own files in logs/ where
        they are missing; say where best.pt is kept."""
        if processes.rank() > 0:
            return
        for path, own, state in self.copies():
            if own in (self.best, self.last):
                continue
            if not own.exists():
                self.save(state, own)
            if path.name == "best.pt":
                name = state["args"]["run_name"]
                print(f"best.pt, of the run {name}, is kept as {own}; this run replaces best.pt", file=sys.stderr)

    def take_over(self, state):
        """Make best.pt and last.pt those of a continued run; a kill may have come between two of its files."""
        self.keep_copies_of_others()
        self.save_best(state)
        self.save_last(state)

    def advice(self, resumed, flags, is_run):
        """What to do after an interruption; `resumed`: the checkpoint that the run came from, or None; the `flags` are
        those of this machine."""
        last = self.last if self.last.exists() else resumed
        if not is_run or last is None:
            return "no epoch was done yet; start it again"
        return f"continue with: {processes.launcher()} train.py {shlex.join(['--resume', str(last), *flags])}"

    def save_best(self, state):
        """Write what `evaluate.py` needs of the best epoch, without the optimiser."""
        kept = {name: state[name] for name in ("args", "dataset", "normalisation", "versions")}
        kept |= {name: state["best"][name] for name in ("epoch", "joint_accuracy", "weights")}
        self.save(kept, self.best, self.folder / "best.pt")

    def save_last(self, state):
        """Write all that it takes to continue."""
        self.save(state, self.last, self.folder / "last.pt")

    def save(self, state, *paths):
        """Write a checkpoint to each of the paths; of several processes, process 0 alone."""
        if processes.rank() == 0:
            save_checkpoint(state, *paths)

    def write_log(self, state, ending=(), test_scores=None):
        """Write the text and the CSV whole, as they stand after an epoch or at the end. Those of a finished run stay
        until it is scored again."""
        if processes.rank() > 0 or (test_scores is None and self.is_finished(state)):
            return
        lines = [log_head(state), *map(table_line, state["history"]), *ending]
        write_atomically(self.text, "\n".join(lines) + "\n")
        rows = [{"split": "validation"} | row for row in state["history"]]
        if test_scores:
            losses = {"val_digit_loss": test_scores["digit_loss"], "val_sum_loss": test_scores["sum_loss"]}
            rows.append({"split": "test"} | {name: test_scores[name] for name in ACCURACIES} | losses)
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_atomically(self.csv, text.getvalue())


def remove_empty(folders):
    """Remove the folders, the deepest first, until one is not empty: a run that was refused leaves none behind."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def load_other(path):
    """The checkpoint at `path`, a file that the user did not name. Raises UserError that says what to do."""
    try:
        return load_checkpoint(path)
    except CheckpointError as error:
        raise UserError(f"{error}; remove it, or choose another --out") from None
