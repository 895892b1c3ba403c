"""The search of the fast recipe: what each row changes, on which images it is scored."""

import json
from unittest.mock import patch

import pytest
import torch

import model
from studies import ladder, search
from studies.measure import held_out
from studies.speed_tables import PUBLISHED_RIVAL, ladder_tables
from support import optim

WHERE = {"device": "cpu", "versions": "torch", "commit": "0000000", "data set": "mnist: 3 images"}


@pytest.fixture(scope="module")
def parts(small):
    training, held = held_out("ladder", *small, 3, ladder.PARTS)
    return tuple(table[:640] for table in training), held  # not a last batch of one image


@pytest.mark.parametrize(("study", "parts"), [("ladder", ladder.PARTS), ("search", search.PARTS)])
def test_what_is_scored_is_never_trained_on_and_every_image_is_held_out_once(small, study, parts):
    numbered, seen = torch.arange(700), []
    for seed in range(parts):
        (images, kept), (_, held) = held_out(study, small[0], numbered, seed, parts)
        assert len(images) == len(kept) == 700 - len(held) and not set(kept.tolist()) & set(held.tolist())
        seen += held.tolist()
    assert sorted(seen) == numbered.tolist()


def test_the_encoder_takes_the_layers_of_a_row_and_its_linear_layer_all_of_their_map():
    def layers(**changes):
        encoder = model.strided_encoder(64, **changes).eval()
        assert encoder(torch.zeros(2, 1, 28, 28)).shape == (2, 64)
        return [type(layer).__name__ for layer in encoder], encoder[-3].in_features

    convolution, end = ["Conv2d", "BatchNorm2d", "ReLU"], ["FlattenLast", "Linear", "BatchNorm1d", "ReLU"]
    pooled = ["Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU"]
    assert layers() == (["ZeroPad2d", *pooled, *convolution, *end], 96 * 3 * 3)
    before = ladder.CHANGES["the recipe before"]["network"]
    assert layers(**before) == (["ZeroPad2d", *pooled, *convolution, *pooled, *end], 64 * 2 * 2)
    assert layers(**ladder.CHANGES["three layers"]["network"])[1] == 96 * 3 * 3


@pytest.fixture(scope="module")
def sums_after(parts):
    """sums_after(change): the sum of each parameter after a training with it, on a processor that has bfloat16."""

    def call(change):
        made, run_class = [], ladder.Run

        def kept(*arguments, **options):
            made.append(run_class(*arguments, **options))
            return made[-1]

        has_bfloat16 = patch.object(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, create=True)
        with patch.object(ladder, "Run", kept), has_bfloat16:
            ladder.ours(change, *parts, 0, torch.device("cpu"))
        return [value.double().sum().item() for value in made[0].scored.parameters()]

    return call


@pytest.fixture(scope="module")
def plain(sums_after):
    return sums_after({})


@pytest.mark.parametrize("what", [what for what, change in ladder.CHANGES.items() if change and "shifts" not in change])
def test_each_change_acts_and_leaves_nothing_behind(sums_after, plain, what):
    sizes, optimizers = dict(model.SIZES), dict(optim.OPTIMIZERS)
    assert sums_after(ladder.CHANGES[what]) != plain
    assert model.SIZES == sizes and optim.OPTIMIZERS == optimizers


def test_five_shifts_are_scored_as_an_ensemble_of_one_network(parts):
    with patch.object(ladder, "answers", wraps=ladder.answers) as called:
        ladder.ours(ladder.CHANGES["scored on five shifts"], *parts, 0, torch.device("cpu"))
    models, outputs = called.call_args.args
    assert len(set(models)) == 1 and len(outputs) == 5
    for (right, down), (digit_logits, _) in zip(ladder.VIEWS, outputs, strict=True):
        moved = torch.nn.functional.pad(parts[1][0], (1 + right, 1 - right, 1 + down, 1 - down))[:, :, 1:-1, 1:-1]
        torch.testing.assert_close(digit_logits, ladder.pair_outputs(models[0], moved)[0])


def test_whitening_filters_have_uncorrelated_answers_and_their_negatives(parts):
    images = parts[0][0]
    run = ladder.Run("fast", parts[0], torch.device("cpu"))
    ladder.freeze(run, images)
    filters = next(run.model.parameters())
    assert torch.equal(filters[:16], -filters[16:]) and not filters.requires_grad
    patches = torch.nn.functional.unfold(ladder.prepare(images), 5, stride=2).transpose(1, 2).reshape(-1, 25)
    answers = patches[patches.std(1) > 0] @ filters[:16].flatten(1).T
    torch.testing.assert_close(answers.T.cov().sqrt().diag()[:4], torch.ones(4), atol=0.1, rtol=0)
    assert (answers.T.corrcoef() - torch.eye(16)).abs().max() < 0.01


