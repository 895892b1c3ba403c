"""The data: MNIST or synthetic digits, a random number for every image, batches that stay on the device.

An example is (image, addend) -> (digit, sum_target): an image of a 7 with the addend 5 gives 7 and 12.

    images, digits, name = load_digits("auto", "data", train=True)
    batches = Batches(images, digits, batch_size=128, seed=0, addends_per_image=10)
    for image, addend, digit, sum_target in batches.epoch(0):
        ...  # [B, 1, 28, 28] float32, [B, 10] int64 in 0-9, [B] int64 in 0-9, [B, 10] int64 in 0-18

Every random choice of an epoch (order, addends, warps) is drawn on the CPU from (seed, epoch) alone, as a table indexed
by image. So an example does not depend on the order, the batch size, the workers, the device or what came before it,
and a resumed run has no generator state to restore.
"""

import gzip
import hashlib
import http.client
import io
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision

from checkpoint import write_atomically

MEAN, STD = 0.1307, 0.3081  # of the 60,000 training images of MNIST, on a scale from 0 to 1
DIGITS, ADDENDS, SUMS = 10, 10, 19
DATASETS = ("auto", "mnist", "synthetic")

BLOCK = 32  # batches gathered at once

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
ATTEMPTS = 2  # rounds over the mirrors
SILENCE_LIMIT = 20.0  # seconds that a mirror may send nothing
FILE_LIMIT = 600.0  # seconds that one file may take
# name: (bytes and MD5 of the .gz, as torchvision checks it; bytes and MD5 of the unpacked file)
MNIST_FILES = {
    "train-images-idx3-ubyte": (
        (9912422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        (47040016, "6bbc9ace898e44ae57da46a324031adb"),
    ),
    "train-labels-idx1-ubyte": (
        (28881, "d53e105ee54ea40749a09fcbcd1e9432"),
        (60008, "a25bea736e30d166cdddb491f175f624"),
    ),
    "t10k-images-idx3-ubyte": (
        (1648877, "9fb629c4189551a2d022fa330f9573f3"),
        (7840016, "2646ac647ad5339dbf082846283269ea"),
    ),
    "t10k-labels-idx1-ubyte": (
        (4542, "ec29112dd5afa0611ce80d1b7f02629c"),
        (10008, "27ae3e4e09519cfbb04c329615203637"),
    ),
}


class DataError(Exception):
    """Data that are missing, damaged or not to be had; the message is one line."""


class MissingDataError(DataError):
    """MNIST is neither in the data folder nor to be downloaded."""


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def load_digits(dataset="auto", data_dir="data", train=True):
    """Read one half of a data set.

    Returns (images, digits, name): images [N, 1, 28, 28] uint8, digits [N] int64 in 0-9, and the name of the data set
    that it is, "mnist" or "synthetic". N is 60,000 for training and 10,000 for the test. "auto" is MNIST, or, with a
    warning, the synthetic digits where MNIST is neither there nor to be downloaded.
    Raises DataError for an unknown name, damaged data and, with "mnist", missing ones; OSError if not writable.
    """
    if dataset not in DATASETS:
        raise DataError(f"there is no data set {dataset}; choose from {', '.join(DATASETS)}")
    if dataset != "synthetic":
        try:
            return *load_mnist(data_dir, train), "mnist"
        except MissingDataError as error:
            if dataset == "mnist":
                raise
            print(
                f"WARNING: {error}. Using the built-in SYNTHETIC digits: the scores are not MNIST's. "
                "--dataset mnist makes this an error.",
                file=sys.stderr,
            )
    return *load_synthetic(data_dir, train), "synthetic"


def load_mnist(data_dir, train):
    """MNIST's (images, digits) by torchvision, from files whose checksums are right; see `load_digits`."""
    if (Path(data_dir) / "MNIST" / "processed").exists():
        raise DataError(f"{data_dir}/MNIST/processed is an old cache that torchvision would read instead; remove it")
    folder = Path(data_dir) / "MNIST" / "raw"
    for name in MNIST_FILES:
        # Before training the test files too, not to fail at the end of it. torchvision wants to see all four always.
        if train or name.startswith("t10k") or not (folder / name).exists():
            ensure_mnist_file(folder, name)
    mnist = torchvision.datasets.MNIST(data_dir, train=train, download=False)
    return mnist.data.unsqueeze(1), mnist.targets


def ensure_mnist_file(folder, name):
    """Make sure that the unpacked `folder/name` is MNIST's: check it, else unpack `name.gz`, else download that."""
    packed, unpacked = MNIST_FILES[name]
    if matches(folder / name, unpacked):
        return
    archive = folder / f"{name}.gz"
    if matches(archive, packed):
        content = archive.read_bytes()
    else:
        content = download(f"{name}.gz", packed, damaged=[file for file in (folder / name, archive) if file.exists()])
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(archive, content)
    write_atomically(folder / name, gzip.decompress(content))


def matches(path, size_and_md5):
    """Whether the file is there with this (size, MD5)."""
    size, md5 = size_and_md5
    return path.is_file() and path.stat().st_size == size and md5_of(path.read_bytes()) == md5


def md5_of(content):
    """MD5 in hex: MNIST's official checksum, against damage, not against an attacker."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def download(name, size_and_md5, damaged=()):
    """The bytes of MNIST's file `name` from the first mirror that serves it whole.

    Raises MissingDataError, or DataError naming the first of the `damaged` files that the download was to replace.
    """
    size, md5 = size_and_md5
    problem = ""
    for mirror in MIRRORS * ATTEMPTS:
        print(f"downloading {mirror}{name}", file=sys.stderr)
        deadline = time.monotonic() + FILE_LIMIT
        content = io.BytesIO()
        try:
            with urllib.request.urlopen(mirror + name, timeout=SILENCE_LIMIT) as response:
                while content.tell() <= size and (block := response.read1(1 << 16)):
                    content.write(block)
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"not done after {FILE_LIMIT:.0f} s")
        except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: sent on to a malformed address
            problem = f"{mirror} failed: {getattr(error, 'reason', None) or error or type(error).__name__}"
            continue
        if content.tell() == size and md5_of(content.getvalue()) == md5:
            return content.getvalue()
        problem = f"{mirror} sent something else (wrong checksum)"
    if damaged:
        raise DataError(f"{damaged[0]} is damaged (wrong checksum) and could not be downloaded again: {problem}")
    raise MissingDataError(f"MNIST's {name} is not in the data folder and could not be downloaded: {problem}")


# ---------------------------------------------------------------------------------------------------------------------
# Synthetic digits: strokes, as distance fields that are bent, inked and blurred

FIELD = 64  # pixels of a distance field's side; it spans -0.5 .. 1.5 of the digit's unit box
VARIANTS = 48  # hands that write each digit


def load_synthetic(data_dir, train):
    """The synthetic (images, digits), made once and cached in `data_dir`/synthetic; see `load_digits`."""
    path = Path(data_dir) / "synthetic" / ("train.npz" if train else "test.npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            images, digits, checksum = file["images"], file["digits"], str(file["sha256"])
        whole = checksum_of(images, digits) == checksum
    except Exception:  # absent or damaged: numpy and zipfile raise many kinds
        whole = False
    if not whole:
        images, digits = make_synthetic(60_000 if train else 10_000, seed=1 if train else 2)
        save_synthetic(path, images, digits)
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(digits)


def save_synthetic(path, images, digits):
    """Write the cache that `load_synthetic` reads: images [N, 28, 28] uint8, digits [N] int64 and their checksum."""
    buffer = io.BytesIO()
    np.savez(buffer, images=images, digits=digits, sha256=np.array(checksum_of(images, digits)))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def checksum_of(images, digits):
    """SHA-256 in hex of a synthetic data set, and of the version of what draws it."""
    version = b"strokes 1"  # another one, and caches are made anew
    return hashlib.sha256(version + images.tobytes() + digits.tobytes()).hexdigest()


def make_synthetic(count, seed):
    """Draw `count` grey digits: images [count, 28, 28] uint8 and digits [count] int64, both numpy arrays.

    Each image is one of `VARIANTS` wobbly hands' strokes, seen through a random slant, rotation, scale and shift, with
    a pen of random thickness and a little noise. The same `seed` gives the same images.
    """
    random = np.random.default_rng(seed)
    fields = np.stack([[stroke_distance(digit, random) for _ in range(VARIANTS)] for digit in range(DIGITS)])
    digits = random.integers(0, DIGITS, count)
    images = np.empty((count, 28, 28), np.uint8)
    axis = (np.arange(28, dtype=np.float32) - 13.5) / 20  # MNIST's digits fill 20 of 28 pixels
    y, x = (grid.ravel() for grid in np.meshgrid(axis, axis, indexing="ij"))
    for start in range(0, count, 2000):
        n = min(2000, count - start)
        uniform = random.uniform(-1, 1, (n, 8, 1)).astype(np.float32)
        angle, slant, width, height, right, down, thickness, ink = (uniform[:, i] for i in range(8))
        cos, sin = np.cos(0.2 * angle), np.sin(0.2 * angle)
        px, py = x + 0.1 * right, y + 0.1 * down
        u = (cos * px - sin * py + (0.1 + 0.3 * slant) * py) / (0.75 + 0.2 * width) + 0.5
        v = (sin * px + cos * py) / (1 + 0.15 * height) + 0.5
        field = fields[digits[start : start + n], random.integers(0, VARIANTS, n)].reshape(n, -1)
        pen = 0.065 + 0.035 * thickness
        grey = np.clip((pen - bilinear(field, u, v)) / 0.05 + 0.5, 0, 1) * (235 + 20 * ink)
        grey += random.normal(0, 6, grey.shape).astype(np.float32) * (grey > 0)
        images[start : start + n] = np.clip(grey, 0, 255).astype(np.uint8).reshape(n, 28, 28)
    return images, digits


def stroke_distance(digit, random):
    """Distance from each point of a [FIELD, FIELD] grid to one hand's strokes of `digit`, in units of its box."""
    axis = np.linspace(-0.5, 1.5, FIELD, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), -1)[:, :, None]
    nearest = np.full((FIELD, FIELD), np.inf, np.float32)
    bend = random.normal(0, 0.05, (2, 2, 3))
    for stroke in STROKES[digit]:
        points = np.array(stroke, np.float32)
        # two low frequencies bend the whole digit, a jitter moves each point a little
        phase = np.pi * (points @ bend[0, :, :2].T * 4 + bend[1, :, 2])
        points = points + (bend[0, :, 2] + 0.06 * np.sin(phase * 4)) + random.normal(0, 0.008, points.shape)
        start, step = points[:-1], np.diff(points, axis=0)
        offset = grid - start
        along = np.clip((offset * step).sum(-1) / np.maximum((step * step).sum(-1), 1e-9), 0, 1)
        distance = np.sqrt(((offset - along[..., None] * step) ** 2).sum(-1)).min(-1)
        nearest = np.minimum(nearest, distance)
    return nearest.astype(np.float32)


