"""What the benchmark measures with: clocks, rounds, rows, our training set up as train.py does it, processes.

No import here of torchvision, nor of a module that imports it: the processes that are measured import this one.
"""

import argparse
import contextlib
import copy
import ctypes
import dataclasses
import io
import itertools
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import train
from data import load_digits, split_indices
from evaluate import predict_pairs, score
from support import cli, graphs
from support.device import choose_device, set_deterministic

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass
class Setting:
    """What every section is measured on. Images [N, 1, 28, 28] uint8 and digits [N] int64 are on the CPU."""

    device: torch.device
    repeats: int
    quick: bool
    dataset: str
    data_dir: str
    training: tuple  # (images, digits): 55,000 of MNIST, or the first few with --quick
    validation: tuple

    def first(self, count):
        """(images, digits) of the first `count` training images; of all for None or where there are fewer."""
        return tuple(tensor[:count] for tensor in self.training)


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def now(device):
    """The time in seconds, the same clock in every process, once the device has finished its queue."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()
    return time.perf_counter()


def keep_memory():
    """Make glibc's allocator keep what is freed, for stable figures.

    It may return the memory of large tensors to the system after each step and have every page zeroed again in the
    next; whether it does depends on the order of earlier allocations. The rival of the fast recipe took from 1 to 2
    times the seconds for the same work, with up to a million page faults.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no allocation of its own pages
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def seconds_of(function, device):
    """Seconds that one call takes, the work it left to the device included."""
    start = now(device)
    function()
    return now(device) - start


def rate(count, function, device):
    """A job for `in_turns`: `count` divided by the seconds of one call."""
    return lambda: count / seconds_of(function, device)


def in_turns(jobs, repeats, warm_up=True, seeded=False):
    """Call each of the jobs {name: function() -> figure} in turns; {name: [repeats] figures}.

    With `seeded` a job is called with a seed, the number of the round, which the jobs of a round share.
    """
    figures = {name: [] for name in jobs}
    for turn in range(repeats + warm_up):
        for name, job in jobs.items():
            figures[name].append(job(turn) if seeded else job())
    return {name: taken[warm_up:] for name, taken in figures.items()}


def make_row(what, unit, ours, rival=None, middle=statistics.median):
    """One line of the table from the figures of ours and of the rival, one per round, in the order of the rounds.

    `ours` is empty for a target that no round reached; all figures are then None.
    """
    row = {"what": what, "unit": unit, "ours": middle(ours) if ours else None}
    row["rival"] = middle(rival) if rival else None
    row["ratio"] = row["ours"] / row["rival"] if rival else None
    turns = [mine / other for mine, other in zip(ours, rival, strict=True)] if rival else ours
    return row | {"spread": [min(turns), max(turns)] if turns else [None, None], "repeats": len(ours)}


# ---------------------------------------------------------------------------------------------------------------------
# Our training, as train.py does it


class EndTraining(Exception):
    """Raised by a function that `Run.train` calls between steps, to end the training there."""


def watched(batches, after_step):
    """The same batches; `after_step(n)` is called after each step of the loop over them, with the steps so far."""

    def epoch(number):
        for step, batch in enumerate(batches.epoch(number), 1):
            yield batch
            after_step(number * len(batches) + step)

    twin = copy.copy(batches)
    twin.epoch = epoch
    return twin


class Run:
    """What `train.py --model NAME` sets up for `training` = (images, digits), with changes of its arguments."""

    def __init__(self, name, training, device, memory_format=torch.channels_last, fused=True, **changes):
        args = argparse.Namespace(**vars(train.parse_arguments(["--model", name])[0]) | changes)
        model, self.optimizer, self.averaged = train.build(args, device, memory_format, fused)
        self.batches = model.Batches(
            *training, args.batch_size, args.seed, args.addends_per_image, args.augment, device
        )
        self.network, self.notes = graphs.choose_network(args, model, self.batches)  # notes: what is unavailable
        self.args, self.device, self.model = args, device, model
        self.scored = self.averaged.module if self.averaged else model  # what is validated and tested

    def train(self, after_step=None):
        """Train all epochs, or until `after_step` raises EndTraining."""
        batches = watched(self.batches, after_step) if after_step else self.batches
        with contextlib.suppress(EndTraining):
            for epoch in range(self.args.epochs):
                train.train_epoch(self.args, self.model, self.network, self.optimizer, self.averaged, batches, epoch)

    def seconds(self):
        """Seconds of all epochs, the random draws included."""
        return seconds_of(self.train, self.device)


