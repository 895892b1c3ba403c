"""The data: what an example is, that nothing but (seed, epoch) decides it, and that wrong files do not get in."""

import concurrent.futures

import numpy as np
import pytest
import torch

import data
from support import synthetic


def test_an_example_is_image_and_addend_to_digit_and_sum(small):
    dataset = data.RandomAddendDataset(*small, seed=0)
    image, addend, digit, sum_target = dataset[5]
    assert image.shape == (1, 28, 28) and image.dtype == torch.float32
    assert addend.dtype == digit.dtype == sum_target.dtype == torch.int64
    assert digit == small[1][5] and sum_target == digit + addend
    assert all(torch.equal(one, other) for one, other in zip(dataset[-1], dataset[len(dataset) - 1], strict=True))


@pytest.mark.parametrize("addends_per_image", [1, 4, 10])
def test_all_ten_addends_are_drawn_equally_often_and_once_an_image(addends_per_image):
    addends = data.draw_addends(60_000, addends_per_image, seed=0, epoch=0)
    counts = torch.bincount(addends.flatten(), minlength=10)
    expected = addends.numel() / 10
    # five standard deviations of a binomial count
    assert len(counts) == 10 and (counts - expected).abs().max() < 5 * (expected * 0.9) ** 0.5
    assert addends_per_image == 1 or (addends.sort(1).values.diff(dim=1) > 0).all()  # those of an image differ


def test_addends_depend_on_seed_and_epoch_alone():
    first = data.draw_addends(1000, 1, seed=0, epoch=0)
    torch.manual_seed(99)
    assert torch.equal(first, data.draw_addends(1000, 1, seed=0, epoch=0))
    assert not torch.equal(first, data.draw_addends(1000, 1, seed=0, epoch=1))
    assert not torch.equal(first, data.draw_addends(1000, 1, seed=1, epoch=0))


@pytest.mark.parametrize(("augment", "corrupted"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 0.5)])
@pytest.mark.parametrize("addends_per_image", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_and_data_loader_give_the_same_examples(small, addends_per_image, augment, corrupted, workers):
    dataset = data.RandomAddendDataset(*small, 7, addends_per_image, augment, corrupted)
    dataset.set_epoch(3)
    order = data.draw_order(len(dataset), 7, 3).tolist()
    loader = torch.utils.data.DataLoader(dataset, batch_size=64, sampler=order, num_workers=workers)
    batches = data.Batches(*small, 64, 7, addends_per_image, augment, corrupted=corrupted)
    assert len(batches) == len(loader)
    for ours, theirs in zip(batches.epoch(3), loader, strict=True):
        torch.testing.assert_close(ours[0], theirs[0])  # the image, to rounding
        for mine, other in zip(ours[1:], theirs[1:], strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_set_epoch_reaches_persistent_workers(small, workers):
    dataset = data.RandomAddendDataset(*small, 7, augment=1.0)
    loader = torch.utils.data.DataLoader(dataset, 350, num_workers=workers, persistent_workers=workers > 0)
    for epoch in (0, 1, 5):
        dataset.set_epoch(epoch)
        image, addend, digit, sum_target = (torch.cat(parts) for parts in zip(*loader, strict=True))
        assert torch.equal(addend, data.draw_addends(700, 1, 7, epoch).squeeze(1))
        assert torch.equal(sum_target, digit + addend)
        torch.testing.assert_close(image, data.prepare(small[0], data.draw_warps(700, 1.0, 7, epoch)))


def test_the_next_epoch_is_drawn_while_a_device_computes(small):
    """The device is the CPU here, told to draw ahead as for a GPU."""
    plain, ahead = (data.Batches(*small, 64, 3, 2, 0.5, corrupted=0.5) for _ in range(2))
    ahead.drawer = concurrent.futures.ThreadPoolExecutor(1)
    for epoch in (0, 1, 2, 7):  # 7 was not drawn ahead
        for ours, other in zip(ahead.epoch(epoch), plain.epoch(epoch), strict=True):
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours, other, strict=True))
            assert list(ahead.drawn) == [epoch, epoch + 1]


