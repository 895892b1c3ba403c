"""Own images: whatever the file, the light and the pen, the network sees MNIST's form; what is unusable is refused."""

import itertools

import numpy as np
import pytest
from PIL import Image

import data
from strokes import cover, light, on_paper, save, seven, shadow
from support import images
from support.images import ImageError, read_digits


def apart(one, other):
    """Mean difference of two images in MNIST's form, in grey levels; a pixel's shift, by rounding, is none."""
    shifts = itertools.product((-1, 0, 1), repeat=2)
    return min(np.abs(np.roll(one, shift, (0, 1)).astype(float) - other).mean() for shift in shifts)


@pytest.fixture
def expected(tmp_path):
    return read_digits(save(tmp_path / "seven.png", seven()))[0]


# ---------------------------------------------------------------------------------------------------------------------
# MNIST's form


def test_the_digit_fills_20_pixels_with_its_mass_in_the_middle(tmp_path):
    for digit in range(10):
        picture = on_paper(cover(digit, np.random.default_rng(digit), height=0.4, centre=(0.3, 0.7)))
        image = read_digits(save(tmp_path / "digit.png", picture))[0]
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        assert image.shape == (28, 28) and image.dtype == np.uint8 and image.max() > 200 and image[0, 0] == 0
        assert max(np.ptp(rows), np.ptp(columns)) == 19
        assert all(abs(images.mass_centre(image, axis) - 14) <= 0.5 for axis in (0, 1))


def test_mnist_upscaled_and_on_paper_comes_back(mnist_dir, tmp_path):
    mnist = data.load_digits("mnist", mnist_dir, train=False)[0][:30, 0].numpy()
    differences = []
    for image in mnist:
        large = Image.fromarray(255 - image).resize((280, 280), Image.Resampling.BICUBIC)
        differences.append(apart(read_digits(save(tmp_path / "large.png", np.asarray(large)))[0], image))
    assert np.mean(differences) < 8 and max(differences) < 20  # 40 and more between different digits


def test_an_image_in_mnists_form_is_taken_as_it_is(mnist_dir, tmp_path):
    mnist = data.load_digits("mnist", mnist_dir, train=False)[0][:300, 0].numpy()
    kept = sum(np.array_equal(images.as_it_is(image.astype(np.float32)), image) for image in mnist)
    assert kept >= 295
    assert np.array_equal(read_digits(save(tmp_path / "dark.png", 255 - mnist[0]))[0], mnist[0])


@pytest.mark.parametrize("digit", range(10))
def test_a_lamp_beside_the_digit_does_not_matter(tmp_path, digit):
    """Its light falls off faster than a quadratic surface: the fit leaves the picture's greys in the dark corner."""
    x, y = np.meshgrid(np.linspace(-0.3, 1.7, 200), np.linspace(-0.3, 1.7, 200))
    picture = on_paper(cover(digit, np.random.default_rng(digit), side=200))
    evenly = read_digits(save(tmp_path / "even.png", picture))[0]
    lit = picture * np.exp(-0.5 * (x**2 + y**2)) + np.random.default_rng(digit).normal(0, 1, picture.shape)
    assert apart(read_digits(save(tmp_path / "lit.png", lit))[0], evenly) < 8


@pytest.mark.parametrize("digit", [0, 6, 8, 9])
def test_a_picture_that_ends_at_its_ink_shows_the_same_digit(tmp_path, digit):
    """Ink on the rim is no paper, and a hole is no ink."""
    picture = on_paper(cover(digit, np.random.default_rng(0), side=600, pen=0.12))
    rows, columns = (np.flatnonzero((picture < 128).any(axis)) for axis in (1, 0))
    tight = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    whole = read_digits(save(tmp_path / "whole.png", picture))[0]
    assert apart(read_digits(save(tmp_path / "tight.png", tight))[0], whole) < 8


def test_a_long_line_is_split_like_a_short_one(tmp_path):
    """What parts two digits is in proportion to their height, not to the length of the line."""
    digits = [on_paper(cover(n % 10, np.random.default_rng(n), side=200, height=0.9)) for n in range(12)]
    inked = [np.flatnonzero((digit < 128).any(0)) for digit in digits]
    gap = on_paper(np.zeros((200, 16)))
    line = [part for digit, x in zip(digits, inked, strict=True) for part in (gap, digit[:, x[0] : x[-1] + 1])]
    picture = np.pad(np.hstack([*line, gap]), 60, constant_values=on_paper(0.0))
    assert len(read_digits(save(tmp_path / "line.png", picture), split=True)) == 12


def test_what_lies_around_the_digit_does_not_matter(tmp_path, expected):
    """Paper, light, shade, noise, place and size: the same strokes give nearly the same image."""
    random, field = np.random.default_rng(0), seven().astype(float)
    pictures = {
        "inverted": 255 - field,
        "faint": 180 + field / 10,
        "shaded": field * light(240, random),
        "shadowed": field * shadow(240, random),
        "noisy": field * 0.6 + 40 + random.normal(0, 15, field.shape),
        "padded": np.pad(field, ((10, 300), (200, 0)), mode="edge"),
        "large": field.repeat(5, axis=0).repeat(5, axis=1),
        "specks": np.where(random.random(field.shape) < 0.005, 30, field),
    }
    for name, picture in pictures.items():
        assert apart(read_digits(save(tmp_path / "other.png", picture))[0], expected) < 8, name


