"""The figures: of the right things, the same bytes for the same input, and errors in one line."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import plot
from conftest import ROOT, contents
from support import curves, figures, run_figures, sweep
from support.architecture import draw_architecture
from support.calibration import calibration

pytest.importorskip("matplotlib")
RECORDS = ROOT / "logs" / "records"
PICTURES = [f"best-{name}.png" for name in plot.PICTURES]


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """A folder with a finished run and a sweep in logs/."""
    folder = tmp_path_factory.mktemp("plotted")
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    rows = [
        ",".join([f"{10 ** (n / 10 - 7):g}", "1", "2", "3", f"{5 - n / 20 if n < 60 else n - 50}"]) for n in range(81)
    ]
    heading = ",".join(sweep.COLUMNS)
    (folder / "logs" / "run-find-lr.csv").write_text("\n".join([heading, *rows]) + "\n")
    return folder


def test_a_folder_gives_every_figure_and_says_what_it_wrote(run, folder, small_dir, tmp_path):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    status, out, err = run(plot, folder, "--data-dir", small_dir, "--format", "png", "--device", "cpu")
    assert status == 0 and not err
    wanted = sorted(["curves-run.png", "run-find-lr.png", *PICTURES])
    assert sorted(out.split()) == [f"figures/{name}" for name in wanted]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == wanted
    for name in wanted:
        content = (tmp_path / "figures" / name).read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n" and int.from_bytes(content[16:20], "big") == 900
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_what_is_no_run_in_a_folder_is_skipped(run, trained, tmp_path):
    text = (trained / "logs" / "run.csv").read_text()
    for name, content in {"a": text.splitlines()[0] + "\n", "b": text, "c": "design,epoch\n"}.items():
        (tmp_path / f"{name}.csv").write_text(content)
    (tmp_path / "d.csv").symlink_to("none.csv")
    status, out, err = run(plot, ".", "--format", "svg")
    assert status == 0 and out == "figures/curves-b.svg\n"
    assert [line.split(": ")[1] for line in err.splitlines()] == ["skipped"] * 3


def test_each_csv_file_is_read_once(run, folder, small_dir, monkeypatch):
    read, real = [], curves.read_text
    monkeypatch.setattr(curves, "read_text", lambda path: read.append(path.name) or real(path))
    monkeypatch.setattr(plot, "PICTURES", {})  # those of the checkpoint take the longest, and read no CSV file
    run(plot, folder, RECORDS / "tiny-s0.csv", "--format", "svg", "--data-dir", small_dir, "--device", "cpu")
    assert sorted(name for name in read if name.endswith(".csv")) == ["run-find-lr.csv", "run.csv", "tiny-s0.csv"]


def test_runs_of_one_name_in_two_folders_are_two_curves_and_a_file_named_twice_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in "ab":
        (tmp_path / folder).mkdir()
        for name in ("tiny-s0", "tiny-s1"):
            shutil.copy(RECORDS / f"{name}.csv", tmp_path / folder)
    named = [tmp_path / "a" / "tiny-s0.csv", "a/tiny-s0.csv", "a/tiny-s1.csv", "b/tiny-s0.csv"]
    (groups,), _, _ = curves.read_files(named)
    assert {label: len(runs) for label, runs in groups.items()} == {str(Path("a/tiny")): 2, str(Path("b/tiny")): 1}
    (name,) = dict(plot.figures_of([groups], [], [], None, "light"))
    assert name == "curves-a-tiny-b-tiny"
    (tmp_path / "a").rename(tmp_path / "logs")
    ((group,), _, _) = curves.read_files([".", "logs"])
    assert {label: len(runs) for label, runs in group.items()} == {"tiny": 2}


def test_a_closed_standard_output_is_no_error(run, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    assert run(plot, RECORDS / "tiny-s0.csv", "--format", "svg")[0] == 0 and list(tmp_path.rglob("*.svg"))


@pytest.mark.parametrize("named_first", [True, False])
def test_a_sweep_or_a_checkpoint_that_its_folder_names_too_is_read_once(tmp_path, monkeypatch, named_first):
    monkeypatch.chdir(tmp_path)
    Path("logs").mkdir()
    Path("best.pt").touch()
    Path("logs/a-find-lr.csv").write_text(",".join(curves.sweep.COLUMNS) + 3 * "\n1,1,1,1,1" + "\n")
    names = ["best.pt", "logs/a-find-lr.csv", "."]
    groups, sweeps, checkpoints = curves.read_files(names if named_first else names[::-1])
    assert not groups and [path.name for path, _ in sweeps] == ["a-find-lr.csv"]
    assert [path.name for path in checkpoints] == ["best.pt"]


def test_the_same_input_gives_the_same_bytes_and_dark_gives_others(run, tmp_path):
    files = [RECORDS / "tiny-s0.csv", RECORDS / "tiny-s1.csv"]
    for flags in (["--out", "a"], ["--out", "b"], ["--out", "a", "--dark", "--format", "svg"]):
        assert run(plot, *files, *flags)[0] == 0
    for kind in plot.FORMATS:
        first, second = ((tmp_path / name / f"curves-tiny.{kind}").read_bytes() for name in "ab")
        assert first == second
    light, dark = ((tmp_path / "a" / f"curves-tiny{ending}.svg").read_bytes() for ending in ("", "-dark"))
    assert light != dark and b"<dc:date>" not in light


def test_dollars_in_a_name_do_not_make_a_formula(run, tmp_path):
    shutil.copy(RECORDS / "tiny-s0.csv", tmp_path / "a$^$b.csv")
    status, _, err = run(plot, "a$^$b.csv", "--format", "svg")
    assert status == 0 and not err and "a$^$b" in (tmp_path / "figures" / "curves-a$^$b.svg").read_text()


def test_seeds_are_one_curve_with_a_band_of_one_standard_deviation():
    runs = [curves.Run([{"epoch": 1.0, "sum_loss": loss}], {"sum_accuracy": loss}, "") for loss in (1.0, 3.0)]
    assert curves.curve(runs, "sum_loss") == ([1], [2.0], [pytest.approx(2 - 2**0.5)], [pytest.approx(2 + 2**0.5)])
    assert curves.curve(runs, "val_sum_loss") is None and curves.test_point(runs, "sum_accuracy")[:2] == ([1], [2])
    names = ["base-s0", "base-s12", "tiny-s1-20260102-153000", "mine", "study-sum-encoding-shift-s2"]
    assert [curves.group_of(f"{name}.csv") for name in names] == [
        *("base", "base", "tiny", "mine", "study-sum-encoding-shift")
    ]


def runs_of(*epochs, test=None):
    """One group of one run with these rows."""
    return {"net": [curves.Run([{"epoch": n + 1.0, **row} for n, row in enumerate(epochs)], test or {}, "")]}


def labels(panel):
    return {label.get_text(): place for place, label in zip(panel.get_yticks(), panel.get_yticklabels(), strict=True)}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("model=base+no-nine sum_encoding=onehot", "cross-entropy, nats (log)"),
        ("model=base sum_encoding=scalar", "the network's own loss (log)"),
        ("model=argmax-regression sum_encoding=onehot", "the network's own loss (log)"),
    ],
)
def test_the_sum_loss_is_called_cross_entropy_where_it_is_one(arguments, said):
    run = curves.Run([{"epoch": 1.0, "digit_loss": 2.0, "sum_loss": 3.0, "seconds": 1.0}], {}, arguments)
    with figures.style("light"):
        axes = run_figures.draw_runs({"net": [run]}, "light").axes
    assert [panel.get_ylabel() for panel in axes[:2]] == ["cross-entropy, nats (log)", said]


def test_an_accuracy_lies_at_its_error_and_is_labelled_as_accuracy():
    with figures.style("light"):
        rows = [{"digit_accuracy": share, "seconds": 1.0} for share in (0.6, 0.98, 0.995)]
        panel = run_figures.draw_runs(runs_of(*rows), "light").axes[2]
    assert panel.lines[0].get_ydata().tolist() == pytest.approx([40, 2, 0.5])
    bottom, top = panel.get_ylim()
    assert bottom > 40 > 0.5 > top > 0.3  # more right is higher, and no point is cut off
    assert labels(panel)["99"] == pytest.approx(1) and labels(panel)["90"] == pytest.approx(10)


def test_no_error_at_all_lies_on_the_edge_and_is_labelled_100():
    with figures.style("light"):
        rows = [{"digit_accuracy": share, "val_digit_loss": 1 - share, "seconds": 1.0} for share in (0.9, 1.0)]
        figure = run_figures.draw_runs(runs_of(*rows), "light")
    for panel, label in ((figure.axes[2], "100"), (figure.axes[0], "0")):
        assert labels(panel)[label] == panel.lines[0].get_ydata()[1]
        assert min(panel.get_ylim()) < labels(panel)[label] < max(panel.get_ylim())


def test_a_run_of_one_epoch_without_validation_shows_its_values():
    row = {"digit_loss": 0.63, "train_digit_accuracy": 0.964, "seconds": 3.7}
    with figures.style("light"):
        figure = run_figures.draw_runs(runs_of(row, test={"digit_accuracy": 0.9924, "joint_accuracy": 0.9915}), "light")
    said = [[text.get_text() for text in panel.texts] for panel in figure.axes]
    assert said[:6] == [["0.63"], ["not recorded"], ["96.40", "99.24"], ["not recorded"], ["99.15"], ["3.7"]]
    assert [list(panel.get_xticks()) for panel in figure.axes[:6]] == [[1], [], [1], [], [1], [1]]
    assert not any("validation" in text.get_text() for text in figure.axes[7].get_legend().get_texts())


def test_the_schedule_is_that_of_the_run():
    run = curves.read(RECORDS / "tiny-s0.csv")
    steps, rates = curves.schedule(run)
    assert steps[-1] == 4299 and max(rates) == pytest.approx(0.04, rel=1e-3)
    assert rates[-1] == pytest.approx(run.epochs[-1]["learning_rate"])
    assert curves.schedule(run._replace(log="")) is None
    assert curves.schedule(run._replace(log=run.log.replace("batch_size=128", "batch_size=0"))) is None


def test_the_calibration_error_is_that_of_its_definition():
    confidence = torch.tensor([0.95] * 10 + [0.55] * 10)
    right = torch.tensor([True] * 10 + [True] * 3 + [False] * 7)
    confidences, accuracies, share, error = calibration(confidence, right)
    assert confidences.tolist() == pytest.approx([0.55, 0.95]) and accuracies.tolist() == pytest.approx([0.3, 1.0])
    assert share.tolist() == [0.5, 0.5] and error == pytest.approx(0.5 * 0.25 + 0.5 * 0.05)
    assert calibration(torch.ones(4), torch.ones(4))[3] == 0
    assert calibration(torch.full((4,), torch.nan), torch.zeros(4))[2].tolist() == [1.0]  # of a damaged network


def answered(digit_answers):
    """Answers to four images of a 3, certain and right but for `digit_answers` of the first image."""
    digits, addends = torch.full((4,), 3), torch.arange(10)
    read = torch.full((4, 10), 3)
    read[0] = digit_answers
    sums = digits.unsqueeze(1) + addends
    return SimpleNamespace(
        name="tiny", dataset="synthetic", images=torch.zeros(4, 1, 28, 28, dtype=torch.uint8), digits=digits, sums=sums,
        digit=torch.eye(10)[read] * 0.8 + 0.02, sum=torch.eye(19)[sums], digit_answers=read, sum_answers=sums,
        right=read == 3,
    )  # fmt: skip


def texts(figure):
    """All the text in a figure."""
    found = [figure.get_suptitle()]
    for axes in figure.axes:
        found += [
            axes.get_title("left"),
            axes.get_title(),
            axes.get_xlabel(),
            *(text.get_text() for text in axes.texts),
        ]
    return "\n".join(found)


def test_wrong_answers_are_told_apart_by_more_than_colour():
    with figures.style("light"):
        figure = plot.draw_samples(answered(8), "light")
        assert len(re.findall(r"^3 \+ \d → 8, \d+ ✗$", texts(figure), re.MULTILINE)) == 4 + 1
        assert len(re.findall(r"^3 \+ \d → 3, \d+ ✓$", texts(figure), re.MULTILINE)) == 3


def test_the_errors_name_the_digit_read_and_its_probability():
    with figures.style("dark"):
        said = texts(plot.draw_errors(answered(8), "dark"))
        assert "3 read as 8" in said and "82.0 % sure, no. 0" in said and "all 1 among 4" in said
        assert "all 0 among 4" in texts(plot.draw_errors(answered(3), "dark"))


def test_the_confusion_matrix_counts_pairs():
    with figures.style("light"):
        said = texts(plot.draw_confusion(answered(8), "light"))
    assert "digit: 10 of 40 pairs wrong" in said and "sum: 0 of 40 pairs wrong" in said
    assert "\n30\n" in said and "\n10\n" in said


def test_the_architecture_shows_every_part_with_its_parameters():
    from model import build_model

    with figures.style("light"):
        said = texts(draw_architecture(build_model("tiny"), "tiny", "light"))
        other = texts(draw_architecture(build_model("tiny", sum_encoding="scalar"), "tiny", "light"))
    assert "9,941 parameters" in said and "2,304" in said and "conv 3×3, 16 groups" in said and "sum head" in said
    assert "10 logits" in said and "19 logits" in said and "19 logits" not in other and "a number" in other


BAD = [
    *("", "none.csv", "none.pt", "empty", "text.txt", "text.csv", "short.csv", "order.csv", "nan.csv", "header.csv"),
    *("text.pt", "run.csv --format gif", "run.csv --out text.txt", "run.csv --dataset fashion", "run.csv --data"),
    *("a/run.csv a a", "few-find-lr.csv"),
]


@pytest.mark.parametrize("line", BAD)
def test_a_bad_command_line_is_answered_in_one_line(run, trained, tmp_path, line):
    text = (trained / "logs" / "run.csv").read_text()
    lines = text.splitlines()
    for name, content in {
        "run.csv": text,
        "text.txt": "x",
        "text.csv": "a,b\n1,2\n",
        "text.pt": "x",
        "short.csv": text[: len(text) - 60],
        "order.csv": "\n".join([lines[0], lines[2], lines[1]]),
        "nan.csv": text.replace(",2,", ",nan,", 1),
        "header.csv": lines[0],
        "few-find-lr.csv": "learning_rate,digit_loss,sum_loss,loss,smoothed_loss\n1,1,1,1,1\n",
        "a/run.csv": text,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "empty").mkdir()
    status, _, err = run(plot, *line.split())
    assert status == 2 and err.startswith("plot.py: error: ") and err.count("\n") == 1
    assert (tmp_path / "run.csv").read_text() == text


def test_no_figure_is_replaced_before_all_inputs_are_read(run, trained, small_dir, tmp_path):
    shutil.copy(trained / "best.pt", tmp_path)
    (tmp_path / "more").mkdir()
    shutil.copy(trained / "best.pt", tmp_path / "more")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "best-samples.png").write_text("older")
    before = contents(tmp_path)
    for other, said in (("none.pt", "none.pt"), ("more/best.pt", "two of the inputs give the figure best-samples")):
        status, out, err = run(plot, "best.pt", other, "--data-dir", small_dir, "--device", "cpu")
        assert status == 2 and not out and said in err and err.count("\n") == 1 and contents(tmp_path) == before


def test_too_many_different_runs_are_refused(run):
    files = [RECORDS / f"{name}-s0.csv" for name in ("base", "tiny", "fast", "study-default")]
    files += [RECORDS / f"study-sum-encoding-{name}-s0.csv" for name in ("binary", "scalar", "shift")]
    files += [RECORDS / f"study-addend-encoding-{name}-s0.csv" for name in ("binary", "scalar")]
    status, _, err = run(plot, *files)
    assert status == 2 and "9 different runs" in err and "at most 8" in err


def test_without_matplotlib_one_line_says_how_to_install_it(run, trained, monkeypatch):
    monkeypatch.setattr(figures, "matplotlib", None)
    status, out, err = run(plot, trained)
    assert status == 2 and not out and err.count("\n") == 1 and "pip install -r requirements-dev.txt" in err