def test_corruptions_depend_on_seed_epoch_and_image_alone(small):
    """Neither on the batch size nor on the number of processes."""

    def images(batch_size=64, seed=7, epoch=3, world_size=1):
        found = torch.empty(700, 1, 28, 28)
        for rank in range(world_size):
            batches = data.Batches(
                small[0], torch.arange(700), batch_size, seed, 1, 0.5, "cpu", rank, world_size, corrupted=0.5
            )
            for image, _, index, _ in batches.epoch(epoch):
                found[index] = image
        return found

    first = images()
    for other in (images(batch_size=700), images(world_size=2)):
        torch.testing.assert_close(first, other, atol=1e-4, rtol=0)
    assert not torch.allclose(first, images(seed=8)) and not torch.allclose(first, images(epoch=4))


def test_the_share_of_the_images_is_corrupted_and_the_others_are_as_without(small):
    plain, corrupted = (data.RandomAddendDataset(*small, 1, augment=0.5, corrupted=share) for share in (0.0, 0.3))
    changed = torch.tensor([not torch.allclose(plain[n][0], corrupted[n][0], atol=1e-3) for n in range(700)])
    kinds = data.draw_changes(700, 0.5, 0.3, 1, 0)
    assert abs(changed.double().mean() - 0.3) < 0.07 and len(kinds[0]) == 2  # four standard deviations
    assert len(data.draw_changes(700, 0.5, 0.0, 1, 0)[0]) == 1 and data.draw_changes(700, 0.0, 0.0, 1, 0) == ([], None)


def test_an_epoch_shows_every_image_once_the_last_batch_included(small):
    batches = data.Batches(*small, batch_size=64)
    sizes = [len(digit) for _, _, digit, _ in batches.epoch(0)]
    assert sizes == [64] * 10 + [60]
    assert torch.equal(data.draw_order(700, 0, 0).sort().values, torch.arange(700))


def test_split_is_fixed_and_without_overlap():
    training, validation = data.split_indices(60_000, 5000)
    assert (len(training), len(validation)) == (55_000, 5000)
    assert len(torch.cat([training, validation]).unique()) == 60_000
    assert validation[:3].tolist() == data.split_indices(60_000, 5000)[1][:3].tolist()


def test_prepare_normalises_and_a_warp_of_strength_0_changes_nothing(small):
    images = small[0][:50]
    plain = data.prepare(images)
    assert plain.min() == pytest.approx(-data.MEAN / data.STD) and plain.max() < (1 - data.MEAN) / data.STD + 1e-6
    torch.testing.assert_close(data.prepare(images, data.draw_warps(50, 0.0, 0, 0)), plain, atol=1e-4, rtol=0)
    assert (data.prepare(images, data.draw_warps(50, 1.0, 0, 0)) - plain).abs().max() > 0.5


def test_a_warp_shifts_by_at_most_two_pixels_and_keeps_black_outside():
    dot = torch.zeros(200, 1, 28, 28, dtype=torch.uint8)
    dot[:, :, 13:15, 13:15] = 255
    bent = data.prepare(dot, data.draw_warps(200, 1.0, 0, 0)) * data.STD + data.MEAN
    rows, columns = (bent.squeeze(1) > 0.3).any(0).nonzero().unbind(1)
    assert 10 <= rows.min() <= 11 and 16 <= rows.max() <= 17 and 10 <= columns.min() and columns.max() <= 17
    assert bent[:, :, 0].abs().max() < 1e-6


def test_synthetic_digits_are_reproducible_and_can_be_told_apart(small, small_dir):
    (known, digits), (asked, asked_digits) = small, synthetic.load_synthetic(small_dir, train=False)  # other hands
    again, again_digits = synthetic.make_synthetic(150, seed=4)
    assert again.shape == (150, 28, 28) and again.dtype == np.uint8 and np.array_equal(again, asked[:, 0].numpy())
    assert np.array_equal(again_digits, asked_digits.numpy()) and torch.bincount(digits, minlength=10).min() > 40
    nearest = torch.cdist(asked.flatten(1).float(), known.flatten(1).float()).argmin(dim=1)
    assert (digits[nearest] == asked_digits).double().mean() > 0.7