@pytest.mark.parametrize("pen", [0.02, 0.12])
def test_thin_and_thick_pens_are_drawn_again(tmp_path, monkeypatch, pen):
    path = save(tmp_path / "pen.png", seven(pen=pen))
    redrawn = images.stroke_width(read_digits(path)[0].repeat(10, 0).repeat(10, 1) > 127) / 10
    monkeypatch.setattr(images, "STROKES", (0, 28))
    as_drawn = images.stroke_width(read_digits(path)[0].repeat(10, 0).repeat(10, 1) > 127) / 10
    assert redrawn > as_drawn + 0.3 if pen < 0.05 else redrawn < as_drawn - 0.3


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("x.png", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *(("x.jpg", mode) for mode in ("L", "RGB", "CMYK")),
        *(("x.tif", mode) for mode in ("F", "I", "RGB", "CMYK")),
        *(("x.gif", "P"), ("x.bmp", "RGB"), ("x.webp", "RGB"), ("x.ppm", "RGB"), ("x.tga", "RGBA")),
    ],
)
def test_every_common_format_and_mode_is_read(tmp_path, expected, name, mode):
    if mode == "I;16":
        Image.fromarray(seven().astype(np.uint16) * 257).save(tmp_path / name)
    else:
        save(tmp_path / name, seven(), mode)
    # without greys, edges move by part of a pixel
    assert apart(read_digits(tmp_path / name)[0], expected) < (8 if mode == "1" else 3)


def test_a_photo_is_turned_as_its_exif_data_say(tmp_path, expected):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter
    save(tmp_path / "turned.jpg", np.rot90(seven()), exif=exif, quality=95)
    assert apart(read_digits(tmp_path / "turned.jpg")[0], expected) < 3


@pytest.mark.parametrize("shade", [0, 255])
def test_a_transparent_background_is_paper(tmp_path, expected, shade):
    """Black ink on nothing lies on white; white ink on nothing, which white would hide, on black."""
    field = 255 - seven()
    picture = np.stack([np.full_like(field, shade)] * 3 + [field - field.min()], -1)
    assert apart(read_digits(save(tmp_path / "clear.png", picture))[0], expected) < 3


def test_several_digits_are_refused_or_read_from_left_to_right(tmp_path):
    random = np.random.default_rng(0)
    pictures = [on_paper(cover(digit, random, centre=(0.5, 0.45 + 0.05 * digit))) for digit in (1, 0, 3)]
    alone = [read_digits(save(tmp_path / "alone.png", picture))[0] for picture in pictures]
    together = save(tmp_path / "together.png", np.hstack(pictures))
    with pytest.raises(ImageError, match="shows 3 digits or more; --split reads"):
        read_digits(together)
    parts = read_digits(together, split=True)
    assert len(parts) == 3 and all(apart(part, one) < 6 for part, one in zip(parts, alone, strict=True))
    with pytest.raises(ImageError, match="several lines"):
        read_digits(save(tmp_path / "lines.png", np.vstack(pictures)), split=True)


def test_a_broken_stroke_is_one_digit(tmp_path, expected):
    picture = seven()
    picture[118:121] = picture[0, 0]
    assert apart(read_digits(save(tmp_path / "broken.png", picture))[0], expected) < 6


# ---------------------------------------------------------------------------------------------------------------------
# What is no digit


def test_a_file_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(images, "BYTES_LIMIT", 10**6)
    with pytest.raises(ImageError, match="has more than 1 MB"):
        read_digits("/dev/zero")


def test_changed_bytes_are_read_or_refused(tmp_path):
    random = np.random.default_rng(1)
    refused = 0
    for kind in ("png", "gif", "jpg", "bmp", "tif"):
        whole = save(tmp_path / f"whole.{kind}", seven()).read_bytes()
        for _ in range(20):
            content = bytearray(whole)
            for place in random.integers(0, min(len(whole), 600), 3):
                content[place] = random.integers(256)
            (tmp_path / f"changed.{kind}").write_bytes(content)
            try:
                assert all(digit.shape == (28, 28) for digit in read_digits(tmp_path / f"changed.{kind}", split=True))
            except ImageError:
                refused += 1
    assert 0 < refused < 100


def test_any_picture_ends_in_a_digit_or_in_one_line(tmp_path):
    """Lines, dots, noise, stripes and frames of all sizes: nothing else than ImageError is raised."""
    random = np.random.default_rng(2)
    sizes = [*random.integers(1, 90, (60, 2)), (3, 700), (700, 3), (1, 200), (5, 600)]
    for number, (height, width) in enumerate(sizes):
        picture = np.full((height, width), 200.0)
        if number % 3 == 0:
            picture = random.uniform(0, 255, (height, width))
        elif number % 3 == 1:
            picture[random.integers(height), :] = 10
            picture[:, random.integers(width) :: random.integers(1, 30)] = 20
        else:
            picture[random.integers(height), random.integers(width)] = 0
        try:
            assert read_digits(save(tmp_path / "any.png", picture), split=True)[0].any()
        except ImageError as error:
            assert "any.png" in str(error)


def test_a_folder_passes_over_no_picture(tmp_path):
    for ending, kind in {"jfif": "JPEG", "pbm": "PPM", "ico": "ICO"}.items():
        Image.fromarray(seven().astype(np.uint8)).convert("1" if kind == "PPM" else "L").save(
            tmp_path / f"7_a.{ending}", kind
        )
    (tmp_path / "7_b.HEIC").write_bytes(b"no picture that can be read here")
    (tmp_path / "notes.txt").write_text("7")
    files = images.image_files(tmp_path)
    assert [file.name for file in files] == ["7_a.ico", "7_a.jfif", "7_a.pbm", "7_b.HEIC"]
    assert all(len(read_digits(file)) == 1 for file in files[:3])
    with pytest.raises(ImageError, match=r"7_b\.HEIC is damaged or of a format that is not read here"):
        read_digits(files[3])
