"""The section of the benchmark that measures whole commands, and where the seconds of a training go.

Neither this module nor one that it imports at its head imports torchvision or Pillow: a process that is measured
imports this one.
"""

import contextlib
import importlib
import io
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import train
from studies import subprocesses
from studies.measure import in_turns, make_row
from studies.subprocesses import ROOT
from support import cli


def commands(setting):
    """Seconds of whole commands, as a person waits for them in the shell, and where those of a training go.

    The least of the rounds: what other processes of the machine add is no part of a command.
    """
    from support.images import png  # imports Pillow, which train.py does not: for this process alone

    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "digit.png"
        image.write_bytes(png(setting.training[0][0, 0].numpy()))
        data = ["--dataset", setting.dataset, "--data-dir", setting.data_dir]
        training = ["--model", "fast", *data, "--device", str(setting.device)]
        runs = itertools.count()

        def run_flags():
            return [*training, "--out", folder, "--run-name", f"run{next(runs)}"]

        jobs = {
            "train.py --help": lambda: command_seconds("train.py", "--help"),
            "train.py --model fast": lambda: command_seconds("train.py", *run_flags()),
            "evaluate.py --ckpt best.pt": lambda: command_seconds(
                "evaluate.py", "--ckpt", f"{folder}/best.pt", *data, "--device", str(setting.device)
            ),
            "predict.py --ckpt logs/tiny.pt": lambda: command_seconds(
                "predict.py", "--ckpt", "logs/tiny.pt", "--image", str(image), "--number", "5"
            ),
            "phases": lambda: training_phases(run_flags()),
        }
        figures = in_turns(jobs, setting.repeats, warm_up=not setting.quick)
    rounds = figures.pop("phases")
    for command, seconds in figures.items():
        yield make_row(command, "s", seconds, middle=min)
    for phase in rounds[0]:
        yield make_row(f"of train.py --model fast: {phase}", "s", [taken[phase] for taken in rounds], middle=min)


def command_seconds(script, *words):
    """Seconds from the start of `python SCRIPT WORDS` to the end of its process."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, script, *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise cli.UserError(f"{script} failed: {done.stderr.decode(errors='replace')[-300:]}")
    return seconds


COMPILER = "import of torch._dynamo"
PHASES = {  # phase: the functions of train.py that take it
    COMPILER: (),  # which the first optimiser imports; imported before it here, to be timed alone
    "reading and checking the data": ((train, "load_digits"),),
    "network and optimiser": ((train, "build"),),
    "training": ((train, "train_epoch"),),
    "test": ((train, "score_pairs"),),
    "writing": ((train.RunFiles, "save"), (train.RunFiles, "write_log")),
}


def training_child(words, done_at):
    """What a process of `training_phases` does once it has imported this module: `train.py WORDS`, its phases timed.

    `done_at`: when the interpreter and the import of torch were done, on the clock of `now`. Prints JSON.
    """
    done_at = done_at | {"other imports": time.perf_counter()}
    spent = dict.fromkeys(PHASES, 0.0)

    def timed(function, phase):
        def call(*arguments, **options):
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent[phase] += time.perf_counter() - start

        return call

    def main(argv):
        timed(importlib.import_module, COMPILER)("torch._dynamo")
        return train.main(argv)

    for phase, functions in PHASES.items():
        for owner, name in functions:
            setattr(owner, name, timed(getattr(owner, name), phase))
    with contextlib.redirect_stdout(io.StringIO()):
        status = cli.run_script(main, words)
    print(json.dumps({"done at": done_at, "spent": spent, "end": time.perf_counter()}))
    sys.exit(status)


def training_phases(words):
    """{phase: seconds} of `train.py WORDS` in a process of its own; with all the rest they are the whole of it."""
    program = f"""
import sys, time
sys.argv, done_at = ["train.py"], {{"interpreter": time.perf_counter()}}
from support import cli
cli.begin_script(lambda: cli.Parser(""))
import torch
done_at["import of torch"] = time.perf_counter()
from studies import commands
commands.training_child({words!r}, done_at)
"""
    start = time.perf_counter()
    printed = subprocesses.printed_by(program)
    over = time.perf_counter()
    marks = [start, *printed["done at"].values()]
    phases = {name: b - a for name, (a, b) in zip(printed["done at"], itertools.pairwise(marks), strict=True)}
    phases |= printed["spent"] | {"exit": over - printed["end"]}
    return phases | {"the rest": over - start - sum(phases.values())}
