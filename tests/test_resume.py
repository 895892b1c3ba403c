"""Nothing is lost: a run that is stopped, interrupted or killed continues to the same bits as one that was not."""

import csv
import hashlib
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import train
from conftest import FILES_OF_A_RUN, ROOT, contents, same
from support import runlog
from support.checkpoint import load_checkpoint


@pytest.fixture(autouse=True)
def _one_commit(monkeypatch):
    """The sources may change between two runs of a test; their logs should not differ for that."""
    monkeypatch.setattr(runlog, "commit", lambda: "unknown")


# ---------------------------------------------------------------------------------------------------------------------
# What is compared: everything but the seconds


def digest(value):
    """SHA-256 of a checkpoint's contents: names, kinds, shapes and every bit, the seconds left out."""
    if isinstance(value, torch.Tensor):
        parts = [str(value.dtype), str(tuple(value.shape)), value.contiguous().numpy().tobytes().hex()]
    elif isinstance(value, dict):
        parts = [f"{name!r} {digest(part)}" for name, part in value.items() if name != "seconds"]
    elif isinstance(value, (list, tuple)):
        parts = [digest(part) for part in value]
    else:
        parts = [value.hex() if isinstance(value, float) else repr(value)]
    return hashlib.sha256("\n".join([type(value).__name__, *parts]).encode()).hexdigest()


def record(folder):
    """What a finished run left: each file with a digest or its text, without the seconds and the continuations."""
    files = {}
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix == ".pt":
            state = load_checkpoint(path)
            state.pop("continued", None)  # says where the run was interrupted
            parts = ["weights"] if "best" in name else ["weights", "raw_weights", "optimizer", "history"]
            files[name] = {part: digest(state[part]) for part in parts} | {"all": digest(state)}
        elif path.suffix == ".csv":
            with path.open() as file:
                files[name] = [{**row, "seconds": None} for row in csv.DictReader(file)]
        else:
            text = re.sub(r" +[\d.]+$|(?<= trained in )[\d.]+", "", path.read_text(), flags=re.MULTILINE)
            files[name] = re.sub(r"^continued .*\n", "", text, flags=re.MULTILINE)
    return files


def test_the_comparison_sees_one_bit_and_one_figure(trained):
    whole = record(trained)
    assert sorted(whole) == FILES_OF_A_RUN and [row["split"] for row in whole["logs/run.csv"]][-1] == "test"
    state = load_checkpoint(trained / "last.pt")
    for part in ("weights", "raw_weights"):
        other = {name: value.clone() for name, value in state[part].items()}
        other["digit_head.bias"].view(torch.int32)[3] ^= 1
        assert digest(state | {part: other}) != digest(state)
    row = state["history"][0]
    assert digest(row | {"seconds": 0.0}) == digest(row) != digest(row | {"sum_loss": row["sum_loss"] + 1e-12})


# ---------------------------------------------------------------------------------------------------------------------
# Stopped between two epochs


@pytest.fixture
def threads():
    """threads(n): the rest of the test computes with n threads."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("flags", "number"),
    [
        ("--model tiny --augment 1 --addends-per-image 10", 1),
        ("--model base --augment 1 --augment-corruptions 0.5 --addends-per-image 3", 1),
        ("--model tiny --augment 0 --addends-per-image 1 --averaging-eta 0", 1),
        ("--model tiny --augment 1 --addends-per-image 10 --val-size 0", 1),
        ("--model tiny --augment 1 --addends-per-image 1 --batch-size 100", 2),
    ],
)
def test_a_run_stopped_after_every_epoch_ends_with_the_same_bits(
    run, small_flags, small_dir, stop_after, threads, tmp_path, monkeypatch, flags, number
):
    threads(number)
    machine = ["--device", "cpu", "--data-dir", small_dir]
    flags = [*small_flags, "--epochs", 3, "--val-size", 600, "--batch-size", 32, *flags.split()]
    status, out, _ = run(train, *flags)
    assert status == 0
    whole = record(tmp_path)
    assert sorted(whole) == FILES_OF_A_RUN
    assert load_checkpoint("last.pt")["epoch"] == 3

    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    stop_after(1)
    assert run(train, *flags)[0] == 130
    stop_after(2)
    status, out, err = run(train, "--resume", "last.pt", *machine)
    assert status == 130 and out.startswith("continuing after epoch 1 of 3, writing to logs\n")
    command = f"python train.py --resume logs/run-last.pt --device cpu --data-dir {small_dir}"
    assert err == f"train.py: interrupted; continue with: {command}\n"
    stop_after(None)
    torch.manual_seed(123)  # what the global generator was at does not matter
    status, out, _ = run(train, "--resume", "logs/run-last.pt", *machine)
    assert status == 0 and out.startswith("continuing after epoch 2 of 3, writing to logs\n")
    assert record(tmp_path / "again") == whole
    continued = re.findall("^continued +(.*)$", out, re.MULTILINE)
    assert [line.split(";")[0] for line in continued] == ["after epoch 1", "after epoch 2"]
    assert "more than one" not in out


def test_a_run_continued_on_another_device_says_so(run, small_flags, stop_after, monkeypatch):
    """The number of threads belongs to the device's line, as processes and the name of a GPU do."""
    stop_after(1)
    assert run(train, *small_flags)[0] == 130
    stop_after(None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 96)
    status, out, _ = run(train, "--resume", "last.pt", *small_flags)
    assert status == 0 and re.search("^continued .*after epoch 1; .*, 96 threads$", out, re.MULTILINE)
    assert re.search("^note .*more than one device", out, re.MULTILINE)


