"""predict.py: both answers for one's own images, in every form of output; what cannot be is refused in one line."""

import io
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
from strokes import KINDS, drawn_pictures, save, seven
from support import cli
from support.images import read_digits

TINY = ROOT / "logs" / "tiny.pt"


@pytest.fixture
def plain(tmp_path):
    return save(tmp_path / "seven.png", seven())


@pytest.fixture
def expected(plain):
    return read_digits(plain)[0]


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


def test_answers_that_disagree_come_with_the_most_probable_that_agree():
    digit, total = torch.full((10,), 0.01), torch.full((19,), 0.001)
    digit[3], digit[8], total[13] = 0.5, 0.42, 0.9
    entry = predict.record("a.png", np.zeros((28, 28), dtype=np.uint8), 5, digit, total)
    assert (entry["digit"], entry["sum"], entry["consistent_digit"], entry["consistent_sum"]) == (3, 13, 8, 13)
    assert predict.in_words(entry).endswith("; the two answers disagree, the most probable that agree are 8 and 13")


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
    entries = json.loads(ask("many", plain, "--number", 5, "--json")[1])
    assert [entry["image"][-5:] for entry in entries] == ["a.png", "b.png", "n.png"]
    monkeypatch.setattr(predict, "BATCH", 2)
    again = json.loads(ask("many", plain, "--number", 5, "--json")[1])
    for name in ("image", "digit", "sum", "input"):
        assert [entry[name] for entry in again] == [entry[name] for entry in entries]
    assert len(json.loads(ask(save(tmp_path / "two.png", np.hstack([seven()] * 2)), "--split", "--json")[1])) == 2


def test_a_closed_standard_input_is_no_image(ask, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    status, _, err = ask("-")
    assert status == 2 and "standard input is closed" in err


def test_a_closed_standard_output_is_no_error(ask, plain, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert ask(plain, "--number", 5)[0] == 0


def test_one_unusable_image_does_not_hide_the_others(ask, plain, tmp_path):
    blank = save(tmp_path / "blank.png", np.full((50, 50), 200))
    status, out, err = ask(blank, plain, "none.png", "--number", 1)
    assert status == 2 and f"{plain}: digit" in out and err.count("\n") == 2
    assert f"{blank} shows no ink" in err and "cannot read none.png: No such file" in err


def test_images_may_stand_on_both_sides_of_a_flag(ask, plain, tmp_path):
    other = save(tmp_path / "-7.png", np.array(Image.open(plain)))
    status, out, _ = ask(plain, "--number", 5, plain)
    assert status == 0 and out.count(f"{plain}: digit") == 2
    status, out, _ = ask("--number", 5, "--", other.name)  # begins as a flag does
    assert status == 0 and "-7.png: digit" in out


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


def test_a_terminal_without_unicode_gets_ascii_and_torchvision_is_not_imported(trained, tmp_path):
    path = save(tmp_path / "sieben-ü.png", seven())
    words = ["-X", "importtime", "predict.py", str(path), "--number", "5", "--ckpt", str(trained / "best.pt")]
    environment = {"PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1", "PATH": "", "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0 and b"@@" in done.stdout and b"sieben-\\xfc.png: digit" in done.stdout
    assert b" torch\n" in done.stderr and b" torchvision\n" not in done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def one_line(answer):
    status, out, err = answer
    assert status == 2 and out == "" and err.startswith("predict.py: error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "no image given"),
        ("none.png", "cannot read none.png"),
        ("empty.png", "empty.png is empty"),
        ("text.png", "is damaged or of a format that is not read here"),
        ("script.eps", "is damaged or of a format that is not read here"),  # Pillow would hand it to another program
        ("blank.png", "blank.png shows no ink"),
        ("noise.png", "noise.png shows no ink"),
        ("bomb.png", "bomb.png has 9000 x 9000 pixels"),
        ("vast.png", "vast.png has too many pixels"),
        ("folder", "no image is in the folder folder"),
        ("- -", "standard input (-) can be read once"),
        ("seven.png 5", "did you mean --number 5?"),
        ("--image seven.png 5", "did you mean --number 5?"),
        ("seven.png --ckpt=", "not a checkpoint"),  # the value of a variable that is not set
        ("seven.png --number 10", "10 is not from 0 to 9"),
        ("seven.png --number -1", "-1 is not at least 0"),
        ("seven.png --number five", "invalid whole number value"),
        ("seven.png --ckpt text.png", "is not a checkpoint"),
        ("seven.png --save-input seven.png", "would overwrite a file that is read"),
        ("seven.png --save-input seen.jpg", "let its name end in .png"),
        ("seven.png --save-input folder/none/seen.png", "there is no folder folder/none"),
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
