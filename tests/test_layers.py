"""The table of a network: every parameter once, costs that can be counted by hand, connections that are there."""

import itertools
import re

import pytest
import torch

import model as model_module
from model import SIZES, build_model
from studies.published import DESIGNS
from support.layers import connections, layers_of

INPUTS = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize("name", [*SIZES, *DESIGNS])
def test_the_layers_have_every_parameter_once(name):
    net = build_model(name).train()
    layers = layers_of(net, *INPUTS)
    assert sum(layer.parameters for layer in layers) == sum(parameter.numel() for parameter in net.parameters())
    assert net.training and not any(module._forward_hooks for module in net.modules())


def test_shapes_and_costs_are_those_counted_by_hand():
    layers = {layer.name: layer for layer in layers_of(build_model("tiny"), *INPUTS)}
    assert layers["encoder.0"][1:] == ("conv 3×3", (8, 28, 28), 9 * 8, 9 * 8 * 28 * 28)
    assert layers["encoder.18"][1:] == ("conv 3×3, 16 groups", (16, 1, 1), 16 * 9, 16 * 9)
    assert layers["fusion.0"][1:] == ("linear", (26,), (16 + 10) * 26 + 26, (16 + 10) * 26)
    assert layers["fusion.1"].multiply_adds == layers["encoder.2"].multiply_adds == 0


def test_the_connections_are_those_of_the_network():
    plain = set(itertools.pairwise(["image", "encoder", "fusion", "digit_head", "digit"]))
    learned = set(itertools.pairwise(["addend", "addend_encoding", "fusion", "sum_head", "sum"]))
    assert set(connections(build_model("tiny"), *INPUTS)) == plain | learned
    shifted = build_model("tiny", sum_encoding="shift")
    assert set(connections(shifted, *INPUTS)) == plain | {("digit_head", "sum"), ("addend", "sum")}
    # where the addend comes in without a layer of its own
    assert ("addend", "trunk") in connections(build_model("narrow-trunk"), *INPUTS)


def test_the_command_prints_the_table_of_the_model_asked_for(run):
    status, out, _ = run(model_module)
    assert status == 0 and out.startswith("base: ") and re.search(r"^total +110,733 +3,775,616$", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 110 and "0.445 MB" in out
    assert re.search(r"^total +9,941 ", run(model_module, "--model", "tiny")[1], re.MULTILINE)
    status, out, err = run(model_module, "--model", "huge")
    assert status == 2 and not out and err.count("\n") == 1 and "choose from tiny" in err
