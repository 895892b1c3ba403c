"""The benchmark: every row with figures, the same in the table and in JSON; the fast ways answer as the plain ones."""

import json
import math

import pytest
import torch

import benchmark
import data
import rivals
from checkpoint import load_checkpoint
from evaluate import predict_pairs, score
from published import build_model


@pytest.fixture
def flags(small_dir):
    words = "--quick --repeats 1 --device cpu --dataset synthetic --data-dir"
    return [*words.split(), small_dir]


@pytest.fixture(scope="session")
def training(small):
    """(images, digits) of the 600 images that the run of the fixture `trained` was trained on."""
    kept, _ = data.split_indices(700, 100)
    return small[0][kept], small[1][kept]


def test_every_row_has_figures_and_json_says_the_same_as_the_table(run, flags, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "QUICK_IMAGES", 400)
    monkeypatch.setattr(benchmark, "QUICK_TARGETS", (0.01, 0.02))
    monkeypatch.setattr(benchmark, "in_a_process", lambda setting, name, **_: (2.0 + bool(name), 300.0, 0.0))
    monkeypatch.setitem(benchmark.SECTIONS, "several", lambda setting: [benchmark.make_row("several", "", "s", [1.0])])
    status, out, _ = run(benchmark, *flags, "--json", "table.json")
    assert status == 0
    record = json.loads((tmp_path / "table.json").read_text())
    assert record["data set"].startswith("synthetic") and record["versions"] in out and record["device"] in out
    rows = record["rows"]
    assert list(dict.fromkeys(row["section"] for row in rows)) == list(benchmark.SECTIONS)
    lines = out.splitlines()
    lines = lines[next(i for i, line in enumerate(lines) if line.startswith("section")) + 1 :]
    assert len(lines) == len(rows)
    for row, line in zip(rows, lines, strict=True):
        for cell in benchmark.cells(row):
            assert cell in line
        if ", 0 of 1 seeds" in row["what"]:  # a target that so few steps need not reach
            assert row["section"] == "target" and row["ours"] is None
            continue
        figures = [row["ours"], *row["spread"], *(row[name] for name in ("rival", "ratio") if row[name] is not None)]
        assert all(math.isfinite(figure) for figure in figures), row
        if row["unit"] not in ("exponent", "%"):
            assert min(figures) > 0, row
    whats = "\n".join(row["what"] for row in rows)
    for word in ("2 workers", "as it is", "base to", "fast to", "512 at a time", "16 x", "bfloat16", "as published"):
        assert word in whats
    assert all(f"size {name}" in whats for name in ("tiny", "base", "large"))


def test_only_measures_what_is_asked_for(run, flags):
    status, out, _ = run(benchmark, *flags, "--only", "scoring")
    assert status == 0
    assert {
        line.split()[0] for line in out.splitlines() if line.split()[:1] in [[name] for name in benchmark.SECTIONS]
    } == {"scoring"}


@pytest.mark.parametrize(
    "wrong",
    [
        ["--only", "everything"],
        ["--repeats", "0"],
        ["--rep", "3"],
        ["--device", "tpu"],
        ["--json", "no/such/folder/table.json"],
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(run, flags, wrong):
    status, out, err = run(benchmark, *flags, *wrong)
    assert status == 2 and not out and len(err.splitlines()) == 1 and err.startswith("benchmark.py: error: ")


def test_it_measures_the_training_of_train_py(trained, training):
    run = benchmark.begin("tiny", training, torch.device("cpu"), epochs=2, batch_size=64)
    run.seconds()
    state = load_checkpoint(trained / "last.pt")
    for name, weights in run.model.state_dict().items():
        assert torch.equal(weights, state["raw_weights"][name]), name
    for name, weights in run.scored.state_dict().items():
        assert torch.equal(weights, state["weights"][name]), name


class PlainBatches:
    """The same epochs through the ordinary map-style data set and a `DataLoader`."""

    def __init__(self, batches):
        self.batches, self.device = batches, batches.device
        self.dataset = data.RandomAddendDataset(
            batches.images, batches.digits, batches.seed, batches.addends_per_image, batches.augment
        )

    def __len__(self):
        return len(self.batches)

    def weight(self, step):
        return self.batches.weight(step)

    def epoch(self, epoch):
        self.dataset.set_epoch(epoch)
        order = data.draw_order(len(self.dataset), self.batches.seed, epoch).tolist()
        return torch.utils.data.DataLoader(self.dataset, self.batches.batch_size, sampler=order)


@pytest.mark.parametrize("name", ["tiny", "fast"])
def test_fast_batches_teach_the_same_as_the_plain_way(training, small, name):
    changes = dict(epochs=6, batch_size=64, learning_rate=0.02, ema_decay=0.0, precision="float32")
    runs = [benchmark.begin(name, training, torch.device("cpu"), **changes) for _ in range(2)]
    runs[1].batches = PlainBatches(runs[1].batches)
    for run in runs:
        run.seconds()
    accuracies = [score(*predict_pairs([run.model], small[0]), small[1])["joint_accuracy"] for run in runs]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.01) and accuracies[0] > 0.2
    for fast, plain in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        torch.testing.assert_close(fast, plain, atol=1e-2, rtol=1e-2)


def test_scores_of_one_pass_an_image_are_those_of_one_pass_a_pair(small):
    model = build_model("base")
    fast = predict_pairs([model], small[0][:70])
    plain = rivals.predict_pair_by_pair(model, small[0][:70], "cpu", batch_size=64)
    for ours, theirs in zip(fast, plain, strict=True):
        assert ours.shape == theirs.shape == (70, 10) and (ours == theirs).float().mean() > 0.99


def test_the_usual_way_shows_the_same_images(small):
    usual = rivals.UsualDigits(*small)
    assert len(usual) == len(small[0])
    image, addend, digit, sum_target = usual[5]
    torch.testing.assert_close(image, data.prepare(small[0][5:6])[0])
    assert digit == small[1][5] and 0 <= addend <= 9 and sum_target == digit + addend


def test_the_measured_process_trains_and_says_when_it_began(small_dir, capsys):
    benchmark.child("tiny", 200, 2, 3, "synthetic", small_dir, "cpu")
    assert capsys.readouterr().out.splitlines() == ["first step", "0"]


def test_ratios_are_of_medians_and_the_spread_is_of_turns():
    row = benchmark.make_row("s", "w", "s", [2.0, 3.0, 9.0], [4.0, 4.0, 3.0])
    assert (row["ours"], row["rival"], row["ratio"], row["spread"]) == (3.0, 4.0, 0.75, [0.5, 3.0])
    calls = []
    figures = benchmark.in_turns({name: lambda name=name: calls.append(name) or 1.0 for name in "AB"}, repeats=2)
    assert calls == list("ABABAB") and figures == {"A": [1.0, 1.0], "B": [1.0, 1.0]}
