"""The ways of answering from two heads, several views and several networks: each against a count by hand."""

import json
import math
import shutil

import pytest
import torch

import evaluate
from conftest import ROOT, contents
from data import load_digits, split_indices
from model import build_model
from studies import combine
from studies.markdown import NOT_RECORDED
from studies.tables import consistent
from support.checkpoint import load_checkpoint, save_checkpoint


def answers_by_hand(networks, views, kind, answers):
    """(digits, sums) of every image with every addend, with loops; networks: [[(digit, sum) of a view]]."""
    parts = [view for network in networks for view in network[:views]]

    def pooled(head, image, addend, number):
        values = [part[head][image, addend, number].item() for part in parts]
        if kind == "log p":
            return math.exp(sum(math.log(value) for value in values) / len(values))
        return sum(values) / len(values)

    images = len(parts[0][0])
    digits, sums = torch.zeros(images, 10, dtype=torch.int64), torch.zeros(images, 10, dtype=torch.int64)
    for image in range(images):
        for addend in range(10):
            if answers == "consistent":
                digit = max(range(10), key=lambda d: pooled(0, image, addend, d) * pooled(1, image, addend, d + addend))
                digits[image, addend], sums[image, addend] = digit, digit + addend
            else:
                digits[image, addend] = max(range(10), key=lambda d: pooled(0, image, addend, d))
                sums[image, addend] = max(range(19), key=lambda s: pooled(1, image, addend, s))
    return digits, sums


def test_each_way_scores_what_loops_over_its_definition_score():
    networks = [
        [((3 * torch.randn(6, 10, 10)).softmax(-1), (3 * torch.randn(6, 10, 19)).softmax(-1)) for _ in combine.VIEWS]
        for _ in range(2)
    ]
    digits = torch.randint(0, 10, (6,))
    alone, together = (
        combine.score_ways([[network] for network in networks], digits),
        combine.score_ways([networks], digits),
    )
    assert len(together) == 8 and [row["mean"] for row in alone] == ["", "", "p", "p", "log p", "log p"]
    for row in (*alone, *together):
        members = [[network] for network in networks] if row["networks"] == 1 else [networks]
        said = [answers_by_hand(each, row["views"], row["mean"], row["answers"]) for each in members]
        for number, pair in enumerate(said):
            scores = evaluate.score(*pair, digits)
            for name in combine.SCORES:
                assert row[name][number] == 100 * scores[name]
            assert row["answers"] == "each head" or row["head_agreement"][number] == 100
        assert len(row["joint_accuracy"]) == len(members)
    assert len({row["joint_accuracy"][0] for row in together}) > 2  # or a way might do nothing


def test_the_difference_is_paired_by_image_and_its_interval_is_over_the_images():
    def network(right):  # of two images with the digit 3: sure of it, or sure of a 5
        digit = torch.eye(10)[torch.tensor([[3 if image else 5] * 10 for image in right])]
        sums = torch.tensor([[(3 if image else 5) + addend for addend in range(10)] for image in right])
        return digit * 0.9 + 0.01, torch.eye(19)[sums] * 0.8 + 0.01

    views = [network((True, False)), *[network((True, True))] * 4]
    rows = combine.score_ways([[views]] * 3, torch.tensor([3, 3]))
    assert [row["difference"] for row in rows] == pytest.approx([0, 0, 50, 50, 50, 50])
    assert [row["half"] for row in rows[2:]] == pytest.approx([1.96 * 70.7107 / 2**0.5] * 4)  # 0 and 100 points


def test_the_views_are_the_image_and_its_four_neighbours():
    image = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    image[0, 0, 4, 0] = 9  # in the first column: a step to the left loses it
    places = [combine.moved(image, *step).nonzero()[:, 2:].tolist() for step in combine.VIEWS]
    assert places == [[[4, 0]], [], [[4, 1]], [[3, 0]], [[5, 0]]]  # row, column
    assert all(combine.moved(image, *step).shape == image.shape for step in combine.VIEWS)


def test_the_views_differ_and_the_first_is_what_evaluate_sees():
    model, images = build_model("tiny").eval(), torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    found = combine.probabilities_of(model, images, "cpu")
    digits, sums = evaluate.mean_probabilities([model], [evaluate.pair_outputs(model, images)])
    assert found[0][0].equal(digits) and found[0][1].equal(sums)
    assert len({tuple(digit.flatten().tolist()) for digit, _ in found}) == len(combine.VIEWS) == 5


# ---------------------------------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def checkpoints(trained, tmp_path):
    """Two checkpoints that held out 100 images, the second with other weights, and one that held out none."""
    shutil.copy(trained / "best.pt", tmp_path / "a-best.pt")
    state = load_checkpoint(trained / "best.pt")
    state["weights"]["digit_head.bias"] = state["weights"]["digit_head.bias"].roll(1) + torch.arange(10) / 10
    save_checkpoint(state, tmp_path / "b-best.pt")
    state["args"]["val_size"] = 0
    save_checkpoint(state, tmp_path / "all-best.pt")
    return tmp_path


