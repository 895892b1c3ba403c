"""The README's tables: they come from the logs, and a stopped reproduction loses nothing."""

import os
import signal
import subprocess
import sys
import time

import pytest

import reproduce
import train
from cli import UserError
from conftest import ROOT
from published import DESIGNS

FLAGS = "--model tiny --dataset synthetic --epochs {} --val-size 100 --batch-size 64 --seed {}"


def wait_for(condition, process):
    """Return once the condition holds, or the process has ended without it."""
    while not condition() and process.poll() is None:
        time.sleep(0.02)


@pytest.fixture
def extra(small_dir):
    return ["--device", "cpu", "--data-dir", str(small_dir)]


def test_the_tables_of_the_readme_are_those_of_the_logs(run):
    assert run(reproduce, "--check")[0] == 0


def test_check_notices_a_changed_figure(run, monkeypatch, tmp_path):
    text = (ROOT / "README.md").read_text()
    (tmp_path / "README.md").write_text(text.replace("| `base` |", "| `base` | 9"))
    (tmp_path / "logs").symlink_to(ROOT / "logs")
    monkeypatch.setattr(reproduce, "HERE", tmp_path)
    status, _, err = run(reproduce, "--check")
    assert status == 1 and "differs from the logs" in err
    assert (tmp_path / "README.md").read_text() != text  # and it did not mend it
    (tmp_path / "README.md").write_text("no tables here")
    status, _, err = run(reproduce, "--check")
    assert status == 2 and "lacks the markers" in err


def test_the_plan_covers_every_design_and_its_mend():
    runs = reproduce.plan()
    for name in DESIGNS:
        assert all(f"{name}-published-s{seed}" in runs for seed in range(3))
        assert name in reproduce.SAME_WHEN_MENDED or f"{name}-mended-s2" in runs
    assert {"base-s4", "tiny-s4"} <= set(runs)
    for name, flags in runs.items():
        assert train.parse_arguments(f"{flags} --run-name {name}".split())[1] is None


def test_finished_runs_are_skipped_and_others_made(tmp_path, extra, capfd):
    runs = {"a": FLAGS.format(1, 0), "b": FLAGS.format(1, 1)}
    reproduce.run_all({"a": runs["a"]}, tmp_path, 1, extra)
    stamp = (tmp_path / "a.csv").stat().st_mtime_ns
    reproduce.run_all(runs, tmp_path, 1, extra)
    assert "1 of 2 runs are there, 1 to do" in capfd.readouterr().out
    assert (tmp_path / "a.csv").stat().st_mtime_ns == stamp
    assert sorted(path.name for path in tmp_path.iterdir()) == [".work", "a.csv", "a.txt", "b.csv", "b.txt"]
    assert not list((tmp_path / ".work").iterdir())
    assert str(tmp_path) not in (tmp_path / "a.txt").read_text()
    assert not reproduce.finished(tmp_path, "a", FLAGS.format(2, 0))  # other flags are another run


def test_a_run_that_fails_is_named(tmp_path, extra):
    with pytest.raises(UserError, match=r"the run bad failed: .*val-size"):
        reproduce.run_all({"bad": FLAGS.format(1, 0).replace("100", "5000")}, tmp_path, 1, extra)


def test_stopped_half_way_it_leaves_no_half_written_log_and_goes_on(tmp_path, extra):
    """Interrupted while a run is under way, after its first epoch; then called again."""
    flags = FLAGS.format(400, 0)
    program = f"""
import pathlib, sys, cli, reproduce
run = lambda argv: reproduce.run_all({{"a": {flags!r}}}, pathlib.Path({str(tmp_path)!r}), 1, {extra!r})
sys.exit(cli.run_script(run))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True
    )
    last = tmp_path / ".work" / "a" / "logs" / "a-last.pt"
    wait_for(last.exists, process)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
    assert process.wait(60) == 130 and last.exists()
    assert not list(tmp_path.glob("a.*"))
    work = reproduce.start_run("a", flags, tmp_path, extra, dict(os.environ))
    output = tmp_path / ".work" / "a" / "output.txt"
    wait_for(lambda: "going on after epoch" in output.read_text(), work)
    work.terminate()
    work.wait(60)
    assert "going on after epoch" in output.read_text()
