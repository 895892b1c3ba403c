"""One file in, one file out: checkpoints that are whole or not there, and that carry data, never code.

    save_checkpoint(path, {"model": "base", "weights": model.state_dict(), ...})
    state = load_checkpoint(path)

A checkpoint is what `torch.save` writes, with the SHA-256 of those bytes in the comment that a zip file may end with.
So it stays a file that `torch.load(path, weights_only=True)` opens, and one changed byte anywhere is noticed here.
"""

import contextlib
import hashlib
import io
import os
import struct
from pathlib import Path

import torch

FORMAT = "mnist-addend checkpoint"
VERSION = 1
SEAL = b"sha256:"
SEAL_LENGTH = len(SEAL) + hashlib.sha256().digest_size
REQUIRED = ("args", "dataset", "epoch", "normalisation", "weights")


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the message is one line with the file and the cause."""


def write_atomically(path, content):
    """Write `content` (bytes or str) so that `path` holds, at every instant, all of the old or all of the new.

    Temporary file in the same folder, flush, fsync, rename, fsync of the folder. Whatever stops it, even Ctrl-C,
    the temporary file is removed; only SIGKILL or a power cut can leave one. Raises OSError with the file's name.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the folder itself may be gone
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    if hasattr(os, "O_DIRECTORY"):  # a rename is only on disk once its folder is; Windows has no such call
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_checkpoint(path, state):
    """Write `state`, a dict of tensors and plain Python values, to `path`; see `write_atomically`."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, **state}, buffer)
    content = buffer.getvalue()
    # The last two bytes of a zip file without a comment are the comment's length, 0.
    sealed = content[:-2] + struct.pack("<H", SEAL_LENGTH)
    write_atomically(path, sealed + SEAL + hashlib.sha256(sealed).digest())


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

    sealed, seal = content[:-SEAL_LENGTH], content[-SEAL_LENGTH:]
    if not seal.startswith(SEAL):
        raise CheckpointError(
            f"{path} is cut short, damaged or not a checkpoint of train.py: it does not end in a checksum"
        )
    if hashlib.sha256(sealed).digest() != seal[len(SEAL) :]:
        raise CheckpointError(f"checkpoint {path} is damaged: its checksum does not match")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception:  # torch.load raises many kinds, the unpickler's among them
        raise CheckpointError(
            f"{path} holds more than tensors and plain values; refused, its code was not run"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of train.py")
    if not isinstance(state.get("version"), int) or state["version"] > VERSION:
        raise CheckpointError(
            f"checkpoint {path} has format version {state.get('version')}, newer than {VERSION}: update this project"
        )
    missing = [name for name in REQUIRED if name not in state]
    if missing:
        raise CheckpointError(f"checkpoint {path} is incomplete: it lacks {', '.join(missing)}")
    return state