@pytest.mark.parametrize("validation", [True, False])
def test_the_first_way_is_what_evaluate_scores_on_the_same_images(run, checkpoints, small_dir, small, validation):
    files, flags = ["a-best.pt", "b-best.pt"], ["--data-dir", small_dir, "--device", "cpu", "--json", "c.json"]
    status, out, err = run(combine, *files, *flags, *(["--validation"] if validation else []))
    assert status == 0 and not err
    record = json.loads((checkpoints / "c.json").read_text())
    assert out.strip() == combine.combine_tables(record)["combine"]
    images, digits = small if validation else load_digits("synthetic", small_dir, train=False)[:2]
    held = split_indices(len(images), 100)[1] if validation else torch.arange(len(images))
    assert record["data set"] == f"synthetic: {len(held)} {'validation' if validation else 'test'} images"
    models = [evaluate.load_model(checkpoints / file)[0] for file in files]
    first = {row["networks"]: row for row in reversed(record["rows"])}
    for size, groups in ((1, [models[:1], models[1:]]), (2, [models])):
        scores = [evaluate.score(*evaluate.predict_pairs(members, images[held]), digits[held]) for members in groups]
        assert {name: first[size][name] for name in combine.SCORES} == {
            name: [100 * each[name] for each in scores] for name in combine.SCORES
        }
    assert record["networks"] == [{"name": "a"}, {"name": "b"}]


def test_the_first_way_of_each_number_of_networks_has_no_difference():
    way = {"views": 1, "mean": "", "answers": "consistent", "difference": 0.125, "half": 0.1}
    way |= {name: [90.0, 92.0] for name in combine.SCORES}
    rows = [way | {"networks": 1}, way | {"networks": 1}, way | {"networks": 2}, way | {"networks": 2, "half": 0.2}]
    record = dict(device="d", versions="v", commit="c", networks=[{}, {}], rows=rows) | {"data set": "s"}
    made = combine.combine_tables(record)["combine"]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in made.splitlines()[-4:]]
    assert [row[0] for row in cells] == ["1", "1", "2", "2"] and {row[5] for row in cells} == {"91.000 ± 1.414"}
    assert [row[6:8] for row in cells] == [
        *(["", ""], ["+0.125 ± 0.100", "better"], ["", ""], ["+0.125 ± 0.200", "open"])
    ]
    assert all(len(line) <= (110 if line.startswith("|") else 118) for line in made.splitlines())


def test_the_table_of_consistent_answers_has_the_networks_alone_and_their_ensemble():
    rows = []
    for size, views, mean in ((1, 1, ""), (1, 5, "p"), (1, 5, "log p"), (2, 1, "p"), (2, 5, "p"), (2, 1, "log p")):
        for answers in combine.ANSWERS:
            joint = [90.0 + len(rows), 92.0 + len(rows)][: 3 - size]
            row = {"networks": size, "views": views, "mean": mean, "answers": answers, "joint_accuracy": joint}
            rows.append(row | {"head_agreement": [99.0 - len(rows)], "difference": len(rows) / 10, "half": 0.05})
    alone, both = combine.consistent_rows({"networks": [{}, {}], "rows": rows}, "`large`")["rows"]
    assert alone == ["`large`", "91.000 ± 1.414", "99.000", "92.000 ± 1.414", "+0.100 ± 0.050", "94.000 ± 1.414"]
    assert both == ["2 `large`", "96.000", "93.000", "97.000", "+0.700 ± 0.050", "99.000"]


def test_the_records_that_are_there_make_the_table_of_consistent_answers(tmp_path):
    assert consistent(tmp_path) == NOT_RECORDED
    shutil.copy(ROOT / "logs" / "records" / "combine-large-cpu.json", tmp_path)
    rows = [line.split("|")[1].strip() for line in consistent(tmp_path).splitlines()[2:]]
    assert rows == ["`large`", "5 `large`"]


BAD = {
    "none.pt": "no checkpoint none.pt",
    "all-best.pt --validation": "was trained on all images",
    "a-best.pt copy/a.pt": "two checkpoints have the name a",
    "a-best.pt --json a-best.pt": "is a checkpoint",
    "a-best.pt --json none/c.json": "there is no folder none",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_command_line_is_answered_in_one_line(run, checkpoints, line):
    (checkpoints / "copy").mkdir()
    shutil.copy("a-best.pt", "copy/a.pt")
    before = contents(checkpoints)
    status, out, err = run(combine, *line.split())  # and loads no data: there are none in data/
    assert status == 2 and not out and err.count("\n") == 1 and BAD[line] in err
    assert contents(checkpoints) == before
