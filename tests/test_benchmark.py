"""The benchmark: its rows, as a table and as JSON; what it measures; fast and plain ways give the same results."""

import json
import math
import re

import pytest
import torch

import data
from conftest import same
from evaluate import predict_pairs
from model import build_model
from studies import benchmark, measure, rivals, sections
from studies.markdown import NOT_RECORDED
from studies.speed_tables import COMMANDS, RIVALS, speed_table, speed_tables
from support.checkpoint import load_checkpoint
from support.runlog import environment

CPU = torch.device("cpu")


@pytest.fixture
def flags(small_dir):
    words = "--quick --repeats 1 --device cpu --dataset synthetic --data-dir"
    return [*words.split(), small_dir]


@pytest.fixture(scope="session")
def training(small):
    """(images, digits) of the 600 images that the run of the fixture `trained` was trained on."""
    kept, _ = data.split_indices(700, 100)
    return small[0][kept], small[1][kept]


@pytest.fixture
def setting(small_dir, training):
    """What `--quick` measures the sections on."""
    return measure.Setting(CPU, 1, True, "synthetic", str(small_dir), training, training)


def test_every_row_has_figures_and_json_says_the_same_as_the_table(run, flags, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "QUICK_IMAGES", 130)  # two batches of `base`
    monkeypatch.setattr(sections, "QUICK_TARGETS", (0.01, 0.02))
    for name in ("start", "commands", "memory", "allocator", "several"):  # in test_subprocesses.py
        monkeypatch.setitem(benchmark.SECTIONS, name, lambda setting: [measure.make_row("", "s", [1.0])])
    status, out, _ = run(benchmark, *flags, "--json", "table.json")
    assert status == 0
    record = json.loads((tmp_path / "table.json").read_text())
    assert record["data set"].startswith("synthetic") and record["versions"] in out and record["device"] in out
    rows = record["rows"]
    assert list(dict.fromkeys(row["section"] for row in rows)) == list(benchmark.SECTIONS)
    for row in rows:
        assert speed_table([row]).splitlines()[-1].replace(" ", "") in out.replace(" ", "")  # padded otherwise
        if ", 0 of 1 seeds" in row["what"]:  # a target that so few steps need not reach
            assert row["section"] == "target" and row["ours"] is None
            continue
        figures = [row["ours"], *row["spread"], *(row[name] for name in ("rival", "ratio") if row[name] is not None)]
        assert len(row["what"]) <= 60
        assert all(math.isfinite(figure) for figure in figures), row
        if row["unit"] not in ("", "%"):
            assert min(figures) > 0, row
    whats = "\n".join(row["what"] for row in rows)
    for word in ("2 workers", "its defaults", "base to", "fast to", "512 at", "16 x", *RIVALS):
        assert word in whats
    assert all(f"size {name}" in whats for name in ("tiny", "base", "large"))


def test_only_measures_what_is_asked_for_and_keeps_the_other_sections_of_the_json(run, flags, tmp_path):
    kept = [
        measure.make_row("kept", "s", []) | {"section": section, "commit": "0000000"} for section in ("memory", "usual")
    ]
    images = f"synthetic: {len(data.split_indices(700, 58)[0])} training images"
    record = environment(CPU) | {"data set": images, "rows": [*kept, {"section": "scoring"}]}
    (tmp_path / "b.json").write_text(json.dumps(record))
    status, out, _ = run(benchmark, *flags, "--only", "scoring", "--json", "b.json")
    assert status == 0 and re.findall(r"^(\w+), measured in", out, re.MULTILINE) == ["scoring"]
    usual, *new, memory = json.loads((tmp_path / "b.json").read_text())["rows"]  # in the order of a whole benchmark
    assert [memory, usual] == kept and {row["section"] for row in new} == {"scoring"}
    assert all(row["commit"] != "0000000" and row["date"] == record["date"] for row in new)
    for entry in ("device", "versions", "data set"):
        text = json.dumps(record | {entry: "others"})
        (tmp_path / "b.json").write_text(text)
        status, _, err = run(benchmark, *flags, "--only", "scoring", "--json", "b.json")
        assert status == 2 and f"b.json has other {entry}: others" in err and err.count("\n") == 1
        assert (tmp_path / "b.json").read_text() == text


def odd_rows():
    """Rows in which one figure or text that the tables read is missing, or is none."""
    row = measure.make_row("what", "s", [1.0], [2.0]) | {"section": "memory", "commit": "0000000"}
    for name in row:
        yield {key: value for key, value in row.items() if key != name}
    yield from (row | {name: ["a"]} for name in row)
    yield from (row | {name: odd} for name in ("ours", "ratio") for odd in ("1", 10**400, math.inf, math.nan))
    yield from (row | {name: odd} for name in ("what", "commit") for odd in (None, 5, "two\nlines", "\ud800"))
    yield from (row | {"spread": odd} for odd in (None, 1.0, [], [1.0], ["1", "2"], [1.0, 2.0, 3.0]))


