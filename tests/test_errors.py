"""Errors and calibration: what a temperature does, what is counted, on which images it is fitted."""

import json
import shutil

import pytest
import torch

import evaluate
from data import load_digits, split_indices
from model import build_model
from studies import errors, tables
from support.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def net():
    return build_model("tiny")


def predictor(factor, seed=0):
    """(log-probabilities, targets) of a head whose logits are `factor` times those that its targets are drawn by."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3000, 10, 10, dtype=torch.float64, generator=generator)
    target = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, generator=generator).view(3000, 10)
    return (factor * logits).log_softmax(-1), target


def test_a_calibrated_head_has_no_calibration_error_and_the_temperature_1():
    found = errors.calibrate(*predictor(1.0), *predictor(1.0, seed=1))
    assert found["temperature"] == pytest.approx(1, abs=0.02)
    assert found["before"]["ece"] < 0.01 and found["after"]["ece"] < 0.01


@pytest.mark.parametrize("factor", [3.0, 0.4])
def test_a_head_too_sure_or_too_unsure_is_scaled_back(factor):
    found = errors.calibrate(*predictor(factor), *predictor(factor, seed=1))
    assert found["temperature"] == pytest.approx(factor, rel=0.03)
    assert found["before"]["ece"] > 0.1 and found["after"]["ece"] < 0.01
    assert found["after"]["loss"] < found["before"]["loss"]


def test_no_temperature_near_the_fitted_one_has_a_smaller_loss():
    log_p, target = predictor(3.0)
    best = errors.fit_temperature(log_p, target)
    losses = [errors.reliability((log_p / t).log_softmax(-1), target)["loss"] for t in (best, 0.98 * best, 1.02 * best)]
    assert losses[0] == min(losses)


def test_where_all_is_right_or_wrong_the_temperature_stays_in_its_range():
    log_p = torch.eye(10, dtype=torch.float64).mul(4).log_softmax(-1).unsqueeze(1)
    digits = torch.arange(10).unsqueeze(1)
    assert errors.fit_temperature(log_p, digits) == pytest.approx(errors.TEMPERATURES[0])
    assert errors.fit_temperature(log_p, (digits + 1) % 10) == pytest.approx(errors.TEMPERATURES[1])


@pytest.mark.parametrize("temperature", errors.TEMPERATURES)
def test_a_temperature_changes_no_answer(net, temperature):
    outputs = torch.randn(200, 10, 10) * 20, torch.randn(200, 10, 19) * 20
    for log_p, said in zip(errors.log_probabilities([net], [outputs]), evaluate.answers([net], [outputs]), strict=True):
        assert torch.equal((log_p / temperature).log_softmax(-1).argmax(-1), said)


@pytest.mark.parametrize("encoding", ["onehot", "binary", "scalar"])
def test_what_is_scaled_is_the_logarithm_of_the_mean_probability(encoding):
    models = [build_model("tiny", sum_encoding=encoding) for _ in range(2)]
    outputs = [(torch.randn(20, 10, 10), 10 * torch.rand(20, 10, models[0].sum_encoding.width)) for _ in models]
    pairs = zip(errors.log_probabilities(models, outputs), evaluate.mean_probabilities(models, outputs), strict=True)
    for log_p, mean in pairs:
        assert log_p.isfinite().all()
        torch.testing.assert_close(log_p.log_softmax(-1).exp(), mean.double(), atol=1e-6, rtol=0)


def test_the_counts_agree_with_the_scores():
    digits = torch.randint(0, 10, (300,))
    read = torch.where(torch.rand(300, 10) < 0.7, digits.unsqueeze(1), torch.randint(0, 10, (300, 10)))
    sums = torch.where(torch.rand(300, 10) < 0.7, read + torch.arange(10), torch.randint(0, 19, (300, 10)))
    scores, counts = evaluate.score(read, sums, digits), errors.agreement(read, sums, digits)
    assert min(counts.values()) > 0
    assert counts["agree"] == round(3000 * scores["head_agreement"]) == counts["both right"] + counts["same error"]
    assert counts["both right"] == 3000 - scores["joint_misses"]
    assert counts["sum only"] + counts["same error"] + counts["two errors"] == scores["digit_misses"]
    assert counts["digit only"] + counts["same error"] + counts["two errors"] == scores["sum_misses"]
    assert int(errors.joint_wrong(read, sums, digits).sum()) == scores["joint_misses"]


def outputs_for(digits, wrong):
    """Outputs of a network that answers rightly, with the digit 8 at 82 % for the images `wrong` with addends 0-6."""
    read = digits.unsqueeze(1).expand(-1, 10).clone()
    read[wrong, :7] = 8
    sums = digits.unsqueeze(1) + torch.arange(10)
    return (torch.eye(10)[read] * 0.8 + 0.02).log(), 50 * torch.eye(19)[sums]


def test_a_misread_image_is_listed_with_label_answer_and_confidence(net):
    digits = torch.tensor([3, 4, 5, 6])
    found = errors.look_at(
        [net], ([outputs_for(digits, [0])], digits), ([outputs_for(digits, [2])], digits), judged=(2,)
    )
    confidence = pytest.approx(0.7 * 0.82 + 0.3 * 0.02)
    assert found["misread"] == [{"index": 2, "label": 5, "answer": 8, "confidence": confidence, "wrong_pairs": 7}]
    assert found["scores"]["joint_accuracy"] == 33 / 40 and found["scores_without"]["joint_accuracy"] == 1
    assert errors.look_at([net], *[([outputs_for(digits, [2])], digits)] * 2, judged=())["scores_without"] is None


def test_the_labels_judged_wrong_are_those_that_people_were_shown(mnist_dir):
    digits = load_digits("mnist", mnist_dir, train=False)[1]
    assert digits[list(errors.JUDGED_WRONG)].tolist() == [8, 0, 9, 4, 2, 5, 6, 6, 5, 5, 0, 1, 4, 6, 5]


def network(name, *indices, ensemble=False):
    """What a record of studies.errors says of a network that misreads these images."""
    misread = [dict(index=n, label=1, answer=7, confidence=0.5, wrong_pairs=10) for n in indices]
    part = {"temperature": 1.0} | {when: {"ece": 0.0, "loss": 0.0} for when in ("before", "after")}
    return {
        **dict(name=name, ensemble=ensemble, fitted_on=5000, seen=False, misread=misread, scores_without=None),
        **dict(calibration=dict(digit=part, sum=part), scores=dict.fromkeys(errors.ACCURACIES, 0.5)),
        "agreement": {"agree": 9},
    }


def record_of(*networks):
    return dict(device="", versions="", commit="", judged_wrong=[947], networks=networks) | {"data set": "mnist"}


def test_the_images_of_all_are_those_that_every_checkpoint_misreads():
    record = record_of(network("a", 5, 6, 947), network("b", 6, 947, 8), network("ensemble", 6, 9, ensemble=True))
    made = errors.errors_tables(record)
    assert made["errors-common"] == "2 images misread by each of the 2 networks: 6 (1 read as 7), 947* (1 read as 7)."
    assert made["errors-ensemble"] == "2 images misread by the ensemble: 6 (1 read as 7), 9 (1 read as 7)."
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in made["errors-images"].splitlines()[2:]]
    assert [row[0] for row in rows] == ["5", "6", "8", "9", "947*"]
    assert rows[1] == ["6", "1", *["7 (50 %)"] * 3] and rows[2] == ["8", "1", "", "7 (50 %)", ""]
    pytest.importorskip("matplotlib")
    with errors.figures.style("light"):
        sheet = errors.draw_misread(record, torch.zeros(1000, 1, 28, 28, dtype=torch.uint8), "light")
    said = [(panel.get_title("center"), panel.get_xlabel()) for panel in sheet.axes]
    assert said[:2] == [("1 read as 7", "2 of 2, no. 6"), ("1 read as 7 *", "2 of 2, no. 947")]
    frames = [panel.spines["left"].get_linestyle() for panel in sheet.axes[:3]]
    assert frames[0] == frames[2] != frames[1]  # told apart by more than colour


def test_the_first_network_of_each_size_comes_from_three_records(tmp_path):
    records = {
        "": record_of(network("base-s0", 5, 6), network("base-s1", 5)),
        "-sizes": record_of(network("tiny-s0", 5, 6, 7), network("fast-s0", 5, 6, 8)),
        "-large": record_of(network("large-s0", 5, 9), network("ensemble", 5, ensemble=True)),
    }
    for kind, record in records.items():
        (tmp_path / f"errors{kind}-cpu.json").write_text(json.dumps(record))
    made = tables.errors(tmp_path)
    names = [line.split("|")[1].strip() for line in made["errors-sizes-scores"].splitlines()[2:]]
    assert names == ["base-s0", "tiny-s0", "large-s0", "fast-s0"]
    assert made["errors-sizes-common"] == "1 image misread by each of the 4 networks: 5 (1 read as 7)."


# ---------------------------------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def checkpoints(trained, tmp_path):
    """Copies of the checkpoint of a run that held out 100 images, which say that they held out 100, 40 and none."""
    for name, size in (("a", 100), ("b", 40), ("c", 0)):
        state = load_checkpoint(trained / "best.pt")
        state["args"]["val_size"] = size
        save_checkpoint(state, tmp_path / f"{name}-best.pt")
    return tmp_path


def test_each_temperature_is_fitted_on_the_images_that_all_of_its_networks_held_out(
    run, checkpoints, small_dir, small, monkeypatch
):
    fitted_on, fit = [], errors.fit_temperature
    monkeypatch.setattr(errors, "fit_temperature", lambda *pair: fitted_on.append(pair[1][:, 0].tolist()) or fit(*pair))
    flags = ["--data-dir", small_dir, "--device", "cpu", "--ensemble", "--json", "e.json"]
    status, _, err = run(errors, "a-best.pt", "b-best.pt", *flags)
    assert status == 0 and not err
    held = [small[1][split_indices(700, size)[1]].tolist() for size in (100, 40, 40)]
    assert fitted_on[::2] == held
    networks = json.loads((checkpoints / "e.json").read_text())["networks"]
    assert [(row["name"], row["fitted_on"], row["seen"]) for row in networks] == [
        *(("a", 100, False), ("b", 40, False), ("ensemble", 40, False))
    ]


def test_a_run_without_held_out_images_is_named_in_a_warning_and_in_the_table(run, checkpoints, small_dir):
    status, out, err = run(errors, "a-best.pt", "c-best.pt", "--ensemble", "--data-dir", small_dir, "--device", "cpu")
    assert status == 0 and err.startswith("WARNING: c-best.pt was trained with --val-size 0") and err.count("\n") == 1
    lines = {line.split("|")[1].strip(): line for line in out.split("\n\n")[1].splitlines()}
    assert "100 held out" in lines["a"] and "seen in training" in lines["c"] and "seen in training" in lines["ensemble"]


def test_the_record_says_what_evaluate_says_and_the_figure_is_drawn(run, checkpoints, small_dir):
    pytest.importorskip("matplotlib")
    flags = ["--data-dir", small_dir, "--device", "cpu"]
    assert run(evaluate, "a-best.pt", *flags, "--json", "scores.json")[0] == 0
    status, out, _ = run(errors, "--ckpt", "a-best.pt", *flags, "--json", "e.json", "--figure", "e.svg")
    assert status == 0 and "ensemble" not in out
    scores, record = (json.loads((checkpoints / name).read_text()) for name in ("scores.json", "e.json"))
    (network,) = record["networks"]
    assert network["scores"] == {name: scores[name] for name in errors.ACCURACIES} and not network["scores_without"]
    assert network["agreement"]["agree"] == round(scores["pairs"] * scores["head_agreement"])
    for head in errors.HEADS:
        assert network["calibration"][head]["before"]["loss"] == pytest.approx(scores[f"{head}_loss"], rel=1e-4)
    assert network["misread"] and (checkpoints / "e.svg").read_bytes().startswith(b"<?xml")


BAD = {
    "none.pt": "no checkpoint none.pt",
    "a-best.pt --ensemble": "needs two checkpoints",
    "a-best.pt ensemble.pt --ensemble": "a checkpoint has the name ensemble",
    "a-best.pt copy/a.pt": "two checkpoints have the name a",
    "a-best.pt other.pt": "trained on mnist and synthetic",
    "odd.pt": "its entry args is damaged",
    "a-best.pt --json none/e.json": "there is no folder none",
    "a-best.pt --json a-best.pt": "is a checkpoint",
    "a-best.pt --json e.svg --figure e.svg": "--figure e.svg would overwrite what --json writes",
    "a-best.pt --json e-dark.svg --figure e.svg": "--figure e-dark.svg would overwrite what --json writes",
    "a-best.pt --figure none/e.svg": "there is no folder none",
    "a-best.pt --figure e.gif": "must end in .svg or .png",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_command_line_is_answered_in_one_line(run, checkpoints, line):
    pytest.importorskip("matplotlib")
    (checkpoints / "copy").mkdir()
    shutil.copy("a-best.pt", "copy/a.pt")
    state = load_checkpoint(checkpoints / "a-best.pt")
    for name, change in (("other", {"dataset": "mnist"}), ("odd", {"args": state["args"] | {"val_size": -1}})):
        save_checkpoint(state | change, checkpoints / f"{name}.pt")
    before = (checkpoints / "a-best.pt").read_bytes()
    status, out, err = run(errors, *line.split())
    assert status == 2 and not out and err.count("\n") == 1
    assert err.startswith("studies.errors.py: error: ") and BAD[line] in err
    assert (checkpoints / "a-best.pt").read_bytes() == before
