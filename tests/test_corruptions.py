"""Corruptions: each does what its amount says, by the strength and the generator alone, one image at a time."""

import pytest
import torch

from support import corruptions
from support.corruptions import AMOUNTS, EFFECTS, KINDS, STRENGTHS

FIXED = ("blur", "contrast", "brightness", "inversion", "thick strokes", "thin strokes")  # nothing is drawn for these


def corrupt(images, kind, strength, seed=0):
    return corruptions.corrupt(images, kind, strength, torch.Generator().manual_seed(seed))


def picture(top, bottom, left, right, count=1):
    """[count, 1, 28, 28] uint8: a white rectangle on black."""
    images = torch.zeros(count, 1, 28, 28, dtype=torch.uint8)
    images[..., top:bottom, left:right] = 255
    return images


def ink(images):
    """The number of white pixels' worth of ink, [N]."""
    return images.double().sum((1, 2, 3)) / 255


def moments(images):
    """(centres [N, 2], covariances [N, 2, 2]) of the ink, rows before columns, in pixels."""
    weights = images.squeeze(1).double() / images.double().sum((1, 2, 3)).view(-1, 1, 1)
    places = torch.stack(torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij"), -1).double()
    centres = torch.einsum("nij,ijk->nk", weights, places)
    away = places - centres.view(-1, 1, 1, 2)
    return centres, torch.einsum("nij,nijk,nijl->nkl", weights, away, away)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_the_form_and_comes_from_the_generator_alone(small, kind):
    images = small[0][:60]
    before = images.clone()
    first = corrupt(images, kind, 3)
    assert first.shape == images.shape and first.dtype == torch.uint8 and torch.equal(images, before)
    torch.manual_seed(99)
    assert torch.equal(first, corrupt(images, kind, 3))
    assert torch.equal(first, corrupt(images, kind, 3, seed=1)) == (kind in FIXED)
    assert not torch.equal(first, images)


@pytest.mark.parametrize("kind", KINDS)
def test_the_strength_grows_the_distance_to_the_clean_image(small, kind):
    images = small[0][:300]
    clean = corrupt(images, kind, 1) if kind == "inversion" else images  # the ink fades on white
    distances = [(corrupt(images, kind, strength).double() - clean).abs().mean().item() for strength in STRENGTHS]
    assert distances == sorted(distances) and len(set(distances)) == 5 and (distances[0] > 0) == (kind != "inversion")


def test_a_row_of_no_kind_changes_nothing(small):
    images = small[0][:50]
    maps, effects = corruptions.draw(torch.full((50,), -1), torch.full((50,), 3), torch.Generator())
    assert torch.equal(maps, torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(50, 2, 3))
    same = corruptions.apply(corruptions.move(images, maps), effects, torch.randn(corruptions.NOISE))
    torch.testing.assert_close(same, images.float(), atol=1e-2, rtol=0)  # of 255


def test_an_image_is_corrupted_alone_as_in_a_batch(small):
    images = small[0][:130].float()
    kinds, strengths = torch.arange(130) % len(KINDS), torch.arange(130) // len(KINDS) % 5 + 1
    generator = torch.Generator().manual_seed(5)
    _, effects = corruptions.draw(kinds, strengths, generator)
    noise = torch.randn(corruptions.NOISE, generator=generator)
    batch = corruptions.apply(images.clone(), effects, noise)
    for n in range(130):
        alone = corruptions.apply(images[n : n + 1].clone(), effects[n : n + 1], noise)
        torch.testing.assert_close(alone[0], batch[n], atol=1e-2, rtol=0)


def test_inversion_at_strength_1_is_the_negative_and_twice_the_image(small):
    once = corrupt(small[0], "inversion", 1)
    assert torch.equal(once, 255 - small[0]) and torch.equal(corrupt(once, "inversion", 1), small[0])


@pytest.mark.parametrize("strength", STRENGTHS)
def test_grey_levels_are_those_of_the_amounts(strength):
    half = picture(0, 28, 0, 14)
    contrast, brightness, darkness = (AMOUNTS[kind][strength - 1] for kind in ("contrast", "brightness", "inversion"))
    for kind, black, white in (
        ("contrast", 127.5 * (1 - contrast), 127.5 * (1 + contrast)),
        ("brightness", 255 * brightness, 255),
        ("inversion", 255, 255 * (1 - darkness)),
    ):
        changed = corrupt(half, kind, strength).double()
        assert (changed[..., 14:] - black).abs().max() <= 0.51 and (changed[..., :14] - white).abs().max() <= 0.51


@pytest.mark.parametrize("strength", STRENGTHS)
def test_noise_has_the_deviation_or_the_share_of_the_amount(strength):
    grey = torch.full((200, 1, 28, 28), 128, dtype=torch.uint8)
    noisy = (corrupt(grey, "Gaussian noise", strength).double() - 128) / 255
    deviation = AMOUNTS["Gaussian noise"][strength - 1]
    clipped = torch.special.ndtr(torch.tensor(0.5 / deviation)).item()  # share of the values below white
    assert noisy.quantile(0.25).item() == pytest.approx(-0.6745 * deviation, rel=0.03, abs=0.003)
    assert (noisy < 0.498).double().mean().item() == pytest.approx(clipped, abs=0.01)
    hit = corrupt(grey, "impulse noise", strength)
    share = AMOUNTS["impulse noise"][strength - 1]
    assert (hit == 255).double().mean().item() == pytest.approx(share / 2, rel=0.05)
    assert (hit == 0).double().mean().item() == pytest.approx(share / 2, rel=0.05)
    assert set(hit.unique().tolist()) == {0, 128, 255}


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_blurred_dot_has_the_deviation_of_the_amount(strength):
    square = picture(12, 16, 12, 16)
    _, before = moments(square)
    _, after = moments(corrupt(square, "blur", strength))
    wider = (after - before)[0].diagonal()
    assert wider.tolist() == pytest.approx([AMOUNTS["blur"][strength - 1] ** 2] * 2, rel=0.1, abs=0.05)
    assert ink(corrupt(square, "blur", strength)).item() == pytest.approx(16, rel=0.05)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_maps_move_a_bar_as_the_amounts_say(strength):
    bars = picture(9, 19, 12, 16, 200)
    centres, _ = moments(bars)

    moved, _ = moments(corrupt(bars, "shift", strength))
    assert (moved - centres).norm(dim=1).tolist() == pytest.approx([AMOUNTS["shift"][strength - 1]] * 200, abs=0.06)
    assert (moved > centres).double().mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.15)  # in all directions

    _, turned = moments(corrupt(bars, "rotation", strength))
    angles = torch.rad2deg(torch.atan2(2 * turned[:, 0, 1], turned[:, 0, 0] - turned[:, 1, 1]) / 2)
    assert angles.abs().tolist() == pytest.approx([AMOUNTS["rotation"][strength - 1]] * 200, abs=1)
    assert 60 < (angles > 0).sum() < 140

    sizes = (ink(corrupt(bars, "scale", strength)) / 40).sqrt()
    factor = AMOUNTS["scale"][strength - 1]
    larger = sizes > 1
    assert sizes[larger].tolist() == pytest.approx([factor] * int(larger.sum()), rel=0.02)
    assert sizes[~larger].tolist() == pytest.approx([1 / factor] * int((~larger).sum()), rel=0.1)  # of few pixels
    assert 60 < larger.sum() < 140

    _, slanted = moments(corrupt(bars, "shear", strength))
    slopes = slanted[:, 0, 1] / slanted[:, 0, 0]
    assert slopes.abs().tolist() == pytest.approx([AMOUNTS["shear"][strength - 1]] * 200, abs=0.03)
    assert 60 < (slopes > 0).sum() < 140