def test_another_file_than_a_record_is_refused_in_one_line_and_kept(run, flags, tmp_path):
    files = ["", "[]", '{"rows": 1}', '{"rows": [1]}', '{"rows": {"a": 1}}', "[" * 100_000, "1" * 5000]
    for odd in [*files, *(json.dumps({"rows": [row]}) for row in odd_rows())]:
        (tmp_path / "b.json").write_text(odd)
        status, _, err = run(benchmark, *flags, "--only", "scoring", "--json", "b.json")
        assert status == 2 and "b.json is not a record of this benchmark" in err and err.count("\n") == 1, odd[:500]
        assert (tmp_path / "b.json").read_text() == odd


def test_it_measures_the_training_of_train_py(trained, training):
    run = measure.Run("tiny", training, CPU, epochs=2, batch_size=64)
    run.seconds()
    state = load_checkpoint(trained / "last.pt")
    assert same(run.model.state_dict(), state["raw_weights"]) and same(run.scored.state_dict(), state["weights"])


class PlainBatches(data.Batches):
    """The same epochs through the ordinary map-style data set and a `DataLoader`."""

    def epoch(self, epoch):
        dataset = data.RandomAddendDataset(self.images, self.digits, self.seed, self.addends_per_image, self.augment)
        dataset.set_epoch(epoch)
        order = data.draw_order(len(dataset), self.seed, epoch).tolist()
        return torch.utils.data.DataLoader(dataset, self.batch_size, sampler=order)


