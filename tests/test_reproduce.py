"""The tables: they come from the logs, and a stopped reproduction loses nothing."""

import contextlib
import importlib
import json
import shlex
import signal
import subprocess
import time
from functools import partial
from types import SimpleNamespace

import pytest

import train
from conftest import ROOT
from data import Batches
from model import build_model
from studies import distill, replay, reproduce
from studies.plan import DISTILL, FAULTLESS, OURS, REPLAY, SHARED, checkpoint, finished, plan, studies
from studies.published import DESIGNS
from studies.tables import PAGES, tables
from support.cli import UserError, run_script

COMMAND = "train.py --model tiny --dataset synthetic --epochs {} --val-size 100 --batch-size 64 --seed {}"


@pytest.fixture(autouse=True)
def _one_core(monkeypatch):
    """A run gets a thread for each core; in the tests, which run side by side, it gets one."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)


@pytest.fixture
def extra(small_dir):
    return ["--device", "cpu", "--data-dir", str(small_dir)]


class InThisProcess:
    """A stand-in for subprocess.Popen: the script's main, called at once, without the seconds of its imports."""

    def __init__(self, words, stdout, env, **_):
        script, *argv = words[2:] if words[1] == "-m" else words[1:]
        module = {"train.py": train, "studies.replay": replay, "studies.distill": distill}[script]
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stdout):
            self.returncode = run_script(module.main, argv)

    def poll(self):
        return self.returncode

    terminate = wait = poll


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(Popen=InThisProcess, STDOUT=subprocess.STDOUT))
    monkeypatch.setattr(reproduce, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: None))


def test_the_tables_of_the_readme_are_those_of_the_logs(run):
    assert run(reproduce, "--check")[0] == 0


def test_check_notices_a_changed_figure(run, monkeypatch, tmp_path):
    made = tables(ROOT / "logs" / "records", plan())
    monkeypatch.setattr(reproduce, "tables", lambda *_: made)  # for each page they would be made anew
    for page in PAGES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text((ROOT / page).read_text())
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
    for command in runs.values():
        if command.startswith(REPLAY):
            replay.build(replay.parse_arguments(command.removeprefix(REPLAY).split())[1])
        else:
            flags = command.split(" -- ")[1] if command.startswith(DISTILL) else command.removeprefix("train.py")
            args, _ = train.parse_arguments(flags.split())
            build_model(args.model, args.addend_encoding, args.sum_encoding)


def test_a_replayed_design_is_run_and_known_again(tmp_path, small, extra, in_this_process, monkeypatch):
    monkeypatch.setattr(replay, "load_digits", lambda name, folder, train: (*small, name))
    command = f"{REPLAY} narrow-trunk --epochs 1 --images 500"
    reproduce.run_all({"n": command}, tmp_path, 1, extra)
    assert finished(tmp_path, "n", command) and str(tmp_path) not in (tmp_path / "n.txt").read_text()
    assert not finished(tmp_path, "n", f"{command} --seed 1")
    text = (tmp_path / "n.csv").read_text()
    for damaged in (text[:200], text.replace("all_pairs_joint_accuracy,", "all_pairs_joint_accuracy,x"), ""):
        (tmp_path / "n.csv").write_text(damaged)
        assert not finished(tmp_path, "n", command)


def test_finished_runs_are_skipped_and_others_made(tmp_path, extra, in_this_process, capsys):
    runs = {"a": COMMAND.format(1, 0), "b": COMMAND.format(1, 1)}
    reproduce.run_all({"a": runs["a"]}, tmp_path, 1, extra)
    stamp = (tmp_path / "a.csv").stat().st_mtime_ns
    reproduce.run_all(runs, tmp_path, 1, extra)
    assert "1 of 2 runs are there, 1 to do" in capsys.readouterr().out
    assert (tmp_path / "a.csv").stat().st_mtime_ns == stamp
    there = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert there == [".checkpoints/a.pt", ".checkpoints/b.pt", "a.csv", "a.txt", "b.csv", "b.txt"]
    assert not list((tmp_path / ".work").iterdir())
    assert str(tmp_path) not in (tmp_path / "a.txt").read_text()
    assert not finished(tmp_path, "a", COMMAND.format(2, 0))  # another command is another run


def test_a_run_whose_checkpoint_a_study_reads_is_made_again_without_it(tmp_path, extra, in_this_process):
    runs = {"a": COMMAND.format(1, 0)}
    reproduce.run_all(runs, tmp_path, 1, extra)
    (tmp_path / ".checkpoints" / "a.pt").unlink()
    reproduce.run_all(runs, tmp_path, 1, extra)
    assert not (tmp_path / ".checkpoints" / "a.pt").exists()
    reproduce.run_all(runs, tmp_path, 1, extra, read={"a"})
    assert (tmp_path / ".checkpoints" / "a.pt").exists()


