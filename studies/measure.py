"""What the benchmark measures with: clocks, rounds, rows, our training set up as train.py does it, images on disk.

No import here of torchvision, nor of a module that imports it: the processes that are measured import this one.
"""

import argparse
import contextlib
import copy
import ctypes
import dataclasses
import statistics
import time
from pathlib import Path

import torch

import train
from data import generator_for
from evaluate import predict_pairs, score
from support import graphs
from support.cli import UserError


@dataclasses.dataclass
class Setting:
    """What every section is measured on. Images [N, 1, 28, 28] uint8 and digits [N] int64 are on the CPU."""

    device: torch.device
    repeats: int
    quick: bool
    dataset: str
    data_dir: str  # absolute: measured processes start in the repository's root
    training: tuple  # (images, digits): 55,000 of MNIST, or the first few with --quick
    validation: tuple

    def first(self, count):
        """(images, digits) of the first `count` training images; of all where there are fewer."""
        return tuple(tensor[:count] for tensor in self.training)


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def now(device):
    """The time in seconds, the same clock in every process, once the device has finished its queue."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()
    return time.perf_counter()


def keep_memory():
    """Make glibc's allocator keep what is freed, for stable figures; returns whether the C library is glibc.

    With its default settings it may return the memory of large tensors to the system after each step and have every
    page zeroed again in the next. The section `allocator` shows what that costs.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; Windows
        return False
    own_pages = mallopt(-4, 0)  # M_MMAP_MAX: no allocation has pages of its own
    return bool(mallopt(-1, 2**31 - 1) and own_pages)  # M_TRIM_THRESHOLD


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


def check_setting(record, setting, path):
    """Raise UserError where an entry of `setting` differs in the record at `path`, which is to be continued: figures of
    several machines or versions do not belong in one table."""
    for name, value in setting.items():
        if (found := record.get(name)) != value:
            there, here = str(found).split(), value.split()
            other = " ".join(word for word in there if word not in here)[:200]
            own = " ".join(word for word in here if word not in there)[:200]
            raise UserError(f"{path} has other {name}: {other} there, {own} here; choose another file")


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
        given, _ = train.parse_arguments(["--model", name, "--device", device.type])
        args = argparse.Namespace(**vars(given) | changes)
        model, self.optimizer, self.averaged = train.build(args, device, memory_format, fused)
        given = args.batch_size, args.seed, args.addends_per_image, args.augment, device
        self.batches = model.Batches(*training, *given, corrupted=args.augment_corruptions)
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
        with torch.autocast(image.device.type, torch.bfloat16, enabled=run.args.precision == "bfloat16"):
            digit_logits, sum_logits = model(image, addend)
        loss = model.digit_loss(digit_logits.float(), digit, run.args.label_smoothing)
        loss = loss + model.sum_loss(sum_logits.float(), sum_target, run.args.label_smoothing)
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()


def joint_accuracy(model, images, digits, device):
    """Joint accuracy in % on every image with every addend."""
    return 100 * score(*predict_pairs([model], images, device=device), digits)["joint_accuracy"]


def held_out(purpose, images, digits, seed, parts):
    """((images, digits) to train on, those held out): part seed % parts of an order that `purpose`, a word, fixes."""
    order = torch.randperm(len(images), generator=generator_for(purpose, 0))
    held = order.chunk(parts)[seed % parts]
    kept = order[torch.isin(order, held, invert=True)]
    return (images[kept], digits[kept]), (images[held], digits[held])


# ---------------------------------------------------------------------------------------------------------------------
# Images on disk


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
