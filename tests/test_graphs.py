"""The accelerated network, as far as it runs without a GPU: a stand-in replaces the capture."""

import copy

import pytest
import torch

import data
import train
from conftest import same
from model import build_model
from support import graphs
from support.checkpoint import load_checkpoint


@pytest.fixture
def captured(monkeypatch):
    """CUDA graphs played on the CPU; returns the list of the batch sizes of the replays."""
    replays = []

    def make_graphed_callables(module, sample_args):
        assert isinstance(module, torch.nn.Module) and module.training  # else the parameters would get no gradients
        shapes, forward = [tensor.shape for tensor in sample_args], module.forward

        def replay(*arguments):
            assert [tensor.shape for tensor in arguments] == shapes
            replays.append(len(arguments[0]))
            return forward(*arguments)

        module.forward = replay  # as PyTorch does
        return module

    def captured(model, image, addend):
        return make_graphed_callables(copy.copy(model), (image, addend))

    monkeypatch.setattr(graphs, "captured", captured)
    return replays


def test_a_captured_network_trains_the_same(run, small_flags, trained, captured):
    """600 images in batches of 64 leave a smaller one, which is not replayed."""
    status, _, err = run(train, *small_flags, "--cuda-graph")
    assert status == 0 and not err
    assert captured == [64] * (1 + 18)  # the trial, and 9 whole batches in each of two epochs
    assert same(load_checkpoint("last.pt")["raw_weights"], load_checkpoint(trained / "last.pt")["raw_weights"])


def test_a_captured_run_continues_without(run, small_flags, captured, stop_after, trained):
    stop_after(1)
    status, _, err = run(train, *small_flags, "--cuda-graph")
    assert status == 130 and "--cuda-graph" in err
    stop_after(None)
    assert run(train, "--resume", "last.pt", *small_flags)[0] == 0
    assert len(captured) == 1 + 9
    assert same(load_checkpoint("last.pt")["raw_weights"], load_checkpoint(trained / "last.pt")["raw_weights"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_on_cuda_a_captured_network_trains_as_the_plain_one(run, small_flags, precision):
    flags = ["cuda" if flag == "cpu" else flag for flag in small_flags]
    for name, more in (("plain", []), ("captured", ["--cuda-graph"])):
        status, _, err = run(train, *flags, "--precision", precision, *more, "--out", name)
        assert status == 0 and not err
    plain, captured = (load_checkpoint(f"{name}/last.pt")["history"] for name in ("plain", "captured"))
    for ours, other in zip(captured, plain, strict=True):
        assert ours["sum_loss"] == pytest.approx(other["sum_loss"], rel=1e-2)


@pytest.mark.parametrize(
    ("flag", "problem"), [("--cuda-graph", "it needs --device cuda"), ("--compile", "no working C++ compiler")]
)
def test_unavailable_options_are_named_on_stderr_and_in_the_log(run, small_flags, trained, monkeypatch, flag, problem):
    def fail(*_, **__):
        raise RuntimeError("no working\tC++ compiler\nmore lines")

    monkeypatch.setattr(torch, "compile", fail)
    status, out, err = run(train, *small_flags, flag)
    assert status == 0 and err == f"WARNING: {flag} is unavailable, continuing without: {problem}\n"
    assert f"\nnote        {flag} is unavailable" in out
    assert run(train, "--resume", "last.pt", *small_flags)[0] == 0  # the note is in the header, which is checked
    assert same(load_checkpoint("last.pt")["raw_weights"], load_checkpoint(trained / "last.pt")["raw_weights"])


def test_both_options_at_once_use_the_first(run, small_flags, captured, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    status, _, err = run(train, *small_flags, "--cuda-graph", "--compile")
    assert status == 0 and "does not combine with --compile" in err and not captured


def test_compiling_is_tried_before_the_run_and_leaves_no_trace(small, monkeypatch):
    """The trial changes batch norm's statistics and leaves gradients; a smaller batch is not compiled again."""
    calls = []

    def compile_(model, **_):
        def compiled(image, addend):
            calls.append(len(image))
            return model(image, addend)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_)
    model = build_model("tiny")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch, *_ = data.Batches(*small, 64, addends_per_image=3).epoch(0)
    network, problem = graphs.accelerate("--compile", model, batch, "float32")
    assert problem is None and calls == [64]
    assert same(model.state_dict(), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    network(batch[0], batch[1])
    network(batch[0][:7], batch[1][:7])
    assert calls == [64, 64]


@pytest.mark.long
def test_a_compiled_network_trains_the_same(run, small_flags, trained):
    """Skips where there is no compiler; takes a minute where there is one."""
    torch._dynamo.utils.counters.clear()
    status, _, err = run(train, *small_flags, "--compile")
    if "continuing without" in err:
        pytest.skip(err)
    assert status == 0 and torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # not once more for the loop
    compiled, plain = load_checkpoint("last.pt"), load_checkpoint(trained / "last.pt")
    for ours, other in zip(compiled["history"], plain["history"], strict=True):
        assert ours["sum_loss"] == pytest.approx(other["sum_loss"], rel=1e-2)  # rounding, grown by 20 steps
