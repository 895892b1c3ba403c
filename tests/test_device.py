"""A device apart from the CPU, with fake tensors: where a tensor is left on the CPU, PyTorch refuses to mix the two."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

import data
import evaluate
import train
from model import SIZES, AddendEncoding, build_model
from studies.published import DESIGNS
from support.device import choose_device

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
ENCODINGS = [("onehot", "binary"), ("scalar", "scalar"), ("binary", "scalar-rmse"), ("embedding", "shift")]
RUNS = [(name, "onehot", "onehot") for name in (*SIZES, *DESIGNS)] + [("tiny", *pair) for pair in ENCODINGS]


@pytest.fixture
def fake_device(monkeypatch):
    """A device apart from the CPU: its tensors have shapes and no values, and operations refuse to mix the two."""

    def build_real_model(*arguments):
        with unset_fake_temporarily():
            return build_model(*arguments)

    monkeypatch.setattr(train, "build_model", build_real_model)  # `to` moves it; a fake one cannot be moved
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no such device
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield torch.device("meta")


def train_and_score(name, addend_encoding, sum_encoding, small, device, resident=True):
    """An epoch with everything in it: draws, warps, both batch sizes, schedule, optimiser, average, scores."""
    flags = f"--model {name} --addend-encoding {addend_encoding} --sum-encoding {sum_encoding} --run-name run"
    args, _ = train.parse_arguments([*flags.split(), "--epochs", "1", "--averaging-eta", "8", "--augment", "1"])
    images, digits = small[0][:40], small[1][:40]
    model, optimizer, averaged = train.build(args, device, fused=False)
    batches = model.Batches(
        images, digits, 32, 0, args.addends_per_image, args.augment, device=device, resident=resident
    )
    losses = train.train_epoch(args, model, model, optimizer, averaged, batches, 0)
    assert losses.device == device and losses.shape == (2, 4)
    assert all(value.device == device for value in averaged.module.state_dict().values())
    predictions = evaluate.predict_pairs([averaged.module, model], images, device=device)
    assert [(part.device.type, part.shape) for part in predictions] == [("cpu", (40, 10))] * 2


@pytest.mark.parametrize(("name", "addend_encoding", "sum_encoding"), RUNS)
def test_training_and_scoring_keep_to_the_device(small, fake_device, name, addend_encoding, sum_encoding):
    train_and_score(name, addend_encoding, sum_encoding, small, fake_device)


def test_batches_from_host_memory_arrive_on_the_device(small, fake_device):
    train_and_score("tiny", "onehot", "onehot", small, fake_device, resident=False)


def on_the_cpu(function):
    """A mistake: the function's tensor is left on the CPU."""

    def call(*arguments, **options):
        result = function(*arguments, **options)
        return torch.zeros(result.shape, dtype=result.dtype)

    return call


@pytest.mark.parametrize(
    ("where", "name"),
    [(AddendEncoding, "forward"), (torch.Tensor, "expand"), (data, "prepare"), (evaluate, "prepare")],
)
def test_a_tensor_left_on_the_cpu_is_noticed(small, fake_device, monkeypatch, where, name):
    monkeypatch.setattr(where, name, on_the_cpu(getattr(where, name)))
    with pytest.raises(RuntimeError, match=r"device"):
        train_and_score("tiny", "onehot", "onehot", small, fake_device)


def test_float32_on_cuda_is_not_rounded_to_tf32():
    choose_device("cpu")
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.conv.fp32_precision != "tf32"
