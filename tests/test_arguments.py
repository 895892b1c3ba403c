"""Bad command lines: each is refused in one line, with exit status 2, before any file is made or changed."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import evaluate
import train
from studies import benchmark, reproduce

FOREVER = "9" * 5000  # more digits than Python turns into a number

BAD_FOR_TRAIN = [
    # out of range, of the wrong type
    "--epochs 0",
    "--epochs -1",
    "--epochs 1.5",
    "--epochs ten",
    "--epochs nan",
    "--epochs",
    f"--epochs {FOREVER}",
    "--epochs 99999999999999999999",
    "--seed -1",
    "--seed 2147483648",
    "--seed 0.5",
    "--seed x",
    "--device tpu",
    "--device cuda:0",
    "--device CPU",
    "--batch-size 0",
    "--batch-size -5",
    "--batch-size 1e3",
    "--batch-size 99999999999999999999",
    "--val-size -1",
    "--val-size half",
    "--val-size 0.1",
    "--val-size 700",
    "--val-size 701",
    "--val-size 60000",
    "--addends-per-image 0",
    "--addends-per-image 11",
    "--addends-per-image -1",
    "--addends-per-image 2.5",
    "--addends-per-image ten",
    "--augment -0.1",
    "--augment 5.01",
    "--augment nan",
    "--augment strong",
    "--model huge",
    "--model BASE",
    "--learning-rate 0",
    "--learning-rate -0.01",
    "--learning-rate nan",
    "--learning-rate inf",
    "--learning-rate -inf",
    "--learning-rate 1e-400",
    "--learning-rate fast",
    "--weight-decay -1",
    "--weight-decay nan",
    "--weight-decay inf",
    "--averaging-eta 1e7",
    "--averaging-eta -0.5",
    "--averaging-eta nan",
    "--label-smoothing 1",
    "--label-smoothing -0.1",
    "--digit-weight -1",
    "--digit-weight inf",
    "--sum-weight -1",
    "--sum-weight nan",
    "--dataset fashion",
    "--optimizer lion",
    "--schedule step",
    "--precision float16",
    "--addend-encoding one-hot",
    "--sum-encoding ternary",
    "--model tiny+typo",
    "--model tiny+argmax",  # tiny has no argmax
    "--model tiny+mended+no-nine",
    "--model narrow-trunk+early-softmax",
    "--averaging-eta none",
    "--model average-pooling --sum-encoding binary",
    "--model two-branch-lenet --addend-encoding scalar",
    "--batch-size 599",  # 600 images leave a batch of one
    # in contradiction, unknown, abbreviated, left over
    "--digit-weight 0 --sum-weight 0",
    "--deterministic yes",
    "--epoch 2",
    "--scheduler cosine",
    "--verbose",
    "-e 2",
    "2",
    # names and places
    ["--run-name", ""],
    ["--run-name", "  "],
    ["--run-name", "two\nlines"],
    ["--run-name", "\udcff"],  # a byte that is not UTF-8, as Python hands it over
    "--run-name a/b",
    "--run-name ..",
    "--run-name ../run",
    "--run-name /run",
    "--run-name run",  # is there already
    ["--run-name", "x" * 201],
    ["--unknown\nflag"],
    "--out text.txt",
    "--out text.txt/below",
    "--data-dir text.txt",
    # a resume that cannot be, or that contradicts the run
    "--resume",
    "--resume none.pt",
    ["--resume", ""],
    "--resume .",
    "--resume text.txt",
    "--resume best.pt",
    "--resume last.pt --model base",
    "--resume last.pt --seed 1",
    "--resume last.pt --epochs 3",
    "--resume last.pt --batch-size 63",
    "--resume last.pt --learning-rate 0.0123",
    "--resume last.pt --weight-decay 0.123",
    "--resume last.pt --averaging-eta 0.123",
    "--resume last.pt --addends-per-image 9",
    "--resume last.pt --augment 0.123",
    "--resume last.pt --val-size 0",
    "--resume last.pt --dataset mnist",
    "--resume last.pt --run-name other",
    "--resume last.pt --label-smoothing 0.123",
    "--resume last.pt --digit-weight 0.123",
    "--resume last.pt --sum-weight 0.123",
    "--resume last.pt --deterministic",
]

BAD_FOR_EVALUATE = [
    "--ckpt",
    "--ckpt none.pt",
    "--ckpt best.pt none.pt",
    ["--ckpt", ""],
    "--ckpt .",
    "--ckpt text.txt",
    "--ckpt text.txt/best.pt",
    "--batch-size 0",
    "--batch-size -1",
    "--batch-size 1.5",
    "--batch-size many",
    "--batch-size 99999999999999999999",
    "--device tpu",
    "--dataset fashion",
    "--data-dir text.txt",
    "--json",
    "--json best.pt",  # would write over the checkpoint
    "--json ./logs/../best.pt",
    "--json .",
    "--json logs",
    "--json text.txt/below.json",
    "--json nowhere/scores.json",
    "--seed 1",
    "--ck best.pt",
    "none.pt",
    "best.pt none.pt",
]


def words(line):
    return line.split(" ") if isinstance(line, str) else line


BAD_FOR_REPRODUCE = [
    "--jobs 0",
    "--jobs two",
    "--jobs",
    "--check --quick",
    "--device tpu",
    "--data-dir",
    "--quickly",
    "all",
]


def contents(folder):
    """Every path below the folder with the bytes that it holds."""
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refused(run, trained, tmp_path, monkeypatch):
    """Call a script in a folder with a finished run; exit status 2, one line, nothing made or changed is asserted."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    (tmp_path / "text.txt").write_text("not a checkpoint\n")
    monkeypatch.setattr("support.mnist.MIRRORS", ())
    monkeypatch.setattr(
        "support.synthetic.make_synthetic", lambda count, seed: (np.zeros((1, 28, 28), np.uint8), np.zeros(1, np.int64))
    )

    def call(script, *argv):
        before = contents(tmp_path)
        status, _, err = run(script, *argv)
        assert status == 2
        assert err.startswith(f"{script.__name__}.py: error: ") and err.endswith("\n") and err.count("\n") == 1
        assert contents(tmp_path) == before
        return err

    return call


