"""The write-ups' own training and counting, and how their published logs are compared with it."""

import csv
import functools
import math

import pytest
import torch

from conftest import ROOT
from model import build_model
from studies import figures, likeness, replay
from studies.published import DESIGNS

DIGITS_4 = 5842  # among the 60,000 training images


@pytest.fixture(scope="module")
def replayed(small):
    """replayed(design, *flags) -> (figures {quantity: {epoch: value}}, scores) of one short run on 600 images."""

    def call(design, *flags):
        flags = ["--images", 600, "--epochs", 1, *flags]
        _, recipe = replay.parse_arguments([design, *map(str, flags)])
        rows, scores = replay.replay(
            recipe, small, (small[0][:150], small[1][:150]), torch.device("cpu"), lambda line: 0
        )
        found = {}
        for epoch, quantity, value in rows:
            found.setdefault(quantity, {})[str(epoch)] = value
        return found, scores

    return call


@pytest.fixture(scope="module")
def plain(replayed):
    """plain(design) -> the figures without any flags, computed once."""
    return functools.cache(lambda design: replayed(design)[0])


# ---------------------------------------------------------------------------------------------------------------------
# What the published figures prove


def test_the_first_log_is_of_a_network_that_always_answers_four():
    """Its epoch losses follow from that answer alone, in the first epoch too: it was stuck before the log began."""
    (log,) = likeness.published_figures("shared-softmax-lenet")
    recipe = DESIGNS["shared-softmax-lenet"].recipe
    digit_loss, last = math.log(9 + math.e), 60_000 % recipe["batch_size"]  # of one-hot outputs, all wrong
    for epoch in map(str, range(1, 21)):
        assert log["train_digits_right"][epoch] == DIGITS_4
        fours = round((digit_loss - log["last_batch_digit_loss"][epoch]) * last)  # of the last batch
        batches = 938 * (recipe["digit_weight"] * digit_loss + recipe["sum_weight"] * math.log(19))
        right = recipe["digit_weight"] * ((DIGITS_4 - fours) / recipe["batch_size"] + fours / last)
        assert log["epoch_loss"][epoch] == pytest.approx(batches - right, abs=0.001)
    assert recipe["unlogged_epochs"] > 0


def test_a_nine_was_never_drawn_in_the_first_log():
    """A sum of 0 for every pair is right for the zeros with the addend 0: one in nine of them, not one in ten."""
    (log,) = likeness.published_figures("shared-softmax-lenet")
    mean = sum(log["train_sums_right"].values()) / 20
    error = math.sqrt(5923 * (1 / 9) * (8 / 9) / 20)
    assert abs(mean - 5923 / 9) < 3 * error < abs(mean - 5923 / 10)