def test_a_checkpoint_does_not_decide_where_files_are_written(run, small_flags, stop_after, tmp_path):
    stop_after(1)
    assert run(train, *small_flags, "--out", tmp_path / "first")[0] == 130
    before = record(tmp_path / "first")
    stop_after(None)
    assert run(train, "--resume", tmp_path / "first" / "last.pt", *small_flags, "--out", tmp_path / "second")[0] == 0
    assert record(tmp_path / "first") == before
    assert load_checkpoint(tmp_path / "second" / "last.pt")["epoch"] == 2
    stored = load_checkpoint(tmp_path / "first" / "last.pt")["args"]
    assert not {"out", "data_dir", "device", "resume"} & set(stored)


def test_a_run_with_a_huge_loss_is_continued(run, small_flags, stop_after, monkeypatch):
    train_epoch = train.train_epoch
    monkeypatch.setattr(
        train, "train_epoch", lambda *arguments: torch.tensor([1e28, 1e28, 1, 1]) * train_epoch(*arguments)
    )
    stop_after(1)
    assert run(train, *small_flags)[0] == 130
    stop_after(None)
    status, out, _ = run(train, "--resume", "last.pt", *small_flags)
    assert status == 0 and len(set(map(len, re.findall(r"^ +[12]  .*e\+28 .*$", out, re.MULTILINE)))) == 1


def test_a_finished_run_resumed_is_the_same_finished_run(run, small_flags, tmp_path):
    """As after a kill between the last epoch and the test; with flags of its own values, which are allowed."""
    assert run(train, *small_flags)[0] == 0
    whole = record(tmp_path)
    (tmp_path / "best.pt").unlink()
    (tmp_path / "last.pt").unlink()
    status, out, _ = run(train, "--resume", "logs/run-last.pt", *small_flags, "--lr", 0.04)
    assert status == 0 and out.startswith("the run is complete (2 epochs) and is only scored again, writing to logs\n")
    assert record(tmp_path) == whole


def test_a_run_interrupted_before_its_first_epoch_can_be_started_again(run, small_flags, stop_after, trained):
    stop_after(0)
    status, _, err = run(train, *small_flags)
    assert status == 130 and err == "train.py: interrupted; no epoch was done yet; start it again\n"
    stop_after(None)
    assert run(train, *small_flags)[0] == 0
    assert same(load_checkpoint("last.pt")["raw_weights"], load_checkpoint(trained / "last.pt")["raw_weights"])


# ---------------------------------------------------------------------------------------------------------------------
# Interrupted by a signal


