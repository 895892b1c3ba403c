"""The start of a script: flags are checked before PyTorch is imported, garbage is not collected during the imports."""

import gc
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import model
from conftest import ROOT
from studies import changes, published, replay, search
from support import cli, flags, optim

SLOW = {"torch", "numpy", "torchvision", "matplotlib", "onnx", "onnxruntime", "PIL", "tqdm"}
SCRIPTS = sorted(path for path in [*ROOT.glob("*.py"), *ROOT.glob("studies/*.py")] if '"__main__"' in path.read_text())


def start(path, *argv):
    """(exit status, stdout, lines of stderr, packages imported) of the script, as a person starts it."""
    script = [path.name] if path.parent == ROOT else ["-m", f"studies.{path.stem}"]
    words = [sys.executable, "-X", "importtime", *script, *argv]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    imported = re.findall(r"^import time: .*\| +(\w+)", done.stderr, re.MULTILINE)
    errors = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    return done.returncode, done.stdout, errors, set(imported)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_help_and_a_mistyped_flag_are_answered_without_a_slow_import(path):
    status, out, errors, imported = start(path, "--help")
    assert status == 0 and out.startswith("usage: python ") and not errors
    assert "argparse" in imported and not imported & SLOW
    needed = {"plot": ["x"], "replay": ["x"], "search": ["base"], "distill": ["--teachers", "x"]}
    words = [*needed.get(path.stem, []), "--hlep"]
    status, out, errors, imported = start(path, *words)
    assert status == 2 and not out and len(errors) == 1 and not imported & SLOW
    assert errors[0].startswith(f"{path.name}: error: ") and "did you mean --help?" in errors[0]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_help_fits_80_columns(path, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    script = importlib.import_module(path.stem if path.parent == ROOT else f"studies.{path.stem}")
    status, out, _ = run(script, "--help")
    assert status == 0 and out.startswith("usage: python ") and max(map(len, out.splitlines())) <= 80


def test_the_names_that_flags_choose_among_are_those_there_are():
    assert flags.SIZES == tuple(model.SIZES)
    assert flags.ADDEND_ENCODINGS == model.ADDEND_ENCODINGS
    assert flags.SUM_ENCODINGS == (*model.SUM_ENCODINGS, "shift")
    assert flags.OPTIMIZERS == tuple(optim.OPTIMIZERS)
    assert replay.DESIGN_NAMES == tuple(published.DESIGNS)
    assert search.NAMES == tuple(changes.SEARCHES)
    (choices,) = (action.choices for action in replay.make_parser()._actions if action.dest == "initialisation")
    assert choices == tuple(replay.INITIALISATIONS)


def test_a_script_ends_without_a_message_of_a_library(small_flags, tmp_path):
    """Triton, which the optimiser imports, and torchvision too, reports what is not collected at the exit as leaks."""
    status, _, errors, imported = start(ROOT / "train.py", *small_flags, "--out", str(tmp_path), "--dry-run")
    assert status == 0 and not errors and "torch" in imported and "torchvision" not in imported
    other = tmp_path / "table.json"
    other.write_text("other")
    refused = ["--only", "scoring", "--json", str(other)]  # after all imports
    _, _, errors, imported = start(ROOT / "studies" / "benchmark.py", *refused)
    assert errors == [f"benchmark.py: error: {other} is not a record of this benchmark; choose another --json"]
    assert "torchvision" in imported


@pytest.fixture
def _garbage_as_before():
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.usefixtures("_garbage_as_before")
def test_garbage_is_not_collected_during_the_imports_and_is_after_them(monkeypatch):
    monkeypatch.setattr("sys.argv", ["script.py"])
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    cli.begin_script(lambda: cli.Parser(""))
    assert not gc.isenabled()
    seen = []
    assert cli.run_script(lambda argv: seen.append((gc.isenabled(), gc.get_freeze_count() > 0))) == 0
    assert seen == [(True, True)] and gc.isenabled()
    gc.unfreeze()
    cli.run_script(lambda argv: seen.append(gc.get_freeze_count()))
    assert seen[1] == 0  # a second call in the same process leaves it alone
    monkeypatch.setitem(sys.modules, "triton", None)
    gc.disable()
    cli.run_script(lambda argv: seen.append((gc.isenabled(), gc.get_freeze_count())))
    assert seen[2] == (True, 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_output_that_cannot_be_written_ends_in_one_line():
    """It may lie in stdout's buffer until the exit."""
    program = "import sys; from support import cli; sys.exit(cli.run_script(lambda argv: print('a'), []))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-c", program]
        done = subprocess.run(words, cwd=ROOT, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "error: " in done.stderr