def test_the_schedule_of_average_pooling_is_that_of_its_curve():
    (log,) = likeness.published_figures("average-pooling")
    recipe = DESIGNS["average-pooling"].recipe
    steps = -(-recipe["images"] // recipe["batch_size"])
    assert steps == 430  # with the smaller last batch; the write-up dropped it
    optimizer, scheduler = replay.make_optimizer(recipe, torch.nn.Linear(1, 1), 20 * steps)
    rates = []
    for _ in range(recipe["averaged_from"] * steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    published = {int(epoch.split()[1]): value for epoch, value in log["learning_rate"].items()}
    held = optimizer.param_groups[0]["lr"]
    for step, value in published.items():
        assert (rates[step] if step < len(rates) else held) == pytest.approx(value, rel=0.02)


# ---------------------------------------------------------------------------------------------------------------------
# The loop


def test_the_figures_count_what_they_say(replayed):
    found, _ = replayed("two-softmax-lenet")
    assert found["train_digit_percent"]["1"] == pytest.approx(100 * found["train_digits_right"]["1"] / 600)
    # each of the ten batches begins near the losses of a network that knows nothing
    assert found["epoch_loss"]["1"] == pytest.approx(10 * (0.35 * math.log(10) + 0.15 * math.log(19)), rel=0.05)
    last = 0.35 * found["last_batch_digit_loss"]["1"] + 0.15 * found["last_batch_sum_loss"]["1"]
    assert found["last_batch_train_loss"]["1"] == pytest.approx(last, rel=1e-5)


def test_the_last_batch_alone_is_counted_and_losses_are_not_divided(small):
    model = build_model("two-branch-lenet").eval()
    images, digits = small[0][:150], small[1][:150]
    addends = torch.arange(150) % 9
    losses, right, sizes = replay.score_batches(model, images, digits, 128, addends)
    assert sizes.flatten().tolist() == [128, 22]
    whole = replay.score_batches(model, images, digits, 150, addends)
    counted = replay.totals("test", losses, right, sizes)
    assert counted["test_digit_loss_total"] == pytest.approx(150 * whole[0][0, 0].item(), rel=1e-5)
    assert counted["last_batch_digits_right"] == right[1, 0] <= 22
    assert right.sum(0).tolist() == whole[1].sum(0).tolist()


def test_a_product_of_accuracies_is_the_mean_over_full_batches():
    right = torch.tensor([[100.0, 50.0], [50.0, 100.0], [7.0, 0.0]])
    sizes = torch.tensor([[100.0], [100.0], [7.0]])
    means = replay.mean_of_batches("val", torch.ones(3, 2), right, sizes)
    assert means["val_digit_accuracy"] == means["val_sum_accuracy"] == 0.75
    assert means["val_total_accuracy"] == 0.5  # not 0.75 squared, and without the last batch
    assert means["val_loss"] == 2


def test_stochastic_weight_averaging_keeps_the_rate_and_averages_the_weights(small, monkeypatch):
    weights = []
    update = replay.swa_utils.AveragedModel.update_parameters

    def spy(self, model):
        weights.append(model.digit_head.weight.detach().clone())
        update(self, model)
        weights_of_average.append(self.module.digit_head.weight.detach().clone())

    weights_of_average = []
    monkeypatch.setattr(replay.swa_utils.AveragedModel, "update_parameters", spy)
    _, recipe = replay.parse_arguments("average-pooling --epochs 4 --images 600 --batch-size 12".split())
    rows, _ = replay.replay(recipe | {"averaged_from": 2}, small, small, torch.device("cpu"), lambda line: 0)
    assert len(weights) == 2
    torch.testing.assert_close(weights_of_average[-1], (weights[0] + weights[1]) / 2)
    assert not torch.equal(weights[0], weights[1])
    rates = [value for _, quantity, value in rows if quantity == "learning_rate"]
    assert len(rates) == 4 and rates[1] != rates[2] == rates[3]


@pytest.mark.parametrize(
    ("design", "flags"),
    [
        ("two-branch-lenet", "--seed 1"),
        ("two-branch-lenet", "--images 500"),
        ("two-branch-lenet", "--batch-size 100"),
        ("two-branch-lenet", "--optimizer adam"),
        ("two-branch-lenet", "--learning-rate 0.1"),
        ("two-branch-lenet", "--momentum 0.5"),
        ("two-branch-lenet", "--schedule one-cycle"),
        ("two-branch-lenet", "--schedule linear-cycle"),
        ("two-branch-lenet", "--pixels unit"),
        ("two-branch-lenet", "--precision bfloat16"),
        ("two-branch-lenet", "--activation none"),
        ("two-branch-lenet", "--initialisation xavier"),
        ("two-branch-lenet", "--initialisation kaiming"),
        ("two-branch-lenet+mended", ""),
        ("narrow-trunk", "--dropout 0.5"),
        ("narrow-trunk", "--dropout-place features"),
        ("narrow-trunk", "--width 20"),
    ],
)
def test_each_flag_changes_the_result(replayed, plain, design, flags):
    changed, _ = replayed(design, *flags.split())
    assert plain(design.split("+")[0])["epoch_loss"] != changed["epoch_loss"]


@pytest.mark.parametrize("design", ["two-branch-lenet", "narrow-trunk"])
def test_the_same_flags_give_the_same_figures(replayed, plain, design):
    assert plain(design) == replayed(design)[0]


def test_stop_ends_early_on_the_schedule_of_all_epochs(replayed):
    whole, _ = replayed("average-pooling", "--epochs", 3, "--images", 200)
    part, _ = replayed("average-pooling", "--epochs", 3, "--images", 200, "--stop", 2)
    assert set(whole["epoch_loss"]) == {"1", "2", "3"} and set(part["epoch_loss"]) == {"1", "2"}
    assert all(part["epoch_loss"][epoch] == whole["epoch_loss"][epoch] for epoch in part["epoch_loss"])


def test_a_run_writes_its_two_files_once(run, small, monkeypatch, tmp_path):
    monkeypatch.setattr(replay, "load_digits", lambda name, folder, train: (*small, name))
    words = ["narrow-trunk", "--images", 600, "--epochs", 1, "--device", "cpu", "--name", "n", "--out", "here"]
    status, out, err = run(replay, *words)
    assert status == 0, err
    assert (tmp_path / "here" / "n.txt").read_text() == out
    rows = list(csv.DictReader((tmp_path / "here" / "n.csv").open()))
    assert {row["design"] for row in rows} == {"narrow-trunk"}
    before = (tmp_path / "here" / "n.csv").read_bytes()
    status, _, err = run(replay, *words)
    assert status == 2 and "choose another" in err and (tmp_path / "here" / "n.csv").read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        "base",
        "two-softmax",
        "narrow-trunk+argmax",
        "two-branch-lenet --dropout 0.1",
        "narrow-trunk --width 0",
        "narrow-trunk --stop 11",
    ],
)
def test_a_design_or_an_option_that_does_not_exist_is_refused(run, tmp_path, words):
    status, _, err = run(replay, *words.split())
    assert status == 2 and err.count("\n") == 1 and not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------------------------
