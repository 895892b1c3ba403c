"""Speed, side by side: ours against what one would use instead, in turns on the same machine, as ratios.

    python benchmark.py --quick                        every section on a few images: does it run
    python benchmark.py --json logs/benchmark-cpu.json
    python benchmark.py --only rival overhead --repeats 10

A ratio is ours / rival: of seconds and of memory less is better, of anything per second more. Figures are medians, test
accuracies of the section `rival` means; the spread is from the smallest to the largest ratio of one round, or figure
where there is no rival. The rounds of a section run A B A B, so that a slow minute of the machine hits both; one more
round before them warms up, except in `target`, `memory` and with --quick in `start` and `growth`.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision
from torch.optim.swa_utils import AveragedModel
from torchvision import transforms

import cli
from checkpoint import write_atomically
from data import ADDENDS, DATASETS, MEAN, STD, Batches, load_digits, prepare, split_indices
from evaluate import predict_pairs, score
from model import AddendNet
from published import build_model
from runlog import commit, processor, versions
from train import OPTIMIZERS, learning_rate_at, moving_average, parse_arguments

HERE = Path(__file__).resolve().parent
COLUMNS = ("section", "what", "unit", "ours", "rival", "ratio", "spread")
SEEDS = 10  # of the fast recipe and of its rival
TARGETS = (0.9855, 0.99)  # of the validation joint accuracy; the first is the best published one
QUICK_TARGETS = (0.3, 0.5)  # a few steps reach these
QUICK_IMAGES = 3840  # 30 batches of 128


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


# A candidate for a fast recipe, as changes to that of `base`: chosen on held-out training images, unproven against the
# rival; `--only rival` is what decides.
FAST = dict(epochs=1, learning_rate=0.02, augment=0.0, ema_decay=0.0, precision="bfloat16")


class FastNet(AddendNet):
    """AddendNet behind a strided 5x5 convolution: 28 -> 12 -> 6 -> 3, so that no layer works on the full image."""

    def __init__(self):
        super().__init__(stages=((32,), (64,)), features=64, hidden=64)
        layers = [nn.Conv2d(1, 16, 5, stride=2, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        self.encoder = nn.Sequential(*layers, nn.Conv2d(16, 32, 3, padding=1, bias=False), *self.encoder[1:])


def network(name):
    """The network of that name, freshly initialised."""
    return FastNet() if name == "fast" else build_model(name)


def arguments(name, **changes):
    """The arguments that train.py takes for `--model NAME`, with changes: its recipe."""
    own = FAST | {"model": "fast"} if name == "fast" else {}
    argv = ["--model", "base" if own else name, "--run-name", name]
    return argparse.Namespace(**vars(parse_arguments(argv)[0]) | own | changes)


def begin(args, device, memory_format=torch.channels_last, fused=True):
    """(model, optimizer, averaged) of a run with these arguments; averaged is None without a moving average."""
    torch.manual_seed(args.seed)
    model = network(args.model).to(device, memory_format=memory_format)
    optimizer = OPTIMIZERS[args.optimizer](
        model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay, fused=fused
    )
    averaged = None
    if args.ema_decay:
        averaged = AveragedModel(model, multi_avg_fn=moving_average(args.ema_decay, 0), use_buffers=True)
    return model, optimizer, averaged


def make_batches(args, training, device):
    """The batches of a run with these arguments on `training` = (images, digits)."""
    return Batches(*training, args.batch_size, args.seed, args.addends_per_image, args.augment, device)


def steps_of(args, parts, batches):
    """The loop of train.py; yields after each step of its `args.epochs` epochs. `parts` is what `begin` returned."""
    model, optimizer, averaged = parts
    steps = args.epochs * len(batches)
    for epoch in range(args.epochs):
        model.train()
        for step, (image, addend, digit, sum_target) in enumerate(batches.epoch(epoch)):
            done = epoch * len(batches) + step
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(done, steps, args.learning_rate, args.schedule)
            with torch.autocast(batches.device.type, torch.bfloat16, enabled=args.precision == "bfloat16"):
                digit_logits, sum_logits = model(image, addend)
            digit_loss = model.digit_loss(digit_logits.float(), digit, args.label_smoothing)
            sum_loss = model.sum_loss(sum_logits.float(), sum_target, args.label_smoothing)
            loss = args.digit_weight * digit_loss + args.sum_weight * sum_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if averaged:
                averaged.multi_avg_fn = moving_average(args.ema_decay, done)
                averaged.update_parameters(model)
            yield


def train_all(args, parts, batches):
    """Seconds of all steps, the drawing of the examples in."""
    return seconds_of(lambda: list(steps_of(args, parts, batches)), batches.device)


def bare_steps(args, parts, batch, steps):
    """Forward, losses, backward and step on one and the same batch: the arithmetic and nothing else."""
    model, optimizer, _ = parts
    image, addend, digit, sum_target = batch
    model.train()
    for _ in range(steps):
        digit_logits, sum_logits = model(image, addend)
        loss = model.digit_loss(digit_logits, digit, args.label_smoothing)
        loss = loss + model.sum_loss(sum_logits, sum_target, args.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def joint_on_test(model, setting):
    """Joint accuracy on all pairs of the test set, from 0 to 1."""
    images, digits, _ = load_digits(setting.dataset, setting.data_dir, train=False)
    return score(*predict_pairs([model], images, device=setting.device), digits)["joint_accuracy"]


# ---------------------------------------------------------------------------------------------------------------------
# The sections: each takes a Setting and yields rows


class UsualDigits(torchvision.datasets.MNIST):
    """The usual way: a PIL image, ToTensor, Normalize and a random addend, one example at a time."""

    def __init__(self, images, digits):  # in memory already, as torchvision's own constructor leaves them
        self.data, self.targets, self.target_transform = images.squeeze(1), digits, None
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])

    def __getitem__(self, index):
        image, digit = super().__getitem__(index)
        addend = torch.randint(0, ADDENDS, ()).item()
        return image, addend, digit, digit + addend


def usual(setting):
    """An epoch of the usual way against ours: the same network, batch size and optimiser, one addend an image."""
    args = arguments("two-branch-lenet", faults=[], epochs=1)
    training = setting.first(QUICK_IMAGES) if setting.quick else setting.training
    device, count = setting.device, len(training[0])

    def ours(parts):
        return count / train_all(args, parts, make_batches(args, training, device))

    def rival(parts, loader):
        model, optimizer, _ = parts

        def epoch():
            model.train()
            for batch in loader:
                image, addend, digit, sum_target = (tensor.to(device) for tensor in batch)
                digit_logits, sum_logits = model(image, addend)
                loss = F.cross_entropy(digit_logits, digit) + F.cross_entropy(sum_logits, sum_target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        return count / seconds_of(epoch, device)

    jobs = {"ours": functools.partial(ours, begin(args, device))}
    for workers in (0, 2):
        loader = torch.utils.data.DataLoader(
            UsualDigits(*training),
            args.batch_size,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,  # the round that is not counted starts them
        )
        parts = begin(args, device, memory_format=torch.contiguous_format)
        jobs[workers] = functools.partial(rival, parts, loader)
    figures = in_turns(jobs, setting.repeats)
    for workers in (0, 2):
        what = f"epoch, DataLoader with {workers} workers"
        yield make_row("usual", what, "images/s", figures["ours"], figures[workers])


def overhead(setting):
    """Our epoch against its bare arithmetic, as many steps on one fixed batch: 1.05 is 5 % lost to all the rest."""
    for name in ("two-branch-lenet", "base"):
        changes = {"plain": dict(augment=0.0, ema_decay=0.0)}
        if name == "base":
            changes |= {"augmented": dict(ema_decay=0.0), "averaged": dict(augment=0.0), "as it is": {}}
        for what, change in changes.items():
            args = arguments(name, faults=[], epochs=1, **change)
            training = setting.first(QUICK_IMAGES // 2) if setting.quick else setting.training
            parts, batches = begin(args, setting.device), make_batches(args, training, setting.device)
            batch, steps = next(batches.epoch(0)), len(training[0]) / args.batch_size
            whole = max(1, round(steps))
            bare = functools.partial(bare_steps, args, parts, batch, whole)
            jobs = {
                "ours": functools.partial(train_all, args, parts, batches),
                "bare": lambda bare=bare, share=steps / whole: share * seconds_of(bare, setting.device),
            }
            figures = in_turns(jobs, setting.repeats)
            yield make_row("overhead", f"epoch of {name}, {what}", "s", figures["ours"], figures["bare"])


def target(setting):
    """Seconds of training until the validation joint accuracy first reaches the targets, and the test joint there."""
    targets = QUICK_TARGETS if setting.quick else TARGETS
    training = setting.first(QUICK_IMAGES) if setting.quick else setting.training

    def reach(name, seed):
        args = arguments(name, seed=seed)
        parts, batches = begin(args, setting.device), make_batches(args, training, setting.device)
        scored = parts[2].module if parts[2] else parts[0]
        reached, seconds, start = [], 0.0, time.perf_counter()
        for step, _ in enumerate(steps_of(args, parts, batches), 1):
            if step % (10 if setting.quick else 25) and step < args.epochs * len(batches):
                continue
            wait_for(setting.device)
            seconds += time.perf_counter() - start  # what follows is not timed
            images, digits = setting.validation
            joint = score(*predict_pairs([scored], images, device=setting.device), digits)["joint_accuracy"]
            while len(reached) < len(targets) and joint >= targets[len(reached)]:
                reached.append((seconds, 100 * joint_on_test(scored, setting)))
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


@torch.inference_mode()
def predict_pair_by_pair(model, images, device, batch_size=500):
    """What `predict_pairs` answers, with one CNN pass for each of the N * 10 pairs: the plain way."""
    model.eval()
    answers = []
    for index in torch.arange(len(images) * ADDENDS).split(batch_size):
        image, addend = prepare(images[index // ADDENDS].to(device)), (index % ADDENDS).to(device)
        digit_logits, sum_logits = model(image, addend)
        answers.append(torch.stack([digit_logits.argmax(-1), sum_logits.argmax(-1)]))
    return torch.cat(answers, dim=1).cpu().view(2, len(images), ADDENDS).unbind()


def scoring(setting):
    """Scored pairs per second: one CNN pass an image, as evaluate.py does it, against one pass a pair."""
    images, _ = setting.first(500 if setting.quick else 5000)
    model, device = build_model("base").to(setting.device, memory_format=torch.channels_last), setting.device
    pairs = len(images) * ADDENDS
    jobs = {
        "ours": lambda: pairs / seconds_of(lambda: predict_pairs([model], images, device=device), device),
        "rival": lambda: pairs / seconds_of(lambda: predict_pair_by_pair(model, images, device), device),
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
        args = arguments(name, epochs=1)
        loop = steps_of(args, begin(args, device), make_batches(args, (images, digits), device))
        for step, _ in enumerate(itertools.islice(loop, steps)):
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
    jobs = {
        "import": lambda: in_a_process(setting, ""),
        "an epoch": lambda: in_a_process(setting, "base"),
        "20 steps of 4 x the images": lambda: in_a_process(setting, "base", times=4, steps=20),
        "20 steps of 16 x the images": lambda: in_a_process(setting, "base", times=16, steps=20),
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

    def job(threads=threads, memory_format=torch.channels_last, fused=True, **changes):
        args = arguments("base", epochs=1, **changes)
        parts, batches = begin(args, device, memory_format, fused), make_batches(args, training, device)

        def seconds():
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                return train_all(args, parts, batches)
            finally:
                torch.set_num_threads(before)

        return seconds

    choices = {
        "without channels_last": job(memory_format=torch.contiguous_format),
        "with bfloat16 autocast": job(precision="bfloat16"),
        "without the fused optimiser": job(fused=False),
        "with 1 thread": job(threads=1),
        "with 2 threads": job(threads=2),
        "without augmentation": job(augment=0.0),
        "without the moving average": job(ema_decay=0.0),
        "with 1 addend an image": job(addends_per_image=1),
        "with 10 addends an image": job(addends_per_image=10),
    }
    figures = in_turns({"default": job(), **choices}, setting.repeats)
    for what in choices:
        yield make_row("options", what, "s", figures[what], figures["default"])


def growth(setting):
    """Seconds of an epoch of `base` as the work grows, against the smallest; and the exponent: 1 is in proportion.

    Of 16 times the images the draws are timed in full and a sixteenth of the steps; the others are in proportion.
    """
    images, digits = setting.first(640 if setting.quick else len(setting.training[0]))

    def job(times=1, name="base", **changes):
        args = arguments(name, epochs=1, **changes)
        training = images.repeat(times, 1, 1, 1), digits.repeat(times)
        parts, batches = begin(args, setting.device), make_batches(args, training, setting.device)

        def seconds():
            if times < 16:
                return train_all(args, parts, batches)
            steps = steps_of(args, parts, batches)
            first = seconds_of(lambda: next(steps), setting.device)
            counted = len(batches) // times
            rest = seconds_of(lambda: [next(steps) for _ in range(counted)], setting.device)
            return first + rest * (len(batches) - 1) / counted

        return seconds

    def parameters(name):
        return sum(parameter.numel() for parameter in build_model(name).parameters())

    studies = {
        "images": {f"{times} x the images": (times, job(times)) for times in (1, 4, 16)},
        "addends": {f"{k} addends an image": (k, job(addends_per_image=k)) for k in (1, 3, 10)},
        "parameters": {f"size {name}": (parameters(name), job(name=name)) for name in ("tiny", "base", "large")},
    }
    for what, study in studies.items():
        figures = in_turns({name: job for name, (_, job) in study.items()}, min(setting.repeats, 3), not setting.quick)
        first, *_, last = study
        for name in study:
            yield make_row("growth", f"epoch, {name}", "s", figures[name], figures[first])
        growth = math.log(study[last][0] / study[first][0])
        slopes = [math.log(b / a) / growth for a, b in zip(figures[first], figures[last], strict=True)]
        yield make_row("growth", f"slope in the {what}", "exponent", slopes)


class FastestPublicNet(nn.Sequential):
    """The network of the fastest public MNIST recipe (github.com/tuomaso/train_mnist_fast): the digit only."""

    def __init__(self):
        super().__init__(
            *(nn.Conv2d(1, 24, 5), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Conv2d(24, 32, 3), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(800, 256), nn.ReLU(), nn.Linear(256, 10)),
        )


def rival(setting):
    """Our fast recipe against the fastest public one, from the first step to the last, on all training images.

    The rival as it is published: normalised images in memory before the clock starts, shuffled once, batches of 256,
    Adam, one-cycle to 1e-2, one epoch; and once more in the memory layout that is faster here. Its accuracy is that of
    the digit; ours counts the pairs with both answers right.
    """
    device = setting.device
    images, digits, _ = load_digits(setting.dataset, setting.data_dir, train=True)
    if setting.quick:
        images, digits = images[:QUICK_IMAGES], digits[:QUICK_IMAGES]
    test_images, test_digits, _ = load_digits(setting.dataset, setting.data_dir, train=False)

    def ours(seed):
        args = arguments("fast", seed=seed)
        parts, batches = begin(args, device), make_batches(args, (images, digits), device)
        seconds = train_all(args, parts, batches)
        return seconds, 100 * joint_on_test(parts[2].module if parts[2] else parts[0], setting)

    def theirs(memory_format, seed):
        torch.manual_seed(seed)
        model = FastestPublicNet().to(device, memory_format=memory_format).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.7, 0.9), fused=True)
        order = torch.randperm(len(images))
        image = prepare(images[order].to(device)).contiguous(memory_format=memory_format)
        digit = digits[order].to(device)
        steps = list(zip(image.split(256), digit.split(256), strict=True))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=len(steps), cycle_momentum=False)

        def epoch():
            for batch, batch_digit in steps:
                optimizer.zero_grad()
                F.cross_entropy(model(batch), batch_digit).backward()
                optimizer.step()
                schedule.step()

        seconds = seconds_of(epoch, device)
        with torch.inference_mode():
            answers = [model(prepare(batch.to(device))).argmax(-1).cpu() for batch in test_images.split(500)]
        return seconds, 100 * (torch.cat(answers) == test_digits).double().mean().item()

    repeats, counter = setting.repeats if setting.quick else max(SEEDS, setting.repeats), iter(range(10**6))
    jobs = {
        "ours": lambda: ours(next(counter) // 3),
        "as published": lambda: theirs(torch.contiguous_format, next(counter) // 3),
        "in channels_last": lambda: theirs(torch.channels_last, next(counter) // 3),
    }
    # the round that is not counted has seed 0, the others 1, 2, ...
    seconds, accuracy = {}, {}
    for name, pairs in in_turns(jobs, repeats).items():
        seconds[name], accuracy[name] = (list(column) for column in zip(*pairs, strict=True))
    for name in ("as published", "in channels_last"):
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
    parser.add_argument("--repeats", type=cli.integer(1), help="rounds of each measurement (default: 5, quick: 2)")
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
        args.repeats or (2 if args.quick else 5),
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
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += SECTIONS[name](setting)
    print(table(rows))
    if args.json:
        write_atomically(args.json, json.dumps(header | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(cli.run_script(main))
