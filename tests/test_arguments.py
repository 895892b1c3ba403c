"""Bad command lines: each is refused in one line, with exit status 2, before any file is made or changed."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import evaluate
import train
from conftest import contents
from studies import benchmark, ladder, reproduce

FOREVER = "9" * 5000  # more digits than Python turns into a number

# Values out of range or of the wrong type.
BAD_VALUES = {
    "--epochs": f"0 -1 1.5 ten nan 99999999999999999999 {FOREVER}",
    "--seed": "-1 2147483648 0.5 x",
    "--device": "tpu cuda:0 CPU",
    "--batch-size": "0 -5 1e3 99999999999999999999 599",  # 600 images leave a batch of one
    "--val-size": "-1 half 0.1 700 701 60000",
    "--addends-per-image": "0 11 -1 2.5 ten",
    "--augment": "-0.1 5.01 nan strong",
    "--augment-corruptions": "-0.1 1.1 nan half",
    # tiny has no argmax
    "--model": "huge BASE tiny+typo tiny+argmax tiny+mended+no-nine narrow-trunk+early-softmax two-softmax +mended",
    "--learning-rate": "0 -0.01 nan inf -inf 1e-400 1e40 fast",
    "--weight-decay": "-1 nan inf",
    "--averaging-eta": "1e7 -0.5 nan none",
    "--label-smoothing": "1 -0.1",
    "--digit-weight": "-1 inf",
    "--sum-weight": "-1 nan",
    "--dataset": "fashion",
    "--optimizer": "lion",
    "--schedule": "step",
    "--precision": "float16",
    "--addend-encoding": "one-hot",
    "--sum-encoding": "ternary",
    "--run-name": "a/b .. ../run /run run " + "x" * 201,  # run is there already
    "--out": "text.txt text.txt/below",
    "--data-dir": "text.txt",
    "--resume": "none.pt . text.txt best.pt",
}
# Other values than the run in last.pt has.
CONTRADICTIONS = [
    *("--model base", "--seed 1", "--epochs 3", "--batch-size 63", "--learning-rate 0.0123", "--weight-decay 0.123"),
    *("--averaging-eta 0.123", "--addends-per-image 9", "--augment 0.123", "--val-size 0", "--dataset mnist"),
    *("--augment-corruptions 0.123", "--run-name other", "--label-smoothing 0.123", "--digit-weight 0.123"),
    *("--sum-weight 0.123", "--deterministic"),
]
BAD_FOR_TRAIN = [
    *([flag, value] for flag, values in BAD_VALUES.items() for value in values.split()),
    *(["--resume", "last.pt", *flag.split()] for flag in CONTRADICTIONS),
    # in contradiction, unknown, abbreviated, left over, without a value
    "--digit-weight 0 --sum-weight 0".split(),
    "--model average-pooling --sum-encoding binary".split(),
    "--addend-encoding embedding --sum-encoding shift".split(),  # nothing would train the embedding
    "--model two-branch-lenet --addend-encoding scalar".split(),
    *(["--deterministic", "yes"], ["--epoch", "2"], ["--scheduler", "cosine"], ["--verbose"], ["-e", "2"], ["2"]),
    *(["--epochs"], ["--resume"], ["--resume", ""], ["--unknown\nflag"], ["--run-name", ""], ["--run-name", "  "]),
    *(["--run-name", "two\nlines"], ["--run-name", "\udcff"]),  # a byte that is not UTF-8, as Python hands it over
]
BAD_FOR_EVALUATE = [
    *("--ckpt", "--ckpt none.pt", "--ckpt best.pt none.pt", "--ckpt .", "--ckpt text.txt", "--ckpt text.txt/best.pt"),
    *("--ckpt ", "none.pt", "best.pt none.pt", "--ck best.pt", "--seed 1", "--device tpu", "--dataset fashion"),
    *("--batch-size 0", "--batch-size -1", "--batch-size 1.5", "--batch-size many", "--batch-size 9999999999999999"),
    *("--data-dir text.txt", "--json", "--json .", "--json logs", "--json text.txt/below.json"),
    "--json /dev/null",  # a rename would replace the device
    *("--json nowhere/scores.json", "--json best.pt", "--json ./logs/../best.pt", "--json logs/run-best.pt"),
]
BAD_FOR_STUDIES = {
    reproduce: "--jobs 0,--jobs two,--jobs,--check --quick,--check --only weights,--device tpu,--data-dir,--q,all",
    benchmark: "--only everything,--repeats 0,--rep 3,--device tpu,--json no/such.json",
    ladder: "--json none/l.json",
}


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
        paths, before = sorted(tmp_path.rglob("*")), contents(tmp_path)
        status, _, err = run(script, *argv)
        assert status == 2
        assert err.startswith(f"{script.__name__}.py: error: ") and err.endswith("\n") and err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == paths and contents(tmp_path) == before
        return err

    return call


@pytest.mark.parametrize("words", BAD_FOR_TRAIN, ids=lambda words: ascii(" ".join(words))[1:40])
def test_a_bad_command_line_of_train_changes_nothing(refused, small_dir, words):
    defaults = ["--data-dir", small_dir]
    if "--resume" not in words:
        defaults += "--dataset synthetic --model tiny --epochs 1 --val-size 100 --run-name new --device cpu".split()
    refused(train, *defaults, *words)


@pytest.mark.parametrize("line", BAD_FOR_EVALUATE)
def test_a_bad_command_line_of_evaluate_changes_nothing(refused, small_dir, line):
    refused(evaluate, "--data-dir", small_dir, *line.split(" "))


@pytest.mark.parametrize(
    ("study", "line"), [(study, line) for study, lines in BAD_FOR_STUDIES.items() for line in lines.split(",")]
)
def test_a_bad_command_line_of_a_study_changes_nothing(refused, monkeypatch, study, line):
    monkeypatch.setattr(reproduce, "run_all", lambda *arguments: pytest.fail("ran"))
    refused(study, *line.split())


@pytest.mark.parametrize("there", ["", "a", "a/logs"])
def test_a_refused_run_leaves_no_folder_that_it_made(run, small_flags, tmp_path, there):
    (tmp_path / there).mkdir(parents=True, exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    for out in (".", "a", "a/b/c"):
        assert run(train, *small_flags, "--val-size", 700, "--out", out)[0] == 2  # known only once the data are read
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("where", [".", "logs"])
def test_a_folder_that_is_read_only_is_named_before_training(run, small_flags, tmp_path, monkeypatch, where):
    """The system's answer is played: to root every folder is writable."""
    access, locked = os.access, (tmp_path / where).resolve()
    locked.mkdir(exist_ok=True)
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).resolve() != locked and access(path, mode))
    status, _, err = run(train, *small_flags)
    assert status == 2 and err.count("\n") == 1 and "cannot be written to" in err
    assert not contents(tmp_path)


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_an_error_not_the_cpu(refused, small_dir, monkeypatch, name):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    for script, *argv in ([train, "--run-name", "new"], [train, "--resume", "last.pt"], [evaluate]):
        assert "try --device auto" in refused(script, "--data-dir", small_dir, "--device", name, *argv)


def test_a_mistyped_flag_is_answered_with_the_right_one(run):
    for flag, meant in (("--learningrate", "--learning-rate"), ("--epoch=3", "--epochs")):
        assert f"did you mean {meant}? (see python train.py --help)" in run(train, flag, 1)[2]


def test_other_epochs_on_resume_are_explained(refused, small_dir):
    err = refused(train, "--resume", "last.pt", "--epochs", 8, "--data-dir", small_dir)
    assert "has 2; the learning-rate schedule spans all epochs" in err and "start a new one without --resume" in err
