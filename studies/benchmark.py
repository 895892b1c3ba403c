"""Speed, side by side: ours against what one would use instead, in turns on the same machine, as ratios.

    python benchmark.py --quick                        every section on a few images: does it run
    python benchmark.py --json logs/benchmark-cpu.json
    python benchmark.py --only rival overhead --repeats 10

A ratio is ours / rival: of seconds and of memory less is better, of anything per second more. Figures are medians, test
accuracies of the section `rival` means; the spread is from the smallest to the largest ratio of one round, or figure
where there is no rival. The rounds of a section run A B A B, so that a slow minute of the machine hits both; one more
round before them warms up, except in `target`, `memory`, `several` and with --quick in `start` and `growth`. In
`overhead` the two take turns of a few steps.
"""

import argparse
import csv
import dataclasses
import functools
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import cli
import rivals
import train
from checkpoint import write_atomically
from data import ADDENDS, DATASETS, Batches, load_digits, prepare, split_indices
from evaluate import predict_pairs, score
from published import build_model
from runlog import commit, processor, versions

HERE = Path(__file__).resolve().parent
COLUMNS = ("section", "what", "unit", "ours", "rival", "ratio", "spread")
SEEDS = 10  # of the fast recipe and of its rival
TARGETS = (0.9855, 0.99)  # of the validation joint accuracy; the first is the best published one
QUICK_TARGETS = (0.3, 0.5)  # a few steps reach these
QUICK_IMAGES = 3840  # 30 batches of 128
TURN = 20  # steps


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
        """(images, digits) of the first `count` training images, or of all where there are fewer."""
        return tuple(tensor[:count] for tensor in self.training)


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def seconds_of(function, device):
    """Seconds of one call, with the device's queue empty before and after."""
    wait_for(device)
    start = time.perf_counter()
    function()
    wait_for(device)
    return time.perf_counter() - start


