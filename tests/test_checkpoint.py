"""Checkpoints: whole or refused, data and never code."""

import hashlib
import io
import struct
import zipfile

import pytest
import torch

from support.checkpoint import CHECKSUM, CHECKSUM_LENGTH, VERSION, CheckpointError, load_checkpoint, save_checkpoint

STATE = {"args": {"model": "tiny"}, "dataset": "mnist", "epoch": 3, "normalisation": [0.1, 0.3]}


@pytest.fixture
def path(tmp_path):
    save_checkpoint(STATE | {"weights": {"layer": torch.arange(6.0)}}, tmp_path / "a.pt")
    return tmp_path / "a.pt"


def test_what_goes_in_comes_out(path):
    state = load_checkpoint(path)
    assert state["args"] == {"model": "tiny"} and torch.equal(state["weights"]["layer"], torch.arange(6.0))
    assert state["version"] == VERSION
    assert torch.load(path, weights_only=True)["epoch"] == 3  # plain PyTorch can open it


def test_a_checkpoint_of_another_format_is_named(path):
    newer = f"format version {VERSION + 1}, not {VERSION}; it is newer"
    for version, advice in ((VERSION + 1, newer), (VERSION - 1, "older"), ("2", "damaged"), (True, "damaged")):
        save_checkpoint(STATE | {"version": version}, path)
        with pytest.raises(CheckpointError, match=advice):
            load_checkpoint(path)


def test_a_zip_bomb_is_not_unpacked(path, monkeypatch):
    """What torch.save stores uncompressed, compressed: a megabyte of zeros in a kilobyte."""
    packed = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in archive.namelist():
            bomb.writestr(name, archive.read(name) if not name.endswith("/data/0") else bytes(1_000_000))
    body = packed.getvalue()[:-2] + struct.pack("<H", CHECKSUM_LENGTH)
    path.write_bytes(body + CHECKSUM + hashlib.sha256(body).digest())
    monkeypatch.setattr(torch, "load", lambda *arguments, **options: pytest.fail("unpacked"))
    with pytest.raises(CheckpointError, match="more than its own size"):
        load_checkpoint(path)
