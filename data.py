"""The data: an MNIST image and a random number go in, the digit and the sum should come out.

An example is (image, addend) -> (digit, sum_target): an image of a 7 with the addend 5 gives 7 and 12.

    images, digits, name = load_digits("auto", "data", train=True)
    batches = Batches(images, digits, batch_size=128, seed=0, addends_per_image=10)
    for image, addend, digit, sum_target in batches.epoch(0):
        ...  # [B, 1, 28, 28] float32, [B, 10] int64 in 0-9, [B] int64 in 0-9, [B, 10] int64 in 0-18

Every random choice of an epoch (order, addends, augmentation) is drawn on the CPU from (seed, epoch) alone, as a table
indexed by image. So an example does not depend on the order, the batch size, the workers, the device or the epochs
before it, and a resumed run has no generator state to restore.
"""

import concurrent.futures
import hashlib
import re
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from support import corruptions
from support.flags import DATASETS
from support.mnist import DataError, MissingDataError, load_mnist
from support.synthetic import load_synthetic

MEAN, STD = 0.1307, 0.3081  # of the 60,000 training images of MNIST, on a scale from 0 to 1
DIGITS, ADDENDS, SUMS = 10, 10, 19
BLOCK = 32  # batches gathered at once


# ---------------------------------------------------------------------------------------------------------------------
# The task, as a data set for a DataLoader and as batches that are made on the device


class RandomAddendDataset(torch.utils.data.Dataset):
    """The task as a map-style data set, for a `DataLoader`.

    Item i is (image [1, 28, 28] float32, addend, digit, sum_target). With `addends_per_image` K = 1 the last three are
    int64 scalars; else addend and sum_target are [K]. Example: an image of a 7 with the addend 5 gives 7 and 12.
    Call `set_epoch` before each epoch, as for a `DistributedSampler`; without it every epoch has the same addends.
    """

    def __init__(self, images, digits, seed=0, addends_per_image=1, augment=0.0, corrupted=0.0):
        self.images, self.digits, self.seed = images, digits, seed
        self.addends_per_image, self.augment, self.corrupted = addends_per_image, augment, corrupted
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see it change
        self.drawn = None  # the epoch of the tables below

    def set_epoch(self, epoch):
        """Use the addends and the augmentation of `epoch`, in the workers of a `DataLoader` too."""
        self.epoch.fill_(epoch)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        epoch = int(self.epoch)
        if epoch != self.drawn:
            addends = draw_addends(len(self.images), self.addends_per_image, self.seed, epoch)
            self.addends = addends.squeeze(1) if self.addends_per_image == 1 else addends
            self.changes = draw_changes(len(self.images), self.augment, self.corrupted, self.seed, epoch)
            self.drawn = epoch
        tables, noise = self.changes
        image, *change = (table[index].unsqueeze(0) for table in (self.images, *tables))
        image = prepare(image, *change, noise=noise)[0]
        addend, digit = self.addends[index], self.digits[index]
        return image, addend, digit, digit + addend


