"""Several processes: together they do what one does, on the loopback interface."""

import csv
import re
import subprocess
import sys

import pytest
import torch

import train
from conftest import FILES_OF_A_RUN, ROOT, contents, same
from data import Batches
from support import processes
from support.checkpoint import load_checkpoint

WORLD = 2


def launch(folder, *argv):
    """Run train.py in two gloo processes; (exit status, output of both streams)."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD}"]
    done = subprocess.run(
        [*command, str(ROOT / "train.py"), *map(str, argv)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout


def rows(folder):
    with open(folder / "logs" / "run.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_variables_of_torchrun_that_are_left_over_are_ignored_or_refused_in_one_line(run, few_flags, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    for value in ("", "0", "x"):
        monkeypatch.setenv("WORLD_SIZE", value)
        assert run(train, *few_flags, "--epochs", 1, "--run-name", f"run{value}")[0] == 0
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, out, err = run(train, *few_flags, "--epochs", 1, "--run-name", "other")
    assert status == 2 and not out and err.count("\n") == 1 and "WORLD_SIZE asks for 2 processes, but" in err


def test_the_launcher_in_the_log_has_the_machines_and_the_processes_of_each(monkeypatch):
    assert processes.launcher() == "python"
    for name, value in {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    assert processes.launcher() == "torchrun --nproc-per-node 8"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert processes.launcher() == "torchrun --nnodes 2 --nproc-per-node 4"


def test_several_processes_need_a_device_that_they_can_share(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConnectionError, match="cannot train on mps; choose"):
        with processes.process_group(torch.device("mps")):
            pytest.fail("the group was joined")


@pytest.mark.parametrize("world", [2, 3])
def test_each_process_takes_its_part_of_each_batch(small, world):
    whole = list(Batches(*small, 64, addends_per_image=2).epoch(1))
    parts = [Batches(*small, 64, addends_per_image=2, rank=rank, world_size=world) for rank in range(world)]
    for step, batches in enumerate(zip(*(part.epoch(1) for part in parts), strict=True)):
        for rank, part in enumerate(batches):
            for mine, all_of_it in zip(part, whole[step], strict=True):
                assert torch.equal(mine, all_of_it[rank::world])
        # the weighted mean of the parts' means is the mean of the whole
        weights = [part.weight(step) for part in parts]
        mean = sum(w * part[3].float().mean() for w, part in zip(weights, batches, strict=True)) / world
        assert mean.item() == pytest.approx(whole[step][3].float().mean().item(), rel=1e-5)


def test_a_tail_smaller_than_the_processes_counts_each_image_once(small):
    images, digits = small[0][:65], small[1][:65]
    parts = [Batches(images, digits, 64, rank=rank, world_size=3) for rank in range(3)]
    assert [part.weight(1) for part in parts] == [3, 0, 0]
    assert all(len(list(part.epoch(0))[1][2]) == 1 for part in parts)  # none is without an image to go forward with


@pytest.fixture(scope="module")
def in_two(small_flags, tmp_path_factory):
    """A folder with a run of two processes, of a network without batch norm."""
    folder = tmp_path_factory.mktemp("two")
    status, output = launch(folder, *small_flags, "--model", "two-branch-lenet", "--epochs", 2)
    assert status == 0, output
    return folder, output


def test_two_processes_follow_the_loss_of_one_and_score_the_same_pairs(run, small_flags, in_two, tmp_path):
    folder, output = in_two
    status, _, _ = run(train, *small_flags, "--model", "two-branch-lenet", "--epochs", 2)
    assert status == 0
    for ours, one in zip(rows(folder), rows(tmp_path), strict=True):
        for column in ("digit_loss", "sum_loss", "train_sum_accuracy", "digit_accuracy", "sum_accuracy"):
            if one[column]:
                tolerance = 1e-5 if column.endswith("loss") else 0.01
                assert float(ours[column]) == pytest.approx(float(one[column]), abs=tolerance)
    one, two = load_checkpoint("last.pt")["raw_weights"], load_checkpoint(folder / "last.pt")["raw_weights"]
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-4, rtol=1e-3)
    assert "of 1,500 wrong" in output and "2 processes" in output
    assert "\ncommand     torchrun --nproc-per-node 2 train.py --dataset" in f"\n{output}"


def test_process_0_alone_prints_and_writes(in_two):
    folder, output = in_two
    assert len(re.findall("^synthetic test: joint accuracy", output, re.MULTILINE)) == 1
    assert list(contents(folder)) == FILES_OF_A_RUN


def test_a_mistyped_flag_is_refused_in_each_process_before_they_meet(tmp_path):
    status, output = launch(tmp_path, "--epoch", 2)
    assert status != 0 and not contents(tmp_path)
    assert output.count("train.py: error: unrecognized arguments: --epoch 2; did you mean --epochs?") in (1, WORLD)


def test_a_process_that_dies_ends_the_job_and_it_can_go_on(fork_run, small_flags, in_two, tmp_path):
    """Process 1 is killed in the second epoch, after a step that both took: process 0 has then saved the first.

    Resumed, the two end where two that were not disturbed do.
    """
    folder, flags = tmp_path / "dies", [*small_flags, "--model", "two-branch-lenet", "--epochs", "2"]
    folder.mkdir()
    answer, output = fork_run(folder, flags, processes=WORLD, dies=1), tmp_path / "dies.out"
    # which of the two ends first, and is reported, is open
    assert answer["status"] != 0 and re.search(r"\(SIGKILL\)|process 0 of 2 lost its connection", output.read_text())
    assert load_checkpoint(folder / "last.pt")["epoch"] == 1
    answer = fork_run(folder, ["--resume", "last.pt", *flags], processes=WORLD)
    assert answer["status"] == 0, output.read_text()
    whole, resumed = (load_checkpoint(folder / "last.pt")["raw_weights"] for folder in (in_two[0], folder))
    assert same(whole, resumed)
