"""Own images: whatever the file, the light and the pen, the network sees MNIST's form; what is unusable is refused."""

import io
import itertools
import json
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import data
import evaluate
import predict
import train
from conftest import ROOT
from strokes import KINDS, cover, drawn_pictures, light, on_paper, shadow
from support import cli, images
from support.images import ImageError, read_digits

TINY = ROOT / "logs" / "tiny.pt"


def seven(**look):
    """A dark 7 on light paper, uint8 [240, 240]."""
    return on_paper(cover(7, np.random.default_rng(7), **look)).astype(np.uint8)


def save(path, picture, mode=None, **options):
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    (image.convert(mode, dither=Image.Dither.NONE) if mode else image).save(path, **options)
    return path


def apart(one, other):
    """Mean difference of two images in MNIST's form, in grey levels; a pixel's shift, by rounding, is none."""
    shifts = itertools.product((-1, 0, 1), repeat=2)
    return min(np.abs(np.roll(one, shift, (0, 1)).astype(float) - other).mean() for shift in shifts)


@pytest.fixture
def plain(tmp_path):
    return save(tmp_path / "seven.png", seven())


@pytest.fixture
def expected(plain):
    return read_digits(plain)[0]


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
# The command


@pytest.fixture
def ask(run, trained):
    def call(*argv):
        return run(predict, "--ckpt", trained / "best.pt", *argv)

    return call


def test_the_command_says_both_answers_under_what_the_network_saw(ask, plain, trained, expected):
    status, out, err = ask("--image", plain, "--number", 5)
    assert status == 0 and err == ""
    model = evaluate.load_model(trained / "best.pt")[0]
    image = data.prepare(torch.from_numpy(expected).reshape(1, 1, 28, 28))
    digit, total = (logits.softmax(1).max(1) for logits in model(image, torch.tensor([5])))
    network, *drawn, line = out.splitlines()
    assert network == f"network: tiny, {trained / 'best.pt'}"
    assert line.startswith(
        f"{plain}: digit {digit.indices.item()} ({100 * digit.values.item():.1f} %), "
        f"plus 5: sum {total.indices.item()} ({100 * total.values.item():.1f} %)"
    )
    assert drawn == predict.picture(expected, "utf-8").splitlines()
    assert ask(plain, "--number", 5)[1] == out
    assert f"plus 6: sum {total.indices.item()} ({100 * total.values.item():.1f} %)" not in ask(plain, "--number", 6)[1]


def test_without_a_number_one_is_drawn_and_said(ask, plain):
    numbers = set()
    for _ in range(12):
        line = ask(plain)[1].splitlines()[-1]
        number = line.split("plus ")[1][0]
        assert f"({number} was drawn at random)" in line
        numbers.add(number)
    assert len(numbers) > 1  # twelve equal ones: once in 10^11


def test_json_holds_every_probability_and_the_input(ask, plain, expected):
    status, out, _ = ask(plain, "--number", 0, "--json")
    (entry,) = json.loads(out)
    assert status == 0 and entry["number"] == 0 and entry["image"] == str(plain)
    assert np.array_equal(entry["input"], expected)
    for name, count in (("digit", 10), ("sum", 19)):
        probabilities = entry[f"{name}_probabilities"]
        assert len(probabilities) == count and sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert entry[name] == np.argmax(probabilities) and entry[f"{name}_probability"] == max(probabilities)


def test_the_saved_input_gives_the_same_answer_again(ask, plain, tmp_path, expected):
    first = json.loads(ask(plain, "--number", 3, "--json", "--save-input", "seen.png")[1])[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "seen.png")), expected)
    again = json.loads(ask("seen.png", "--number", 3, "--json")[1])[0]
    assert {**first, "image": "seen.png"} == again


def test_standard_input_and_folders_and_several_files_are_read(ask, plain, tmp_path, monkeypatch, trained):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(plain.read_bytes())))
    line = ask(plain, "--number", 5)[1].splitlines()[-1]
    assert ask("-", "--number", 5)[1].splitlines()[-1] == line.replace(str(plain), "standard input")
    (tmp_path / "many").mkdir()
    for name in ("b.png", "a.png"):
        save(tmp_path / "many" / name, seven())
    (tmp_path / "many" / "notes.txt").write_text("no image")
    entries = json.loads(ask("many", plain, "--json")[1])
    assert [entry["image"][-5:] for entry in entries] == ["a.png", "b.png", "n.png"]
    assert len(json.loads(ask(save(tmp_path / "two.png", np.hstack([seven()] * 2)), "--split", "--json")[1])) == 2


