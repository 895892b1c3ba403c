"""Damage done for real: to checkpoints, to the disk under a run, to the loss and to the memory."""

import contextlib
import errno
import hashlib
import os
import pickle
import random
import shutil
import struct
import zipfile

import pytest
import torch

import evaluate
import train
from conftest import FILES_OF_A_RUN, contents
from data import Batches
from model import TwoHeadNet
from support.checkpoint import CHECKSUM, CHECKSUM_LENGTH, CheckpointError, load_checkpoint, save_checkpoint
from support.files import write_atomically

TIMES = 200  # truncations, and flips


@pytest.fixture
def last(trained, tmp_path):
    """A copy of a finished run in the current folder: the path of its last.pt."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path / "last.pt"


@pytest.fixture
def both_refuse(run, small_dir, tmp_path):
    """Assert that evaluate.py and train.py --resume refuse a file in one line that names it and the cause."""

    def call(name, cause):
        before = sorted(tmp_path.rglob("*"))
        for script, flag in ((evaluate, "--ckpt"), (train, "--resume")):
            status, out, err = run(script, flag, name, "--data-dir", small_dir, "--device", "cpu")
            assert status == 2 and out == ""
            assert err.count("\n") == 1 and str(name) in err and cause in err
        assert sorted(tmp_path.rglob("*")) == before

    return call


def with_checksum(content):
    """A zip file's bytes with the checksum that `save_checkpoint` would put at its end."""
    content = content[:-2] + struct.pack("<H", CHECKSUM_LENGTH)
    return content + CHECKSUM + hashlib.sha256(content).digest()


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


class Malicious:
    """What a pickle may hold: a call that the reader makes."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("where", ["alone", "among the weights"])
@pytest.mark.parametrize("seal", [False, True])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(last, both_refuse, tmp_path, where, seal):
    trap = Malicious(os.mkdir, str(tmp_path / "code-ran"))
    state = load_checkpoint(last)
    state = trap if where == "alone" else state | {"weights": state["weights"] | {"digit_head.bias": trap}}
    torch.save(state, "bad.pt")
    content = last.with_name("bad.pt").read_bytes()
    if seal:
        last.with_name("bad.pt").write_bytes(with_checksum(content))
    both_refuse("bad.pt", "its code was not run" if seal else "does not end in a checksum")
    assert not (tmp_path / "code-ran").exists()
    torch.load("bad.pt", weights_only=False)  # the trap is a real one
    assert (tmp_path / "code-ran").exists()


def test_a_bare_pickle_with_code_does_not_run(last, both_refuse, tmp_path):
    last.with_name("bad.pt").write_bytes(pickle.dumps(Malicious(os.mkdir, str(tmp_path / "code-ran"))))
    both_refuse("bad.pt", "does not begin like one")
    assert not (tmp_path / "code-ran").exists()


def test_a_checkpoint_cut_at_any_length_is_refused(last, both_refuse):
    content = last.read_bytes()
    lengths = [0, 1, 4, len(content) - CHECKSUM_LENGTH, len(content) - 1]
    lengths += random.Random(0).sample(range(len(content)), TIMES - len(lengths))
    for length in lengths:
        last.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"last\.pt .*(empty|begin like|cut short)"):
            load_checkpoint(last)
    both_refuse("last.pt", "cut short")


def test_a_checkpoint_with_any_byte_flipped_is_refused(last, both_refuse):
    """Zip file and pickle notice few of these alone: half of the bytes are the tensors'."""
    content = last.read_bytes()
    chosen = random.Random(0)
    places = [0, len(content) - CHECKSUM_LENGTH - 1, len(content) - CHECKSUM_LENGTH, len(content) - 1]
    places += chosen.sample(range(len(content)), TIMES - len(places))
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= chosen.randrange(1, 256)
        last.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"last\.pt .*(begin like|damaged)"):
            load_checkpoint(last)
    both_refuse("last.pt", "damaged")


