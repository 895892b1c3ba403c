"""Checkpoints that are whole or not there, carry data and never code, and are checked before they are used.

    save_checkpoint({"args": {...}, "weights": model.state_dict(), ...}, path)
    state = load_checkpoint(path)
    copy_tensors(state["weights"], model.state_dict(), path, "weights")

A checkpoint is what `torch.save` writes, with the SHA-256 of those bytes in the comment that a zip file may end with.
So it stays a file that `torch.load(path, weights_only=True)` opens, and one changed byte anywhere is noticed here. The
checksum stops accidents, not people: everything that is read is checked by type, range, name, shape and dtype too.
"""

import copy
import hashlib
import io
import math
import struct
import warnings
import zipfile
from pathlib import Path

import torch

from support.cli import UserError
from support.files import write_atomically
from support.flags import DATASETS

FORMAT = "mnist-addend checkpoint"
VERSION = 2
CHECKSUM = b"sha256:"
CHECKSUM_LENGTH = len(CHECKSUM) + hashlib.sha256().digest_size
PROGRESS = ("header", "continued", "epoch", "history", "best", "weights", "raw_weights", "optimizer")
TRAIN_ACCURACIES = ("train_digit_accuracy", "train_sum_accuracy")
VAL_LOSSES = ("val_digit_loss", "val_sum_loss")
ACCURACIES = ("digit_accuracy", "sum_accuracy", "joint_accuracy")
CHANGED = "model.py has changed since: bring back that version or train again"
TEXT_LIMIT = 200_000  # characters of the text that a checkpoint brings into a log; a resume adds some 150


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message is one line with the file and the cause."""


# ---------------------------------------------------------------------------------------------------------------------
# Files


def save_checkpoint(state, *paths):
    """Write `state`, a dict of tensors and plain Python values, to each of the paths; see `write_atomically`."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, **state}, buffer)
    content = buffer.getvalue()
    # The last two bytes of a zip file without a comment are the comment's length, 0.
    body = content[:-2] + struct.pack("<H", CHECKSUM_LENGTH)
    content = body + CHECKSUM + hashlib.sha256(body).digest()
    for path in paths:
        write_atomically(path, content)