def test_one_unusable_image_does_not_hide_the_others(ask, plain, tmp_path):
    blank = save(tmp_path / "blank.png", np.full((50, 50), 200))
    status, out, err = ask(blank, plain, "none.png", "--number", 1)
    assert status == 2 and f"{plain}: digit" in out and err.count("\n") == 2
    assert f"{blank} shows no ink" in err and "cannot read none.png: No such file" in err


def test_the_committed_network_is_taken_where_no_other_is(run, plain, trained, tmp_path):
    assert run(predict, plain)[1].startswith(f"network: tiny, {TINY}\n")  # whatever the current folder is
    (tmp_path / "best.pt").write_bytes((trained / "best.pt").read_bytes())
    assert run(predict, plain)[1].startswith("network: tiny, best.pt\n")
    (tmp_path / "best.pt").write_bytes(b"damaged")
    assert run(predict, plain)[0] == 2  # not silently the other


def test_the_picture_is_drawn_with_what_the_terminal_has(expected):
    blocks, plain = predict.picture(expected, "utf-8").split("\n"), predict.picture(expected, "ascii").split("\n")
    assert len(blocks) == 14 and max(map(len, blocks)) <= 28 and set("".join(blocks)) <= set(predict.BLOCKS)
    assert len(plain) == 28 and max(map(len, plain)) <= 56 and "".join(plain).isascii() and "@@" in "".join(plain)
    assert predict.picture(expected, None).split("\n") == plain
    dots = np.zeros((28, 28), np.uint8)
    dots[0, 0] = dots[1, 1] = dots[0, 2] = dots[1, 2] = 255
    assert predict.picture(dots, "utf-8").split("\n")[0] == "▀▄█"