def test_synthetic_cache_is_made_anew_where_it_is_damaged(small_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(
        synthetic, "make_synthetic", lambda count, seed: (np.zeros((3, 28, 28), np.uint8), np.arange(3))
    )
    path = tmp_path / "synthetic" / "train.npz"
    assert len(synthetic.load_synthetic(tmp_path, train=True)[0]) == 3
    synthetic.save_synthetic(path, np.zeros((4, 28, 28), np.uint8), np.arange(4))
    assert len(synthetic.load_synthetic(tmp_path, train=True)[0]) == 4  # read, not made
    content = bytearray(path.read_bytes())
    content[1500] ^= 1
    path.write_bytes(content)
    assert len(synthetic.load_synthetic(tmp_path, train=True)[0]) == 3


@pytest.mark.parametrize("odd", [np.arange(4) + 7, np.arange(4.0), np.arange(5), np.arange(4).reshape(2, 2), None])
def test_a_synthetic_cache_of_another_form_or_version_is_made_anew(tmp_path, monkeypatch, odd):
    with monkeypatch.context() as patch:
        if odd is None:
            patch.setattr(synthetic, "VERSION", 0)
        digits = np.arange(4) if odd is None else odd
        synthetic.save_synthetic(tmp_path / "synthetic" / "train.npz", np.zeros((4, 28, 28), np.uint8), digits)
    made = np.zeros((3, 28, 28), np.uint8), np.arange(3)
    monkeypatch.setattr(synthetic, "make_synthetic", lambda count, seed: made)
    assert len(synthetic.load_synthetic(tmp_path, train=True)[0]) == 3


def test_mnist_is_mnist(mnist_dir):
    images, digits, name = data.load_digits("auto", mnist_dir, train=True)
    assert name == "mnist" and images.shape == (60_000, 1, 28, 28) and images.dtype == torch.uint8
    shares = torch.bincount(images.flatten(), minlength=256).double() / images.numel()
    greys = torch.arange(256) / 255
    assert (shares @ greys.double()).item() == pytest.approx(data.MEAN, abs=1e-4)
    assert (shares @ (greys - data.MEAN).double().square()).sqrt().item() == pytest.approx(data.STD, abs=1e-4)
    assert torch.bincount(digits).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    images, digits, _ = data.load_digits("mnist", mnist_dir, train=False)
    assert images.shape == (10_000, 1, 28, 28) and digits[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


@pytest.mark.parametrize("train", [False, True])
def test_mnist_is_read_as_torchvision_reads_it(mnist_dir, train):
    from torchvision.datasets import MNIST  # here, since its import takes seconds

    images, digits, _ = data.load_digits("mnist", mnist_dir, train=train)
    theirs = MNIST(mnist_dir, train=train)
    assert torch.equal(images.squeeze(1), theirs.data) and images.is_contiguous()
    assert torch.equal(digits, theirs.targets) and digits.dtype == theirs.targets.dtype


def test_data_too_large_for_the_device_give_the_same_examples(small):
    plain, sent = (data.Batches(*small, 64, 3, 2, 0.5, resident=kept, corrupted=0.5) for kept in (True, False))
    for ours, other in zip(plain.epoch(1), sent.epoch(1), strict=True):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours, other, strict=True))


def test_the_next_batch_is_copied_before_the_current_one_is_used():
    happened = []

    def parts():
        for number in range(3):
            happened.append(f"made {number}")
            yield [torch.tensor(number)]

    for (number,) in data.prefetch(parts(), torch.device("cpu")):
        happened.append(f"used {number}")
    assert happened == ["made 0", "made 1", "used 0", "made 2", "used 1", "used 2"]


def test_what_fits_leaves_half_of_the_free_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    assert data.fits(500, torch.device("cuda")) and not data.fits(501, torch.device("cuda"))
    assert data.fits(10**15, torch.device("cpu"))