# A change of the state, and what is said of it.
MISFITS = {
    "another network": (
        lambda state: {"args": state["args"] | {"model": "base"}},
        "model.py has changed since: bring back",
    ),
    "a network unknown here": (
        lambda state: {"args": state["args"] | {"model": "colossal"}},
        "does not fit model.py, which has changed since then: unknown model 'colossal'",
    ),
    "trained on other pixels": (lambda state: {"normalisation": [0.5, 0.5]}, "normalisation"),
    "damaged": (lambda state: {"normalisation": "\x1b[31m" * 50}, "entry normalisation is damaged"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_checkpoint_that_does_not_fit_is_refused(last, both_refuse, misfit):
    state = load_checkpoint(last)
    change, cause = MISFITS[misfit]
    save_checkpoint(state | change(state), last)
    both_refuse("last.pt", cause)


def test_files_of_other_tools_are_refused(last, both_refuse, tmp_path):
    torch.save(load_checkpoint(last)["weights"], "bare.pt")
    torch.save(load_checkpoint(last)["weights"], "old.pt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile("plain.zip", "w") as file:
        file.writestr("readme.txt", "nothing to see")
    for name in ("bare.pt", "old.pt", "plain.zip"):
        both_refuse(name, "not a checkpoint of train.py")
    for name in ("bare.pt", "plain.zip"):  # the checksum does not make a checkpoint of it
        (tmp_path / name).write_bytes(with_checksum((tmp_path / name).read_bytes()))
    both_refuse("bare.pt", "not a checkpoint of train.py")
    both_refuse("plain.zip", "plain.zip")
    (tmp_path / "text.pt").write_text("weights: good\n")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "folder.pt").mkdir()
    both_refuse("text.pt", "does not begin like one")
    both_refuse("empty.pt", "is empty")
    both_refuse("folder.pt", "is a folder")
    both_refuse("absent.pt", "no checkpoint absent.pt")
    both_refuse("text.pt/absent.pt", "Not a directory")


# ---------------------------------------------------------------------------------------------------------------------
# The disk


@pytest.fixture
def full_disk(monkeypatch):
    """Make the kernel refuse more than 100 bytes of any file of the given name."""
    resource = pytest.importorskip("resource")

    def fill(name):
        @contextlib.contextmanager
        def opened(path, mode):
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            with open(path, mode) as file:
                if os.path.basename(path).startswith(f".{name}."):
                    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
                try:
                    yield file
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, limits)

        monkeypatch.setattr("support.files.open", opened, raising=False)

    return fill


@pytest.mark.parametrize("name", FILES_OF_A_RUN)
def test_a_full_disk_ends_the_run_in_one_line_and_leaves_the_file_before(
    run, small_flags, monkeypatch, stop_after, full_disk, tmp_path, name
):
    stop_after(1)
    assert run(train, *small_flags)[0] == 130
    stop_after(None)
    before = contents(tmp_path)
    assert list(before) == FILES_OF_A_RUN
    full_disk(os.path.basename(name))
    status, _, err = run(train, *small_flags, "--resume", "last.pt")
    assert status == 2 and err.count("\n") == 1 and name in err and "File too large" in err
    after = contents(tmp_path)
    assert list(after) == FILES_OF_A_RUN and after[name] == before[name]
    monkeypatch.setattr("support.files.open", open, raising=False)
    assert run(train, *small_flags, "--resume", "last.pt")[0] == 0  # once there is room, the run continues


def test_a_full_disk_leaves_the_old_scores(last, run, small_dir, full_disk, tmp_path):
    scores = tmp_path / "scores.json"
    scores.write_text("old\n")
    full_disk("scores.json")
    status, _, err = run(evaluate, "--ckpt", "best.pt", "--data-dir", small_dir, "--json", "scores.json")
    assert status == 2 and err == "evaluate.py: error: scores.json: File too large\n"
    assert scores.read_text() == "old\n" and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/no-such-folder"])
def test_a_folder_that_cannot_be_made_is_named_before_training(run, small_flags, tmp_path, monkeypatch, out):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(train, "train", lambda *arguments: pytest.fail("trained"))
    status, _, err = run(train, *small_flags, "--out", out)
    assert status == 2 and err.count("\n") == 1 and out in err
    assert contents(tmp_path) == {"file": b"in the way"}


def test_a_folder_that_vanishes_under_the_run_ends_it_in_one_line(run, small_flags, monkeypatch, tmp_path):
    epochs = Batches.epoch

    def vanish(self, epoch):
        if epoch == 1:
            shutil.rmtree(tmp_path / "logs")
        return epochs(self, epoch)

    monkeypatch.setattr(Batches, "epoch", vanish)
    status, _, err = run(train, *small_flags)
    assert status == 2 and err.count("\n") == 1 and "logs/run" in err and "No such file or directory" in err
    assert load_checkpoint("last.pt")["epoch"] == 1 and load_checkpoint("best.pt")["epoch"] == 1
    assert not list(tmp_path.rglob("*.tmp"))
    monkeypatch.setattr(Batches, "epoch", epochs)
    assert run(train, *small_flags, "--resume", "last.pt")[0] == 0


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_ctrl_c_inside_a_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "a.txt"
    write_atomically(path, "old")

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(call, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert contents(tmp_path) == {"a.txt": b"old"}


def test_what_a_write_leaves_is_on_disk_before_it_has_the_name(tmp_path, monkeypatch):
    """The order that a power cut asks for: the content flushed, then the rename, then the folder flushed."""
    calls = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(number):
        calls.append("folder" if os.path.isdir(f"/dev/fd/{number}") else f"file of {os.fstat(number).st_size} bytes")
        fsync(number)

    def record_replace(source, target):
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr("os.fsync", record_fsync)
    monkeypatch.setattr("os.replace", record_replace)
    write_atomically(tmp_path / "a.txt", "1234567")
    assert calls == ["file of 7 bytes", "rename", "folder"]


def test_a_file_system_without_fsync_of_folders_can_be_written_to(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse_folders(number):
        if os.path.isdir(f"/dev/fd/{number}"):
            raise OSError(error, os.strerror(error))
        fsync(number)

    monkeypatch.setattr("os.fsync", refuse_folders)
    error = errno.EINVAL
    write_atomically(tmp_path / "a.txt", "new")
    assert contents(tmp_path) == {"a.txt": b"new"}
    error = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        write_atomically(tmp_path / "a.txt", "newer")


# ---------------------------------------------------------------------------------------------------------------------
# The loss and the memory


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_epoch(run, small_flags, monkeypatch, tmp_path):
    epochs = Batches.epoch

    def spoil(self, epoch):
        for step, (image, *rest) in enumerate(epochs(self, epoch)):
            yield image * (float("nan") if (epoch, step) == (1, 3) else 1), *rest

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "epoch", spoil)
        status, _, err = run(train, *small_flags)
    assert status == 2 and err.count("\n") == 1
    assert "step 14 of 20" in err and "learning rate" in err and "smaller --learning-rate" in err
    for name in ("best.pt", "last.pt", "logs/run-best.pt", "logs/run-last.pt"):
        state = load_checkpoint(name)
        assert state["epoch"] == 1 and all(value.isfinite().all() for value in state["weights"].values())
    assert len((tmp_path / "logs" / "run.csv").read_text().splitlines()) == 2
    assert run(train, *small_flags, "--resume", "last.pt")[0] == 0


def test_a_learning_rate_far_too_high_says_so(run, small_flags, tmp_path):
    status, _, err = run(train, *small_flags, "--learning-rate", "1e30")
    assert status == 2 and err.count("\n") == 1
    assert "not finite from step" in err and "e+" in err and "smaller --learning-rate" in err
    assert not list(tmp_path.rglob("*.pt"))


def test_a_machine_without_the_memory_says_so(run, small_flags, monkeypatch):
    """The allocators' own errors: no machine has a thousand terabytes; CUDA's is raised by hand."""

    def refuse():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    for demand in (lambda: torch.empty(2**50), lambda: bytearray(2**60), refuse):
        with monkeypatch.context() as patch:
            patch.setattr(TwoHeadNet, "Batches", lambda *_, demand=demand, **__: demand())
            status, _, err = run(train, *small_flags)
        assert status == 2 and err.count("\n") == 1 and "not enough memory" in err and "--batch-size" in err
    assert run(train, *small_flags)[0] == 0  # the refused starts are not in the way