def bilinear(field, u, v):
    """Values of each row of `field` [n, FIELD * FIELD] at the box coordinates u, v [n, P]."""
    column = np.clip((u + 0.5) * ((FIELD - 1) / 2), 0, FIELD - 1.001)
    row = np.clip((v + 0.5) * ((FIELD - 1) / 2), 0, FIELD - 1.001)
    left, top = column.astype(np.int32), row.astype(np.int32)
    column, row, corner = column - left, row - top, top * FIELD + left

    def take(shift):
        return np.take_along_axis(field, corner + shift, axis=1)

    upper = take(0) * (1 - column) + take(1) * column
    lower = take(FIELD) * (1 - column) + take(FIELD + 1) * column
    return upper * (1 - row) + lower * row


def arc(x, y, width, height, first, last):
    """Points of an ellipse's arc from angle `first` to `last`, in degrees clockwise from the right."""
    angles = np.deg2rad(np.linspace(first, last, 13))
    return [(x + width * np.cos(angle), y + height * np.sin(angle)) for angle in angles]


# Each digit in a box of side 1, x to the right and y down, as strokes of straight pieces.
STROKES = (
    [arc(0.5, 0.5, 0.36, 0.5, 0, 360)],
    [[(0.35, 0.2), (0.55, 0.0), (0.5, 1.0)]],
    [arc(0.5, 0.28, 0.34, 0.28, 190, 390) + [(0.12, 1.0), (0.9, 0.97)]],
    [arc(0.45, 0.26, 0.32, 0.26, 200, 450) + arc(0.45, 0.74, 0.38, 0.26, 270, 510)],
    [[(0.4, 0.0), (0.08, 0.62), (0.92, 0.6)], [(0.72, 0.2), (0.66, 1.0)]],
    [[(0.85, 0.02), (0.25, 0.04), (0.2, 0.45)] + arc(0.45, 0.68, 0.38, 0.32, 220, 500)],
    [[(0.7, 0.0), (0.32, 0.35)] + arc(0.47, 0.72, 0.34, 0.28, 190, 560)],
    [[(0.1, 0.06), (0.88, 0.04), (0.4, 1.0)]],
    [arc(0.5, 0.25, 0.28, 0.25, 90, 450), arc(0.5, 0.75, 0.34, 0.25, -90, 270)],
    [arc(0.48, 0.28, 0.33, 0.28, 10, 370) + [(0.78, 0.6), (0.62, 1.0)]],
)


