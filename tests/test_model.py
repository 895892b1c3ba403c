"""The network: its sizes, its shapes, and that both inputs and both heads matter."""

import functools
import math
import re

import numpy as np
import pytest
import torch

import evaluate
import train
from data import Batches
from model import SIZES, build_model, staged_encoder
from studies.published import DESIGNS

LIMITS = {"tiny": 10_000, "base": 120_000, "large": 1_500_000, "fast": 120_000}  # parameters; other sizes have none


@pytest.fixture(params=SIZES)
def model(request):
    return build_model(request.param)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_keep_their_promise(name):
    parameters, limit = sum(parameter.numel() for parameter in build_model(name).parameters()), LIMITS.get(name)
    assert limit is None or parameters <= limit, f"{name} has {parameters:,d} parameters; its limit here is {limit:,d}"


@pytest.mark.parametrize("name", [*SIZES, *DESIGNS, *(f"{name}+mended" for name in DESIGNS)])
def test_many_addends_equal_one_at_a_time(name):
    model = build_model(name).eval()
    image, addend = torch.randn(6, 1, 28, 28), torch.randint(0, 10, (6, 4))
    digit_logits, sum_logits = model(image, addend)
    assert digit_logits.shape == (6, 4, 10) and sum_logits.shape[:2] == (6, 4)
    for k in range(4):
        one_digit, one_sum = model(image, addend[:, k])
        torch.testing.assert_close(digit_logits[:, k], one_digit)
        torch.testing.assert_close(sum_logits[:, k], one_sum)


@pytest.mark.parametrize(
    ("image", "addend", "error", "wanted"),
    [
        (torch.zeros(1, 1, 28, 28), 5, TypeError, "torch.tensor([5])"),
        (np.zeros((1, 1, 28, 28)), torch.tensor([5]), TypeError, "must be tensors"),
        (torch.zeros(28, 28), torch.tensor([5]), ValueError, "not torch.float32 [28, 28]"),
        (torch.zeros(2, 28, 28, 1), torch.tensor([5, 5]), ValueError, "[B, 1, 28, 28] as data.prepare makes it"),
        (torch.zeros(1, 1, 28, 28, dtype=torch.uint8), torch.tensor([5]), ValueError, "not torch.uint8 [1, 1, 28, 28]"),
        (torch.zeros(2, 1, 28, 28), torch.tensor(5), ValueError, "[B] or [B, K]"),
        (torch.zeros(2, 1, 28, 28), torch.tensor([5]), ValueError, "B = 2, not torch.int64 [1]"),
        (torch.zeros(2, 1, 28, 28), torch.tensor([5.0, 5.0]), ValueError, "must be int64"),
    ],
)
def test_wrong_inputs_are_answered_with_the_wanted_shapes(model, image, addend, error, wanted):
    with pytest.raises(error, match=re.escape(wanted)):
        model(image, addend)


def test_an_added_size_trains_and_scores_and_its_removal_is_explained(run, small_flags, small_dir, monkeypatch):
    size = dict(encoder=functools.partial(staged_encoder, stages=((4,), (8,), (8,))), features=8, hidden=16)
    flags = ["--ckpt", "logs/run-best.pt", "--data-dir", small_dir]
    with monkeypatch.context() as patch:
        patch.setitem(SIZES, "mine", size)
        assert run(train, *small_flags, "--model", "mine", "--epochs", 1)[0] == 0
        assert run(evaluate, *flags)[0] == 0
    status, _, err = run(evaluate, *flags)
    assert status == 2 and "model.py, which has changed since then: unknown model 'mine'" in err
    monkeypatch.setitem(SIZES, "mine", size | dict(hidden=17))
    status, _, err = run(evaluate, *flags)
    assert status == 2 and "differ in fusion.0.weight, torch.float32 [16, 18] there" in err


def test_the_encoder_runs_once_an_image(model):
    seen = []
    model.encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    model(torch.randn(6, 1, 28, 28), torch.randint(0, 10, (6, 10)))
    assert seen == [6]


def test_outputs_are_logits_not_probabilities(model):
    for logits in model(torch.randn(8, 1, 28, 28), torch.randint(0, 10, (8,))):
        assert logits.min() < 0 and not torch.allclose(logits.sum(-1), torch.ones(8))


def test_initial_loss_is_that_of_guessing(small):
    model = build_model("base")
    image, addend, digit, sum_target = next(Batches(*small, 256, addends_per_image=10).epoch(0))
    digit_logits, sum_logits = model(image, addend)
    loss = model.digit_loss(digit_logits, digit) + model.sum_loss(sum_logits, sum_target)
    assert loss.item() == pytest.approx(math.log(10) + math.log(19), abs=0.1)


def test_the_addend_moves_the_sum(model):
    model.eval()
    image = torch.randn(1, 1, 28, 28)
    _, sum_logits = model(image, torch.arange(10).unsqueeze(0))
    assert (sum_logits[0, 1:] - sum_logits[0, :1]).abs().amax(dim=1).min() > 1e-3


@pytest.mark.parametrize("head", ["digit", "sum"])
def test_each_head_alone_trains_the_encoder(model, head):
    digit_logits, sum_logits = model(torch.randn(8, 1, 28, 28), torch.randint(0, 10, (8,)))
    digit, sum_target = torch.randint(0, 10, (8,)), torch.randint(0, 19, (8,))
    (model.digit_loss(digit_logits, digit) if head == "digit" else model.sum_loss(sum_logits, sum_target)).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.encoder.parameters())


def test_digit_loss_with_many_addends_repeats_the_digit(model):
    logits, digit = torch.randn(5, 3, 10), torch.randint(0, 10, (5,))
    each = torch.stack([model.digit_loss(logits[:, k], digit) for k in range(3)])
    torch.testing.assert_close(model.digit_loss(logits, digit), each.mean())


def test_one_batch_can_be_overfitted(small, model):
    image, addend, digit, sum_target = next(Batches(*small, 32, addends_per_image=1).epoch(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        digit_logits, sum_logits = model(image, addend)
        loss = model.digit_loss(digit_logits, digit) + model.sum_loss(sum_logits, sum_target)
        if loss.item() < 0.1:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert (digit_logits.argmax(-1) == digit).all() and (sum_logits.argmax(-1) == sum_target).all()
