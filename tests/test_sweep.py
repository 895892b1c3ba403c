"""What train.py does in place of a run: --dry-run and --find-lr leave a run's files alone."""

import csv
import itertools
import math
import re
import shutil

import pytest
import torch

import train
from conftest import contents
from support import sweep
from support.cli import UserError
from support.optim import learning_rate_at
from support.sweep import COLUMNS, suggestions


def test_a_dry_run_takes_a_step_and_writes_nothing(run, small_flags, tmp_path):
    status, out, err = run(train, *small_flags, "--dry-run")
    assert status == 0 and not err and not list(tmp_path.iterdir())
    assert "\ndata set    synthetic: 600 training and 100 validation images\n" in out and "9,941 parameters" in out
    digit_loss, sum_loss = map(float, re.search(r"digit loss ([\d.]+), sum loss ([\d.]+); no run", out).groups())
    assert digit_loss == pytest.approx(math.log(10), abs=0.3) and sum_loss == pytest.approx(math.log(19), abs=0.3)


def test_a_dry_run_sees_what_a_run_would_be_refused_for(run, small_flags, trained, tmp_path):
    shutil.copy(trained / "best.pt", tmp_path)  # of the run "run", whose own files are not here
    for flags, said in (
        (["--batch-size", 599], "batch norm"),
        (["--out", trained], "there is a run run"),
        ([], "is of another run of the name run"),
    ):
        before = contents(trained)
        status, out, err = run(train, *small_flags, "--dry-run", *flags)
        assert status == 2 and said in err and err.count("\n") == 1 and not out
        assert contents(trained) == before


def test_find_lr_writes_the_sweep_beside_the_runs_and_nothing_else(run, small_flags, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "STEPS", 100)
    status, out, err = run(train, *small_flags, "--find-lr", "--augment", 0)
    path = tmp_path / "logs" / "run-find-lr.csv"
    assert status == 0 and not err and [*tmp_path.rglob("*")] == [path.parent, path]
    rows = list(csv.DictReader(path.open()))
    assert tuple(rows[0]) == COLUMNS and 90 < len(rows) <= 100
    assert [rows[0]["learning_rate"], float(rows[0]["loss"])] == ["1e-07", pytest.approx(5.247, abs=0.4)]
    rates = [float(row["learning_rate"]) for row in rows]
    for before, after in itertools.pairwise(rates):
        assert after / before == pytest.approx(1e8 ** (1 / 99), rel=1e-4)
    falls, rises = map(float, re.search(r"falls fastest at (\S+) and rises from (\S+) on", out).groups())
    assert 1e-5 < falls < rises < 1
    lowest = min(rows, key=lambda row: float(row["smoothed_loss"]))
    assert rises == pytest.approx(float(lowest["learning_rate"]), rel=0.06)  # two digits are printed
    before = contents(tmp_path)
    status, _, err = run(train, *small_flags, "--find-lr")
    assert status == 2 and "choose another --run-name" in err and contents(tmp_path) == before


@pytest.mark.parametrize("flag", ["--find-lr", "--dry-run"])
def test_a_folder_that_cannot_be_written_to_is_named_before_the_training(run, small_flags, monkeypatch, tmp_path, flag):
    monkeypatch.setattr(train, "train_epoch", lambda *_: pytest.fail("it was trained"))
    (tmp_path / "file").write_text("not a folder")
    for out in ("file", "file/below"):
        status, _, err = run(train, *small_flags, flag, "--out", out)
        assert status == 2 and "file is not a folder" in err and err.count("\n") == 1
    monkeypatch.setattr("os.access", lambda path, mode: False)  # to root every folder is writable
    status, _, err = run(train, *small_flags, flag)
    assert status == 2 and ". cannot be written to" in err and err.count("\n") == 1
    assert [*tmp_path.iterdir()] == [tmp_path / "file"]


def test_the_suggestions_are_where_a_known_loss_falls_and_rises():
    decades = torch.linspace(-7, 1, 801, dtype=torch.float64)
    losses = 5 - 3 * torch.sigmoid((decades + 3) * 4) + 100 * torch.relu(decades + 1) ** 2  # steepest at -3
    falls, rises = suggestions(losses, decades)
    assert math.log10(falls) == pytest.approx(-3, abs=0.02) and math.log10(rises) == pytest.approx(-1, abs=0.05)
    with pytest.raises(UserError, match="falls at no learning rate"):
        suggestions(torch.full_like(decades, 5.0), decades)


def test_a_long_sweep_is_smoothed_in_parts_as_it_is_at_once():
    decades = torch.linspace(-7, 1, 2500, dtype=torch.float64)
    losses = torch.rand(2500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    losses[0] = 1.0  # above half of all others, so that none is cut
    weights = torch.exp(-0.5 * ((decades.unsqueeze(1) - decades) / sweep.SMOOTHING) ** 2)
    torch.testing.assert_close(sweep.smooth(losses, decades), weights @ losses / weights.sum(dim=1))


def test_a_loss_that_is_not_finite_from_the_start_is_named(run, small_flags, monkeypatch, tmp_path):
    monkeypatch.setattr(train, "train_epoch", lambda *_: torch.full((300, 4), math.nan))
    status, _, err = run(train, *small_flags, "--find-lr")
    assert status == 2 and "not finite in the first step" in err and err.count("\n") == 1
    assert not contents(tmp_path)


def test_the_sweep_spans_its_range_whatever_the_peak():
    rates = [learning_rate_at(step, 9, 0.5, "sweep") for step in range(9)]
    assert rates == pytest.approx([10.0**n for n in range(-7, 2)])


@pytest.mark.parametrize("flags", ["--dry-run --find-lr", "--dry-run --resume last.pt", "--find-lr --resume last.pt"])
def test_dry_run_and_find_lr_are_for_a_new_run(run, small_dir, trained, tmp_path, flags):
    (tmp_path / "last.pt").write_bytes((trained / "last.pt").read_bytes())
    before = contents(tmp_path)
    status, out, err = run(train, *flags.split(), "--data-dir", small_dir)
    assert status == 2 and "exclude each other" in err and not out and contents(tmp_path) == before


def test_a_sweep_is_written_though_another_start_removed_its_empty_folder(run, small_flags, tmp_path, monkeypatch):
    train_epoch = train.train_epoch

    def without_logs(*arguments):
        if (tmp_path / "logs").exists():
            (tmp_path / "logs").rmdir()
        return train_epoch(*arguments)

    monkeypatch.setattr(train, "train_epoch", without_logs)
    monkeypatch.setattr(sweep, "STEPS", 10)
    status, _, err = run(train, *small_flags, "--find-lr")
    assert "No such file" not in err and (tmp_path / "logs" / "run-find-lr.csv").exists(), (status, err)