@pytest.mark.parametrize(("seeds", "count"), [([], 2), (["--seeds", "3"], 3)])
def test_quick_writes_the_figures_of_all_rows_for_each_seed(run, small_dir, tmp_path, seeds, count):
    flags = "--quick --dataset synthetic --device cpu --json l.json".split()
    few = {what: ladder.CHANGES[what] for what in (ladder.RECIPE, "K = 1")}
    rival = {PUBLISHED_RIVAL: dict(batch_size=64)}
    with patch.multiple(ladder, CHANGES=few, RIVAL=rival, QUICK_IMAGES=600):
        status, out, err = run(ladder, *flags, *seeds, "--data-dir", small_dir)
    assert status == 0, err
    record = json.loads((tmp_path / "l.json").read_text())
    assert [(row["kind"], row["what"]) for row in record["rows"]] == [
        ("ours", ladder.RECIPE),
        ("ours", "K = 1"),
        ("rival", PUBLISHED_RIVAL),
    ]
    assert all(len(row["seconds"]) == len(row["accuracy"]) == count for row in record["rows"])
    assert "| K = 1 " in out and "synthetic" in record["data set"]


def test_the_ladder_pairs_each_change_with_the_recipe_seed_by_seed():
    def row(kind, what, seconds, accuracy):
        return {"kind": kind, "what": what, "seconds": seconds, "scoring": seconds, "accuracy": accuracy}

    rows = [
        row("ours", "the recipe", [1.0, 2.0, 3.0], [98.0, 99.0, 97.0]),
        row("ours", "better", [0.5, 1.0, 6.0], [98.5, 99.5, 97.5]),
        row("rival", PUBLISHED_RIVAL, [2.0, 4.0, 6.0], [98.0, 98.0, 98.0]),
        row("rival", "other", [1.0, 2.0, 3.0], [98.0, 98.0, 99.5]),
    ]
    made = ladder_tables(WHERE | {"rows": rows})
    assert "| better     | 98.50 ± 0.58 | +0.50 ± 0.00 | 1.00 | 0.50    | 0.25      |" in made["ladder-ours"]
    assert "98.00 ± 0.00 |              | 4.00 | 2.00    | 1.00      |" in made["ladder-rival"]
    assert "98.50 ± 0.50 | +0.50 ± 0.50 | 2.00 | 1.00    | 0.50      |" in made["ladder-rival"]


def test_the_time_to_the_rivals_accuracy_lies_between_two_shares_of_the_images():
    def row(kind, what, seconds, accuracy):
        return {"kind": kind, "what": what, "seconds": [seconds] * 2, "scoring": [1.0] * 2, "accuracy": [accuracy] * 2}

    rows = [
        row("ours", "the recipe", 4.0, 99.0),
        row("ours", "half of the images", 2.0, 97.0),
        row("ours", "3/4 of the images", 3.0, 98.0),
        row("rival", PUBLISHED_RIVAL, 7.0, 98.5),
        row("rival", "batches of 512, rate 0.01", 9.0, 98.5),
    ]
    target = ladder_tables(WHERE | {"rows": rows})["ladder-target"]
    assert "ours takes 3.50 s, 0.50 of its 7.00 s" in target and target.count("\n") == 0
    rows[3] = row("rival", PUBLISHED_RIVAL, 7.0, 99.5)
    target = ladder_tables(WHERE | {"rows": rows})["ladder-target"]
    assert "The mean of ours is 0.50 ± 0.00 points below" in target
    rows[3] = row("rival", PUBLISHED_RIVAL, 7.0, 96.5)
    target = ladder_tables(WHERE | {"rows": rows})["ladder-target"]
    assert target.startswith("With half of the images the mean of ours is above") and "below" not in target


def test_the_harder_part_of_a_batch_has_its_highest_losses(parts):
    run = ladder.Run("fast", parts[0], torch.device("cpu"), batch_size=200)
    whole = next(run.batches.epoch(0))
    ladder.harder(run, None, 0.25)
    part = next(run.batches.epoch(0))
    assert [len(table) for table in part] == [50] * 4 and torch.equal(part[3], part[1] + part[2].unsqueeze(1))
    run.model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        losses = [
            torch.nn.functional.cross_entropy(run.model(image, addend[:, 0])[0].float(), digit, reduction="none")
            for image, addend, digit, _ in (whole, part)
        ]
    torch.testing.assert_close(losses[1].sort().values, losses[0].sort().values[-50:])


def test_images_are_smaller_in_the_first_half_of_the_training_alone(parts):
    run = ladder.Run("fast", parts[0], torch.device("cpu"), batch_size=160)
    ladder.smaller_first(run, None)
    sides = []
    run.model.encoder[2].register_forward_hook(lambda layer, images, _: sides.append(images[0].shape[-1]))
    run.train()
    run.model.eval()(torch.zeros(2, 1, 28, 28), torch.zeros(2, dtype=torch.int64))
    assert sides == [20, 20, 24, 24, 24]
