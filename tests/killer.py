"""Runs that may be killed at a given instant: a process that imports PyTorch once and forks for every run.

Reads one JSON object a line from stdin: `folder` to run in, `argv` of train.py (or of another `script`), and when to
send SIGKILL: after `seconds`, or at the `event`-th step of the writing of files, or, with neither, never. A run is
interrupted after so many `epochs` of its own, and gets so much `memory` in MiB beyond what the imports take. A run in
`processes` is a job of torchrun's; its process of the last rank is killed in the epoch `dies`, counted from 0, after
the first step. Answers each with one line of JSON: `status` as subprocess gives it, `seconds` it took, `events` there
were. What the run prints goes to FOLDER.out.
"""

import contextlib
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch._dynamo  # noqa: F401 (else the first optimiser of every fork imports it)
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import evaluate
import train
from data import Batches
from support import cli, files, runlog


class Halves:
    """A file whose every write is two, with an instant to be killed at between them."""

    def __init__(self, file, instant):
        self.file, self.instant = file, instant
        self.flush, self.fileno = file.flush, file.fileno

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        self.instant()
        self.file.write(content[len(content) // 2 :])
        self.file.flush()
        self.instant()


def limit(epochs, memory):
    """Interrupt the run after so many epochs; refuse it more memory than that in MiB."""
    train_epoch, numbers = train.train_epoch, iter(range(epochs))

    def counted(*arguments):
        if next(numbers, None) is None:
            raise KeyboardInterrupt
        return train_epoch(*arguments)

    train.train_epoch = counted
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + memory * 2**20,) * 2)


def enter(folder):
    """Make the folder the current one, and FOLDER.out the place of what is printed."""
    os.chdir(folder)
    log = os.open(f"{folder}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)


def die(doomed):
    """Kill the process of the last rank in the epoch `doomed`, after its first step."""
    epochs = Batches.epoch

    def epoch(self, number):
        for step, batch in enumerate(epochs(self, number)):
            if (number, step) == (doomed, 1) and self.rank == self.world_size - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    Batches.epoch = epoch


def run_in_processes(job):
    """The run in several processes, as torchrun starts them, but forked; raises where one of them fails."""
    how = {"run_id": "job", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "start_method": "fork"}
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=job["processes"], max_restarts=0, **how)
    elastic_launch(config, lambda: sys.exit(run(job)[0]))()
    return 0, 0


def run(job):
    """The run itself, in the forked process; (exit status, number of events)."""
    argv, event, script = job["argv"], job.get("event"), job.get("script", "train")
    count = 0

    def instant():
        nonlocal count
        count += 1
        if count == event:
            os.kill(os.getpid(), signal.SIGKILL)

    def with_instants(function):
        def call(*arguments):
            instant()
            function(*arguments)
            instant()

        return call

    @contextlib.contextmanager
    def opened(path, mode):
        with open(path, mode) as file:
            instant()
            yield Halves(file, instant)

    files.open = opened
    os.fsync, os.replace = with_instants(os.fsync), with_instants(os.replace)
    runlog.commit = lambda: "unknown"  # the sources may change between two runs
    sys.argv = [f"{script}.py"]
    if "memory" in job:
        limit(job["epochs"], job["memory"])
    if "dies" in job:
        die(job["dies"])
    status = cli.run_script({"train": train, "evaluate": evaluate}[script].main, argv)
    sys.stdout.flush()
    return status, count


def main():
    for line in sys.stdin:
        job = json.loads(line)
        ours, theirs = os.pipe()
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            status = 99
            try:
                enter(job["folder"])
                status, events = run_in_processes(job) if "processes" in job else run(job)
                os.write(theirs, str(events).encode())
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(theirs)
        # The pipe's other end closes when the run is over, however it ended.
        over = select.select([ours], [], [], job.get("seconds", 120))[0]
        if not over:
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        events = int(os.read(ours, 20) or 0)
        os.close(ours)
        print(json.dumps({"status": status, "seconds": time.monotonic() - start, "events": events}), flush=True)


if __name__ == "__main__":
    main()
