"""Forged checkpoints: changed on purpose, with a right checksum. Whatever they hold, a run ends in order."""

import collections
import copy
import os
import random
from pathlib import Path

import pytest
import torch

import train
from conftest import contents
from support.checkpoint import load_checkpoint, save_checkpoint

MUTATIONS = int(os.environ.get("MUTATIONS", 300))  # of the long test
MEMORY = 2048  # MiB beyond the imports; a run of the small data set needs less than 300


@pytest.fixture
def forge(trained, tmp_path):
    """forge(change): a last.pt in the current folder whose state `change` has altered, with a right checksum."""

    def call(change, name="last.pt"):
        state = load_checkpoint(trained / name)
        change(state)
        save_checkpoint(state, tmp_path / name)
        return name

    return call


def first_state(state):
    """The optimiser's state of its first parameter, of a convolution: Muon's."""
    return state["optimizer"][0]


def second_state(state):
    """The optimiser's state of its second parameter, of a batch norm: AdamW's."""
    return state["optimizer"][1]


def spoil_best(state, bias):
    """Change the best weights alone; in the file they may be the same tensors as the last ones."""
    state["best"]["weights"] = state["best"]["weights"] | {"digit_head.bias": bias}


# What once ended the process or left a traceback, and what a person might try.
FORGERIES = {
    "optimizer": [
        lambda state: second_state(state).update(exp_avg=torch.zeros(3)),  # fused AdamW wrote beyond it: SIGSEGV
        lambda state: second_state(state).update(exp_avg_sq=torch.zeros(16)[:4]),
        lambda state: first_state(state).update(momentum=torch.zeros(3)),
        lambda state: first_state(state).update(momentum=torch.zeros(1).expand(8, 1, 3, 3).clone()[:, :, :2]),
        lambda state: first_state(state).update(momentum=torch.zeros(8, 1, 3, 3, dtype=torch.float64)),
        lambda state: first_state(state).update(momentum=torch.full((8, 1, 3, 3), torch.nan)),
        lambda state: first_state(state).update(momentum=torch.zeros(8, 1, 3, 3).to_sparse()),
        lambda state: second_state(state).update(step=torch.zeros(5)),
        lambda state: second_state(state).update(step=3.0),
        lambda state: second_state(state).pop("exp_avg"),
        lambda state: first_state(state).update(extra=torch.zeros(1)),
        lambda state: state["optimizer"].pop(0),
        lambda state: state["optimizer"].update({999: {}}),
        lambda state: state.update(optimizer=[]),
        lambda state: state.update(optimizer={"other": "tool"}),
        lambda state: state.pop("optimizer"),
    ],
    "history": [
        lambda state: state["history"].pop(),
        lambda state: state["history"][0].update(sum_loss="low"),
        lambda state: state["history"][0].update(sum_loss=torch.tensor(1.0)),
        lambda state: state["history"][0].update(seconds=float("nan")),
        lambda state: state["history"][0].update(seconds=10**400),  # too large for a float
        lambda state: state["history"][0].update(epoch=7),
        lambda state: state["history"][1].pop("joint_accuracy"),
        lambda state: state["history"][1].pop("val_sum_loss"),
        lambda state: state["history"][1].update(val_sum_loss="low"),
        lambda state: state["history"][1].update(sum_loss=None),
        lambda state: state.update(history={"epoch": 1}),
        lambda state: state.pop("history"),
    ],
    "best": [
        lambda state: state.update(best=None),
        lambda state: state.pop("best"),
        lambda state: state["best"].update(joint_accuracy="high"),
        lambda state: state["best"].update(joint_accuracy=None),
        lambda state: state["best"].update(epoch=99),
        lambda state: spoil_best(state, torch.zeros(11)),
        lambda state: spoil_best(state, torch.full((10,), torch.inf)),
    ],
    "arg": [
        lambda state: state["args"].update(epochs="ten"),
        lambda state: state["args"].update(epochs=False),
        lambda state: state["args"].update(seed=10**400),
        lambda state: state["args"].update(learning_rate=torch.tensor(0.1)),
        lambda state: state["args"].update(learning_rate=float("nan")),
        lambda state: state["args"].update(deterministic="yes"),
        lambda state: state["args"].update(optimizer="../../x"),
        lambda state: state["args"].update(run_name="../elsewhere"),
        lambda state: state["args"].update(run_name="\x1b[2J"),
        lambda state: state["args"].update(model=["tiny"]),
        lambda state: state["args"].update(model="tiny\n+no-nine\x07"),
        lambda state: state["args"].update(out="/"),
        lambda state: state["args"].pop("seed"),
        lambda state: state.update(args=[("model", "tiny")]),
    ],
    "header": [lambda state: state.pop("header")],
    "entry": [
        lambda state: state.update(epoch=-1),
        lambda state: state.update(epoch=10**30),
        lambda state: state.update(epoch=torch.tensor(1)),
        lambda state: state.update(dataset=["synthetic"]),
        lambda state: state.update(dataset="/etc/passwd"),
        lambda state: state.update(header="\x1b[2J cleared"),
        lambda state: state.update(header=12),
        lambda state: state.update(header="x" * 10**6),
        lambda state: state.update(continued=["\r overwritten"]),
    ],
    "weights": [
        lambda state: state["raw_weights"].update({"digit_head.bias": torch.zeros(10, dtype=torch.int64)}),
        lambda state: state["raw_weights"].update({"digit_head.bias": torch.nn.Parameter(torch.zeros(10))}),
        lambda state: state["weights"].update({"digit_head.bias": torch.full((10,), torch.nan)}),
        lambda state: state["weights"].update({"encoder.1.running_var": torch.full((8,), -1.0)}),
        lambda state: state.update(raw_weights={"other": torch.zeros(1)}),
        lambda state: state.pop("raw_weights"),
        lambda state: state.update(weights=None),
        lambda state: state["weights"].update({3: torch.zeros(1)}),
        lambda state: state["weights"].update({"digit_head.bias": torch.zeros(11)}),
        lambda state: state["weights"].update({"digit_head.bias": "zero"}),
        lambda state: state["weights"].update({"digit_head.extra": torch.zeros(1)}),
        lambda state: state["weights"].pop("digit_head.bias"),
        lambda state: state.update(weights=list(state["weights"].values())),
    ],
}


