"""Runs of train.py that are killed at a given instant: a process that imports PyTorch once and forks for every run.

Reads one JSON object a line from stdin: `folder` to run in, `argv` of train.py, and when to send SIGKILL: after
`seconds`, or at the `event`-th step of the writing of files, or, with neither, never. Answers each with one line of
JSON: `status` as subprocess gives it, `seconds` it took, `events` there were. What the run prints goes to FOLDER.out.
"""

import contextlib
import json
import os
import select
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import checkpoint
import cli
import runlog
import train


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


def run(folder, argv, event, pipe):
    """The run itself, in the forked process; the number of events goes into the pipe at its end."""
    os.chdir(folder)
    log = os.open(f"{folder}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
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

    checkpoint.open = opened
    os.fsync, os.replace = with_instants(os.fsync), with_instants(os.replace)
    runlog.commit = lambda: "unknown"  # the sources may change between two runs
    sys.argv = ["train.py"]
    status = cli.run_script(train.main, argv)
    sys.stdout.flush()
    os.write(pipe, str(count).encode())
    return status


def main():
    for line in sys.stdin:
        job = json.loads(line)
        ours, theirs = os.pipe()
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            status = 99
            try:
                status = run(job["folder"], job["argv"], job.get("event"), theirs)
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