def test_ctrl_c_and_sigterm_end_a_run_and_a_second_run_is_refused(run, small_flags, small_dir, tmp_path):
    """Real processes. The first run in a folder is unharmed when a second one is refused."""
    flags = [*small_flags, "--epochs", "100000", "--run-name", "run"]
    ends = {signal.SIGINT: 130, signal.SIGTERM: 143}
    folders = {number: tmp_path / f"folder of {number.name}" for number in ends}

    def start(number):
        return subprocess.Popen(
            [sys.executable, ROOT / "train.py", *flags, "--out", folders[number]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # a background job's child would be born deaf to Ctrl-C
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def wait_for_an_epoch(process):
        while not re.match(r" +\d+  ", line := process.stdout.readline()):
            assert line, "the run ended before its first epoch"
        return int(line.split()[0])

    processes = {number: start(number) for number in ends}
    watchdog = threading.Timer(240, lambda: [process.kill() for process in processes.values()])
    watchdog.start()
    try:
        for number, process in processes.items():
            first = wait_for_an_epoch(process)
            for name in ("run", "other"):
                second = [*flags, "--epochs", 1, "--run-name", name, "--out", folders[number]]
                status, _, err = run(train, *second)
                assert status == 2 and err.count("\n") == 1 and "another run writes to" in err
            assert wait_for_an_epoch(process) > first
            sent = time.monotonic()
            process.send_signal(number)
            reader = threading.Thread(target=process.stdout.read)  # so that a full pipe holds nothing up
            reader.start()
            err = process.stderr.read()
            assert process.wait() == ends[number]
            assert time.monotonic() - sent < 30  # on a busy machine; the epochs would take hours
            reader.join()
            last = folders[number] / "logs" / "run-last.pt"
            where = ["--resume", last, "--device", "cpu", "--out", folders[number], "--data-dir", small_dir]
            advice = f"continue with: python train.py {shlex.join(map(str, where))}"
            assert err == f"train.py: interrupted; {advice}\n"
            assert load_checkpoint(last)["epoch"] >= first
            assert list(contents(folders[number])) == FILES_OF_A_RUN
    finally:
        watchdog.cancel()
        for process in processes.values():
            process.kill()
            process.communicate()


# ---------------------------------------------------------------------------------------------------------------------
# Killed


class Killer:
    """Runs of the same flags that are killed, and the record of one that was let live."""

    def __init__(self, fork_run, folder, flags):
        self.run, self.folder, self.flags, self.runs = fork_run, folder, flags, 0
        whole = self.new_folder()
        self.answer = self.run(whole, flags)
        assert self.answer["status"] == 0, Path(f"{whole}.out").read_text()
        self.whole = record(whole)

    def new_folder(self):
        self.runs += 1
        folder = self.folder / str(self.runs)
        folder.mkdir()
        return folder

    def kill(self, **when):
        """The folder of a run that was killed then."""
        folder = self.new_folder()
        while self.run(folder, self.flags, **when)["status"] != -signal.SIGKILL:
            assert "seconds" in when, f"there is no such event {when}"
            when["seconds"] *= 0.8  # it had ended before
            folder = self.new_folder()
        return folder

    def assert_continues_to_the_same(self, folder, chosen):
        """Resume from one of the checkpoints, or start again where the first epoch was not done."""
        checkpoints = [name for name in ("last.pt", "logs/run-last.pt") if (folder / name).exists()]
        argv = ["--resume", chosen.choice(checkpoints), *self.flags] if checkpoints else self.flags
        answer = self.run(folder, argv)
        assert answer["status"] == 0, Path(f"{folder}.out").read_text()
        assert record(folder) == self.whole


@pytest.fixture(scope="module")
def killer(fork_run, small_flags, tmp_path_factory):
    return Killer(fork_run, tmp_path_factory.mktemp("killed"), [*small_flags, "--epochs", "3", "--augment", "1"])


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.long)])
def test_a_run_killed_at_random_instants_continues_to_the_same_bits(killer, kills):
    """Every second one at a random step of the writing of a file, the others at a random time."""
    seed = random.randrange(2**32)
    print(f"the instants are those of random.Random({seed})")  # pytest shows it where the test fails
    chosen = random.Random(seed)
    for number in range(kills):
        if number % 2:
            folder = killer.kill(event=chosen.randint(1, killer.answer["events"]))
        else:
            folder = killer.kill(seconds=chosen.uniform(0, killer.answer["seconds"]))
        killer.assert_continues_to_the_same(folder, chosen)


@pytest.mark.long
def test_a_run_killed_at_any_step_of_its_writing_continues_to_the_same_bits(killer):
    """All of them: before, half-way through and after each write, flush and rename."""
    for event in range(1, killer.answer["events"] + 1):
        killer.assert_continues_to_the_same(killer.kill(event=event), random.Random(event))


def test_a_half_written_checkpoint_has_another_name_and_is_swept_up(killer):
    """The steps of a write are nine; after two logs comes a best.pt, whose second step is half of its content."""
    folder = killer.kill(event=9 + 9 + 2)
    assert [path.name.split(".")[:3] for path in folder.rglob("*.tmp")] == [["", "run-best", "pt"]]
    assert not list(folder.rglob("*.pt"))
    killer.assert_continues_to_the_same(folder, random.Random(0))
    assert not list(folder.rglob("*.tmp"))


def test_a_run_killed_in_its_resumed_part_too_continues_to_the_same_bits(killer):
    folder = killer.kill(event=killer.answer["events"] // 2)
    assert killer.run(folder, ["--resume", "last.pt", *killer.flags], event=30)["status"] == -signal.SIGKILL
    killer.assert_continues_to_the_same(folder, random.Random(0))