def test_a_terminal_without_unicode_gets_ascii(trained, tmp_path):
    path = save(tmp_path / "sieben-ü.png", seven())
    words = [sys.executable, "predict.py", str(path), "--number", "5", "--ckpt", str(trained / "best.pt")]
    environment = {"PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1", "PATH": "", "PYTHONUTF8": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0 and b"@@" in done.stdout and b"sieben-\\xfc.png: digit" in done.stdout, done.stderr


def test_predicting_needs_no_torchvision(plain, trained):
    program = f"""
import sys, predict
predict.main(["{plain}", "--ckpt", "{trained / "best.pt"}"])
sys.exit("torchvision" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True).returncode == 0


def test_help_fits_80_columns(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = run(predict, "--help")
    assert status == 0 and "usage: python predict.py" in out and max(map(len, out.splitlines())) <= 80


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def one_line(answer):
    status, out, err = answer
    assert status == 2 and out == "" and err.startswith("predict.py: error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "which image?"),
        ("none.png", "cannot read none.png"),
        ("empty.png", "empty.png is empty"),
        ("text.png", "is damaged or not a picture that Pillow reads"),
        ("script.eps", "is damaged or not a picture"),  # Pillow would hand it to another program
        ("blank.png", "blank.png shows no ink"),
        ("noise.png", "noise.png shows no ink"),
        ("bomb.png", "bomb.png has 9000 x 9000 pixels"),
        ("vast.png", "vast.png has too many pixels"),
        ("folder", "no image is in the folder folder"),
        ("- -", "standard input (-) can be read once"),
        ("seven.png 5", "did you mean --number 5?"),
        ("seven.png --number 10", "10 is not from 0 to 9"),
        ("seven.png --number -1", "-1 is not at least 0"),
        ("seven.png --number five", "invalid whole number value"),
        ("seven.png --ckpt text.png", "is not a checkpoint"),
        ("seven.png --save-input seven.png", "would overwrite what is read"),
        ("seven.png --save-input seen.jpg", "let its name end in .png"),
        ("seven.png --save-input folder/none/seen.png", "No such file"),
        ("seven.png seven.png --save-input seen.png", "holds one digit, and these are 2"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(ask, plain, tmp_path, words, said):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image\n")
    (tmp_path / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    (tmp_path / "folder").mkdir()
    save(tmp_path / "blank.png", np.full((200, 200), 230))
    save(tmp_path / "noise.png", np.random.default_rng(0).normal(128, 15, (200, 200)))
    if "bomb" in words:
        Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
    header = (tmp_path / "blank.png").read_bytes()
    (tmp_path / "vast.png").write_bytes(claim_size(header, 60_000))
    before = sorted(tmp_path.rglob("*"))
    assert said in one_line(ask(*words.split()))
    assert sorted(tmp_path.rglob("*")) == before


def claim_size(png, side):
    """A PNG file whose header claims another size."""
    header = png[12:16] + side.to_bytes(4, "big") * 2 + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]


def test_a_file_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(images, "BYTES_LIMIT", 10**6)
    with pytest.raises(ImageError, match="has more than 1 MB"):
        read_digits("/dev/zero")


def test_random_bytes_and_cut_pictures_end_in_one_line_each(ask, tmp_path):
    random = np.random.default_rng(0)
    folder = tmp_path / "fuzz"
    folder.mkdir()
    whole = [save(tmp_path / f"whole.{kind}", seven()).read_bytes() for kind in ("png", "gif", "jpg", "tif", "webp")]
    for number in range(200):
        content = random.bytes(int(random.integers(1, 500)))
        if number % 4 == 1:  # behind a right beginning
            content = whole[number % 5][: int(random.integers(4, 40))] + content
        elif number % 4 > 1:  # cut short
            content = whole[0][: int(random.integers(1, len(whole[0]) - 12))]
        (folder / f"{number:03d}.png").write_bytes(content)
    status, out, err = ask(folder)
    lines = err.splitlines()
    assert status == 2 and out == "" and len(lines) == 200
    for number, line in enumerate(lines):
        assert line.startswith("predict.py: error: ") and f"{number:03d}.png" in line


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
    for number in range(60):
        height, width = random.integers(1, 90, 2)
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


# ---------------------------------------------------------------------------------------------------------------------
# A folder as a test set


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "my-digits"
    folder.mkdir()
    for digit in range(10):
        save(folder / f"{digit}_a.png", on_paper(cover(digit, np.random.default_rng(digit))))
    return folder


def test_a_folder_of_images_is_scored_with_all_ten_addends(run, trained, folder):
    status, out, _ = run(evaluate, trained / "best.pt", "--dataset-folder", folder, "--json", "scores.json")
    assert status == 0 and "my-digits test set, tiny: 10 images x 10 addends" in out
    scores = json.loads((folder.parent / "scores.json").read_text())
    images, digits, name = data.load_folder(folder)
    assert images.shape == (10, 1, 28, 28) and digits.tolist() == list(range(10)) and name == "my-digits"
    expected = evaluate.score(*evaluate.predict_pairs([evaluate.load_model(trained / "best.pt")[0]], images), digits)
    assert scores["pairs"] == 100 and scores["joint_misses"] == expected["joint_misses"]
    (folder / "0_a.png").rename(folder / "1_b.png")
    assert data.load_folder(folder)[1].tolist() == [1, 1, *range(2, 10)]


def test_a_folder_that_cannot_be_scored_is_refused(run, trained, folder, tmp_path):
    def refused(*words):
        status, out, err = run(evaluate, trained / "best.pt", "--dataset-folder", *words)
        assert status == 2 and out == "" and err.count("\n") == 1
        return err

    assert "exclude each other" in refused(folder, "--dataset", "synthetic")
    assert "there is no folder none" in refused("none")
    assert "no image is in the folder" in refused(trained)
    for name in ("seven.png", "17_a.png"):
        (folder / "7_a.png").rename(folder / name)
        assert f"{name} is not named by its digit; a 7 is 7_anything.png" in refused(folder)
        (folder / name).rename(folder / "7_a.png")
    save(folder / "3_b.png", np.full((60, 60), 99))
    assert "3_b.png shows no ink" in refused(folder)


# ---------------------------------------------------------------------------------------------------------------------
# How well it works: at least 95 % of the digits right, drawn in 20 ways unlike MNIST


def right_by_kind(ckpt, per_kind, folder):
    """Share of digits right for each kind of picture, of files as `predict.py` reads them."""
    model, right = evaluate.load_model(ckpt)[0], {kind: 0 for kind in KINDS}
    for kind, digit, picture in drawn_pictures(per_kind):
        seen = read_digits(save(folder / "picture.png", picture))
        right[kind] += len(seen) == 1 and int(predict.answer(model, seen, [0])[0].argmax()) == digit
    return {kind: count / per_kind for kind, count in right.items()}


def report(name, shares):
    mean = sum(shares.values()) / len(shares)
    print(f"\n{name}: {100 * mean:.1f} % of the digits right")
    print("\n".join(f"    {kind:14s} {100 * share:5.1f} %" for kind, share in shares.items()))
    return mean


@pytest.mark.skipif(not TINY.exists(), reason="logs/tiny.pt is not there")
def test_the_committed_network_reads_pictures_unlike_mnist(tmp_path):
    assert report("tiny", right_by_kind(TINY, 2, tmp_path)) >= 0.95


@pytest.mark.long
def test_95_percent_of_400_pictures_unlike_mnist_are_read(mnist_dir, tmp_path):
    """With `python -m pytest -m long -s -k pictures` the shares of each kind are shown."""
    flags = ["--model", "base", "--epochs", 3, "--dataset", "mnist", "--data-dir", mnist_dir, "--out", tmp_path]
    assert cli.run_script(train.main, [*map(str, flags)]) == 0
    shares = right_by_kind(tmp_path / "best.pt", 20, tmp_path)
    assert report("base", shares) >= 0.95 and min(shares.values()) >= 0.8