@pytest.mark.parametrize("strength", STRENGTHS)
def test_strokes_grow_and_shrink_on_each_side(strength):
    bar = picture(0, 28, 12, 16)  # 4 pixels wide, from edge to edge
    for kind, sign in (("thick strokes", 1), ("thin strokes", -1)):
        width = ink(corrupt(bar, kind, strength)).item() / 28
        assert width == pytest.approx(4 + sign * 2 * AMOUNTS[kind][strength - 1], abs=0.02)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_occlusion_is_one_square_of_one_grey_over_the_box_of_the_digit(strength):
    before = picture(0, 28, 0, 28, 300)
    before[:] = 77
    after = corrupt(before, "occlusion", strength)
    side = AMOUNTS["occlusion"][strength - 1]
    greys, corners = set(), set()
    for image in after[:, 0]:
        rows, columns = (image != 77).nonzero().unbind(1)
        if len(rows) == 0:  # a grey of 77
            continue
        assert len(rows) == side**2 and rows.max() - rows.min() == columns.max() - columns.min() == side - 1
        assert min(rows.min(), columns.min()) >= 4 and max(rows.max(), columns.max()) <= 23
        greys |= set(image[image != 77].unique().tolist())
        corners.add((int(rows.min()), int(columns.min())))
    assert len(greys) > 150 and len(corners) > 50
    assert min(map(min, corners)) == 4 and max(map(max, corners)) == 24 - side


def test_composed_maps_move_as_one_after_the_other():
    images = picture(10, 15, 10, 13, 1).float()

    def shift(right, down):
        one, nothing = torch.ones(1), torch.zeros(1)
        return corruptions.affine_maps(nothing, nothing, one, one, one * right * 2 / 28, one * down * 2 / 28)

    quarter = corruptions.affine_maps(*(torch.tensor([value]) for value in (torch.pi / 2, 0.0, 1.0, 1.0, 0.0, 0.0)))
    for first, second in ((shift(2, 3), quarter), (quarter, shift(2, 3))):
        both = corruptions.move(images, corruptions.compose(first, second))
        expected = corruptions.move(corruptions.move(images, first), second)
        torch.testing.assert_close(both, expected, atol=0.05, rtol=0)
    assert not torch.allclose(both, corruptions.move(images, corruptions.compose(shift(2, 3), quarter)), atol=1)


def test_an_epoch_has_all_kinds_at_all_strengths_in_the_given_share():
    maps, effects, noise = corruptions.draw_mix(60_000, 0.4, torch.Generator().manual_seed(0))
    neutral = torch.tensor([0.0, 0, 1, 0, 0, torch.inf, 0, 0, 0, 0, 0])
    looked_at = [EFFECTS.index(name) for name in ("stroke", "blur", "gain", "offset", "noise", "impulse", "side")]
    moved = (maps - torch.eye(2, 3)).flatten(1).abs().amax(1) > 1e-6
    changed = moved | (effects[:, looked_at] != neutral[looked_at]).any(1)
    assert abs(changed.double().mean() - 0.4) < 0.01
    for name, kind in (("blur", "blur"), ("side", "occlusion")):
        values, counts = effects[:, EFFECTS.index(name)].unique(return_counts=True)
        assert values[1:].tolist() == pytest.approx(AMOUNTS[kind])
        expected = [60_000 * 0.4 / 13 * part / 25 for part in (9, 7, 5, 3, 1)]  # the smaller of two strengths
        assert counts[1:].tolist() == pytest.approx(expected, abs=90)  # three standard deviations or more
    assert noise.shape == (corruptions.NOISE,) and abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    starts = effects[:, EFFECTS.index("start")]
    assert starts.min() >= 0 and starts.max() + 28 * 28 <= corruptions.NOISE and len(starts.unique()) > 50_000