def load_checkpoint(path):
    """The dict that `save_checkpoint` was given, on the CPU. Runs no code from the file.

    Raises CheckpointError: no such file, a folder, empty, of another tool, damaged, of a newer format.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint {path}; `python train.py` writes best.pt and last.pt") from None
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error.strerror}") from None
    if not content:
        raise CheckpointError(f"checkpoint {path} is empty")
    if content[:4] != b"PK\x03\x04":
        raise CheckpointError(f"{path} is not a checkpoint of train.py: it does not begin like one")

    body, checksum = content[:-CHECKSUM_LENGTH], content[-CHECKSUM_LENGTH:]
    if not checksum.startswith(CHECKSUM):
        raise CheckpointError(
            f"{path} is cut short, damaged or not a checkpoint of train.py: it does not end in a checksum"
        )
    if hashlib.sha256(body).digest() != checksum[len(CHECKSUM) :]:
        raise CheckpointError(f"checkpoint {path} is damaged: its checksum does not match")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > len(content):  # torch.save compresses nothing
            raise CheckpointError(f"{path} is not a checkpoint of train.py: it unpacks to more than its own size")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sparse tensors and the like, which are refused below
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (CheckpointError, MemoryError):
        raise
    except Exception:  # torch.load raises many kinds, the unpickler's among them
        raise CheckpointError(
            f"{path} holds more than tensors and plain values; refused, its code was not run"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of train.py")
    version = state.get("version")
    if type(version) is not int or not 0 < version < 2**31:
        raise CheckpointError(f"checkpoint {path} holds a damaged format version")
    if version != VERSION:
        advice = "newer than this project: update it" if version > VERSION else "older than this project: train again"
        raise CheckpointError(f"checkpoint {path} has format version {version}, not {VERSION}; it is {advice}")
    return state


# ---------------------------------------------------------------------------------------------------------------------
# Contents: checked before they are used. No message repeats a value that has not passed its check.


def check_weights_file(state, path, normalisation):
    """Check what `evaluate.py` reads, apart from the tensors. Raises CheckpointError."""
    missing = [name for name in ("args", "dataset", "epoch", "normalisation", "weights") if name not in state]
    if missing:
        raise CheckpointError(f"checkpoint {path} is incomplete: it lacks {', '.join(missing)}")
    check(isinstance(state["args"], dict), path, "args")
    check(isinstance(state["dataset"], str) and state["dataset"] in DATASETS[1:], path, "dataset")  # not "auto"
    check(whole(state["epoch"], 1), path, "epoch")
    check(type(state["normalisation"]) is list and all(map(number, state["normalisation"])), path, "normalisation")
    if state["normalisation"] != list(normalisation):
        raise CheckpointError(f"{path} was trained with a normalisation other than {normalisation}")


def check_progress(state, path, epochs, validated):
    """Check how far a run of so many `epochs` has come: its history, its best epoch and the text for its log.

    `validated` is whether it holds images out. Raises CheckpointError.
    """
    missing = [name for name in PROGRESS if name not in state]
    if missing:
        raise CheckpointError(f"{path} holds weights only ({', '.join(missing)} missing); resume from a last.pt")
    done, history, best = state["epoch"], state["history"], state["best"]
    check(whole(done, 1) and done <= epochs, path, "epoch")
    columns = {"epoch", "learning_rate", "digit_loss", "sum_loss", "seconds", *TRAIN_ACCURACIES}
    columns, losses = (columns | {*ACCURACIES}, {*VAL_LOSSES}) if validated else (columns, set())
    check(type(history) is list and len(history) == done, path, "history")
    for epoch, row in enumerate(history, 1):
        check(type(row) is dict and set(row) == columns | losses, path, "history")
        check(all(number(row[name]) for name in columns), path, "history")
        check(all(row[name] is None or number(row[name]) for name in losses), path, "history")  # None: not finite
        check(row["epoch"] == epoch and type(row["epoch"]) is int, path, "history")
    check(type(best) is dict and set(best) == {"epoch", "joint_accuracy", "weights"}, path, "best")
    check(whole(best["epoch"], 1) and best["epoch"] <= done, path, "best")
    accuracy = best["joint_accuracy"]
    check(number(accuracy) and accuracy <= 1 if validated else accuracy is None, path, "best")
    check(type(state["continued"]) is list, path, "continued")
    lines = [state["header"], *state["continued"]]
    check(all(type(line) is str for line in lines) and sum(map(len, lines)) < TEXT_LIMIT, path, "header")
    check(all(line.isprintable() for text in lines for line in text.split("\n")), path, "header")


def check(holds, path, part):
    """Raise CheckpointError where a check of this part of a checkpoint does not hold."""
    if not holds:
        raise CheckpointError(f"{path} is not a checkpoint that train.py wrote: its entry {part} is damaged")


def whole(value, low):
    """Whether this is an integer of at least `low`, and not a huge one."""
    return type(value) is int and low <= value < 2**63


def number(value):
    """Whether this is a finite number of at least 0."""
    return whole(value, 0) or (type(value) is float and 0 <= value < math.inf)


def check_tensors(tensors, like, path, part):
    """Check the names, shapes and dtypes of `tensors` against the dict `like`; all finite, no variance negative."""
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise CheckpointError(f"{path}: {part} is not a dict of tensors")
    names = [name for name in like if name not in tensors] + [name for name in tensors if name not in like]
    if names:
        raise CheckpointError(f"{path}: {part} and the network differ in {', '.join(names[:3])}; {CHANGED}")
    for name, wanted in like.items():
        value = tensors[name]
        if type(value) is not torch.Tensor or value.layout != torch.strided or value.device.type != "cpu":
            raise CheckpointError(f"{path}: {part} is damaged, {name} is not a plain tensor")
        if value.shape != wanted.shape or value.dtype != wanted.dtype:
            forms = [f"{tensor.dtype} {list(tensor.shape)[:8]}" for tensor in (value, wanted)]
            raise CheckpointError(
                f"{path}: {part} and the network differ in {name}, {forms[0]} there and {forms[1]} here; {CHANGED}"
            )
        if not value.isfinite().all():
            raise CheckpointError(f"{path}: {part} is damaged, {name} is not finite")
        if name.endswith("running_var") and (value < 0).any():
            raise CheckpointError(f"{path}: {part} is damaged, {name} is negative")


@torch.no_grad()
def copy_tensors(tensors, target, path, part):
    """Copy `tensors` into those of the dict `target`, which keep their device and memory layout, once all fit."""
    check_tensors(tensors, target, path, part)
    for name, value in target.items():
        value.copy_(tensors[name])


def restore_optimizer(optimizer, state, path):
    """Give an optimiser that has taken no step the `state` of one that has; its hyperparameters stay its own.

    A step on a copy of the optimiser, with zero gradients, shows which tensors the state has: the fused optimisers
    write to whatever memory a state's tensors claim. Raises CheckpointError.
    """
    trial = copy.deepcopy(optimizer)
    for group in trial.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    trial.step()
    target = trial.state_dict()
    if type(state) is not dict or state.keys() != target["state"].keys():
        raise CheckpointError(f"{path}: optimizer and network differ; {CHANGED}")
    for index, own in target["state"].items():
        tensors = {name: value for name, value in own.items() if value is not None}
        check(type(state[index]) is dict, path, "optimizer")
        given = {name: value for name, value in state[index].items() if value is not None}
        copy_tensors(given, tensors, path, f"optimizer {index}")
    optimizer.load_state_dict({"state": target["state"], "param_groups": optimizer.state_dict()["param_groups"]})
