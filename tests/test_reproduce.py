"""The tables: they come from the logs, and a stopped reproduction loses nothing."""

import os
import signal
import subprocess
import sys
import time

import pytest

import train
from conftest import ROOT
from model import build_model
from studies import replay, reproduce
from studies.plan import FAULTLESS, REPLAY, finished, plan
from studies.published import DESIGNS
from studies.tables import PAGES, tables
from support.cli import UserError

COMMAND = "train.py --model tiny --dataset synthetic --epochs {} --val-size 100 --batch-size 64 --seed {}"


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
    for page in PAGES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text((ROOT / page).read_text())
    (tmp_path / "logs" / "records").symlink_to(ROOT / "logs" / "records")
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    assert run(reproduce, "--check")[0] == 0
    for page in PAGES:
        text = (ROOT / page).read_text()
        (tmp_path / page).write_text(text.replace("AMD EPYC, ", "AMD EPYC, 9").replace("| 99.", "| 98."))
        status, _, err = run(reproduce, "--check")
        assert status == 1 and page in err and "differ from the logs" in err
        assert (tmp_path / page).read_text() != text  # it changed nothing
        (tmp_path / page).write_text("no tables here")
        status, _, err = run(reproduce, "--check")
        assert status == 2 and f"{page} lacks the markers" in err
        (tmp_path / page).write_text(text)


def test_the_plan_covers_every_design_and_its_mend():
    runs = plan()
    for name in DESIGNS:
        assert all(f"{name}-published-s{seed}" in runs for seed in range(3))
        assert name in FAULTLESS or f"{name}-mended-s2" in runs
    assert {"base-s4", "tiny-s4"} <= set(runs)
    for name, command in runs.items():
        if command.startswith(REPLAY):
            replay.build(replay.parse_arguments(command.removeprefix(REPLAY).split())[1])
        else:
            args, _ = train.parse_arguments([*command.removeprefix("train.py").split(), "--run-name", name])
            build_model(args.model, args.addend_encoding, args.sum_encoding)


def test_a_replayed_design_is_run_and_known_again(tmp_path, mnist_dir):
    command = f"{REPLAY} narrow-trunk --epochs 1 --images 500"
    reproduce.run_all({"n": command}, tmp_path, 1, ["--device", "cpu", "--data-dir", str(mnist_dir)])
    assert finished(tmp_path, "n", command) and str(tmp_path) not in (tmp_path / "n.txt").read_text()
    assert not finished(tmp_path, "n", f"{command} --seed 1")
    text = (tmp_path / "n.csv").read_text()
    for damaged in (text[:200], text.replace("all_pairs_joint_accuracy,", "all_pairs_joint_accuracy,x"), ""):
        (tmp_path / "n.csv").write_text(damaged)
        assert not finished(tmp_path, "n", command)


def test_finished_runs_are_skipped_and_others_made(tmp_path, extra, capfd):
    runs = {"a": COMMAND.format(1, 0), "b": COMMAND.format(1, 1)}
    reproduce.run_all({"a": runs["a"]}, tmp_path, 1, extra)
    stamp = (tmp_path / "a.csv").stat().st_mtime_ns
    reproduce.run_all(runs, tmp_path, 1, extra)
    assert "1 of 2 runs are there, 1 to do" in capfd.readouterr().out
    assert (tmp_path / "a.csv").stat().st_mtime_ns == stamp
    assert sorted(path.name for path in tmp_path.iterdir()) == [".work", "a.csv", "a.txt", "b.csv", "b.txt"]
    assert not list((tmp_path / ".work").iterdir())
    assert str(tmp_path) not in (tmp_path / "a.txt").read_text()
    assert not finished(tmp_path, "a", COMMAND.format(2, 0))  # another command is another run


def test_runs_that_share_the_machine_say_so(tmp_path, extra):
    runs = {f"base-s{seed}": COMMAND.format(1, seed) for seed in (0, 1)}
    reproduce.run_all(runs, tmp_path, 2, extra)
    for name, command in runs.items():
        assert "\nnote        2 runs shared the machine" in (tmp_path / f"{name}.txt").read_text()
        assert finished(tmp_path, name, command)
    (line,) = [line for line in tables(tmp_path, runs)["results"].splitlines() if "`base`" in line]
    assert line.endswith(" (shared) |")


def test_a_run_that_fails_is_named(tmp_path, extra):
    with pytest.raises(UserError, match=r"the run bad failed: .*val-size"):
        reproduce.run_all({"bad": COMMAND.format(1, 0).replace("100", "5000")}, tmp_path, 1, extra)


def test_stopped_half_way_it_leaves_no_half_written_log_and_goes_on(tmp_path, extra):
    """Interrupted while a run is under way, after its first epoch; then called again."""
    command = COMMAND.format(400, 0)
    program = f"""
import pathlib, sys
from studies import reproduce
from support import cli
run = lambda argv: reproduce.run_all({{"a": {command!r}}}, pathlib.Path({str(tmp_path)!r}), 1, {extra!r})
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
    work = reproduce.start_run("a", command, tmp_path, extra, dict(os.environ))
    output = tmp_path / ".work" / "a" / "output.txt"
    wait_for(lambda: "continuing after epoch" in output.read_text(), work)
    work.terminate()
    work.wait(60)
    assert "continuing after epoch" in output.read_text()
