"""The scores: counted pair by pair, over all of them, without touching anything."""

import json

import numpy as np
import pytest
import torch

import data
import evaluate
from evaluate import consistent_answers, interval, mean_losses, pair_outputs, predict_pairs, score
from model import build_model
from strokes import cover, on_paper, save


def predictions(digits):
    """Right answers for every pair."""
    return digits.unsqueeze(1).expand(-1, 10).clone(), digits.unsqueeze(1) + torch.arange(10)


def test_right_answers_score_one():
    scores = score(*predictions(torch.arange(10)), torch.arange(10))
    assert scores["pairs"] == 100 and scores["joint_accuracy"] == scores["head_agreement"] == 1.0
    assert scores["joint_misses"] == 0 and scores["images_all_right"] == 10
    assert scores["confused_digits"] == [] and scores["sum_accuracy_given_digit_wrong"] is None


def test_joint_is_counted_not_multiplied():
    digits = torch.arange(10)
    digit_predictions, sum_predictions = predictions(digits)
    digit_predictions[0] = 9  # ten pairs with the digit wrong
    sum_predictions[0, :5] = 18  # five of those with the sum wrong too
    sum_predictions[1, 0] = 18  # and one with the sum alone wrong
    scores = score(digit_predictions, sum_predictions, digits)
    assert (scores["digit_misses"], scores["sum_misses"], scores["joint_misses"]) == (10, 6, 11)
    assert scores["joint_accuracy"] == 0.89 != scores["digit_accuracy"] * scores["sum_accuracy"]
    assert scores["sum_accuracy_given_digit_right"] == 89 / 90
    assert scores["sum_accuracy_given_digit_wrong"] == 0.5
    # agreeing: 89 right pairs, and the pair (0 read as 9, addend 9) answered 18? no: 0 + 9 was answered rightly
    assert scores["head_agreement"] == 0.89
    assert scores["images_all_right"] == 8
    assert scores["joint_accuracy_grid"][0] == [0.0] * 10
    assert scores["joint_accuracy_grid"][1] == [0.0] + [1.0] * 9
    assert scores["confused_digits"] == [{"digit": 0, "predicted": 9, "pairs": 10}]


def test_heads_can_agree_on_a_wrong_answer():
    digits = torch.arange(10)
    wrong = (digits + 1) % 10
    scores = score(*predictions(wrong), digits)
    assert scores["head_agreement"] == 1.0 and scores["joint_accuracy"] == 0.0


def test_the_interval_counts_images_not_pairs_and_is_monotone_in_the_misses():
    """The pairs of an image stand or fall together: 1,000 images are 1,000 observations, however the misses lie."""
    right = torch.ones(1000, 10, dtype=torch.bool)
    low, high = interval(right)
    assert low == pytest.approx(1000 / 1003.8415, abs=1e-6) and high == 1.0
    places = torch.randperm(10_000, generator=torch.Generator().manual_seed(0))
    for place in places[:2000]:
        right.view(-1)[place] = False
        before, (low, high) = (low, high), interval(right)
        assert low < before[0] and high <= before[1] and low < right.double().mean() < high
    together = torch.ones(1000, 10, dtype=torch.bool)
    together[:200] = False
    assert interval(together) == pytest.approx(interval(right))


def test_the_ragged_last_batch_is_counted(small):
    model = build_model("tiny").eval()
    whole = predict_pairs([model], small[0], batch_size=700)
    ragged = predict_pairs([model], small[0], batch_size=64)
    assert whole[0].shape == (700, 10)
    assert torch.equal(whole[0], ragged[0]) and torch.equal(whole[1], ragged[1])


def test_scoring_is_in_eval_mode_and_leaves_no_trace(small):
    model = build_model("tiny").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    predict_pairs([model], small[0])
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_ensemble_averages_probabilities(small):
    models = [build_model("tiny").eval() for _ in range(3)]
    image, addend = evaluate.prepare(small[0][:20]), torch.arange(10).expand(20, 10)
    mean = torch.stack([model(image, addend)[1].softmax(-1) for model in models]).mean(0)
    assert torch.equal(predict_pairs(models, small[0][:20])[1], mean.argmax(-1))