# ---------------------------------------------------------------------------------------------------------------------
# The random draws of an epoch


def generator_for(purpose, seed, epoch=0):
    """A CPU generator that depends on its arguments alone. `purpose` is a word such as "addends"."""
    word = hashlib.sha256(f"{purpose} {seed} {epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(word[:4], "little"))


def split_indices(count, val_size):
    """Indices (training, validation) of the one fixed split of `count` training images, the same for every seed."""
    order = torch.randperm(count, generator=generator_for("split", 0))
    return order[val_size:], order[:val_size]


def draw_addends(count, addends_per_image, seed, epoch, addends=ADDENDS):
    """The epoch's random numbers: [count, K] int64, uniform on 0-9, K different ones for each image.

    K = 1 is the task as everyone states it. K = 10 pairs each image with all ten. `addends` is how many there are;
    where K is more, all of them.
    """
    generator = generator_for("addends", seed, epoch)
    if addends_per_image == 1:
        return torch.randint(0, addends, (count, 1), generator=generator)
    return torch.rand(count, addends, generator=generator).argsort(dim=1)[:, :addends_per_image].contiguous()


def draw_order(count, seed, epoch, resample=0):
    """The order in which the epoch visits the images: a permutation, [count] int64.

    With `resample` B, a published fault: the first B images of a fresh permutation, again and again.
    """
    generator = generator_for("order", seed, epoch)
    if not resample:
        return torch.randperm(count, generator=generator)
    draws = [torch.randperm(count, generator=generator)[:resample] for _ in range(-(-count // resample))]
    return torch.cat(draws)[:count]


def draw_warps(count, strength, seed, epoch):
    """The epoch's augmentation: one affine map an image, [count, 2, 3] float32, as `affine_grid` takes it.

    At `strength` 1: shift up to 2 pixels, rotation up to 10 degrees, scale within 10 %, shear up to 0.1, all uniform.
    """
    uniform = torch.rand(count, 6, generator=generator_for("warps", seed, epoch)).mul_(2).sub_(1).mul_(strength)
    angle, shear, width, height, right, down = uniform.unbind(1)
    cos, sin = torch.cos(angle * 0.1745), torch.sin(angle * 0.1745)
    width, height, shear = 1 + 0.1 * width, 1 + 0.1 * height, 0.1 * shear
    shift = 2 * 2 / 28  # affine_grid counts an image as 2 units wide
    top = torch.stack([cos * width, (shear * cos - sin) * height, right * shift], 1)
    bottom = torch.stack([sin * width, (shear * sin + cos) * height, down * shift], 1)
    return torch.stack([top, bottom], 1)


def prepare(images, warps=None):
    """Images as the network takes them: uint8 [B, 1, 28, 28] in, normalised float32 [B, 1, 28, 28] out.

    `warps` [B, 2, 3] bends them first, with bilinear interpolation and black outside.
    """
    if warps is not None:
        grid = F.affine_grid(warps, images.shape, align_corners=False)
        images = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    images = images.sub(255 * MEAN).div_(255 * STD)  # float32 from uint8 on the way
    return images.contiguous(memory_format=torch.channels_last)


class RandomAddendDataset(torch.utils.data.Dataset):
    """The task as an ordinary map-style data set, for those who want a `DataLoader`.

    Item i is (image [1, 28, 28] float32, addend, digit, sum_target). With `addends_per_image` K = 1 the last three are
    int64 scalars; else addend and sum_target are [K]. Example: an image of a 7 with the addend 5 gives 7 and 12.
    Call `set_epoch` before each epoch, as for a `DistributedSampler`: it draws the addends anew, from (seed, epoch).
    """

    def __init__(self, images, digits, seed=0, addends_per_image=1, augment=0.0):
        self.images, self.digits, self.seed, self.augment = images, digits, seed, augment
        self.addends_per_image = addends_per_image
        self.set_epoch(0)

    def set_epoch(self, epoch):
        """Draw the addends and the warps of `epoch`."""
        addends = draw_addends(len(self.images), self.addends_per_image, self.seed, epoch)
        self.addends = addends.squeeze(1) if self.addends_per_image == 1 else addends
        self.warps = draw_warps(len(self.images), self.augment, self.seed, epoch) if self.augment else None

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        warp = None if self.warps is None else self.warps[index : index + 1]
        image = prepare(self.images[index : index + 1], warp)[0]
        addend, digit = self.addends[index], self.digits[index]
        return image, addend, digit, digit + addend


class Batches:
    """The same examples as `RandomAddendDataset`, in batches made on `device`, where the data lie if there is room.

    images [N, 1, 28, 28] uint8 and digits [N] int64 go to the device once, an epoch's tables in one copy each. Where
    the device has too little memory for that, or `resident` is False, all stay in the host's memory, and each batch is
    sent while the one before is worked on. `len()` is the number of batches of an epoch, a smaller last one included.
    Of `world` processes, number `rank` takes every `world`-th image of each batch. `addends` below 10 and `resample`
    are published faults, see `published.FAULTS`.
    """

    def __init__(
        self,
        images,
        digits,
        batch_size,
        seed=0,
        addends_per_image=1,
        augment=0.0,
        device="cpu",
        addends=ADDENDS,
        resample=False,
        rank=0,
        world=1,
        resident=None,
    ):
        self.device = torch.device(device)
        row = images[0].nbytes + 8 * addends_per_image + 8 + (24 if augment else 0)  # bytes, with digit and warp
        rows = len(images) + 2 * min(len(images), BLOCK * batch_size)  # `gather` holds a block while it makes the next
        self.resident = fits(rows * row, self.device) if resident is None else resident
        self.home = self.device if self.resident else torch.device("cpu")
        self.images, self.digits = images.to(self.home), digits.to(self.home)
        self.batch_size, self.seed = batch_size, seed
        self.addends_per_image, self.augment = addends_per_image, augment
        self.addends, self.resample, self.rank, self.world = addends, resample, rank, world

    def __len__(self):
        return -(-len(self.images) // self.batch_size)

    def weight(self, step):
        """What the mean over this process's part of a batch weighs in the mean over the processes; 1 in a single one.

        Parts differ in size by one image at most. One that is empty is given an image, and the weight 0.
        """
        size = min(self.batch_size, len(self.images) - step * self.batch_size)
        return len(range(self.rank, size, self.world)) * self.world / size

    def epoch(self, epoch):
        """Yield (image, addend, digit, sum_target) in the epoch's order.

        image [B, 1, 28, 28] float32, addend and sum_target [B] int64, or [B, K] where K > 1, digit [B] int64.
        """
        count, home = len(self.images), self.home
        order = draw_order(count, self.seed, epoch, self.batch_size if self.resample else 0).to(home)
        addends = draw_addends(count, self.addends_per_image, self.seed, epoch, self.addends).to(home)
        if self.addends_per_image == 1:
            addends = addends.squeeze(1)
        tables = [self.images, addends, self.digits]
        if self.augment:
            tables.append(draw_warps(count, self.augment, self.seed, epoch).to(home))
        parts = self.gather(tables, order)
        for image, addend, digit, *warps in parts if self.resident else sent_ahead(parts, self.device):
            yield prepare(image, *warps), addend, digit, (digit if addend.dim() == 1 else digit.unsqueeze(1)) + addend

    def gather(self, tables, order):
        """Yield this process's rows of the tables, batch by batch, in the epoch's `order`.

        Rows are gathered for BLOCK batches at once, since a batch at a time would wait for the memory each time.
        """
        for block in order.split(BLOCK * self.batch_size):
            mine = [batch[min(self.rank, len(batch) - 1) :: self.world] for batch in block.split(self.batch_size)]
            rows = [table.index_select(0, torch.cat(mine)) for table in tables]
            yield from zip(*(row.split([len(index) for index in mine]) for row in rows), strict=True)


def fits(size, device):
    """Whether `size` bytes leave half of the device's free memory to the network; only CUDA's is a memory apart."""
    return device.type != "cuda" or size <= torch.cuda.mem_get_info(device)[0] // 2


def sent_ahead(parts, device):
    """Yield lists of tensors of the host's memory on `device`, each list sent before the one ahead of it is yielded.

    On CUDA from pinned memory and on a stream of their own: the copying goes on while the device computes.
    """
    cuda = device.type == "cuda"
    stream = torch.cuda.Stream(device) if cuda else None
    sent = None
    for part in parts:
        with torch.cuda.stream(stream):  # without one it does nothing
            following = [(tensor.pin_memory() if cuda else tensor).to(device, non_blocking=True) for tensor in part]
            done = stream.record_event() if cuda else None
        if sent is not None:
            yield arrived(*sent)
        sent = following, done
    if sent is not None:
        yield arrived(*sent)


def arrived(tensors, done):
    """The sent tensors, for use behind the event `done` of their copying."""
    if done is not None:
        stream = torch.cuda.current_stream(tensors[0].device)
        stream.wait_event(done)
        for tensor in tensors:
            tensor.record_stream(stream)  # its memory is not given away while this stream works on it
    return tensors