@pytest.mark.parametrize(("part", "number"), [(part, n) for part, made in FORGERIES.items() for n in range(len(made))])
def test_a_forged_checkpoint_is_refused_in_one_line(run, forge, small_flags, tmp_path, part, number):
    name = forge(FORGERIES[part][number])
    before = contents(tmp_path)
    status, out, err = run(train, "--resume", name, *small_flags[-2:], "--device", "cpu")
    assert status == 2 and not out and err.count("\n") == 1 and err[:-1].isprintable() and len(err) < 1100
    assert name in err and part.rstrip("s") in err.replace("model", "arg")
    assert contents(tmp_path) == before


# ---------------------------------------------------------------------------------------------------------------------
# Random mutations


def nodes(value, path=()):
    """Paths of everything in a state."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from nodes(value[key], (*path, key))
    elif isinstance(value, list):
        for key in range(len(value)):
            yield from nodes(value[key], (*path, key))


def at(state, path):
    for key in path:
        state = state[key]
    return state


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def junk(chosen):
    """A value that does not belong there."""
    return chosen.choice(
        [
            *(None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**400, -(10**400), 0.5, -0.0, 1e308, 5e-324),
            *(float("nan"), float("inf"), float("-inf"), "", "0", "1e9", "tiny", "mnist", "auto", "none", "é"),
            *("\x1b[2J\x07", "a\nb\rc", "\x00", "x" * 100_000, "../../up", "%s{0}", "\u202e", b"bytes"),
            *([], {}, (), {1: 2}, {"weights": 1}, [1] * 1000, nested(5), nested(100), collections.OrderedDict(a=1)),
            *(torch.tensor(3), torch.tensor(float("nan")), torch.zeros(0), torch.zeros(2, 3), torch.tensor([True])),
            *(torch.zeros(1).expand(10**9), torch.zeros(1).expand(10**5, 10**5), torch.eye(3).to_sparse()),
            *(torch.zeros(3, dtype=torch.complex64), torch.nn.Parameter(torch.zeros(2)), torch.Size([2])),
        ]
    )


def changed(value, chosen):
    """The value with something in its nature changed."""
    if isinstance(value, torch.Tensor):
        if value.numel() > 10**6 or value.layout != torch.strided or not value.dtype.is_floating_point:
            return junk(chosen)  # changed before
        if chosen.random() < 0.3 and value.numel():
            value = value.clone(memory_format=torch.contiguous_format)
            value.view(-1)[chosen.randrange(value.numel())] = chosen.choice([float("nan"), float("inf"), -1e30, 1e30])
            return value
        flat = value.reshape(-1)
        return chosen.choice(
            [
                *(flat, value.unsqueeze(0), value.double(), value.long(), value.bfloat16(), value.bool(), -value),
                *(flat[:1], torch.zeros((), dtype=value.dtype).expand(value.shape), torch.cat([flat, flat])),
                *(value.tolist(), value.to_sparse(), value.to(torch.complex64), value.reshape(value.shape[::-1])),
            ]
        )
    if isinstance(value, (bool, int, float)):
        return chosen.choice([-value, value * 10**6, value + 1, str(value), [value], torch.tensor(value), value / 3])
    if isinstance(value, str):
        return chosen.choice([value + "\x1b[31m", value[::-1], value * 1000, value.upper(), [value], value + "\n", 7])
    if isinstance(value, dict) and value:
        other = dict(value)
        if chosen.random() < 0.5:
            other[chosen.choice([0, "extra", "\x1b", None, 1.5, (1, 2)])] = junk(chosen)
        else:
            other.pop(chosen.choice(list(other)))
        return other
    if isinstance(value, list):
        return chosen.choice([value[1:], value * 2, value[::-1], [value], {n: v for n, v in enumerate(value)}])
    return junk(chosen)


def mutated(state, chosen):
    """A copy of the state with one to three random changes."""
    state = copy.deepcopy(state)
    for _ in range(chosen.choice([1, 1, 1, 2, 3])):
        paths = [path for path in nodes(state) if path and path[0] not in ("format", "version")]
        if chosen.random() < 0.5:  # most nodes are weights
            paths = [path for path in paths if "weights" not in str(path) and path[0] != "optimizer"]
        path = chosen.choice(paths)
        parent, key, how = at(state, path[:-1]), path[-1], chosen.random()
        if how < 0.15:
            del parent[key]
        elif how < 0.5:
            parent[key] = junk(chosen)
        elif how < 0.85:
            parent[key] = changed(parent[key], chosen)
        else:
            parent[key] = copy.deepcopy(at(state, chosen.choice(paths)))
    return state


@pytest.mark.long
def test_random_mutations_end_in_order(fork_run, trained, small_dir, tmp_path):
    """Status 0, or status 2 and one printable line; no signal, no traceback, bounded time and memory."""
    seed = int(os.environ.get("MUTATION_SEED", random.randrange(2**32)))
    print(f"the mutations are those of random.Random({seed})")  # pytest shows it where the test fails
    chosen, ends, failures = random.Random(seed), collections.Counter(), []
    states = {name: load_checkpoint(trained / name) for name in ("best.pt", "last.pt")}
    for number in range(MUTATIONS):
        name = chosen.choice(["best.pt", "last.pt", "last.pt"])
        script = "train" if name == "last.pt" and chosen.random() < 0.8 else "evaluate"
        folder = tmp_path / str(number)
        folder.mkdir()
        forged = mutated(states[name], chosen)
        save_checkpoint(forged, folder / name)
        argv = [{"train": "--resume", "evaluate": "--ckpt"}[script], name, "--data-dir", str(small_dir)]
        answer = fork_run(folder, argv, script=script, seconds=60, memory=MEMORY, epochs=2)
        said = Path(f"{folder}.out").read_bytes().decode(errors="replace")
        lines = said.splitlines()
        in_order = (
            all(c.isprintable() or c == "\n" for c in said) and "Traceback" not in said and answer["seconds"] < 30
        )
        if answer["status"] == 2:
            in_order &= lines[-1].startswith(f"{script}.py: error: ") and "not enough memory" not in said
        elif answer["status"] == 130:  # only a longer run than was stored is interrupted
            in_order &= forged["args"]["epochs"] > 3
        else:
            in_order &= answer["status"] == 0
        ends[script, answer["status"]] += 1
        if not in_order:
            failures.append((number, answer, said[-600:]))
    print(dict(ends))
    assert not failures, failures[:5]
