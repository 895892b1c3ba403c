"""Training on the answers of other networks."""

import pytest
import torch

import train
from conftest import contents, same
from data import Batches
from evaluate import load_model
from model import build_model
from studies import distill
from studies.measure import Run


@pytest.fixture(scope="module")
def teacher(trained):
    return trained / "logs" / "run-best.pt"


@pytest.fixture(scope="module")
def teachers():
    torch.manual_seed(0)
    return [build_model("tiny").eval(), build_model("base").eval()]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_targets_are_the_probabilities_of_the_teachers_in_turn(small, teachers, precision, monkeypatch):
    monkeypatch.setattr(distill, "choose_precision", lambda name, device: precision if name == "auto" else name)
    images, digits = small[0][:6], small[1][:6]
    plain = Batches(images, digits, 3, addends_per_image=3)
    taught = distill.taught_batches(teachers)(images, digits, 3, addends_per_image=3)
    for epoch in (0, 1):
        for step, (shown, made) in enumerate(zip(plain.epoch(epoch), taught.epoch(epoch), strict=True)):
            (image, addend, *_), (_, _, target, sums) = shown, made
            teacher = (epoch + step) % 2
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                wanted = teachers[teacher](image, addend[:, 0])[0].float().softmax(-1)
            torch.testing.assert_close(target, wanted)
            for row in range(3):
                for k in range(3):
                    low = int(addend[row, k])
                    torch.testing.assert_close(sums[row, k, low : low + 10], wanted[row])
                    assert sums[row, k].sum().item() == pytest.approx(1)


def test_the_statistics_of_batch_norm_are_those_of_the_averaged_weights(small):
    """The first batch norm sees the first convolution's output, pooled, on the batches of the epoch."""
    run = Run("tiny", (small[0][:256], small[1][:256]), torch.device("cpu"), epochs=1)
    parts = run.args, run.model, run.network, run.optimizer, run.averaged, run.batches
    distill.train_epoch(*parts, 0)
    first, encoder = next(m for m in run.scored.modules() if isinstance(m, torch.nn.BatchNorm2d)), run.scored.encoder
    before = encoder[: list(encoder).index(first)]
    with torch.no_grad():
        means = [before(image).mean((0, 2, 3)) for image, *_ in run.batches.epoch(0)]
    torch.testing.assert_close(first.running_mean, torch.stack(means).mean(0), rtol=1e-3, atol=1e-4)


def test_without_averaging_the_statistics_are_those_of_the_training(small):
    run = Run("tiny", (small[0][:256], small[1][:256]), torch.device("cpu"), epochs=1, averaging_eta=0.0)
    distill.train_epoch(run.args, run.model, run.network, run.optimizer, run.averaged, run.batches, 0)
    other = Run("tiny", (small[0][:256], small[1][:256]), torch.device("cpu"), epochs=1, averaging_eta=0.0)
    other.train()
    assert same(run.scored.state_dict(), other.scored.state_dict())


def test_sure_teachers_give_the_usual_loss(small, teachers):
    """Probabilities of 0 and 1 are labels, in the losses and in the accuracies."""
    digit, addend = torch.tensor([3, 7]), torch.tensor([[1, 9], [0, 5]])
    whole = digit.unsqueeze(1) + addend
    sure = torch.eye(10)[digit]
    model, sums = teachers[0], distill.shifted(sure, addend)
    digit_logits, sum_logits = torch.randn(2, 2, 10), torch.randn(2, 2, 19)
    torch.testing.assert_close(model.digit_loss(digit_logits, sure), model.digit_loss(digit_logits, digit))
    torch.testing.assert_close(model.sum_loss(sum_logits, sums), model.sum_loss(sum_logits, whole))
    of_probabilities = model.accuracies(digit_logits, sum_logits, sure, sums)
    assert torch.equal(of_probabilities, model.accuracies(digit_logits, sum_logits, digit, whole))


def test_a_teacher_changes_the_weights_and_no_checkpoint_goes_on_without_it(
    run, teacher, small_flags, tmp_path, monkeypatch
):
    monkeypatch.setattr(distill, "STATISTICS_BATCHES", 1)
    flags = [*small_flags, "--epochs", "1", "--label-smoothing", "0"]
    assert run(train, *flags, "--run-name", "plain")[0] == 0
    (tmp_path / "last.pt").unlink()
    (tmp_path / "logs" / "plain-last.pt").unlink()
    status, _, err = run(distill, "--teachers", teacher, "--", *small_flags, "--epochs", "1", "--run-name", "taught")
    assert status == 0, err
    (plain, _), (taught, state) = (load_model(tmp_path / "logs" / f"{name}-best.pt") for name in ("plain", "taught"))
    assert not same(plain.state_dict(), taught.state_dict()) and state["args"]["label_smoothing"] == 0
    seen = [
        {m.num_batches_tracked.item() for m in net.modules() if hasattr(m, "num_batches_tracked")}
        for net in (plain, taught)
    ]
    assert seen[0] != {1} and seen[1] == {1}  # batches of the statistics: of the training, of the estimate after it
    assert "python -m studies.distill --teachers" in (tmp_path / "logs" / "taught.txt").read_text()
    assert not list(tmp_path.rglob("*last.pt"))  # train.py would continue it without its teachers


@pytest.mark.parametrize("line", ["--resume", "--dry-run", "--sum-encoding binary", "--model two-branch-lenet"])
def test_what_cannot_be_taught_is_refused(run, teacher, small_flags, line, tmp_path):
    flags = line.split()
    if line == "--resume":
        untaught = tmp_path / "run"
        assert run(train, *small_flags, "--epochs", 1, "--label-smoothing", 0, "--out", untaught)[0] == 0
        flags.append(untaught / "last.pt")
    before = contents(tmp_path)
    status, _, err = run(distill, "--teachers", teacher, "--", *flags)
    said = "brings its own targets" if "lenet" in line else "do not work here"
    assert status == 2 and err.count("\n") == 1 and said in err and contents(tmp_path) == before
