"""Which records were made by older code: what Python parses in the files behind a run, then and today."""

import ast
import collections
import functools
import re
import subprocess
from pathlib import Path

from support.files import read_text

ROOT = Path(__file__).resolve().parent.parent
LOOP = (
    "data.py",
    "model.py",
    "train.py",
    "evaluate.py",
    "support/corruptions.py",
    "support/optim.py",
    "support/recipes.py",
)
# What the loops take from evaluate.py.
SCORING = ("answers", "load_model", "mean_losses", "pair_outputs", "score", "short_report")
DISTILL_LOOP = (*LOOP, "studies/distill.py")
REPLAY_LOOP = ("data.py", "model.py", "evaluate.py", "studies/replay.py", "studies/published.py")
ONLY_WITH = {"BinarySum": "sum_encoding=binary", "ShiftNet": "sum_encoding=shift"}  # class: argument that brings it in
WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef)


def by_older_code(records):
    """A sentence on the records whose commit has other code of the loop than this one, or is unknown here; or None."""
    logs = [read_text(path) for path in sorted(records.glob("*.txt"))]
    older = collections.Counter()
    for log in logs:
        commit = (re.findall(r"^commit +(\S+)$", log, re.MULTILINE) or ["unknown"])[0]
        loop = REPLAY_LOOP if "studies.replay" in log else DISTILL_LOOP if "studies.distill" in log else LOOP
        unused = frozenset(name for name, argument in ONLY_WITH.items() if argument not in log.split())
        if not same_code(commit, loop, unused):
            older[commit] += 1
    commits = ", ".join(f"{number} of {commit}" for commit, number in older.items())
    return f"{older.total()} of {len(logs)} records are of older code of the loop: {commits}" if older else None


def same_code(commit, files, unused):
    """Whether the files compute what those of `commit` do, the classes `unused` apart; one marked dirty counts as
    another."""
    known = re.fullmatch("[0-9a-f]{7,40}", commit)  # from a log, and git would take "--output=..." for an option
    return known is not None and all(code_of(file, unused, commit) == code_of(file, unused) for file in files)


@functools.cache
def code_of(file, unused, commit=None):
    """What Python parses in a file of a commit, or of today; None where there is no such file.

    Without the classes `unused`, and without what changes no result: docstrings, help texts, which other module of
    support/ holds a name, what a run writes (statements that only call a method of `files`), and what follows an
    interruption. Of evaluate.py, a script too, only what SCORING needs.
    """
    if commit is None:
        source = read_text(ROOT / file) if (ROOT / file).exists() else None
    else:
        words = ["git", "-C", str(ROOT), "show", f"{commit}:{file}"]
        try:
            source = subprocess.run(words, capture_output=True, encoding="utf-8", check=True).stdout
        except (OSError, subprocess.CalledProcessError):  # no git, or no such commit or file
            source = None
    if source is None:
        return None
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if getattr(node, "name", None) not in unused]
    for node in ast.walk(tree):
        if isinstance(node, WITH_DOCSTRING) and ast.get_docstring(node) is not None:
            del node.body[0]
        if isinstance(node, ast.Call):
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "help"]
        for name in ("body", "orelse"):
            if isinstance(part := getattr(node, name, None), list):
                setattr(node, name, [statement for statement in part if not left_out(statement)])
        if isinstance(node, ast.ExceptHandler) and getattr(node.type, "id", "") == "KeyboardInterrupt":
            node.body = []
    if file == "evaluate.py":
        tree.body = reached(tree.body, SCORING)
    return ast.dump(tree)


def left_out(statement):
    """Whether a statement only imports from modules of support/ that are not compared, or only calls a method of
    `files`."""
    if isinstance(statement, ast.ImportFrom):
        return statement.module.startswith("support.") and f"{statement.module.replace('.', '/')}.py" not in LOOP
    function = getattr(getattr(statement, "value", None), "func", None)
    return isinstance(statement, ast.Expr) and getattr(getattr(function, "value", None), "id", None) == "files"


def reached(body, names):
    """The statements of a module that assign or define these names, and what those need of the same module."""
    kept, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        for node in body:
            if node not in kept and name in names_made(node):
                kept.add(node)
                waiting += [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]
    return [node for node in body if node in kept]


def names_made(node):
    """The names that a statement of a module defines or assigns; an import defines none here."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
