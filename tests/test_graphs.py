"""The faster ways to take a step, as far as they run without a GPU: a stand-in plays the recording."""

import argparse

import pytest
import torch

import data
import graphs
import train
from checkpoint import load_checkpoint


@pytest.fixture
def played(monkeypatch):
    """CUDA graphs played on the CPU; returns the list of what happened, "aside", "record" and "replay"."""
    happened = []

    def aside(step, batch):
        happened.append("aside")
        return step(batch, 1)

    def record(step, batch):
        happened.append("record")
        result = torch.empty(2)

        def replay():
            happened.append("replay")
            result.copy_(step(batch, 1))  # reads the tensors it was recorded with, as a graph does

        return replay, result

    monkeypatch.setattr(graphs, "aside", aside)
    monkeypatch.setattr(graphs, "record", record)
    monkeypatch.setattr(train, "recorded", lambda args, device: args.cuda_graph)
    return happened


def test_a_recorded_step_trains_the_same_network(run, small_flags, trained, played):
    """600 images in batches of 64 leave a smaller one, which cannot be replayed."""
    status, _, err = run(train, *small_flags, "--cuda-graph")
    assert status == 0 and not err
    assert played == ["aside"] * 3 + ["record"] + ["replay"] * 15  # 9 whole batches an epoch
    recorded, plain = load_checkpoint("last.pt"), load_checkpoint(trained / "last.pt")
    for ours, other in zip(recorded["history"], plain["history"], strict=True):
        assert ours["sum_loss"] == pytest.approx(other["sum_loss"], rel=1e-3)
        assert ours["learning_rate"] == pytest.approx(other["learning_rate"], rel=1e-5, abs=1e-9)
    for name, value in plain["raw_weights"].items():
        torch.testing.assert_close(recorded["raw_weights"][name], value, atol=1e-2, rtol=1e-2)


def test_a_recorded_run_can_go_on_recorded_and_without(run, small_flags, played, monkeypatch, tmp_path):
    assert run(train, *small_flags, "--cuda-graph")[0] == 0
    whole = load_checkpoint("last.pt")["raw_weights"]
    save = train.save_last

    def stop(folder, name, state):
        save(folder, name, state)
        if state["epoch"] == 1:
            raise KeyboardInterrupt

    for able in (True, False):
        out = tmp_path / f"part{able}"
        with monkeypatch.context() as patch:
            patch.setattr(train, "save_last", stop)
            assert run(train, *small_flags, "--cuda-graph", "--out", out)[0] == 130
        monkeypatch.setattr(train, "recorded", lambda args, device, able=able: args.cuda_graph and able)
        status, _, err = run(train, "--resume", out / "last.pt", "--out", out)
        assert status == 0 and ("going on without" in err) != able
        for name, value in load_checkpoint(out / "last.pt")["raw_weights"].items():
            torch.testing.assert_close(value, whole[name], atol=1e-3, rtol=1e-3)


def test_a_recording_finds_the_rate_where_it_was(monkeypatch):
    """A graph reads the tensor that it was recorded with: neither a new rate nor a loaded state may replace it."""
    monkeypatch.setattr(train, "recorded", lambda args, device: True)
    args, _ = train.parse_arguments(["--model", "tiny", "--cuda-graph"])
    _, optimizer, _ = train.build(args, torch.device("cpu"))
    (group,) = optimizer.param_groups
    rate = group["lr"]
    train.set_learning_rate(optimizer, 0.25)
    assert group["lr"] is rate and rate.item() == 0.25
    monkeypatch.setattr(train, "recorded", lambda args, device: False)
    _, plain, _ = train.build(args, torch.device("cpu"))
    train.load_optimizer(optimizer, plain.state_dict())
    (group,) = optimizer.param_groups
    assert group["lr"] is rate and group["capturable"] and not plain.param_groups[0]["capturable"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_a_recorded_step_trains_as_the_plain_one(run, small_flags):
    flags = ["cuda" if flag == "cpu" else flag for flag in small_flags]
    for name, more in (("plain", []), ("recorded", ["--cuda-graph"])):
        status, _, err = run(train, *flags, *more, "--out", name)
        assert status == 0 and not err
    plain, recorded = (load_checkpoint(f"{name}/last.pt")["history"] for name in ("plain", "recorded"))
    for ours, other in zip(recorded, plain, strict=True):
        assert ours["sum_loss"] == pytest.approx(other["sum_loss"], rel=1e-2)


def test_where_the_recording_fails_the_run_goes_on_with_a_word(run, small_flags, played, monkeypatch):
    def fail(step, batch):
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    monkeypatch.setattr(graphs, "record", fail)
    status, out, err = run(train, *small_flags, "--cuda-graph")
    assert status == 0 and "joint accuracy" in out
    assert err == "WARNING: --cuda-graph: the step cannot be recorded, going on without: " + (
        "operation not permitted when stream is capturing\n"
    )


def test_flags_that_are_not_to_be_had_are_named_on_stderr_and_in_the_log(run, small_flags, trained, monkeypatch):
    def no_compiler(model, **_):
        def compiled(*_):
            raise RuntimeError("no working C++ compiler\nmore lines")

        return compiled

    monkeypatch.setattr(torch, "compile", no_compiler)
    status, out, err = run(train, *small_flags, "--cuda-graph", "--compile")
    assert status == 0 and err.count("going on without") == err.count("\n") == 2
    assert "no working C++ compiler" in out and out.count("\nnote  ") == 2
    ours, plain = load_checkpoint("last.pt")["raw_weights"], load_checkpoint(trained / "last.pt")["raw_weights"]
    assert all(torch.equal(ours[name], value) for name, value in plain.items())


def test_compiling_is_tried_before_the_run_and_leaves_no_trace(small, monkeypatch):
    """The trial moves batch norm's statistics and leaves gradients, which must not stay; small batches go plainly."""
    calls = []

    def compile_(model, **_):
        def compiled(image, addend):
            calls.append(len(image))
            return model(image, addend)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_)
    args = argparse.Namespace(**vars(train.parse_arguments(["--model", "tiny"])[0]))
    model, _, _ = train.build(args, torch.device("cpu"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch, *_ = data.Batches(*small, 64, addends_per_image=3).epoch(0)
    network, note = graphs.compile_network(model, batch, "float32")
    assert note is None and calls == [64]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    network(batch[0], batch[1])
    network(batch[0][:7], batch[1][:7])
    assert calls == [64, 64]


@pytest.mark.long
def test_a_compiled_network_trains_the_same(run, small_flags, trained):
    """Skips where there is no compiler; takes a minute where there is one."""
    status, _, err = run(train, *small_flags, "--compile")
    if "going on without" in err:
        pytest.skip(err)
    assert status == 0
    compiled, plain = load_checkpoint("last.pt"), load_checkpoint(trained / "last.pt")
    for ours, other in zip(compiled["history"], plain["history"], strict=True):
        assert ours["sum_loss"] == pytest.approx(other["sum_loss"], rel=1e-2)  # rounding, grown by 20 steps