def test_of_consistent_answers_each_head_can_correct_the_other():
    digit_probabilities, sum_probabilities = torch.full((2, 10, 10), 0.01), torch.full((2, 10, 19), 0.001)
    digit_probabilities[..., 3], digit_probabilities[..., 8] = 0.5, 0.42
    sum_probabilities[0, torch.arange(10), torch.arange(10) + 8] = 0.9  # the sum head is surer of the 8
    sum_probabilities[1, torch.arange(10), torch.arange(10) + 8] = 0.02
    sum_probabilities[1, torch.arange(10), torch.arange(10) + 3] = 0.019  # and here not: the digit decides
    digits, sums = consistent_answers(digit_probabilities, sum_probabilities, torch.arange(10))
    assert digits.tolist() == [[8] * 10, [3] * 10] and sums.equal(digits + torch.arange(10))
    one = consistent_answers(digit_probabilities[0, 4], sum_probabilities[0, 4], torch.tensor(4))
    assert [int(answer) for answer in one] == [8, 12]


def test_a_sum_that_no_digit_gives_leaves_the_answer_to_the_digit():
    digit_probabilities, sum_probabilities = torch.full((1, 10, 10), 0.01), torch.zeros(1, 10, 19)
    digit_probabilities[..., 7] = 0.9
    sum_probabilities[0, torch.arange(10), (torch.arange(10) + 12) % 19] = 1  # of the addends 0 to 2 and 7 to 9
    digits, sums = consistent_answers(digit_probabilities, sum_probabilities, torch.arange(10))
    assert digits[0, [0, 1, 2]].tolist() == [7] * 3 and sums[0, [0, 1, 2]].tolist() == [7, 8, 9]


def test_the_command_prints_and_writes_every_score(run, trained, tmp_path, small_dir):
    status, out, _ = run(
        evaluate, "--ckpt", trained / "best.pt", "--data-dir", small_dir, "--json", tmp_path / "s.json"
    )
    assert status == 0 and "synthetic test set, tiny: 150 images x 10 addends" in out
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["pairs"] == 1500 and scores["dataset"] == "synthetic"
    assert scores["joint_accuracy"] == (1500 - scores["joint_misses"]) / 1500
    assert f"{100 * scores['joint_accuracy']:.3f} %" in out
    assert f"losses          digit {scores['digit_loss']:.4f}, sum {scores['sum_loss']:.4f}" in out
    images, digits, _ = data.load_digits("synthetic", small_dir, train=False)
    digit_logits, sum_logits = pair_outputs(evaluate.load_model(trained / "best.pt")[0], images)
    right = 0  # the most probable of ten digits, each with its sum
    for logits, sums, digit in zip(digit_logits.log_softmax(-1), sum_logits.log_softmax(-1), digits, strict=True):
        right += sum(int((logits[a] + sums[a, a : a + 10]).argmax() == digit) for a in range(10))
    assert scores["consistent_joint_accuracy"] == right / 1500
    assert f"of consistent answers   {100 * right / 1500:7.3f} %" in out
    again = run(evaluate, "--ckpt", trained / "best.pt", "--data-dir", small_dir)
    assert again[1] == out


def test_checkpoints_are_named_with_or_without_the_flag_and_several_are_an_ensemble(run, trained, small_dir):
    best = trained / "best.pt"
    one = run(evaluate, best, "--data-dir", small_dir)
    assert one[0] == 0 and one == run(evaluate, "--ckpt", best, "--data-dir", small_dir)
    two = run(evaluate, best, trained / "logs" / "run-best.pt", "--data-dir", small_dir)[1]
    assert "ensemble of 2" in two and two.splitlines()[2:] == one[1].splitlines()[2:]


