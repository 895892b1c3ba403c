"""What the tests share: real MNIST where it lies in data/, a small synthetic data set that trains in a second, runs."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from support import cli

# The tests run in a process per core (pytest-xdist), each with one thread; where a test asks for more, they sleep while
# they wait: threads that spin on busy cores take ten times as long. PyTorch reads this when it is imported, which is in
# the fixtures: the process that hands out the tests needs no PyTorch.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

ROOT = Path(__file__).resolve().parent.parent
FILES_OF_A_RUN = ["best.pt", "last.pt", "logs/run-best.pt", "logs/run-last.pt", "logs/run.csv", "logs/run.txt"]


def pytest_xdist_auto_num_workers(config):
    """With -s, no processes but this one: what is printed in others is not shown."""
    return 0 if config.option.capture == "no" else None


def contents(folder):
    """{name: bytes} of every file below the folder, in the order of the names."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def same(first, second):
    """Whether two dicts of tensors are equal to the bit."""
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory):
    """Folders that torchrun and Chromium leave behind go where pytest removes those of old sessions."""
    os.environ["TMPDIR"] = tempfile.tempdir = str(tmp_path_factory.mktemp("tmp"))


@pytest.fixture(scope="session", autouse=True)
def _one_commit():
    """The commit is asked for once, not by two processes of git for each of some hundred runs."""
    from support import runlog

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runlog, "commit", functools.cache(runlog.commit))
        yield


@pytest.fixture(scope="session")
def mnist_dir():
    """The folder of the real MNIST; skips where it is not there."""
    folder = ROOT / "data"
    if not list((folder / "MNIST" / "raw").glob("t10k-labels-idx1-ubyte*")):
        pytest.skip("real MNIST is not in data/MNIST/raw; `python train.py` downloads it")
    return folder


@pytest.fixture(scope="session")
def small_dir(tmp_path_factory):
    """A data folder whose synthetic data set has 700 training and 150 test images."""
    from support import synthetic

    folder = tmp_path_factory.mktemp("small")
    synthetic.save_synthetic(folder / "synthetic" / "train.npz", *synthetic.make_synthetic(700, seed=3))
    synthetic.save_synthetic(folder / "synthetic" / "test.npz", *synthetic.make_synthetic(150, seed=4))
    return folder


@pytest.fixture(scope="session")
def small(small_dir):
    """(images, digits) of the small training set."""
    from support import synthetic

    return synthetic.load_synthetic(small_dir, train=True)


@pytest.fixture(scope="session")
def small_flags(small_dir):
    """Flags of train.py for a run of a second on the small data set."""
    flags = "--dataset synthetic --model tiny --epochs 2 --val-size 100 --batch-size 64 --run-name run --device cpu"
    return [*flags.split(), "--data-dir", str(small_dir)]


@pytest.fixture(scope="session")
def few_flags(small, tmp_path_factory):
    """As `small_flags`, for a run of four steps: 128 of the images to train on and 36 held out, 50 in the test set."""
    from support import synthetic

    folder, (images, digits) = tmp_path_factory.mktemp("few"), small
    for name, part in (("train", slice(164)), ("test", slice(164, 214))):
        synthetic.save_synthetic(folder / "synthetic" / f"{name}.npz", images[part, 0].numpy(), digits[part].numpy())
    flags = "--dataset synthetic --model tiny --epochs 2 --val-size 36 --batch-size 64 --run-name run --device cpu"
    return [*flags.split(), "--data-dir", str(folder)]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Call a script's main in an empty folder: run(train, "--epochs", 1) -> (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(script, *argv):
        monkeypatch.setattr("sys.argv", [f"{script.__name__}.py"])  # argparse names the script in its errors
        try:
            status = cli.run_script(script.main, [*map(str, argv)])
        except SystemExit as stop:  # argparse
            status = stop.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def trained(small_flags, tmp_path_factory):
    """A folder with the finished run "run" on the small data set."""
    import train

    folder = tmp_path_factory.mktemp("trained")
    assert cli.run_script(train.main, [*small_flags, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def stop_after(monkeypatch):
    """stop_after(n): the next runs are interrupted at the start of the epoch after n done ones; None: they are not."""
    from data import Batches

    epochs = Batches.epoch

    def set_stop(done):
        def epoch(self, number):
            if number == done:
                raise KeyboardInterrupt
            return epochs(self, number)

        monkeypatch.setattr(Batches, "epoch", epoch)

    return set_stop


@pytest.fixture(scope="session")
def fork_run():
    """fork_run(folder, argv, **when): the answer of killer.py, which runs train.py in a fork and may kill it."""
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    command = [sys.executable, ROOT / "tests" / "killer.py"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def call(folder, argv, **when):
            print(json.dumps({"folder": str(folder), "argv": argv, **when}), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield call


@pytest.fixture(autouse=True)
def _same_start():
    """Every test begins with the same global generator."""
    import torch

    torch.manual_seed(0)
