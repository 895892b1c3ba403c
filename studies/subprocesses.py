"""The sections of the benchmark that start processes of their own, and what those processes do.

No import here of torchvision, nor of a module that imports it: the processes that are measured import this one.
"""

import functools
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from data import load_digits, split_indices
from studies.measure import EndTraining, Run, in_turns, keep_memory, make_row, map_images, now, seconds_of, write_images
from support import cli
from support.checkpoint import load_checkpoint
from support.device import choose_device, set_deterministic

try:
    import resource
except ImportError:  # Windows
    resource = None

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = "public recipe"  # that of studies/rivals.py


# ---------------------------------------------------------------------------------------------------------------------
# The sections: each takes a Setting and yields rows


def start(setting):
    """Seconds from the start of a process to the end of its first step, to the scripts' imports, to torch's.

    The imports also against that of torchvision, which imports torch and which the scripts do without.
    """
    program = "import json, time, {}; print(json.dumps({{'done at': {{'imports': time.perf_counter()}}, 'MiB': {{}}}}))"
    jobs = {
        "first step": lambda: in_a_process(setting, "base", steps=1)["first step"],
        "scripts imported": lambda: in_a_process(setting)["imports"],
        "torch imported": lambda: from_a_process(program.format("torch"))["imports"],
        "torchvision imported": lambda: from_a_process(program.format("torchvision"))["imports"],
    }
    figures = in_turns(jobs, min(setting.repeats, 5), warm_up=not setting.quick)
    first, scripts, torch_alone, torchvision = jobs
    for ours, rival in ((first, scripts), (first, torch_alone), (scripts, torch_alone), (scripts, torchvision)):
        yield make_row(f"process start to {ours} vs {rival}", "s", figures[ours], figures[rival])


def memory(setting):
    """Memory of a process that trains, against one that only imports, as images, addends and parameters grow.

    The peak of its resident memory, where the pages count that were read of images mapped from disk; and on Linux the
    anonymous memory at its last step, which are all pages but those of files.
    """
    jobs = {"imports": {}, "an epoch": dict(name="base")}
    with tempfile.TemporaryDirectory() as folder:
        if not setting.quick:
            few = dict(name="base", steps=20)
            jobs |= {f"20 steps, {times} x the images": few | dict(times=times) for times in (1, 4, 16)}
            jobs["20 steps, 16 x the images on disk"] = few | dict(times=16, folder=folder)
            jobs["20 steps, 1 of 10 addends per image"] = few | dict(addends_per_image=1)
            jobs |= {f"20 steps of {name}": few | dict(name=name) for name in ("tiny", "large")}
        jobs = {what: functools.partial(in_a_process, setting, **options) for what, options in jobs.items()}
        figures = in_turns(jobs, 1 if setting.quick else 2, warm_up=False)
    imports = figures.pop("imports")

    def of(rounds, kind):
        return [taken[kind] for taken in rounds]

    for what, rounds in figures.items():
        for kind in ("peak", "anonymous"):
            if all(of(imports, kind)):
                yield make_row(f"{kind} in {what}", "MiB", of(rounds, kind), of(imports, kind))
        if setting.device.type == "cuda":
            yield make_row(f"peak in {what}, on CUDA", "MiB", of(rounds, "peak on CUDA"))


def allocator(setting):
    """Training with `measure.keep_memory` against glibc's default settings: seconds, and minor page faults.

    Of the public recipe, in our layout and in bfloat16, and of the fast one; each round in processes of its own. The
    rows of the defaults alone show how much those processes differ. No rows where the C library is not glibc.
    """
    if setting.device.type != "cpu" or not keep_memory():
        return
    jobs = {
        (recipe, kept): functools.partial(trained_in_a_process, setting, recipe, kept)
        for recipe in (PUBLIC, "fast")
        for kept in (True, False)
    }
    figures = in_turns(jobs, setting.repeats, warm_up=False)
    for recipe, unit in itertools.product((PUBLIC, "fast"), ("s", "faults")):
        ours, default = ([taken[unit] for taken in figures[recipe, kept]] for kept in (True, False))
        yield make_row(f"{recipe}, memory kept vs glibc's defaults", unit, ours, default)
        yield make_row(f"{recipe}, glibc's defaults", unit, default)