def test_a_distilled_run_waits_for_its_teacher_and_is_known_again(tmp_path, extra, in_this_process, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = tmp_path / reproduce.RECORDS
    records.mkdir(parents=True)
    flags = COMMAND.format(1, 1).removeprefix("train.py ")
    runs = {"b": f"{DISTILL} --teachers {checkpoint('a')} -- {flags}", "a": COMMAND.format(1, 0)}
    for _ in range(2):
        reproduce.run_all(runs, records, 2, extra)
        assert (records / "a.csv").stat().st_mtime_ns < (records / "b.csv").stat().st_mtime_ns
    assert finished(records, "b", runs["b"]) and not finished(records, "b", runs["b"].replace("--seed 1", "--seed 2"))
    assert not finished(records, "b", runs["b"].replace("a.pt", "c.pt"))


def test_missing_records_of_studies_are_made_after_the_runs_and_others_kept(run, tmp_path, monkeypatch):
    words, folder = [], tmp_path / reproduce.RECORDS
    folder.mkdir(parents=True)
    records = {kind: [f"{size}-s{seed}" for seed in range(5)] for kind, size in {"": "base", "-large": "large"}.items()}
    for kind, names in (records | {"-sizes": [f"{size}-s0" for size in OURS]}).items():
        (folder / f"errors{kind}-cpu.json").write_text(json.dumps({"networks": [{"name": name} for name in names]}))
    networks = [{"checkpoint": f"base-s{seed}.pt"} for seed in range(3)]  # of fewer runs than wanted
    (folder / "robustness-cpu.json").write_text(json.dumps({"networks": networks}))
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    monkeypatch.setattr(reproduce, "run_all", lambda runs, *rest: words.append(sorted(rest[-1])))
    ended = SimpleNamespace(wait=lambda: 1, terminate=lambda: None)
    fake = SimpleNamespace(Popen=lambda line, **_: words.append(line) or ended, DEVNULL=None)
    monkeypatch.setattr(reproduce, "subprocess", fake)
    status, _, err = run(reproduce, "--only", "errors", "robustness")
    assert status == 2 and "the study behind robustness-cpu.json failed" in err
    read, line = words
    sizes, kinds = ("base", "tiny"), ("corrupted-", "")
    assert read == [f"{size}-{kind}s{seed}" for size in sizes for kind in kinds for seed in range(3)]
    assert line[1:3] == ["-m", "studies.robustness"] and str(folder / "robustness-cpu.json") in line
    assert [word for word in line if word.endswith("base-s1.pt")] == ["logs/records/.checkpoints/base-s1.pt"]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"networks": [1]}', '{"networks": [{}]}', pytest.param("[" * 100_000, id="deep")]
)
def test_a_damaged_record_counts_as_missing(tmp_path, text):
    (tmp_path / "errors.json").write_text(text)
    assert not reproduce.is_made(tmp_path / "errors.json", {"base-s0"})


def test_quick_runs_the_first_seeds_of_the_tables_that_it_prints(run, monkeypatch):
    asked = []
    monkeypatch.setattr(reproduce, "run_all", lambda runs, *_: asked.append(runs))
    status, out, _ = run(reproduce, "--quick", "--only", "results", "errors")
    assert status == 0 and out.count("| network ") == 1
    assert list(asked[0]) == ["base-s0", "tiny-s0", "large-s0", "fast-s0"]
    status, _, err = run(reproduce, "--quick", "--only", "errors")
    assert status == 2 and "choose --only from these" in err and len(asked) == 1


def test_every_command_of_a_study_is_one_that_its_script_takes():
    for file, (_, command) in studies().items():
        module, *flags = command.removeprefix("-m ").split()
        args = importlib.import_module(module).make_parser().parse_args([*flags, "--json", file, "--device", "cpu"])
        assert str(args.json) == file
        assert getattr(args, "ckpt", None) or args.dataset == "mnist"  # where MNIST is missing: no synthetic figures


def test_runs_that_share_the_machine_say_so(tmp_path, extra, in_this_process):
    runs = {f"base-s{seed}": COMMAND.format(1, seed) for seed in (0, 1)}
    reproduce.run_all(runs, tmp_path, 2, extra)
    for name, command in runs.items():
        assert "\nnote        2 runs shared the machine" in (tmp_path / f"{name}.txt").read_text()
        assert finished(tmp_path, name, command)
    (line,) = [line for line in tables(tmp_path, runs)["results"].splitlines() if "`base`" in line]
    assert line.rstrip(" |").endswith("*")