@pytest.mark.parametrize("line", BAD_FOR_TRAIN, ids=lambda line: ascii(" ".join(words(line)))[1:40])
def test_a_bad_command_line_of_train_changes_nothing(refused, small_dir, line):
    defaults = ["--data-dir", small_dir]
    if "--resume" not in words(line):
        defaults += "--dataset synthetic --model tiny --epochs 1 --val-size 100 --run-name new --device cpu".split()
    refused(train, *defaults, *words(line))


@pytest.mark.parametrize("line", BAD_FOR_EVALUATE, ids=lambda line: ascii(" ".join(words(line)))[1:40])
def test_a_bad_command_line_of_evaluate_changes_nothing(refused, small_dir, line):
    refused(evaluate, "--data-dir", small_dir, *words(line))


@pytest.mark.parametrize("line", BAD_FOR_REPRODUCE)
def test_a_bad_command_line_of_reproduce_changes_nothing(refused, monkeypatch, line):
    monkeypatch.setattr(reproduce, "run_all", lambda *arguments: pytest.fail("ran"))
    refused(reproduce, *words(line))


def test_a_refused_run_leaves_an_empty_folder_empty(run, small_flags, tmp_path):
    assert run(train, *small_flags, "--val-size", 700)[0] == 2  # known only once the data are read
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", [".", "logs"])
def test_a_folder_that_is_read_only_is_named_before_training(run, small_flags, tmp_path, monkeypatch, where):
    """The system's answer is played: to root every folder is writable."""
    access, locked = os.access, (tmp_path / where).resolve()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).resolve() != locked and access(path, mode))
    status, _, err = run(train, *small_flags)
    assert status == 2 and err.count("\n") == 1 and "cannot be written to" in err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_an_error_not_the_cpu(refused, small_dir, monkeypatch, name):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    for script, *argv in ([train, "--run-name", "new"], [train, "--resume", "last.pt"], [evaluate]):
        assert "try --device auto" in refused(script, "--data-dir", small_dir, "--device", name, *argv)


@pytest.mark.parametrize(
    ("script", "flag", "meant"),
    [
        (train, "--learningrate", "--learning-rate"),
        (train, "--epoch=3", "--epochs"),
        (evaluate, "--batchsize", "--batch-size"),
    ],
)
def test_a_mistyped_flag_is_answered_with_the_right_one(run, script, flag, meant):
    assert f"did you mean {meant}? (see python {script.__name__}.py --help)" in run(script, flag, 1)[2]


def test_other_epochs_on_resume_are_explained(refused, small_dir):
    err = refused(train, "--resume", "last.pt", "--epochs", 8, "--data-dir", small_dir)
    assert "has 2; the learning-rate schedule spans all epochs" in err and "start a new one without --resume" in err


@pytest.mark.parametrize("script", [train, evaluate, reproduce, benchmark])
def test_help_fits_80_columns(run, monkeypatch, script):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = run(script, "--help")
    assert status == 0 and "usage: python " in out and max(map(len, out.splitlines())) <= 80


def test_the_flags_of_the_run_itself_do_not_contradict_it(run, trained, small_flags):
    """Typing the same values again with --resume is allowed: the refusals above are not for the flag's sake."""
    shutil.copytree(trained, ".", dirs_exist_ok=True)
    assert run(train, *small_flags, "--resume", "last.pt")[0] == 0
    assert run(train, *small_flags, "--resume", "last.pt", "--lr", 0.02)[0] == 0
