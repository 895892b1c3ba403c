"""The study of robustness: what it scores, that table and JSON agree, and that the flag of train.py acts."""

import copy
import json
import re
import shutil

import pytest
import torch

import evaluate
from conftest import contents
from data import generator_for, load_digits, split_indices
from studies import robustness
from studies.markdown import NOT_RECORDED
from studies.robustness import CLEAN, KINDS, MEAN, STRENGTHS
from studies.tables import recorded
from support import figures
from support.checkpoint import load_checkpoint, save_checkpoint
from support.cli import UserError
from support.corruptions import corrupt


@pytest.fixture(scope="module")
def scored(trained, small_dir, tmp_path_factory):
    """(folder, record, printed text) of the study on two checkpoints, the second with other weights."""
    folder = tmp_path_factory.mktemp("robustness")
    shutil.copy(trained / "best.pt", folder / "first-s0-best.pt")
    state = load_checkpoint(trained / "best.pt")
    state["weights"]["digit_head.bias"] = state["weights"]["digit_head.bias"].roll(1) + torch.arange(10) / 10
    state["args"]["augment_corruptions"] = 0.25
    save_checkpoint(state, folder / "other.pt")
    files = [str(folder / name) for name in ("first-s0-best.pt", "other.pt")]
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *words, **_: printed.extend(words))
        patch.chdir(folder)
        robustness.main(["--ckpt", *files, "--data-dir", str(small_dir), "--device", "cpu", "--json", "r.json"])
    return folder, json.loads((folder / "r.json").read_text()), "\n".join(map(str, printed))


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_kind_and_strength_of_every_checkpoint_is_scored_by_itself(scored, small_dir):
    folder, record, _ = scored
    images, digits, _ = load_digits("synthetic", small_dir, train=False)
    assert record["data set"] == "synthetic: 150 test images" and {"commit", "versions", "device"} <= record.keys()
    cases = [(CLEAN, 0), *((kind, n) for kind in KINDS for n in STRENGTHS), *((MEAN, n) for n in STRENGTHS)]
    for network in record["networks"]:
        rows = {(row["kind"], row["strength"]): row for row in network["rows"]}
        assert list(rows) == cases
        model, _ = evaluate.load_model(folder / network["checkpoint"])
        for kind, strength in ((CLEAN, 0), ("blur", 3), ("Gaussian noise", 5), ("occlusion", 1)):
            shown = images
            if kind != CLEAN:
                shown = corrupt(images, kind, strength, generator_for(f"robustness {kind}", 0, strength))
            scores = evaluate.score(*evaluate.predict_pairs([model], shown), digits)
            for head in ("digit", "sum", "joint"):
                assert rows[kind, strength][head] == pytest.approx(100 * scores[f"{head}_accuracy"], abs=1e-9)
        for strength in STRENGTHS:
            mean = sum(rows[kind, strength]["joint"] for kind in KINDS) / len(KINDS)
            assert rows[MEAN, strength]["joint"] == pytest.approx(mean)
    first, second = (network["rows"] for network in record["networks"])
    assert first != second and [network["corrupted"] for network in record["networks"]] == [0.0, 0.25]


def test_the_json_equals_the_table(scored):
    _, record, printed = scored
    assert printed == robustness.robustness_tables(record)["robustness"]
    assert f"| {MEAN} | first (1 run) " in printed and "other (1 run)" in printed
    assert re.search(r"^\| share corrupted +\| 0 +\| 0.25 +\|$", printed, re.MULTILINE)
    details = re.split(r"^.* at the strengths .*:\n", printed, flags=re.MULTILINE)[1:]
    for network, detail in zip(record["networks"], details, strict=True):
        rows = {(row["kind"], row["strength"]): row for row in network["rows"]}
        for line in detail.strip().splitlines()[2:]:
            kind, *figures = cells(line)
            expected = [rows[kind, n]["joint"] for n in STRENGTHS] if kind != CLEAN else [rows[CLEAN, 0]["joint"]]
            expected += [rows[(CLEAN, 0) if kind == CLEAN else (kind, 3)][head] for head in ("digit", "sum")]
            assert [figure for figure in figures if figure] == [f"{value:.2f}" for value in expected]
        assert len(detail.strip().splitlines()) == 2 + 1 + len(KINDS) + 1


def test_seeds_are_averaged_and_lines_fit_a_page(scored):
    _, record, _ = scored
    record = copy.deepcopy(record)
    for number, network in enumerate(record["networks"]):
        network |= {"checkpoint": f"base-0.5-s{number}-best.pt", "corrupted": 0.5}
        for row in network["rows"]:
            row["joint"] = 90.0 + number
    made = robustness.robustness_tables(record)["robustness"]
    assert "base-0.5 (2 runs)" in made and made.count("90.50 ± 0.71") == 6
    assert "| 90.50 | 90.50 | 90.50 | 90.50 | 90.50 |" in made
    record["networks"][1]["checkpoint"] = "base-0.5-s0-last.pt"
    apart = robustness.robustness_tables(record)["robustness"]
    assert "base-0.5 (1 run)" in apart and "base-0.5, last epoch (1 run)" in apart
    assert all(len(line) <= (110 if line.startswith("|") else 118) for line in made.splitlines())


