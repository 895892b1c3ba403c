"""The header of a log: which code a run is said to be of. What a run writes is in test_train.py and test_resume.py."""

import shutil
import subprocess

from support import runlog
from support.runlog import commit  # itself: from the first test on, conftest.py has runlog.commit ask once


def test_the_commit_is_marked_where_a_script_was_changed_and_unknown_without_git(tmp_path, monkeypatch):
    def git(*words):
        words = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *words]
        return subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(runlog, "__file__", str(tmp_path / "support" / "runlog.py"))
    files = [tmp_path / name for name in ("README.md", "tests/test_a.py", "support/a.py", "train.py")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text("1\n")
    assert commit() == "unknown"
    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "1")
    head = git("rev-parse", "--short", "HEAD")
    assert commit() == head
    for file in files[:2]:  # no part of a run
        file.write_text("2\n")
    assert commit() == head
    for file in files[2:]:
        file.write_text("2\n")
        assert commit() == f"{head}-dirty"
        file.write_text("1\n")
    assert commit() == head
    monkeypatch.setattr(runlog, "__file__", str(tmp_path / "unpacked" / "support" / "runlog.py"))
    shutil.copytree(tmp_path / "support", tmp_path / "unpacked" / "support")
    assert commit() == "unknown"  # the repository is that of a folder above
    monkeypatch.setattr(runlog, "__file__", str(tmp_path / "support" / "runlog.py"))
    shutil.rmtree(tmp_path / ".git")
    assert commit() == "unknown"
