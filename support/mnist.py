"""MNIST's four files: checked by checksum, unpacked or downloaded where needed, read into tensors."""

import gzip
import hashlib
import http.client
import io
import struct
import sys
import time
import urllib.request
from pathlib import Path

import torch
from tqdm import tqdm

from support.cli import UserError
from support.files import write_atomically

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
ATTEMPTS = 2  # rounds over the mirrors
SILENCE_LIMIT = 20.0  # seconds that a mirror may send nothing
FILE_LIMIT = 600.0  # seconds that one file may take
# name: (bytes, MD5); those of the archives are torchvision's
MNIST_FILES = {
    "train-images-idx3-ubyte": (47040016, "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": (60008, "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": (7840016, "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": (10008, "27ae3e4e09519cfbb04c329615203637"),
    "train-images-idx3-ubyte.gz": (9912422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    "train-labels-idx1-ubyte.gz": (28881, "d53e105ee54ea40749a09fcbcd1e9432"),
    "t10k-images-idx3-ubyte.gz": (1648877, "9fb629c4189551a2d022fa330f9573f3"),
    "t10k-labels-idx1-ubyte.gz": (4542, "ec29112dd5afa0611ce80d1b7f02629c"),
}


class DataError(UserError):
    """Missing or damaged data; the message is one line."""


class MissingDataError(DataError):
    """MNIST is not in the data folder and could not be downloaded."""


def load_mnist(data_dir, train):
    """MNIST's (images, digits), from files with the official checksums; see `data.load_digits`."""
    folder = Path(data_dir) / "MNIST" / "raw"
    # Before training the test files are checked too, not to fail at the end of it.
    names = [name for name in MNIST_FILES if not name.endswith(".gz") and (train or name.startswith("t10k"))]
    images, digits, *_ = [unpack_idx(read_mnist_file(folder / name)) for name in names]
    return images.unsqueeze(1), digits.long()


def read_mnist_file(path):
    """The content of MNIST's file at `path`, a bytearray; made from its .gz where it is absent or damaged.

    Each file is read once, whole, so it cannot change between the check and the use.
    """
    content = read_if_right(path)
    if content is None:
        archive = path.with_name(f"{path.name}.gz")
        packed = read_if_right(archive)
        if packed is None:
            packed = download(archive, damaged=[file for file in (path, archive) if file.exists()])
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(archive, packed)
        content = bytearray(gzip.decompress(packed))
        write_atomically(path, content)
    return content


def read_if_right(path):
    """The file's content, a bytearray, if it has the size and MD5 that MNIST's file of this name has; else None."""
    size, md5 = MNIST_FILES[path.name]
    if not path.is_file() or path.stat().st_size != size:
        return None
    content = bytearray(size)
    with open(path, "rb") as file:
        file.readinto(content)
    return content if md5_of(content) == md5 else None


def unpack_idx(content):
    """The uint8 tensor in a file of MNIST's format, IDX, that has the right checksum; it shares the memory.

    The fourth byte is the number of dimensions; then come the sizes, as big-endian int32, and the values.
    """
    dimensions = content[3]
    shape = struct.unpack_from(f">{dimensions}i", content, offset=4)
    return torch.frombuffer(content, dtype=torch.uint8, offset=4 + 4 * dimensions).view(shape)


def md5_of(content):
    """MD5 in hex: MNIST's official checksum, against damage, not against an attacker."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def download(path, damaged=()):
    """The bytes of MNIST's file that belongs at `path`, from the first mirror that serves it whole.

    Raises MissingDataError, or DataError naming the first of the `damaged` files that the download was to replace.
    """
    size, md5 = MNIST_FILES[path.name]
    problem = ""
    for mirror in MIRRORS * ATTEMPTS:
        print(f"downloading {mirror}{path.name}", file=sys.stderr)
        deadline = time.monotonic() + FILE_LIMIT
        content = io.BytesIO()
        try:
            with (
                urllib.request.urlopen(mirror + path.name, timeout=SILENCE_LIMIT) as response,
                tqdm(total=size, unit="B", unit_scale=True, delay=2, leave=False, disable=None) as progress,
            ):
                while content.tell() <= size and (block := response.read1(1 << 16)):
                    progress.update(content.write(block))
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"not done after {FILE_LIMIT:.0f} s")
        except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: redirected to a malformed URL
            problem = f"{mirror} failed: {getattr(error, 'reason', None) or error or type(error).__name__}"
            continue
        if content.tell() == size and md5_of(content.getvalue()) == md5:
            return content.getvalue()
        problem = f"{mirror} sent something else (wrong checksum)"
    if damaged:
        raise DataError(f"{damaged[0]} is damaged (wrong checksum) and could not be downloaded again: {problem}")
    raise MissingDataError(f"there is no {path} (see --data-dir) and it could not be downloaded: {problem}")
