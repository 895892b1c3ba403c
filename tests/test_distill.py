"""Training on the answers of other networks."""

import pytest
import torch

from conftest import same
from data import Batches
from evaluate import load_model
from model import build_model
from studies import distill


@pytest.fixture(scope="module")
def teacher(trained):
    return trained / "logs" / "run-best.pt"


@pytest.fixture(scope="module")
def teachers():
    torch.manual_seed(0)
    return [build_model("tiny").eval(), build_model("base").eval()]


def test_the_targets_are_the_probabilities_of_the_teachers_in_turn(small, teachers):
    images, digits = small[0][:6], small[1][:6]
    plain = Batches(images, digits, 3, addends_per_image=3)
    taught = distill.taught_batches(teachers, 2.0, 0.25, False)(images, digits, 3, addends_per_image=3)
    asked = set()
    for epoch in (0, 1):
        for step, (shown, made) in enumerate(zip(plain.epoch(epoch), taught.epoch(epoch), strict=True)):
            (image, addend, digit, _), (_, _, target, sums) = shown, made
            asked.add((teacher := (epoch + step) % 2, step))
            with torch.no_grad():
                answer = (teachers[teacher](image, addend[:, 0])[0] / 2).softmax(-1)
            wanted = 0.25 * torch.eye(10)[digit] + 0.75 * answer
            torch.testing.assert_close(target, wanted)
            for row in range(3):
                for k in range(3):
                    low = int(addend[row, k])
                    torch.testing.assert_close(sums[row, k, low : low + 10], wanted[row])
                    assert sums[row, k].sum().item() == pytest.approx(1)
    assert len(asked) == 4  # both teachers, in both steps of an epoch


def test_labels_alone_are_the_usual_loss(small, teachers):
    images, digits = small[0][:6], small[1][:6]
    taught = distill.taught_batches(teachers, 1.0, 1.0, False)(images, digits, 6, addends_per_image=3)
    image, addend, target, sums = next(taught.epoch(0))
    model = teachers[0]
    digit_logits, sum_logits = model(image, addend)
    digit = target.argmax(-1)
    whole = digit.unsqueeze(1) + addend
    torch.testing.assert_close(model.digit_loss(digit_logits, target), model.digit_loss(digit_logits, digit))
    torch.testing.assert_close(model.sum_loss(sum_logits, sums), model.sum_loss(sum_logits, whole))
    of_probabilities = model.accuracies(digit_logits, sum_logits, target, sums)
    assert torch.equal(of_probabilities, model.accuracies(digit_logits, sum_logits, digit, whole))


def test_teachers_temperature_and_labels_change_the_weights(run, teacher, small_flags, tmp_path):
    weights = []
    for number, words in enumerate(([], ["--temperature", "3"], ["--label-share", "0.5"])):
        place = ["--epochs", "1", "--run-name", f"d{number}"]
        status, _, err = run(distill, "--teachers", teacher, *words, "--", *small_flags, *place)
        assert status == 0, err
        model, state = load_model(tmp_path / "logs" / f"d{number}-best.pt")
        assert state["args"]["label_smoothing"] == 0
        weights.append(model.state_dict())
    assert not any(same(weights[a], weights[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert "python -m studies.distill --teachers" in (tmp_path / "logs" / "d0.txt").read_text()
    assert not list(tmp_path.rglob("*last.pt"))  # train.py would continue it without its teachers


@pytest.mark.parametrize("flags", [["--resume", "last.pt"], ["--dry-run"], ["--sum-encoding", "binary"]])
def test_what_cannot_be_taught_is_refused(run, teacher, flags, tmp_path):
    status, _, err = run(distill, "--teachers", teacher, "--", *flags)
    assert status == 2 and err.count("\n") == 1 and not list(tmp_path.iterdir())