def wait_for(device):
    """Wait until the device has done what it was given."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def in_turns(jobs, repeats, warm_up=True):
    """Call each of the jobs {name: function() -> figure} in turns; {name: [repeats] figures}."""
    figures = {name: [] for name in jobs}
    for turn in range(repeats + warm_up):
        for name, job in jobs.items():
            figure = job()
            if turn >= warm_up:
                figures[name].append(figure)
    return figures


def make_row(section, what, unit, ours, rival=None, middle=statistics.median):
    """One line of the table from the figures of ours and of the rival, [repeats] each, turn by turn.

    Without a figure of ours, which was not reached then, all are None.
    """
    row = {"section": section, "what": what, "unit": unit, "ours": middle(ours) if ours else None}
    row["rival"] = middle(rival) if rival else None
    row["ratio"] = row["ours"] / row["rival"] if rival else None
    turns = [mine / other for mine, other in zip(ours, rival, strict=True)] if rival else ours
    return row | {"spread": [min(turns), max(turns)] if turns else [None, None], "repeats": len(ours)}


# ---------------------------------------------------------------------------------------------------------------------
# Our training, as train.py does it


@dataclasses.dataclass
class Run:
    """A run as train.py sets it up, ready for its first step."""

    args: argparse.Namespace
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    averaged: train.MovingAverage | None
    batches: Batches
    take_step: Callable
    notes: list  # on flags that were not to be had

    @property
    def scored(self):
        """The network that is validated and tested."""
        return self.averaged.module if self.averaged else self.model

    def steps(self):
        """Train; yields after each step of all epochs."""
        for epoch in range(self.args.epochs):
            yield from train.train_epoch(
                self.args, self.model, self.optimizer, self.averaged, self.take_step, self.batches, epoch
            )

    def seconds(self):
        """Seconds of all steps, the drawing of the examples in."""
        return seconds_of(lambda: list(self.steps()), self.batches.device)


def begin(name, training, device, memory_format=torch.channels_last, fused=True, **changes):
    """The Run of `train.py --model NAME` on `training` = (images, digits), with changes of its arguments."""
    args = argparse.Namespace(**vars(train.parse_arguments(["--model", name, "--run-name", name])[0]) | changes)
    model, optimizer, averaged = train.build(args, device, memory_format, fused)
    batches = Batches(*training, args.batch_size, args.seed, args.addends_per_image, args.augment, device)
    take_step, notes = train.prepare_step(args, model, optimizer, batches)
    return Run(args, model, optimizer, averaged, batches, take_step, notes)


def bare_steps(run, batch, steps):
    """Forward, losses, backward and step on one and the same batch: the arithmetic and nothing else."""
    image, addend, digit, sum_target = batch
    model = run.model.train()
    for _ in range(steps):
        digit_logits, sum_logits = model(image, addend)
        loss = model.digit_loss(digit_logits, digit, run.args.label_smoothing)
        loss = loss + model.sum_loss(sum_logits, sum_target, run.args.label_smoothing)
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()


def joint_on_test(model, setting):
    """Joint accuracy on all pairs of the test set, from 0 to 1."""
    images, digits, _ = load_digits(setting.dataset, setting.data_dir, train=False)
    return score(*predict_pairs([model], images, device=setting.device), digits)["joint_accuracy"]


# ---------------------------------------------------------------------------------------------------------------------
# The sections: each takes a Setting and yields rows


def usual(setting):
    """An epoch of the usual way against ours: the same network, batch size and optimiser, one addend an image."""
    training = setting.first(QUICK_IMAGES) if setting.quick else setting.training
    device, count = setting.device, len(training[0])

    def start(**options):
        return begin("two-branch-lenet", training, device, faults=[], epochs=1, **options)

    ours = start()
    jobs = {"ours": lambda: count / ours.seconds()}
    for workers in (0, 2):
        rival = start(memory_format=torch.contiguous_format)
        loader = torch.utils.data.DataLoader(
            rivals.UsualDigits(*training),
            rival.args.batch_size,
            shuffle=True,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,  # the round that is not counted starts them
        )
        epoch = functools.partial(rivals.usual_epoch, rival.model, rival.optimizer, loader, device)
        jobs[workers] = lambda epoch=epoch: count / seconds_of(epoch, device)
    figures = in_turns(jobs, setting.repeats)
    for workers in (0, 2):
        what = f"epoch, DataLoader with {workers} workers"
        yield make_row("usual", what, "images/s", figures["ours"], figures[workers])


def overhead(setting):
    """Our epoch against its bare arithmetic, as many steps on one fixed batch: 1.05 is 5 % lost to all the rest.

    The two take turns of a few steps, since the speed of a shared machine changes within an epoch.
    """
    training = setting.first(QUICK_IMAGES // 2) if setting.quick else setting.training

    def both(run):
        """Seconds of (an epoch of ours, as many bare steps)."""
        batch, whole, spent = next(run.batches.epoch(0)), len(training[0]) / run.args.batch_size, [0.0, 0.0]
        steps, left = run.steps(), len(run.batches)
        while left:
            turn = min(TURN, left)
            left -= turn
            spent[0] += seconds_of(lambda: [next(steps) for _ in range(turn)], setting.device)  # noqa: B023
            bare = seconds_of(lambda: bare_steps(run, batch, turn), setting.device)  # noqa: B023
            # the last step of an epoch has fewer images
            spent[1] += bare if left else bare * (turn - len(run.batches) + whole) / turn
        return spent

    for name in ("two-branch-lenet", "base"):
        changes = {"plain": dict(augment=0.0, ema_decay=0.0)}
        if name == "base":
            changes |= {"augmented": dict(ema_decay=0.0), "averaged": dict(augment=0.0), "as it is": {}}
        for what, change in changes.items():
            run = begin(name, training, setting.device, faults=[], epochs=1, **change)
            both(run)  # warms up
            ours, bare = zip(*(both(run) for _ in range(setting.repeats)), strict=True)
            yield make_row("overhead", f"epoch of {name}, {what}", "s", ours, bare)


def target(setting):
    """Seconds of training until the validation joint accuracy first reaches the targets, and the test joint there."""
    targets = QUICK_TARGETS if setting.quick else TARGETS
    training = setting.first(QUICK_IMAGES) if setting.quick else setting.training

    def reach(name, seed):
        run = begin(name, training, setting.device, seed=seed)
        last = run.args.epochs * len(run.batches)
        reached, seconds, start = [], 0.0, time.perf_counter()
        for step, _ in enumerate(run.steps(), 1):
            if step % (10 if setting.quick else 25) and step < last:
                continue
            wait_for(setting.device)
            seconds += time.perf_counter() - start  # what follows is not timed
            images, digits = setting.validation
            joint = score(*predict_pairs([run.scored], images, device=setting.device), digits)["joint_accuracy"]
            while len(reached) < len(targets) and joint >= targets[len(reached)]:
                reached.append((seconds, 100 * joint_on_test(run.scored, setting)))
            if len(reached) == len(targets):
                break
            start = time.perf_counter()
        return reached

    names, seeds = ("base", "fast"), iter(range(2 * setting.repeats))
    # the two networks take turns and share the seed of a turn
    jobs = {name: lambda name=name: reach(name, next(seeds) // len(names)) for name in names}
    figures = in_turns(jobs, setting.repeats, warm_up=False)
    for name in names:
        for index, goal in enumerate(targets):
            there = [reached[index] for reached in figures[name] if len(reached) > index]
            what = f"{name} to {100 * goal:.2f} % validation joint"
            if len(there) < setting.repeats:
                what += f", {len(there)} of {setting.repeats} seeds"
            yield make_row("target", what, "s", [seconds for seconds, _ in there])
            yield make_row("target", f"{what}: test joint", "%", [joint for _, joint in there])


def scoring(setting):
    """Scored pairs per second: one CNN pass an image, as evaluate.py does it, against one pass a pair."""
    images, _ = setting.first(500 if setting.quick else 5000)
    model, device = build_model("base").to(setting.device, memory_format=torch.channels_last), setting.device
    pairs = len(images) * ADDENDS
    jobs = {
        "ours": lambda: pairs / seconds_of(lambda: predict_pairs([model], images, device=device), device),
        "rival": lambda: pairs / seconds_of(lambda: rivals.predict_pair_by_pair(model, images, device), device),
    }
    figures = in_turns(jobs, setting.repeats)
    yield make_row("scoring", "one CNN pass an image, or a pair", "pairs/s", figures["ours"], figures["rival"])


def latency(setting):
    """One prediction, from the uint8 image to both answers; and images per second by batch size."""
    model, device = build_model("base").to(setting.device, memory_format=torch.channels_last).eval(), setting.device

    @torch.inference_mode()
    def predict(images):
        outputs = model(prepare(images.to(device)), torch.full((len(images),), 5, device=device))
        return [logits.argmax(-1).tolist() for logits in outputs]

    def milliseconds(count, calls):
        images, _ = setting.first(count)
        return sorted(1000 * seconds_of(lambda: predict(images), device) for _ in range(calls))

    jobs = {}
    for batch_size in (1, 8, 64, 512):
        calls = max(3, (500 if setting.quick else 10_000) // batch_size)
        jobs[batch_size] = functools.partial(milliseconds, batch_size, calls)
    figures = in_turns(jobs, setting.repeats)
    yield make_row("latency", "one prediction, median", "ms", [statistics.median(times) for times in figures[1]])
    late = [times[len(times) * 95 // 100] for times in figures[1]]
    yield make_row("latency", "one prediction, 95th percentile", "ms", late)
    for batch_size, rounds in figures.items():
        count = len(setting.first(batch_size)[0])
        rates = [1000 * count * len(times) / sum(times) for times in rounds]
        yield make_row("latency", f"predictions, {batch_size} at a time", "images/s", rates)


def child(name, count, times, steps, dataset, data_dir, device):
    """What the processes of `start` and `memory` do: import, and with a model's name train `steps` steps of it."""
    if name:
        device = torch.device(device)
        images, digits, _ = load_digits(dataset, data_dir, train=True)
        training, _ = split_indices(len(images), len(images) // 12)
        images, digits = images[training][:count].repeat(times, 1, 1, 1), digits[training][:count].repeat(times)
        run = begin(name, (images, digits), device, epochs=1)
        for step, _ in enumerate(itertools.islice(run.steps(), steps)):
            if step == 0:
                wait_for(device)
                print("first step", flush=True)
    print(torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_initialized() else 0)


def in_a_process(setting, name, times=1, steps=None):
    """(seconds to the first line of a `child`, its peak memory in MiB, its peak of CUDA memory in MiB)."""
    count = 1280 if setting.quick else len(setting.training[0])
    words = (name, count, times, steps, setting.dataset, str(Path(setting.data_dir).resolve()), str(setting.device))
    command = [sys.executable, "-c", f"import benchmark; benchmark.child(*{words!r})"]
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline()]
        seconds = time.perf_counter() - start
        lines += process.stdout.readlines()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise cli.UserError("the process that is measured failed; its message stands above")
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, in KiB elsewhere
    return seconds, usage.ru_maxrss / unit, float(lines[-1])


