"""Checkpoints: whole or refused, data and never code."""

import pytest
import torch

from checkpoint import VERSION, CheckpointError, load_checkpoint, save_checkpoint, write_atomically

STATE = {"args": {"model": "tiny"}, "dataset": "mnist", "epoch": 3, "normalisation": [0.1, 0.3]}


@pytest.fixture
def path(tmp_path):
    save_checkpoint(tmp_path / "a.pt", STATE | {"weights": {"layer": torch.arange(6.0)}})
    return tmp_path / "a.pt"


def test_what_goes_in_comes_out(path):
    state = load_checkpoint(path)
    assert state["args"] == {"model": "tiny"} and torch.equal(state["weights"]["layer"], torch.arange(6.0))
    assert state["version"] == VERSION


def test_plain_torch_can_open_it(path):
    assert torch.load(path, weights_only=True)["epoch"] == 3


def test_a_write_leaves_nothing_beside_the_file(path):
    write_atomically(path.parent / "b.txt", "text")
    assert sorted(file.name for file in path.parent.iterdir()) == ["a.pt", "b.txt"]


def test_a_checkpoint_without_weights_is_incomplete(tmp_path):
    save_checkpoint(tmp_path / "b.pt", STATE)
    with pytest.raises(CheckpointError, match="lacks weights"):
        load_checkpoint(tmp_path / "b.pt")
