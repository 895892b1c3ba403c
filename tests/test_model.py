"""The network: its sizes, its shapes, and that both inputs and both heads matter."""

import math

import pytest
import torch

from data import Batches
from model import SIZES, build_size

LIMITS = {"tiny": 10_000, "base": 120_000, "large": 2_000_000, "fast": 120_000}


@pytest.fixture(params=SIZES)
def model(request):
    return build_size(request.param)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_keep_their_promise(name):
    assert sum(parameter.numel() for parameter in build_size(name).parameters()) <= LIMITS[name]


def test_many_addends_equal_one_at_a_time(model):
    model.eval()
    image, addend = torch.randn(6, 1, 28, 28), torch.randint(0, 10, (6, 4))
    digit_logits, sum_logits = model(image, addend)
    assert digit_logits.shape == (6, 4, 10) and sum_logits.shape == (6, 4, 19)
    for k in range(4):
        one_digit, one_sum = model(image, addend[:, k])
        assert one_digit.shape == (6, 10) and one_sum.shape == (6, 19)
        torch.testing.assert_close(digit_logits[:, k], one_digit)
        torch.testing.assert_close(sum_logits[:, k], one_sum)


def test_the_encoder_runs_once_an_image(model):
    seen = []
    model.encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    model(torch.randn(6, 1, 28, 28), torch.randint(0, 10, (6, 10)))
    assert seen == [6]


def test_outputs_are_logits_not_probabilities(model):
    for logits in model(torch.randn(8, 1, 28, 28), torch.randint(0, 10, (8,))):
        assert logits.min() < 0 and not torch.allclose(logits.sum(-1), torch.ones(8))


def test_initial_loss_is_that_of_guessing(small):
    torch.manual_seed(0)
    model = build_size("base")
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


def test_one_batch_can_be_learnt_by_heart(small, model):
    image, addend, digit, sum_target = next(Batches(*small, 32, addends_per_image=1).epoch(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        digit_logits, sum_logits = model(image, addend)
        loss = model.digit_loss(digit_logits, digit) + model.sum_loss(sum_logits, sum_target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert (digit_logits.argmax(-1) == digit).all() and (sum_logits.argmax(-1) == sum_target).all()
