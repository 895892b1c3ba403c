"""The sections of the benchmark that start processes: what those processes measure, and the rows made of it."""

import dataclasses
import itertools
import json
import re
import subprocess
import time
import types

import pytest
import torch

import data
from studies import commands, measure, subprocesses
from studies.speed_tables import COMMANDS
from support import cli

CHILD = {"imports": 2.0, "first step": 3.0, "peak": 300.0, "anonymous": 200.0, "peak on CUDA": 0.0}


@pytest.fixture
def setting(small, small_dir):
    """What `--quick` measures the sections on."""
    kept = data.split_indices(700, 58)[0]
    training = small[0][kept], small[1][kept]
    return measure.Setting(torch.device("cpu"), 1, True, "synthetic", str(small_dir), training, training)


@pytest.fixture
def in_this_process(monkeypatch, capsys):
    """Run the programs of the measured processes in this one: in each of its own, imports alone take seconds."""

    def printed_by(program):
        try:
            exec(program, {})
        except SystemExit as stop:
            assert not stop.code
        return json.loads(capsys.readouterr().out)

    for owner, name in itertools.chain(*commands.PHASES.values()):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # to be restored
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.setattr(cli, "begin_script", lambda make_parser: None)  # it stops the collection of garbage
    monkeypatch.setattr(subprocesses, "printed_by", printed_by)


def test_a_measured_process_reports_its_own_times_and_peak_of_memory(setting, monkeypatch):
    """On Linux the ru_maxrss of a child starts at the peak of its parent. No torchvision or Pillow, as in train.py."""
    ballast = torch.ones(150 * 2**20)  # 600 MiB
    plain = subprocesses.printed_by
    check = "from studies import commands; import sys; assert not sys.modules.keys() & {'PIL', 'torchvision'}"
    monkeypatch.setattr(subprocesses, "printed_by", lambda program: plain(f"{program}; {check}"))
    start = time.perf_counter()
    measured = subprocesses.in_a_process(setting)
    assert 0 < measured["imports"] < time.perf_counter() - start and measured["peak on CUDA"] == 0
    assert subprocesses.peak_memory() > ballast.nbytes / 2**20 + 100
    assert 50 < measured["peak"] < subprocesses.peak_memory() - 400
    assert measured["anonymous"] < measured["peak"]


