"""The run: what it writes, that it can be stopped and continued to the same bits, that the same seed gives the same."""

import csv
import re

import pytest
import torch

import evaluate
import train
from checkpoint import load_checkpoint
from data import Batches


def weights_of(path):
    return load_checkpoint(path)["weights"]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_leaves_its_files_and_says_how_to_score(run, small_flags, small_dir, tmp_path):
    status, out, _ = run(train, *small_flags)
    assert status == 0
    kept = ["logs/run-best.pt", "logs/run-last.pt", "logs/run.csv", "logs/run.txt", "best.pt", "last.pt"]
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)
    assert (tmp_path / "logs" / "run.txt").read_text() == out  # the log is what was on the screen
    command = out.splitlines()[-1].removeprefix("score it again: python evaluate.py ").split()
    assert command == ["--ckpt", "best.pt", "--data-dir", str(small_dir)]
    joint = re.search(r"synthetic test: joint accuracy .*", out).group()
    assert joint in run(evaluate, *command)[1]


def test_the_log_is_plain_aligned_and_repeatable(trained):
    text = (trained / "logs" / "run.txt").read_text()
    assert "\r" not in text and "\x1b" not in text
    for word in ("command", "commit", "versions", "device", "data set", "arguments", "seed=0", "synthetic", "9,941"):
        assert word in text
    lines = text.splitlines()
    table = lines[lines.index(train.HEADINGS) :][:3]
    assert len({len(line) for line in table}) == 1
    rows = list(csv.DictReader((trained / "logs" / "run.csv").open()))
    assert [row["split"] for row in rows] == ["validation", "validation", "test"]
    assert f"{100 * float(rows[0]['joint_accuracy']):.3f}" in table[1]


def test_best_is_the_epoch_with_the_best_validation(trained):
    best, last = load_checkpoint(trained / "best.pt"), load_checkpoint(trained / "last.pt")
    joints = [row["joint_accuracy"] for row in last["history"]]
    assert best["epoch"] == 1 + joints.index(max(joints)) and last["epoch"] == 2
    assert same(best["weights"], last["best"]["weights"])


def test_same_seed_same_weights_other_seed_others(run, small_flags, trained):
    assert run(train, *small_flags)[0] == 0
    assert same(weights_of("last.pt"), weights_of(trained / "last.pt"))
    assert run(train, *small_flags, "--seed", 1, "--run-name", "other")[0] == 0
    assert not same(weights_of("last.pt"), weights_of(trained / "last.pt"))


def test_without_validation_the_last_epoch_is_kept(run, small_flags):
    status, out, _ = run(train, *small_flags, "--val-size", 0)
    assert status == 0 and "the weights of epoch 2 score" in out
    assert same(weights_of("best.pt"), weights_of("last.pt"))


def test_auto_uses_synthetic_digits_with_a_warning(run, small_flags, monkeypatch):
    monkeypatch.setattr("data.MIRRORS", ("http://127.0.0.1:9/",))
    flags = ["auto" if flag == "synthetic" else flag for flag in small_flags]
    status, out, err = run(train, *flags)
    assert status == 0 and "WARNING" in err and "scores are not MNIST's" in err
    assert "synthetic test: joint" in out and load_checkpoint("best.pt")["dataset"] == "synthetic"
    flags = ["mnist" if flag == "synthetic" else flag for flag in [*small_flags, "--run-name", "other"]]
    status, _, err = run(train, *flags)
    assert status == 2 and "could not be downloaded" in err


def test_bfloat16_is_for_the_forward_pass_of_training_alone(run, small_flags, trained):
    assert run(train, *small_flags, "--precision", "bfloat16")[0] == 0
    state = load_checkpoint("last.pt")
    assert all(value.dtype != torch.bfloat16 for value in state["raw_weights"].values())
    exact = load_checkpoint(trained / "last.pt")
    for ours, other in zip(state["history"], exact["history"], strict=True):
        assert ours["sum_loss"] != other["sum_loss"] and ours["sum_loss"] == pytest.approx(other["sum_loss"], rel=0.02)


def test_one_cycle_rises_to_the_peak_and_falls_to_nothing():
    rates = [train.learning_rate_at(step, 1000, 0.5) for step in range(1000)]
    assert rates.index(max(rates)) == 200 and max(rates) == 0.5
    assert rates[0] == pytest.approx(0.02) and rates[-1] < 1e-5


def test_moving_average_follows_its_formula():
    model = torch.nn.Linear(1, 1, bias=False)
    averaged = train.MovingAverage(model, 0.5)
    values = []
    for updates, value in enumerate((1.0, 2.0, 4.0, 8.0)):
        torch.nn.init.constant_(model.weight, value)
        averaged.update(updates)
        values.append(averaged.module.weight.item())
    # the first is a copy; then the decays are 2/11, 3/12, 4/13
    expected = [1.0]
    for value, decay in ((2.0, 2 / 11), (4.0, 3 / 12), (8.0, 4 / 13)):
        expected.append(decay * expected[-1] + (1 - decay) * value)
    assert values == pytest.approx(expected)


def test_training_never_waits_for_the_device_within_an_epoch(run, small_flags, monkeypatch):
    """No step reads a value back: reading inside the loop would raise here."""
    batches = Batches.epoch

    def epoch(self, number):
        for batch in batches(self, number):
            with monkeypatch.context() as patch:
                for name in ("item", "tolist", "cpu", "to", "numpy", "__int__", "__float__", "__bool__"):
                    patch.setattr(torch.Tensor, name, lambda *_: pytest.fail("the step read a value back"))
                yield batch

    monkeypatch.setattr(Batches, "epoch", epoch)
    assert run(train, *small_flags, "--epochs", 1)[0] == 0


def test_a_batch_of_one_image_is_refused_before_training(run, small_flags):
    """Batch norm has no statistics of one value; 600 = 599 + 1 would only find out at the epoch's end."""
    for size in (1, 599):
        status, _, err = run(train, *small_flags, "--batch-size", size)
        assert status == 2 and err.count("\n") == 1 and "one image" in err and "batch norm" in err
    # a network without batch norm can take it
    assert run(train, *small_flags, "--epochs", 1, "--model", "two-branch-lenet", "--batch-size", 599)[0] == 0


def test_mnist_is_learnt_from_the_command_line(run, mnist_dir):
    """One epoch of the base network on a tenth of the real thing, scored on all 100,000 test pairs."""
    flags = f"--epochs 1 --val-size 54000 --batch-size 32 --seed 1 --data-dir {mnist_dir} --run-name m"
    status, out, _ = run(train, *flags.split(), "--dataset", "mnist")
    assert status == 0 and "of 100,000 wrong" in out
    assert float(re.search(r"joint accuracy +([\d.]+)", out).group(1)) > 70


def test_data_that_do_not_fit_train_the_same_and_the_log_says_so(run, small_flags, trained, monkeypatch):
    monkeypatch.setattr("data.fits", lambda size, device: False)
    status, out, _ = run(train, *small_flags)
    assert status == 0 and re.search("^note .*host's memory", out, re.MULTILINE)
    assert same(weights_of("last.pt"), weights_of(trained / "last.pt"))