# Likeness


def test_a_run_equal_to_the_log_has_no_distance_and_all_figures_within():
    (log,) = likeness.published_figures("two-softmax-lenet")
    assert likeness.distance("two-softmax-lenet", log) == 0
    figures = likeness.compare("two-softmax-lenet", [log, log])
    assert len(figures) == 100 and all(figure.within and figure.near for figure in figures)
    assert "100 of 100" in likeness.summary({"two-softmax-lenet": figures})


def test_a_figure_is_within_three_deviations_or_one_per_cent_of_a_loss():
    (log,) = likeness.published_figures("two-softmax-lenet")

    def runs(low, high):
        return [
            {name: {epoch: value * factor for epoch, value in values.items()} for name, values in log.items()}
            for factor in (low, high)
        ]

    def found(low, high):
        return {figure.label: figure for figure in likeness.compare("two-softmax-lenet", runs(low, high))}

    assert found(1.008, 1.0081)["epoch loss"].within and not found(1.008, 1.0081)["train sums right"].within
    assert found(1.008, 1.02)["train sums right"].within
    wide = found(0.5, 1.4)["epoch loss"]  # a spread that excuses everything
    assert wide.within and not wide.near
    assert likeness.distance("two-softmax-lenet", runs(1.1, 1)[0]) == pytest.approx(0.1)


def test_each_of_two_logs_is_compared_by_itself():
    first, second = likeness.published_figures("argmax-regression")
    figures = likeness.compare("argmax-regression", [first, first])
    assert len(figures) == sum(map(len, first.values())) + sum(len(second[name]) for name in first)
    own = [figure for figure in figures if "(log 2)" not in figure.label]
    assert all(figure.near for figure in own) and not all(figure.near for figure in figures)


def test_without_matplotlib_the_figures_say_how_to_install_it(run, monkeypatch):
    monkeypatch.setattr(figures.support.figures, "matplotlib", None)
    status, _, err = run(figures, "--out", "elsewhere")
    assert status == 2 and "pip install -r requirements-dev.txt" in err and err.count("\n") == 1


def test_the_figure_of_a_design_says_whether_there_is_a_published_log():
    def legend(design, runs):
        return [text.get_text() for text in figures.draw(design, runs).legends[0].get_texts()]

    logs = likeness.published_figures("two-branch-lenet")
    assert legend("two-branch-lenet", logs * 2) == ["published", "rebuilt, 2 seeds"]
    logs = likeness.published_figures("argmax-regression")
    assert legend("argmax-regression", logs[:1]) == ["published (two logs)", "rebuilt, 1 seed"]
    runs = [likeness.read_replay(path) for path in (ROOT / "logs/records").glob("narrow-trunk-published-s?.csv")]
    assert legend("narrow-trunk", runs) == ["rebuilt, 3 seeds; there is no published log"]