def test_a_missing_record_is_named_so_and_one_that_is_there_gives_its_tables(scored):
    folder, record, printed = scored
    made = recorded(folder / "r.json", robustness.robustness_tables, ("robustness",))
    assert made == {"robustness": printed} and record["networks"]
    means = robustness.robustness_tables(record)["means"]
    assert printed.startswith(f"{means}\n\n") and means.count("| strength ") == len(STRENGTHS)
    assert recorded(folder / "none.json", robustness.robustness_tables, ("robustness",)) == {"robustness": NOT_RECORDED}


def test_the_figure_shows_every_kind_for_light_and_dark_pages(scored, tmp_path):
    pytest.importorskip("matplotlib")
    _, record, _ = scored
    drawn = []
    figures.save_themes(lambda theme: drawn.append(robustness.draw(record, theme)) or drawn[-1], tmp_path / "f.svg")
    assert set(contents(tmp_path)) == {"f.svg", "f-dark.svg"} and len(set(contents(tmp_path).values())) == 2
    axes = drawn[0].axes
    assert [panel.get_title("left") for panel in axes[:14]] == [*KINDS, MEAN]
    rows = {(row["kind"], row["strength"]): row["joint"] for row in record["networks"][1]["rows"]}
    shown = [rows[CLEAN, 0], *(rows["blur", strength] for strength in STRENGTHS)]
    assert list(axes[KINDS.index("blur")].lines[1].get_ydata()) == pytest.approx(shown)


def test_quick_scores_few_images_and_validation_those_held_out(run, trained, small, small_dir, tmp_path, monkeypatch):
    flags = ["--ckpt", trained / "best.pt", "--data-dir", small_dir, "--device", "cpu", "--json", "r.json"]
    asked = []
    monkeypatch.setattr(robustness, "score_all", lambda models, *rest: asked.append(rest) or [[]])
    monkeypatch.setattr(robustness, "robustness_tables", lambda record: {"robustness": record["data set"]})
    status, out, err = run(robustness, *flags, "--quick")
    assert status == 0 and out == "synthetic: 100 test images\n", err
    status, out, err = run(robustness, *flags, "--validation")
    assert status == 0 and out == "synthetic: 100 validation images\n", err  # --val-size of the run
    _, held = split_indices(700, 100)
    assert torch.equal(asked[1][0], small[0][held]) and torch.equal(asked[1][1], small[1][held])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--ckpt none.pt", "no checkpoint none.pt"),
        ("--ckpt run.pt none.pt", "no checkpoint none.pt"),
        ("", "no checkpoint best.pt"),
        ("--ckpt run.pt --json none/r.json", "there is no folder none"),
        ("--ckpt run.pt --json ./run.pt", "is a checkpoint"),
        ("--ckpt run.pt --figure none/r.svg", "there is no folder none"),
        ("--ckpt run.pt --figure r.gif", "must end in .svg or .png"),
        ("--ckpt all.pt --validation", "trained on all images"),
        ("--ckpt run.pt all.pt --validation", "trained on all images"),
        ("--ckpt forged.pt", "its entry args is damaged"),
        ("--ckpt run.pt mnist.pt", "trained on mnist and synthetic; choose with --dataset"),
        ("--ckpt run.pt run-best.pt", "two checkpoints have the name run"),
        ("--kpt run.pt", "did you mean --ckpt?"),
    ],
)
def test_errors_are_one_line_before_the_work(run, trained, small_dir, tmp_path, monkeypatch, words, said):
    state = load_checkpoint(trained / "best.pt")
    for name, args in (("run", {}), ("all", {"val_size": 0}), ("forged", {"augment_corruptions": "\n" * 9})):
        save_checkpoint(state | {"args": state["args"] | args}, tmp_path / f"{name}.pt")
    save_checkpoint(state | {"dataset": "mnist"}, tmp_path / "mnist.pt")
    monkeypatch.setattr(robustness, "score_all", lambda *_: pytest.fail("scored"))
    before = contents(tmp_path)
    status, _, err = run(robustness, *words.split(), "--data-dir", small_dir, "--device", "cpu")
    assert status == 2 and said in err and err.count("\n") == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "content",
    ["", pytest.param("[" * 100_000, id="deep"), "[]", "{}", '{"networks": [{"checkpoint": 1}]}', '{"networks": null}'],
)
def test_a_damaged_record_is_named_in_place_of_a_table(tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(UserError, match="damaged"):
        recorded(tmp_path / "r.json", robustness.robustness_tables, ("robustness",))