class Batches:
    """The same examples as `RandomAddendDataset`, in batches made on `device`.

    images [N, 1, 28, 28] uint8 and digits [N] int64 are copied to the device once, an epoch's random draws in one copy
    each. Where the device has too little memory for that, or `resident` is False, they stay in host memory and each
    batch is prefetched. `len()` is the number of batches of an epoch, a smaller last one included. Of `world_size`
    processes, number `rank` takes every `world_size`-th image of each batch.
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
        rank=0,
        world_size=1,
        resident=None,
        corrupted=0.0,
    ):
        self.device = torch.device(device)
        row = images[0].nbytes + 8 * addends_per_image + 8  # bytes, with the digit
        row += (24 if augment or corrupted else 0) + (4 * len(corruptions.EFFECTS) if corrupted else 0)
        rows = len(images) + 2 * min(len(images), BLOCK * batch_size)  # `gather` holds a block while it makes the next
        self.resident = fits(rows * row, self.device) if resident is None else resident
        self.home = self.device if self.resident else torch.device("cpu")
        self.images, self.digits = images.to(self.home), digits.to(self.home)
        self.batch_size, self.seed = batch_size, seed
        self.addends_per_image, self.augment, self.corrupted = addends_per_image, augment, corrupted
        self.rank, self.world_size = rank, world_size
        # A GPU should not wait for the draws of the next epoch; on the CPU they would take the cores of the training.
        self.drawer = None if self.device.type == "cpu" else concurrent.futures.ThreadPoolExecutor(1)
        self.drawn = {}  # epoch: its draws, as a future

    def __len__(self):
        return -(-len(self.images) // self.batch_size)

    def weight(self, step):
        """Weight of this process's part of a batch in the mean over the processes; 1 in a single process.

        Parts differ in size by one image at most. One that is empty is given an image, and the weight 0.
        """
        size = min(self.batch_size, len(self.images) - step * self.batch_size)
        return len(range(self.rank, size, self.world_size)) * self.world_size / size

    def mean(self, figures):
        """The mean over an epoch's images of `figures` [batches, n], each a mean over a batch; [n] float64."""
        sizes = torch.full((len(self), 1), self.batch_size, dtype=torch.float64)
        sizes[-1] -= len(self) * self.batch_size - len(self.images)
        return (figures.double() * sizes).sum(dim=0) / len(self.images)

    def epoch(self, epoch):
        """Yield (image, addend, digit, sum_target) in the epoch's order.

        image [B, 1, 28, 28] float32, addend and sum_target [B] int64, or [B, K] where K > 1, digit [B] int64.
        """
        order, addends, changes, noise = self.draws(epoch)
        noise = None if noise is None else noise.to(self.device)
        tables = [self.images, self.digits, *(table.to(self.home) for table in (addends, *changes))]
        parts = self.gather(tables, order.to(self.home))
        for image, digit, addend, *change in parts if self.resident else prefetch(parts, self.device):
            sum_target = (digit if addend.dim() == 1 else digit.unsqueeze(1)) + addend
            yield prepare(image, *change, noise=noise), addend, digit, sum_target

    def draws(self, epoch):
        """The epoch's (order, addends, tables, noise), in host memory; the last two are those of `draw_changes`."""
        if self.drawer is None:
            return self.draw(epoch)
        self.drawn = {e: self.drawn.get(e) or self.drawer.submit(self.draw, e) for e in (epoch, epoch + 1)}
        return self.drawn[epoch].result()

    def draw(self, epoch):
        """Draw what `draws` returns."""
        addends = self.draw_addends(epoch)
        changes = draw_changes(len(self.images), self.augment, self.corrupted, self.seed, epoch)
        return self.draw_order(epoch), addends.squeeze(1) if self.addends_per_image == 1 else addends, *changes

    def draw_order(self, epoch):
        """Indices of the images in the epoch's order, [N] int64."""
        return draw_order(len(self.images), self.seed, epoch)

    def draw_addends(self, epoch):
        """The epoch's random numbers, [N, K] int64."""
        return draw_addends(len(self.images), self.addends_per_image, self.seed, epoch)

    def gather(self, tables, order):
        """Yield this process's rows of the tables, batch by batch, in the epoch's `order`.

        Rows are gathered for BLOCK batches at once, since a batch at a time would wait for the memory each time.
        """
        for block in order.split(BLOCK * self.batch_size):
            mine = [batch[min(self.rank, len(batch) - 1) :: self.world_size] for batch in block.split(self.batch_size)]
            rows = [table.index_select(0, torch.cat(mine)) for table in tables]
            yield from zip(*(row.split([len(index) for index in mine]) for row in rows), strict=True)


# ---------------------------------------------------------------------------------------------------------------------
# The random draws of an epoch