@pytest.mark.skipif(not subprocesses.status("RssAnon"), reason="this system does not tell the anonymous memory")
def test_mapped_images_that_were_read_count_in_the_resident_memory_but_not_in_the_anonymous(tmp_path):
    """In a process of its own: a process that has freed memory fills it again without growing."""
    images = torch.ones(2**26 // 784, 1, 28, 28, dtype=torch.uint8)  # 64 MiB
    program = f"""
import json
from studies import commands, measure, subprocesses

def memory():
    return [subprocesses.status(field) for field in ("VmRSS", "RssAnon")]

start = memory()
mapped = measure.map_images({measure.write_images(images, 1, tmp_path)!r})
assert mapped.min() == 1  # reads every page
read = memory()
copied = mapped.clone()
print(json.dumps([start, read, memory()]))
"""
    start, read, copied = subprocesses.printed_by(program)
    resident, anonymous = range(2)
    assert read[resident] > start[resident] + 48
    assert read[anonymous] < start[anonymous] + 16
    assert copied[anonymous] > read[anonymous] + 48


def test_memory_is_compared_with_that_of_the_imports(setting, monkeypatch):
    asked = []

    def in_a_process(setting, **options):
        asked.append(options)
        return CHILD | {"peak": 300.0 * len(asked), "anonymous": 0.0 if "folder" in options else 100.0 * len(asked)}

    monkeypatch.setattr(subprocesses, "in_a_process", in_a_process)
    rows = {row["what"]: row for row in subprocesses.memory(dataclasses.replace(setting, quick=False))}
    assert asked[:9] == asked[9:] and asked[0] == {}  # two rounds
    peak = rows["peak in 20 steps, 4 x the images"]  # the fourth of nine
    assert (peak["ours"], peak["rival"]) == (300 * (4 + 13) / 2, 300 * (1 + 10) / 2)
    assert rows["anonymous in 20 steps, 16 x the images on disk"]["ours"] == 0
    monkeypatch.setattr(subprocesses, "in_a_process", lambda *_, **__: CHILD | {"anonymous": 0.0})  # not Linux
    assert [row["what"] for row in subprocesses.memory(setting)] == ["peak in an epoch"]


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.skipif(not subprocesses.resource, reason="Windows counts no page faults")
@pytest.mark.parametrize("recipe", [subprocesses.PUBLIC, "fast"])
def test_the_faults_of_a_training_are_counted_with_memory_kept_or_not(setting, monkeypatch, recipe):
    kept = []
    monkeypatch.setattr(subprocesses, "keep_memory", lambda: kept.append(True) or True)
    usage = itertools.count(1000, 5)
    monkeypatch.setattr(subprocesses.resource, "getrusage", lambda who: types.SimpleNamespace(ru_minflt=next(usage)))
    for keep in (False, True):
        taken = subprocesses.trained_in_a_process(setting, recipe, keep)
        assert taken["faults"] == 5 and 0 < taken["s"] < 60 and len(kept) == keep


def test_the_allocator_is_compared_process_by_process_and_only_where_it_is_glibcs(setting, monkeypatch):
    public = subprocesses.PUBLIC
    seconds = {(public, True): [1.0, 1.0], (public, False): [2.0, 1.0], ("fast", True): [3.0, 3.0]}
    seconds["fast", False] = [3.0, 3.0]
    asked = []

    def trained_in_a_process(setting, *job):
        asked.append(job)
        return {"s": seconds[job][asked.count(job) - 1], "faults": 100 if job[1] else 400}

    monkeypatch.setattr(subprocesses, "trained_in_a_process", trained_in_a_process)
    monkeypatch.setattr(subprocesses, "keep_memory", lambda: True)
    rows = list(subprocesses.allocator(dataclasses.replace(setting, repeats=2)))
    assert asked == [*seconds] * 2  # in turn
    assert [row["unit"] for row in rows] == ["s", "s", "faults", "faults"] * 2
    assert [row["ratio"] for row in rows] == [1 / 1.5, None, 0.25, None, 1, None, 0.25, None]
    assert rows[0]["spread"] == [0.5, 1.0] and rows[1]["spread"] == [1.0, 2.0]
    monkeypatch.setattr(subprocesses, "keep_memory", lambda: False)
    assert not list(subprocesses.allocator(setting))


def test_a_measured_process_that_fails_is_one_line():
    with pytest.raises(cli.UserError, match="the measured process failed"):
        subprocesses.printed_by("import sys; sys.exit(3)")


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("on_disk", [False, True])
def test_a_measured_process_takes_the_steps_asked_for(setting, monkeypatch, tmp_path, on_disk):
    taken = []

    class Noted(measure.Run):
        def train(self, after_step):
            taken.append((self.args.model, self.args.addends_per_image, len(self.batches)))
            super().train(lambda done: taken.append(done) or after_step(done))

    monkeypatch.setattr(subprocesses, "Run", Noted)
    folder = {"folder": str(tmp_path)} if on_disk else {}
    measured = subprocesses.in_a_process(setting, "tiny", times=2, steps=3, addends_per_image=1, **folder)
    assert taken == [("tiny", 1, 11), 1, 2, 3]  # 1,284 images in batches of 128
    assert 0 < measured["imports"] < measured["first step"]
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [1284 * 784] * on_disk


def test_the_start_is_compared_with_the_imports_of_the_scripts_and_of_torch(setting, monkeypatch):
    monkeypatch.setattr(subprocesses, "in_a_process", lambda *_, **__: CHILD)
    imported = r"import json, time, (\w+); print\(.*time\.perf_counter\(\).*\)"
    seconds = {"torch": 1.0, "torchvision": 4.0}
    monkeypatch.setattr(
        subprocesses, "from_a_process", lambda program: {"imports": seconds[re.fullmatch(imported, program)[1]]}
    )
    rows = list(subprocesses.start(setting))
    assert [(row["ours"], row["rival"]) for row in rows] == [(3.0, 2.0), (3.0, 1.0), (2.0, 1.0), (2.0, 4.0)]


@pytest.mark.usefixtures("in_this_process")
def test_the_phases_of_a_training_are_most_of_its_process(setting, tmp_path):
    words = ["--model", "fast", "--dataset", "synthetic", "--data-dir", setting.data_dir, "--device", "cpu"]
    phases = commands.training_phases([*words, "--out", str(tmp_path), "--run-name", "run"])
    assert all(seconds > 0 for seconds in phases.values()) and phases["the rest"] < sum(phases.values()) / 3
    assert (tmp_path / "best.pt").exists()


def test_a_command_is_timed_to_its_end_and_the_least_of_the_rounds_counts(setting, monkeypatch):
    assert 0 < commands.command_seconds("train.py", "--help") < 60
    with pytest.raises(cli.UserError, match=r"train\.py failed: .*--epoch"):
        commands.command_seconds("train.py", "--epoch")
    asked, seconds = [], itertools.count(1)
    monkeypatch.setattr(commands, "command_seconds", lambda *words: asked.append(words) or float(next(seconds)))
    monkeypatch.setattr(commands, "training_phases", lambda words: {"training": float(next(seconds))})
    rows = list(commands.commands(dataclasses.replace(setting, repeats=3)))
    assert [row["ours"] for row in rows] == [1, 2, 3, 4, 5] and rows[0]["spread"] == [1, 11]
    assert set(COMMANDS) < {row["what"] for row in rows}  # what speed_tables.py reads
    assert [words[0] for words in asked[:4]] == ["train.py", "train.py", "evaluate.py", "predict.py"]
    assert len({words for words in asked if "fast" in words}) == 3  # a run of its own each time


def test_several_processes_share_the_images_and_are_compared_with_one_and_without_exchange(setting, monkeypatch):
    started, seconds = [], itertools.count(1)

    def start(words, env, **_):
        started.append((" ".join(words), env["OMP_NUM_THREADS"]))
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(subprocesses.subprocess, "run", start)
    monkeypatch.setattr(subprocesses, "load_checkpoint", lambda path: {"history": [{"seconds": float(next(seconds))}]})
    monkeypatch.setattr(subprocesses.os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    rows = list(subprocesses.several(dataclasses.replace(setting, quick=False)))
    assert [(row["ours"], row["rival"]) for row in rows] == [(3, 1), (3, 2), (3, 4)]  # one, two threads, two, alone
    assert [threads for _, threads in started] == ["1", "2", "1", "1"]
    assert all("--epochs 2 --val-size 58 " in words and setting.data_dir in words for words, _ in started)
    assert ["nproc-per-node=2" in words for words, _ in started] == [False, False, True, True]
    assert ["data_parallel" in words for words, _ in started] == [False, False, False, True]
    started.clear()
    assert not list(subprocesses.several(dataclasses.replace(setting, device=torch.device("mps"))))
    assert not started  # train.py would refuse