def bare_steps(run, batch, steps):
    """Forward, losses, backward and optimiser step, always on the same batch."""
    image, addend, digit, sum_target = batch
    model = run.model.train()
    for _ in range(steps):
        digit_logits, sum_logits = model(image, addend)
        loss = model.digit_loss(digit_logits, digit, run.args.label_smoothing)
        loss = loss + model.sum_loss(sum_logits, sum_target, run.args.label_smoothing)
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()


def joint_accuracy(model, images, digits, device):
    """Joint accuracy in % on every image with every addend."""
    return 100 * score(*predict_pairs([model], images, device=device), digits)["joint_accuracy"]


# ---------------------------------------------------------------------------------------------------------------------
# Processes of their own


# A program: train.py in processes that average their figures after an epoch, but not their gradients in each step.
WITHOUT_EXCHANGE = """
import sys
import train
from support import cli, processes
processes.data_parallel = lambda model, device: model
sys.exit(cli.run_script(train.main))
"""


def peak_memory():
    """Peak resident memory of this process so far, in MiB.

    On Linux from VmHWM: ru_maxrss there starts at the peak of the process that started this one.
    """
    try:
        return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**10
    except (OSError, TypeError):  # no /proc, or one without VmHWM
        import resource  # not on Windows

        # in bytes on macOS, in KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def write_images(images, times, folder):
    """Write `images` `times` times to a file in `folder`, as bytes; returns its path as text."""
    path = Path(folder) / f"images-{times}"
    with open(path, "wb") as file:
        for _ in range(times):
            file.write(images.numpy().tobytes())
    return str(path)


def map_images(path):
    """The images [N, 1, 28, 28] uint8 of such a file, which stay on disk and are read page by page when used."""
    size = Path(path).stat().st_size
    return torch.from_file(path, size=size, dtype=torch.uint8).view(-1, 1, 28, 28)


def child(name, count, times, steps, dataset, data_dir, device, path, changes):
    """What a measured process does, once it has imported the scripts: `steps` steps of the model `name`, if any.

    `path` is a file to map the images from, or None; `changes` are of the arguments of train.py. Prints JSON: when the
    imports and the first step were done, on the clock of `now`, and the memory peaks in MiB.
    """
    done_at = {"imports": time.perf_counter()}

    def after_step(done):
        if done == 1:
            done_at["first step"] = now(device)
        if done == steps:
            raise EndTraining

    if name:
        device = choose_device(device)
        set_deterministic(False, device)
        images, digits, _ = load_digits(dataset, data_dir, train=True)
        training = split_indices(len(images), len(images) // 12)[0][:count]
        images = map_images(path) if path else images[training.repeat(times)]
        Run(name, (images, digits[training.repeat(times)]), device, epochs=1, **changes).train(after_step)
    peaks = {"peak": peak_memory(), "peak on CUDA": torch.cuda.max_memory_allocated() / 2**20}
    print(json.dumps(done_at | peaks))


def in_a_process(setting, name="", times=1, steps=None, folder=None, **changes):
    """What a `child` in a process of its own prints, the times as seconds since the start of that process."""
    count = 1280 if setting.quick else len(setting.training[0])
    path = write_images(setting.first(count)[0], times, folder) if folder else None
    data_dir = str(Path(setting.data_dir).resolve())
    words = (name, count, times, steps, setting.dataset, data_dir, str(setting.device), path, changes)
    return from_a_process(f"from studies import measure; measure.child(*{words!r})")


def from_a_process(program):
    """The JSON that a Python program prints, the times in it as seconds since the start of its process."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise cli.UserError("the measured process failed; its message is above")
    printed = json.loads(done.stdout)
    return {name: figure if name.startswith("peak") else figure - start for name, figure in printed.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Whole commands


def command_seconds(script, *words):
    """Seconds from the start of `python SCRIPT WORDS` to the end of its process."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, script, *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise cli.UserError(f"{script} failed: {done.stderr.decode(errors='replace')[-300:]}")
    return seconds


PHASES = {  # phase: the functions of train.py that take it
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

    for phase, functions in PHASES.items():
        for owner, name in functions:
            setattr(owner, name, timed(getattr(owner, name), phase))
    with contextlib.redirect_stdout(io.StringIO()):
        status = cli.run_script(train.main, words)
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
from studies import measure
measure.training_child({words!r}, done_at)
"""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    over = time.perf_counter()
    if done.returncode:
        raise cli.UserError("the measured process failed; its message is above")
    printed = json.loads(done.stdout)
    marks = [start, *printed["done at"].values()]
    phases = {name: b - a for name, (a, b) in zip(printed["done at"], itertools.pairwise(marks), strict=True)}
    phases |= printed["spent"] | {"exit": over - printed["end"]}
    return phases | {"the rest": over - start - sum(phases.values())}