def generator_for(purpose, seed, epoch=0):
    """A CPU generator that depends on its arguments alone. `purpose` is a word such as "addends"."""
    word = hashlib.sha256(f"{purpose} {seed} {epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(word[:4], "little"))


def draw_addends(count, addends_per_image, seed, epoch, addends=ADDENDS):
    """The epoch's random numbers: [count, K] int64, uniform on the `addends` numbers from 0, K different ones an image.

    K = 1 is the task as it is usually stated: one number is drawn. K = 10 pairs each image with all ten, in some order.
    """
    generator = generator_for("addends", seed, epoch)
    if addends_per_image == 1:
        return torch.randint(0, addends, (count, 1), generator=generator)
    return torch.rand(count, addends, generator=generator).argsort(dim=1)[:, :addends_per_image].contiguous()


def draw_order(count, seed, epoch):
    """The order in which the epoch visits the images: a permutation, [count] int64."""
    return torch.randperm(count, generator=generator_for("order", seed, epoch))


def draw_warps(count, strength, seed, epoch):
    """The epoch's augmentation: one affine map an image, [count, 2, 3] float32, as `affine_grid` takes it.

    At `strength` 1: shift up to 2 pixels, rotation up to 10 degrees, scale within 10 %, shear up to 0.1, all uniform.
    """
    uniform = torch.rand(count, 6, generator=generator_for("warps", seed, epoch)).mul_(2).sub_(1).mul_(strength)
    angle, shear, width, height, right, down = uniform.unbind(1)
    shift = 2 * 2 / 28  # affine_grid counts an image as 2 units wide
    return corruptions.affine_maps(
        angle * 0.1745, 0.1 * shear, 1 + 0.1 * width, 1 + 0.1 * height, right * shift, down * shift
    )


def draw_changes(count, augment, corrupted, seed, epoch):
    """How the epoch changes its images: (tables, noise), which `prepare` takes after the images.

    tables: none, [warps] or [warps, effects], each [count, ...]; noise is None without effects. `augment` is the
    strength of the warps, `corrupted` the share of the images that get one of the `support.corruptions` on top.
    """
    warps = draw_warps(count, augment, seed, epoch) if augment else None
    if not corrupted:
        return [] if warps is None else [warps], None
    maps, effects, noise = corruptions.draw_mix(count, corrupted, generator_for("corruptions", seed, epoch))
    return [maps if warps is None else corruptions.compose(warps, maps), effects], noise


# ---------------------------------------------------------------------------------------------------------------------
# Images


def load_digits(dataset="auto", data_dir="data", train=True):
    """Read the training or the test half of a data set.

    Returns (images, digits, name): images [N, 1, 28, 28] uint8, digits [N] int64 in 0-9, and the name of the data set
    that was read, "mnist" or "synthetic". N is 60,000 for training and 10,000 for the test. "auto" is MNIST, or, with
    a warning, the synthetic digits where MNIST is missing and cannot be downloaded.
    Raises DataError for an unknown name, damaged data and, with "mnist", missing data; OSError if not writable.
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


def load_folder(folder):
    """Read a folder of images named by their digit, 7_anything.png, as `load_digits` reads a data set.

    Each is brought to MNIST's form by `support.images`. Returns (images [N, 1, 28, 28] uint8, digits [N] int64, the
    folder's name). Raises DataError or ImageError for no folder, no image in it, another name, an unusable image.
    """
    from support.images import image_files, read_digits  # here, since Pillow is needed for nothing else

    if not Path(folder).is_dir():
        raise DataError(f"there is no folder {folder}")
    files = image_files(folder)
    for file in files:
        if not re.match(r"[0-9](?![0-9])", file.name):
            raise DataError(f"{file} is not named by its digit; a 7 is 7_anything{file.suffix}")
    progress = tqdm(files, unit="image", delay=2, leave=False, disable=None)
    images = [torch.from_numpy(read_digits(file)[0]) for file in progress]
    return torch.stack(images).unsqueeze(1), torch.tensor([int(file.name[0]) for file in files]), Path(folder).name


def split_indices(count, val_size):
    """Indices (training, validation) of the one fixed split of `count` training images, the same for every seed."""
    order = torch.randperm(count, generator=generator_for("split", 0))
    return order[val_size:], order[:val_size]


def prepare(images, warps=None, effects=None, noise=None):
    """Images as the network takes them: uint8 [B, 1, 28, 28] in, normalised float32 [B, 1, 28, 28] out.

    `warps` [B, 2, 3] are applied first, with bilinear interpolation and black outside, then corruptions: `effects` and
    `noise` as `support.corruptions.apply` takes them.
    """
    if warps is not None:
        images = corruptions.move(images, warps)
    if effects is not None:
        images = corruptions.apply(images, effects, noise)
    images = images.sub(255 * MEAN).div_(255 * STD)  # float32 from uint8 on the way
    return images.contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------------------------------------------------------------
# Images that the device has no room for


def fits(size, device):
    """Whether `size` bytes leave half of the device's free memory to the network; only CUDA has memory of its own."""
    return device.type != "cuda" or size <= torch.cuda.mem_get_info(device)[0] // 2


def prefetch(parts, device):
    """Yield lists of host tensors on `device`, copying the next list while the current one is used.

    On CUDA from pinned memory and on a side stream, so that the copy overlaps the computation.
    """
    cuda = device.type == "cuda"
    stream = torch.cuda.Stream(device) if cuda else None
    current = None
    for part in parts:
        with torch.cuda.stream(stream):  # without one it does nothing
            following = [(tensor.pin_memory() if cuda else tensor).to(device, non_blocking=True) for tensor in part]
            copied = stream.record_event() if cuda else None
        if current is not None:
            yield current
        if cuda:
            torch.cuda.current_stream(device).wait_event(copied)
            for tensor in following:
                tensor.record_stream(torch.cuda.current_stream(device))  # the allocator keeps it while it is used here
        current = following
    if current is not None:
        yield current