def several(setting):
    """An epoch of `base` divided among processes by torchrun, against one process: CPU processes of one thread each.

    On the CPU also against one process with all threads, and the most processes against as many that do not exchange
    their gradients, which shows what the exchange costs. The seconds are those that train.py logs for its last epoch;
    the first of two is a warm-up.
    """
    device = setting.device.type
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    most = {"cuda": torch.cuda.device_count(), "cpu": cores}.get(device, 1)  # train.py divides no epoch on MPS
    worlds = [world for world in (1, 2, 4, 8) if world <= most]
    images = len(load_digits(setting.dataset, setting.data_dir, train=True)[0])
    epochs = 1 if setting.quick else 2
    held_out = images - len(setting.training[0])

    def epoch(world, threads, exchange=True):
        with tempfile.TemporaryDirectory() as folder:
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
            flags = f"--epochs {epochs} --val-size {held_out} --run-name several --device {device} --out".split()
            words = [*flags, folder, "--dataset", setting.dataset, "--data-dir", setting.data_dir]
            alone = ["--no-python", sys.executable, "-c", WITHOUT_EXCHANGE]
            script = [str(ROOT / "train.py")] if exchange else alone
            done = subprocess.run(
                [sys.executable, *launcher, *script, *words],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            if done.returncode:
                raise cli.UserError(f"{world} processes failed: {' '.join(done.stderr.split())[-300:]}")
            return load_checkpoint(Path(folder) / "last.pt")["history"][-1]["seconds"]

    ours, others = [(world, 1) for world in worlds[1:]], {(1, 1): "one"}
    if device == "cpu" and not setting.quick:
        others[1, cores] = f"one of {cores} threads"
    jobs = {key: functools.partial(epoch, *key) for key in (*others, *ours)} if ours else {}
    if ours:
        jobs["alone"] = functools.partial(epoch, *ours[-1], exchange=False)
    figures = in_turns(jobs, 1 if setting.quick else min(setting.repeats, 3), warm_up=False)
    for key, (other, words) in itertools.product(ours, others.items()):
        yield make_row(f"epoch in {key[0]} processes vs in {words}", "s", figures[key], figures[other])
    if ours:
        what = f"epoch in {ours[-1][0]} processes vs without exchange of gradients"
        yield make_row(what, "s", figures[ours[-1]], figures["alone"])


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


def status(field):
    """A field of Linux's /proc/self/status in MiB; 0.0 on other systems."""
    try:
        return int(re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**10
    except (OSError, TypeError):  # no /proc, or one without the field
        return 0.0


def peak_memory():
    """Peak resident memory of this process so far, in MiB; 0.0 on Windows.

    On Linux from VmHWM: ru_maxrss there starts at the peak of the process that started this one.
    """
    if peak := status("VmHWM"):
        return peak
    # in bytes on macOS, in KiB elsewhere
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if resource else 0
    return used / (2**20 if sys.platform == "darwin" else 2**10)


def child(name, count, times, steps, dataset, data_dir, device, path, changes):
    """What a measured process does, once it has imported the scripts: `steps` steps of the model `name`, if any.

    `steps` None is an epoch; `path` is a file to map the images from, or None; `changes` are of the arguments of
    train.py. Prints JSON: when the imports and the first step were done, on the clock of `now`, and MiB of memory: the
    peaks, and what is anonymous at the last step.
    """
    done_at, memory = {"imports": time.perf_counter()}, {"anonymous": status("RssAnon")}

    def after_step(done):
        if done == 1:
            done_at["first step"] = now(device)
        if done == (steps or len(run.batches)):
            memory["anonymous"] = status("RssAnon")
            raise EndTraining

    if name:
        device = choose_device(device)
        set_deterministic(False, device)
        images, digits, _ = load_digits(dataset, data_dir, train=True)
        training = split_indices(len(images), len(images) // 12)[0][:count]
        images = map_images(path) if path else images[training.repeat(times)]
        run = Run(name, (images, digits[training.repeat(times)]), device, epochs=1, **changes)
        run.train(after_step)
    memory |= {"peak": peak_memory(), "peak on CUDA": torch.cuda.max_memory_allocated() / 2**20}
    print(json.dumps({"done at": done_at, "MiB": memory}))


def in_a_process(setting, name="", times=1, steps=None, folder=None, **changes):
    """{name: figure} that a `child` in a process of its own prints, the times as seconds since that process began."""
    count = len(setting.training[0])
    path = write_images(setting.training[0], times, folder) if folder else None
    words = (name, count, times, steps, setting.dataset, setting.data_dir, str(setting.device), path, changes)
    return from_a_process(f"from studies import subprocesses; subprocesses.child(*{words!r})")


def from_a_process(program):
    """{name: figure} of the JSON that a Python program prints, the times as seconds since its process began."""
    start = time.perf_counter()
    printed = printed_by(program)
    return {name: done - start for name, done in printed["done at"].items()} | printed["MiB"]


def printed_by(program):
    """The JSON that a Python program prints in a process of its own. Raises UserError where it fails."""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise cli.UserError("the measured process failed; its message is above")
    return json.loads(done.stdout)


def trained(recipe, kept, count, dataset, data_dir, device):
    """What a process of `allocator` does: train the recipe on `count` images, None: all, with memory `kept` or not.

    Prints JSON: seconds and minor page faults of the training alone.
    """
    if kept:
        keep_memory()
    device = choose_device(device)
    set_deterministic(False, device)
    images, digits, _ = load_digits(dataset, data_dir, train=True)
    training = images[:count], digits[:count]
    if recipe == PUBLIC:
        from studies.rivals import FastestPublicRecipe  # imports torchvision

        train_all = FastestPublicRecipe(*training, device, torch.channels_last, bfloat16=True).train
    else:
        train_all = Run(recipe, training, device).train
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    seconds = seconds_of(train_all, device)
    print(json.dumps({"s": seconds, "faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before}))


def trained_in_a_process(setting, recipe, kept):
    """What `trained` prints in a process of its own."""
    count = len(setting.training[0]) if setting.quick else None
    words = (recipe, kept, count, setting.dataset, setting.data_dir, str(setting.device))
    return printed_by(f"from studies import subprocesses; subprocesses.trained(*{words!r})")
