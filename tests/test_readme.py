"""The pages are true: the Python in them runs, links lead somewhere, tables fit a screen."""

import re
import runpy
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import ROOT
from studies.figures import SHOWN
from studies.tables import PAGES
from support.checkpoint import load_checkpoint
from support.curves import logged_arguments

README = (ROOT / "README.md").read_text()


def test_the_lines_from_python_run(tmp_path, monkeypatch, capsys, small_dir):
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "running.md").read_text(), re.DOTALL).group(1)
    (tmp_path / "data").symlink_to(small_dir)
    (tmp_path / "example.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("support.mnist.MIRRORS", ())  # no MNIST: the example then runs on the small synthetic data
    runpy.run_path("example.py")
    accuracy, misses, _, pairs = capsys.readouterr().out.split()
    assert pairs == "1500" and float(accuracy) == pytest.approx(1 - int(misses) / 1500)


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, "docs/running.md"])
def test_every_link_leads_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)
    assert links or page == "logs/README.md"
    for link in links:
        target, _, anchor = link.partition("#")
        if not target.startswith("http"):
            path = ((ROOT / page).parent / target if target else ROOT / page).resolve()
            assert path.exists(), link
            assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), link


def pictures(page, attribute):
    """The files of the page's `src` or `srcset`, relative to the repository's root."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return {str(Path(page).parent / name) for name in re.findall(rf' {attribute}="([^"]+)"', text)}


@pytest.mark.parametrize("page", ["README.md", "docs/running.md", "studies/errors.md", "studies/robustness.md"])
def test_every_picture_has_a_variant_for_dark_pages(page):
    light, dark = pictures(page, "src"), pictures(page, "srcset")
    assert light and "![" not in (ROOT / page).read_text(encoding="utf-8")
    assert dark == {re.sub(r"(\.\w+)$", r"-dark\1", name) for name in light}
    assert all((ROOT / name).is_file() for name in light | dark)


def test_the_dark_variants_are_drawn_by_one_command_and_each_is_shown():
    shown = pictures("README.md", "srcset") | pictures("docs/running.md", "srcset")
    assert shown == {str(path.relative_to(ROOT)) for path in ROOT.glob("docs/figures/*-dark.*")}
    assert shown == {f"docs/figures/{name}-dark.svg" for name in SHOWN} | {"docs/figures/page-dark.png"}


@pytest.mark.parametrize("page", [*PAGES, "docs/running.md"])
def test_lines_and_tables_fit_a_screen(page):
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        assert len(line) <= (110 if line.startswith("|") else 140), line


def test_the_test_command_is_the_one_that_ci_runs():
    (line,) = re.findall(r"^.*python -m pytest$", README, re.MULTILINE)
    assert line.startswith("python3 -m venv .venv && . .venv/bin/activate && ")  # an environment of its own


def test_cleaning_up_removes_ones_own_runs_and_nothing_of_the_records(tmp_path):
    (line,) = re.findall(r"^git clean -fX .*$", (ROOT / "docs" / "running.md").read_text(), re.MULTILINE)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    mine = {"logs/run.txt", "logs/run-best.pt", "logs/run-find-lr.csv", "logs/sub/run.csv", "best.pt", "last.pt"}
    kept = {"logs/tiny.pt", "logs/records/.checkpoints/base-s0.pt", "logs/records/.work/a/last.pt", "data/mnist/x"}
    for name in mine | kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    for words in (["git", "init", "-q"], shlex.split(line)):
        subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    there = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {name for name in there if not name.startswith(".git")} == kept


def test_the_committed_network_is_that_of_a_record_which_the_index_names():
    args = load_checkpoint(ROOT / "logs" / "tiny.pt")["args"]
    name = args["run_name"]
    logged = logged_arguments((ROOT / "logs" / "records" / f"{name}.txt").read_text())
    assert {key: str(args[key]) for key in logged} == logged
    assert f"`tiny.pt` is the checkpoint of `{name}`" in (ROOT / "logs" / "README.md").read_text()
