"""The layout: imports point one way, the scripts of the task know no study, and stay short enough to read."""

import ast
import functools
import graphlib
import re

import pytest

from conftest import ROOT

# Each may import what stands before it.
LEVELS = ["support", "data", "model", "evaluate", "train", "predict", "plot", "studies"]
FILES = sorted([*ROOT.glob("*.py"), *ROOT.glob("support/*.py"), *ROOT.glob("studies/*.py")])
# The one function that turns a model's name into a network knows that there are others.
ALLOWED = {("model", "studies")}


def level_of(name):
    return LEVELS.index(name.split(".")[0]) if name.split(".")[0] in LEVELS else None


@functools.cache
def parsed(path):
    """(body, all nodes) of the file's syntax tree."""
    tree = ast.parse(path.read_text())
    return tree.body, list(ast.walk(tree))


def imports(path):
    """(name, whether it is imported when the file is) of every import in the file, functions included."""
    body, nodes = parsed(path)
    for node in nodes:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            yield name, node in body


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for name, at_once in imports(path):
        if level_of(name) is None:
            continue
        folder, other = own.split(".")[0], name.split(".")[0]
        same_folder = folder == other and folder in ("support", "studies")
        assert same_folder or level_of(name) < level_of(own) or ((folder, other) in ALLOWED and not at_once), name


def test_imports_have_no_cycle():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
    graph = {
        name: {part for other, at_once in imports(path) if at_once for part in (other, other.rpartition(".")[0])}
        for name, path in modules.items()
    }
    graphlib.TopologicalSorter({name: others & modules.keys() for name, others in graph.items()}).prepare()


@pytest.mark.parametrize("name", ["data.py", "train.py", "evaluate.py"])
def test_the_scripts_of_the_task_know_no_study(name):
    text = (ROOT / name).read_text().lower()
    found = re.findall(r"\b(?:faults?|faulty|published|benchmarks?|stud(?:y|ies)|rivals?|lenet)\b", text)
    assert not found


def test_train_py_can_be_read_in_one_sitting():
    assert len((ROOT / "train.py").read_text().splitlines()) <= 300


def test_no_script_imports_torchvision():
    """Its import takes as long as that of torch; `studies.rivals` alone, the usual loop, is built on it.

    That no library imports it for them is seen where train.py and predict.py are run: test_cli.py, test_predict.py.
    """
    for path in FILES:
        if path.name != "rivals.py":
            assert not [name for name, _ in imports(path) if name.split(".")[0] == "torchvision"], path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_progress_bar_reaches_a_log_or_a_pipe(path):
    for node in parsed(path)[1]:
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tqdm":
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert options.get("disable") == "None" and options.get("leave") == "False", ast.unparse(node)