def test_the_losses_are_plain_cross_entropy_over_all_pairs(small):
    model, (images, digits) = build_model("tiny").eval(), (small[0][:70], small[1][:70])
    with torch.no_grad():
        digit_logits, sum_logits = model(evaluate.prepare(images), torch.arange(10).expand(70, 10))
    sums = digits.unsqueeze(1) + torch.arange(10)
    outputs = pair_outputs(model, images, batch_size=32)
    losses = mean_losses([model], [outputs], digits)
    wanted = -digit_logits.log_softmax(-1)[range(70), :, digits].mean().item()
    assert losses["digit_loss"] == pytest.approx(wanted)
    wanted = -sum_logits.log_softmax(-1).gather(-1, sums.unsqueeze(-1)).mean().item()
    assert losses["sum_loss"] == pytest.approx(wanted)
    # that of an ensemble is of the mean probabilities: of copies, that of one
    assert mean_losses([model] * 3, [outputs] * 3, digits) == pytest.approx(losses)
    blind = [torch.zeros_like(logits) for logits in outputs]
    assert mean_losses([model], [blind], digits) == pytest.approx({"digit_loss": 2.302585, "sum_loss": 2.944439})
    broken = [logits * float("nan") for logits in outputs]
    assert mean_losses([model], [broken], digits) == {"digit_loss": None, "sum_loss": None}


def test_the_losses_are_those_of_the_encoding(small):
    model = build_model("tiny", sum_encoding="scalar")
    outputs = [torch.zeros(5, 10, 10), torch.full((5, 10, 1), 3.0)]
    losses = mean_losses([model], [outputs], torch.zeros(5, dtype=torch.int64))
    assert losses["sum_loss"] == pytest.approx(sum((3 - addend) ** 2 for addend in range(10)) / 10)


# ---------------------------------------------------------------------------------------------------------------------
# A folder as a test set


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "my-digits"
    folder.mkdir()
    for digit in range(10):
        save(folder / f"{digit}_a.png", on_paper(cover(digit, np.random.default_rng(digit))))
    return folder


def test_a_folder_of_images_is_scored_with_all_ten_addends(run, trained, folder, monkeypatch):
    status, out, _ = run(evaluate, trained / "best.pt", "--dataset-folder", folder, "--json", "scores.json")
    assert status == 0 and "folder my-digits test set, tiny: 10 images x 10 addends" in out
    scores = json.loads((folder.parent / "scores.json").read_text())
    assert scores["dataset"] == "folder my-digits"
    monkeypatch.chdir(folder)
    assert "folder my-digits test set" in run(evaluate, trained / "best.pt", "--dataset-folder", ".")[1]
    images, digits, name = data.load_folder(folder)
    assert images.shape == (10, 1, 28, 28) and digits.tolist() == list(range(10)) and name == "my-digits"
    expected = evaluate.score(*evaluate.predict_pairs([evaluate.load_model(trained / "best.pt")[0]], images), digits)
    assert scores["pairs"] == 100 and scores["joint_misses"] == expected["joint_misses"]
    (folder / "0_a.png").rename(folder / "1_b.png")
    assert data.load_folder(folder)[1].tolist() == [1, 1, *range(2, 10)]


def test_a_folder_that_cannot_be_scored_is_refused(run, trained, folder, tmp_path):
    def refused(*words):
        status, out, err = run(evaluate, trained / "best.pt", "--dataset-folder", *words)
        assert status == 2 and out == "" and err.count("\n") == 1
        return err

    assert "exclude each other" in refused(folder, "--dataset", "synthetic")
    assert "there is no folder none" in refused("none")
    assert "would overwrite a file that is read" in refused(folder, "--json", folder / "7_a.png")
    assert "no image is in the folder" in refused("")  # the value of a variable that is not set: not MNIST instead
    assert "no image is in the folder" in refused(trained)
    for name in ("seven.png", "17_a.png"):
        (folder / "7_a.png").rename(folder / name)
        assert f"{name} is not named by its digit; a 7 is 7_anything.png" in refused(folder)
        (folder / name).rename(folder / "7_a.png")
    save(folder / "3_b.png", np.full((60, 60), 99))
    assert "3_b.png shows no ink" in refused(folder)