@pytest.mark.parametrize("name", ["tiny", "fast"])
def test_fast_batches_teach_the_same_as_the_plain_way(training, name):
    few = tuple(table[:320] for table in training)
    changes = dict(epochs=3, batch_size=64, learning_rate=0.02, averaging_eta=0.0, precision="float32")
    fast, plain, untrained = (measure.Run(name, few, CPU, **changes) for _ in range(3))
    plain.batches.__class__ = PlainBatches
    for run in (fast, plain):
        run.seconds()
    for ours, theirs, before in zip(*(run.model.parameters() for run in (fast, plain, untrained)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=1e-2)
        assert not torch.allclose(ours, before, atol=1e-2, rtol=1e-2)


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


def test_the_usual_loop_runs_in_both_memory_layouts(setting, monkeypatch):
    seen = set()

    def usual_epoch(model, optimizer, loader, device, memory_format):
        assert model.encoder[3].weight.is_contiguous(memory_format=memory_format)  # the first has a single channel in
        seen.add((loader.num_workers, memory_format))

    monkeypatch.setattr(rivals, "usual_epoch", usual_epoch)
    whats = [row["what"] for row in sections.usual(setting)]
    assert seen == {(n, layout) for n in (0, 2) for layout in (torch.contiguous_format, torch.channels_last)}
    assert len(whats) == 4 and sum("channels_last" in what for what in whats) == 2


def test_images_on_disk_give_the_same_batches(setting, tmp_path):
    images, digits = setting.training
    on_disk = measure.map_images(measure.write_images(images, 2, tmp_path))
    batches = data.Batches(on_disk, digits.repeat(2), 64)
    assert batches.images.data_ptr() == on_disk.data_ptr()
    in_memory = data.Batches(images.repeat(2, 1, 1, 1), digits.repeat(2), 64)
    for ours, theirs in zip(batches.epoch(0), in_memory.epoch(0), strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_growth_has_an_exponent_for_each_step_of_a_curve_that_bends(setting, monkeypatch):
    seconds = {1: 1.0, 4: 2.0, 16: 32.0, 2: 1.0, 5: 1.0, 10: 1.0, "tiny": 1.0, "base": 1.0, "large": 10.0}
    seconds |= {"mapped": 3.0, "in memory": 2.0}
    monkeypatch.setattr(sections, "in_turns", lambda jobs, *_: {name: [seconds[name]] for name in jobs})
    rows = {row["what"]: row["ours"] for row in sections.growth(setting)}
    exponents = {what: value for what, value in rows.items() if "exponent" in what}
    assert len(exponents) == 2 + 3 + 2
    assert exponents["growth exponent in images, 1 to 4"] == pytest.approx(0.5)
    assert exponents["growth exponent in images, 4 to 16"] == pytest.approx(2.0)
    assert exponents["growth exponent in parameters, tiny to base"] == 0.0
    assert exponents["growth exponent in parameters, base to large"] > 0.5
    assert rows["epoch, 16 x the images, mapped from disk vs in memory"] == 3.0


def test_sixteen_times_the_images_are_timed_in_part_and_taken_in_proportion(setting, monkeypatch):
    """A step takes a second, and so do the draws: the 75 steps of 9,600 images take 76 s, of which 6 s are spent."""
    clock, jobs = [0.0], {}

    def train_epoch(args, model, network, optimizer, averaged, batches, epoch):
        clock[0] += 1
        for _ in batches.epoch(epoch):
            clock[0] += 1

    monkeypatch.setattr(measure.train, "train_epoch", train_epoch)
    monkeypatch.setattr(measure, "now", lambda device: clock[0])
    monkeypatch.setattr(sections, "in_turns", lambda given, *_: jobs.update(given) or {name: [1.0] for name in given})
    list(sections.growth(setting))
    assert jobs[16]() == 76 and clock[0] == 1 + 1 + 75 // 16


def test_overhead_and_target_do_not_count_what_happens_between_the_steps(setting, monkeypatch):
    """A step of ours takes 3 s, a bare one 2 s, and scoring 1,000 s."""
    clock = [0.0]
    # base: validation after 10, 20 and 30 steps, the last two with the test; fast: after its 3 steps
    accuracies = iter([10.0, 35.0, 40.0, 60.0, 65.0, 20.0])

    def spend(seconds, result=None):
        clock[0] += seconds
        return result

    def train_epoch(args, model, network, optimizer, averaged, batches, epoch):
        for _ in batches.epoch(epoch):
            spend(3)

    monkeypatch.setattr(measure.train, "train_epoch", train_epoch)
    monkeypatch.setattr(measure, "now", lambda device: clock[0])
    monkeypatch.setattr(measure, "bare_steps", lambda run, batch, steps: spend(2 * steps))
    monkeypatch.setattr(measure, "joint_accuracy", lambda *_: spend(1000, next(accuracies)))
    for row in sections.overhead(setting):  # 600 images: 5 steps of 128, the last of 88
        assert (row["ours"], row["rival"]) == (15, pytest.approx(2 * 600 / 128))
    rows = list(sections.target(setting))
    assert [row["ours"] for row in rows] == [60, 40, 90, 65, None, None, None, None]
    assert [row["what"] for row in rows][3:5] == [
        "base to 50.00 %, test joint there",
        "fast to 30.00 % validation joint, 0 of 1 seeds",
    ]


def test_the_bare_steps_have_the_precision_of_the_loop(training):
    weights = []
    for precision in ("float32", "bfloat16"):
        run = measure.Run("tiny", training, CPU, precision=precision)
        measure.bare_steps(run, next(run.batches.epoch(0)), 1)
        weights.append(sum(value.double().sum().item() for value in run.model.parameters()))
    assert weights[0] != weights[1]


def test_ratios_are_of_medians_and_the_spread_is_of_turns():
    row = measure.make_row("w", "s", [2.0, 3.0, 9.0], [4.0, 4.0, 3.0])
    assert (row["ours"], row["rival"], row["ratio"], row["spread"]) == (3.0, 4.0, 0.75, [0.5, 3.0])
    calls = []
    figures = measure.in_turns({name: lambda name=name: calls.append(name) or 1.0 for name in "AB"}, repeats=2)
    assert calls == list("ABABAB") and figures == {"A": [1.0, 1.0], "B": [1.0, 1.0]}


def test_the_page_has_its_tables_without_rows_of_a_section_and_its_sentences_from_those_they_need():
    def made(rows):
        return speed_tables({"device": "cpu", "versions": "torch", "data set": "mnist", "rows": rows})

    def row(section, what, *figures, unit="s"):
        return measure.make_row(what, unit, *figures) | {"section": section, "commit": "0000000"}

    rivals = [row("rival", f"training vs public recipe, {RIVALS[n]}", [2.0], [8.0 - n]) for n in range(4)]
    rivals += [row("rival", f"joint vs its test digit, {name}", [99.1], [99.0], unit="%") for name in RIVALS]
    commands = [row("commands", command, [1.5]) for command in COMMANDS]
    few = made(rivals)
    assert "| training vs public recipe, as published " in few["speed-fast"]
    assert few["speed-headline"] == few["speed-commands"] == few["speed-allocator"] == NOT_RECORDED
    gain = few["speed-gain"].replace("\n", " ")
    assert "Of the 6.00 s between the baseline as published and ours, the memory layout accounts for 1.00 s" in gain
    assert "the last 3.00 s lie" in gain
    headline = made(rivals + commands)["speed-headline"].replace("\n ", "")
    assert "trains for 2.00 s, to a joint accuracy of 99.10 %" in headline
    assert "0.40 (single rounds: 0.40 to 0.40) of the 5.00 s" in headline and "0.25 (" in headline
    assert "`evaluate.py` takes 1.50 s" in headline
