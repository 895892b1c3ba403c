"""The README keeps its word: its Python runs, its commands and files exist."""

import re
import runpy
import shutil

import pytest

from conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_the_lines_from_python_run(tmp_path, monkeypatch, capsys, trained, small_dir):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    shutil.copy(trained / "best.pt", tmp_path)
    (tmp_path / "data").symlink_to(small_dir)
    (tmp_path / "example.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("support.mnist.MIRRORS", ())  # no MNIST: the example then runs on the small synthetic data
    runpy.run_path("example.py")
    accuracy, misses, _, pairs = capsys.readouterr().out.split()
    assert pairs == "1500" and float(accuracy) == pytest.approx(1 - int(misses) / 1500)


def test_every_file_that_is_named_exists():
    for name in re.findall(r"`((?:tests/|logs/)?[\w-]+\.(?:py|txt|csv|json))\b", README):
        assert (ROOT / name).exists() or (ROOT / "tests" / name).exists(), name


def test_the_test_command_is_the_one_that_ci_runs():
    assert len(re.findall(r"python -m pytest$", README, re.MULTILINE)) == 1