def start(setting):
    """Seconds from the start of a process to the end of its first step, against the import of the scripts alone."""
    jobs = {name: lambda name=name: in_a_process(setting, name, steps=1)[0] for name in ("base", "")}
    figures = in_turns(jobs, min(setting.repeats, 5), warm_up=not setting.quick)
    yield make_row("start", "process start to end of first step, or of imports", "s", figures["base"], figures[""])


def memory(setting):
    """Peak memory of a process that trains `base`, against one that only imports; and as the images grow."""
    jobs = {"import": lambda: in_a_process(setting, ""), "an epoch": lambda: in_a_process(setting, "base")}
    if not setting.quick:
        jobs |= {
            f"20 steps of {times} x the images": lambda times=times: in_a_process(setting, "base", times, steps=20)
            for times in (4, 16)
        }
    figures = in_turns(jobs, 1 if setting.quick else 2, warm_up=False)
    resident = {name: [figure[1] for figure in taken] for name, taken in figures.items()}
    for name in list(jobs)[1:]:
        yield make_row("memory", f"peak of {name}, or of imports", "MiB", resident[name], resident["import"])
        if setting.device.type == "cuda":
            yield make_row("memory", f"peak of {name}, on the device", "MiB", [taken[2] for taken in figures[name]])


def options(setting):
    """Each option alone against the default of `base`, seconds of the same epoch: below 1, it is faster with it."""
    device, threads = setting.device, torch.get_num_threads()
    training = setting.first(QUICK_IMAGES // 3 if setting.quick else 12_800)

    def job(threads=threads, **changes):
        run = begin("base", training, device, epochs=1, **changes)
        if run.notes:
            return None

        def seconds():
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                return run.seconds()
            finally:
                torch.set_num_threads(before)

        return seconds

    choices = {
        "without channels_last": job(memory_format=torch.contiguous_format),
        "with bfloat16 autocast": job(precision="bfloat16"),
        "without the fused optimiser": job(fused=False),
        "with 1 thread": job(threads=1),
        "without augmentation": job(augment=0.0),
        "without the moving average": job(ema_decay=0.0),
        "with 1 addend an image": job(addends_per_image=1),
        "with nothing changed": job(),  # how much is noise
    }
    if not setting.quick:
        choices["with torch.compile, compiled before"] = job(compile=True)
    if device.type == "cuda":
        choices["with a CUDA graph"] = job(cuda_graph=True)
    choices = {what: seconds for what, seconds in choices.items() if seconds}  # what is to be had
    figures = in_turns({"default": job(), **choices}, setting.repeats)
    for what in choices:
        yield make_row("options", what, "s", figures[what], figures["default"])


def growth(setting):
    """Seconds of an epoch of `base` as the work grows, against the smallest; and the exponent: 1 is in proportion.

    The images are repeated, the augmentation makes them differ. Of 16 times as many, the draws are timed in full and a
    sixteenth of the steps; the others are in proportion.
    """
    images, digits = setting.first(640 if setting.quick else 12_800)

    def job(times=1, name="base", **changes):
        training = images.repeat(times, 1, 1, 1), digits.repeat(times)
        run = begin(name, training, setting.device, epochs=1, **changes)

        def seconds():
            if times < 16:
                return run.seconds()
            steps, counted = run.steps(), len(run.batches) // times
            first = seconds_of(lambda: next(steps), setting.device)
            rest = seconds_of(lambda: [next(steps) for _ in range(counted)], setting.device)
            return first + rest * (len(run.batches) - 1) / counted

        return seconds

    def parameters(name):
        return sum(parameter.numel() for parameter in build_model(name).parameters())

    studies = {
        "images": {f"{times} x the images": (times, job(times)) for times in (1, 4, 16)},
        "addends": {f"{k} addends an image": (k, job(addends_per_image=k)) for k in (1, 2, 5, 10)},
        "parameters": {f"size {name}": (parameters(name), job(name=name)) for name in ("tiny", "base", "large")},
    }
    for what, study in studies.items():
        figures = in_turns({name: job for name, (_, job) in study.items()}, min(setting.repeats, 3), not setting.quick)
        first, *_, last = study
        for name in study:
            yield make_row("growth", f"epoch, {name}", "s", figures[name], figures[first])
        span = math.log(study[last][0] / study[first][0])
        slopes = [math.log(b / a) / span for a, b in zip(figures[first], figures[last], strict=True)]
        yield make_row("growth", f"slope in the {what}", "exponent", slopes)


def several(setting):
    """An epoch of `base` shared out among processes by torchrun, against one process: CPU processes of one thread each.

    On the CPU also against one process with all threads. The seconds are those that train.py logs of its last epoch;
    the first of two warms up.
    """
    device = setting.device.type
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    worlds = [world for world in (1, 2, 4, 8) if world <= (torch.cuda.device_count() if device == "cuda" else cores)]
    images = len(load_digits(setting.dataset, setting.data_dir, train=True)[0])
    epochs = 1 if setting.quick else 2
    held_out = images - (min(QUICK_IMAGES, images // 2) if setting.quick else len(setting.training[0]))

    def epoch(world, threads):
        with tempfile.TemporaryDirectory() as folder:
            flags = f"--epochs {epochs} --val-size {held_out} --run-name several --device {device}"
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
            words = [*flags.split(), "--dataset", setting.dataset, "--data-dir", setting.data_dir, "--out", folder]
            done = subprocess.run(
                [sys.executable, *launcher, str(HERE / "train.py"), *words],
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            if done.returncode:
                raise cli.UserError(f"{world} processes failed: {' '.join(done.stderr.split())[-300:]}")
            with open(Path(folder) / "logs" / "several.csv", newline="") as file:
                return float(list(csv.DictReader(file))[epochs - 1]["seconds"])

    if worlds == [1]:
        return
    jobs = {world: functools.partial(epoch, world, threads=1) for world in worlds}
    rival_names = {1: "one"}
    if device == "cpu" and not setting.quick:
        jobs["threads"] = functools.partial(epoch, 1, threads=cores)
        rival_names["threads"] = f"one of {cores} threads"
    figures = in_turns(jobs, 1 if setting.quick else min(setting.repeats, 3), warm_up=False)
    for world in worlds[1:]:
        for name, words in rival_names.items():
            yield make_row("several", f"epoch in {world} processes, or in {words}", "s", figures[world], figures[name])


def rival(setting):
    """Our fast recipe against the fastest public one, from the first step to the last, on all training images.

    The rival as it is published, and with the memory layout and the precision that ours has. Its accuracy is that of
    the digit; ours counts the pairs with both answers right.
    """
    device = setting.device
    images, digits, _ = load_digits(setting.dataset, setting.data_dir, train=True)
    if setting.quick:
        images, digits = images[:QUICK_IMAGES], digits[:QUICK_IMAGES]
    test = load_digits(setting.dataset, setting.data_dir, train=False)[:2]
    seeds = {}  # of each job's next round

    def ours(seed):
        run = begin("fast", (images, digits), device, seed=seed)
        return run.seconds(), 100 * joint_on_test(run.scored, setting)

    def theirs(seed, **options):
        recipe = rivals.FastestPublicRecipe(images, digits, device, seed=seed, **options)
        return seconds_of(recipe.train, device), 100 * recipe.accuracy(*test)

    def next_round(name, job):
        seeds[name] = seeds.get(name, -1) + 1  # 0 is the round that is not counted
        return job(seeds[name])

    both = dict(memory_format=torch.channels_last, bfloat16=True)
    jobs = {
        "ours": ours,
        "as published": theirs,
        "in channels_last": functools.partial(theirs, memory_format=torch.channels_last),
        "in channels_last and bfloat16": functools.partial(theirs, **both),
    }
    turns = {name: functools.partial(next_round, name, job) for name, job in jobs.items()}
    seconds, accuracy = {}, {}
    for name, pairs in in_turns(turns, setting.repeats if setting.quick else max(SEEDS, setting.repeats)).items():
        seconds[name], accuracy[name] = (list(column) for column in zip(*pairs, strict=True))
    for name in list(jobs)[1:]:
        yield make_row("rival", f"training, public recipe {name}", "s", seconds["ours"], seconds[name])
        what = f"mean test accuracy, our joint, its digit {name}"
        yield make_row("rival", what, "%", accuracy["ours"], accuracy[name], middle=statistics.mean)


SECTIONS = {
    "usual": usual,
    "overhead": overhead,
    "target": target,
    "scoring": scoring,
    "latency": latency,
    "start": start,
    "memory": memory,
    "options": options,
    "growth": growth,
    "several": several,
    "rival": rival,
}


# ---------------------------------------------------------------------------------------------------------------------
# The table


def make_header(setting):
    """{word: text} of the machine, the versions and the data."""
    device, threads = setting.device, torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{processor()}, {threads} threads"
    return {
        "device": f"{device.type}: {name}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "commit": commit(),
        "data set": f"{setting.dataset}: {len(setting.training[0]):,d} training images",
        "repeats": f"{setting.repeats}{', --quick: a few images, rough figures' if setting.quick else ''}",
    }


def figure(value):
    """A figure as the table shows it: four digits that count."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def cells(row):
    """One row as texts under COLUMNS."""
    low, high = row["spread"]
    figures = [figure(row[name]) for name in ("ours", "rival", "ratio")]
    return [row["section"], row["what"], row["unit"], *figures, f"{figure(low)} to {figure(high)}"]


def table(rows):
    """The rows under COLUMNS as aligned text, figures to the right."""
    lines = [COLUMNS, *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    text = []
    for line in lines:
        padded = [
            cell.rjust(width) if 3 <= column <= 5 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(padded).rstrip())
    return "\n".join(text)


def main(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="a few images and steps: does it run, not how fast")
    parser.add_argument("--only", nargs="+", choices=tuple(SECTIONS), metavar="NAME", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--repeats", type=cli.integer(1), help="rounds of each measurement (default: 5, quick: 1)")
    parser.add_argument("--device", choices=cli.DEVICES, default="auto", help="auto: CUDA, else MPS, else the CPU")
    parser.add_argument("--dataset", choices=DATASETS, default="auto", help="as train.py takes it")
    parser.add_argument("--data-dir", default="data", metavar="FOLDER", help="as train.py takes it")
    parser.add_argument("--json", metavar="FILE", help="write the table here too")
    args = parser.parse_args(argv)

    device = cli.choose_device(args.device)
    if args.json and not Path(args.json).parent.is_dir():  # should not show at the end only
        raise cli.UserError(f"--json {args.json}: there is no folder {Path(args.json).parent}")
    images, digits, dataset = load_digits(args.dataset, args.data_dir, train=True)
    training, validation = split_indices(len(images), len(images) // 12)
    if args.quick:
        training, validation = training[:QUICK_IMAGES], validation[:500]
    setting = Setting(
        device,
        args.repeats or (1 if args.quick else 5),
        args.quick,
        dataset,
        args.data_dir,
        (images[training], digits[training]),
        (images[validation], digits[validation]),
    )
    header = make_header(setting)
    print("\n".join(f"{word:10s}{text}" for word, text in header.items()), end="\n\n", flush=True)
    rows = []
    for name in [name for name in SECTIONS if not args.only or name in args.only]:
        begun = time.perf_counter()
        rows += SECTIONS[name](setting)
        print(f"{name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    print(table(rows))
    if args.json:
        write_atomically(args.json, json.dumps(header | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(cli.run_script(main))