def test_a_run_continues_with_the_same_command_only_and_stays_marked_as_shared(
    tmp_path, extra, in_this_process, monkeypatch
):
    epoch = Batches.epoch

    def second_is_interrupted(batches, number):
        if number == 1:
            raise KeyboardInterrupt
        return epoch(batches, number)

    cases = [(COMMAND.format(2, 0), None), (COMMAND.format(2, 1), None), (COMMAND.format(2, 0), "[1")]
    for number, (command, damaged) in enumerate(cases):
        with monkeypatch.context() as patched:
            patched.setattr(Batches, "epoch", second_is_interrupted)
            with pytest.raises(UserError, match="interrupted"):
                reproduce.run_all({"a": COMMAND.format(2, 0)}, tmp_path, 2, extra)
        if damaged:
            (tmp_path / ".work" / "a" / reproduce.BEGUN).write_text(damaged)
        reproduce.run_all({"a": command}, tmp_path, 1, extra)
        log = (tmp_path / "a.txt").read_text()
        assert finished(tmp_path, "a", command) and (SHARED.format(2) in log) == ("continued" in log) == (number == 0)
        (tmp_path / "a.txt").unlink()


def test_a_run_that_was_killed_is_named_with_the_signal(tmp_path):
    work = tmp_path / ".work" / "a"
    work.mkdir(parents=True)
    (work / "output.txt").write_text("    1 0.020755 0.9414 2.2215\n")
    with pytest.raises(UserError, match=r"the run a failed: killed by signal 9"):
        reproduce.keep("a", SimpleNamespace(returncode=-9), tmp_path)


def test_a_run_continues_only_with_the_arguments_that_it_began_with(tmp_path, run, small_flags, monkeypatch):
    """On the device of this call too: the precision depends on it."""
    words = ["train.py", *(word for word in small_flags if word not in ("--run-name", "run")), "--precision", "auto"]
    assert run(train, *words[1:], "--run-name", "a")[0] == 0
    can_continue = partial(reproduce.can_continue, tmp_path / "last.pt", "a")
    assert can_continue(words) and not can_continue([*words, "--seed", "1"])
    (tmp_path / "last.pt").write_bytes(b"damaged")
    assert not can_continue(words)
    command, extra = shlex.join(words[:-4]), ["--device", "cpu"]
    monkeypatch.setattr(reproduce, "can_continue", lambda last, name, words: asked.append(words))
    monkeypatch.setattr(reproduce.subprocess, "Popen", lambda *_, **options: None)
    asked, work = [], tmp_path / ".work" / "a"
    work.mkdir(parents=True)
    (work / reproduce.BEGUN).write_text(json.dumps([command, 1]))
    reproduce.start_run("a", command, tmp_path, 1, extra, {})
    assert asked == [[*words[:-4], *extra]]


def test_a_run_that_fails_is_named(tmp_path, extra, in_this_process):
    with pytest.raises(UserError, match=r"the run bad failed: .*val-size"):
        reproduce.run_all({"bad": COMMAND.format(1, 0).replace("100", "5000")}, tmp_path, 1, extra)


def test_stopped_half_way_it_leaves_no_half_written_log_and_goes_on(tmp_path, extra, monkeypatch, request):
    """Ctrl-C while a run is under way, after its first epoch, which goes to its process too; then called again."""
    command, work, started = COMMAND.format(10_000, 0), tmp_path / ".work" / "a", []
    last, start = work / "logs" / "a-last.pt", reproduce.start_run
    monkeypatch.setattr(reproduce, "start_run", lambda *arguments: started.append(start(*arguments)) or started[0])

    def sleep(seconds):
        time.sleep(seconds)
        if last.exists():
            started[0].send_signal(signal.SIGINT)
            raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    call = {"runs": {"a": command}, "folder": tmp_path, "jobs": 1, "extra": extra}
    assert run_script(lambda argv: reproduce.run_all(**call)) == 130
    assert started[0].returncode is not None and last.exists() and not list(tmp_path.glob("a.*"))

    def interrupt(*arguments):
        raise KeyboardInterrupt

    request.getfixturevalue("in_this_process")
    monkeypatch.setattr(Batches, "epoch", interrupt)
    with pytest.raises(UserError, match=r"the run a failed: .*interrupted"):
        reproduce.run_all(**call)
    assert "continuing after epoch" in (work / "output.txt").read_text()
    other = call | {"runs": {"a": command.replace("10000", "9999")}}
    begun = work / reproduce.BEGUN
    begun.write_text(begun.read_text().replace("10000", "9999"))  # as after a change of the recipe behind the command
    with pytest.raises(UserError, match=r"the run a failed: .*interrupted; no epoch was done yet"):
        reproduce.run_all(**other)
    assert not last.exists()
