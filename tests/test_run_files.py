"""The files of a run: whatever the order of commands, no file of another run is lost."""

import io
import shutil

import pytest
import torch

import train
from conftest import contents, same
from support import cli
from support.checkpoint import load_checkpoint, save_checkpoint
from support.run_files import RunFiles


def interrupted(*arguments, **options):
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["finished run", "no text"])
def test_a_run_is_not_written_over_not_even_where_its_log_alone_is_left(run, small_flags, trained, tmp_path, kind):
    log = (trained / "logs" / "run.txt").read_bytes() if kind == "finished run" else b"caf\xe9\n"
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "run.txt").write_bytes(log)
    status, _, err = run(train, *small_flags)
    assert status == 2 and err.count("\n") == 1 and "there is a run run in logs" in err
    assert "choose another --run-name" in err and "--resume" not in err
    assert contents(tmp_path) == {"logs/run.txt": log}


@pytest.mark.parametrize("kept", ["run.csv", "run-best.pt"])
def test_a_run_is_not_written_over_where_its_log_is_gone(run, small_flags, trained, tmp_path, kept):
    (tmp_path / "logs").mkdir()
    shutil.copy(trained / "logs" / kept, tmp_path / "logs")
    before = contents(tmp_path)
    status, _, err = run(train, *small_flags)
    assert status == 2 and "there is a run run in logs" in err and contents(tmp_path) == before


def test_a_log_of_other_headings_without_an_epoch_may_be_replaced(run, small_flags, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "run.txt").write_text("command x\n\nepoch  rate at end  digit loss  sum loss  seconds\n")
    assert run(train, *small_flags)[0] == 0


def test_a_resume_writes_neither_over_another_run_nor_over_later_epochs(
    run, small_flags, stop_after, trained, tmp_path
):
    stop_after(1)
    assert run(train, *small_flags, "--epochs", "4")[0] == 130
    first = shutil.copy("last.pt", tmp_path / "first.pt")
    stop_after(3)
    assert run(train, "--resume", "last.pt", *small_flags, "--epochs", "4")[0] == 130
    before = contents(tmp_path)
    status, _, err = run(train, "--resume", first, *small_flags, "--epochs", "4")
    assert status == 2 and "run-last.pt is already at epoch 3" in err and contents(tmp_path) == before
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    (other / "logs" / "run-last.pt").unlink()
    before = contents(other)
    status, _, err = run(train, "--resume", first, *small_flags, "--epochs", "4", "--out", other)
    assert status == 2 and "holds another run of the name run" in err and contents(other) == before


@pytest.mark.parametrize("kept", ["run.csv", "run-best.pt"])
def test_a_resume_does_not_write_over_another_run_of_its_name_whose_log_is_gone(
    run, small_flags, trained, tmp_path, kept
):
    assert run(train, *small_flags, "--epochs", 1, "--seed", 1, "--out", tmp_path / "first")[0] == 0
    (tmp_path / "logs").mkdir()
    shutil.copy(trained / "logs" / kept, tmp_path / "logs")
    before = contents(tmp_path)
    status, out, err = run(train, "--resume", tmp_path / "first" / "last.pt", *small_flags[-4:])
    assert status == 2 and not out and err.count("\n") == 1 and "logs holds another run of the name run" in err
    assert contents(tmp_path) == before


def test_a_resume_writes_over_the_files_of_its_own_run_whose_log_is_gone(run, small_flags, trained, tmp_path):
    (tmp_path / "logs").mkdir()
    for kept in ("run.csv", "run-best.pt"):
        shutil.copy(trained / "logs" / kept, tmp_path / "logs")
    assert run(train, "--resume", trained / "last.pt", *small_flags[-4:])[0] == 0
    assert contents(tmp_path).keys() == contents(trained).keys()


def test_best_of_another_run_is_kept_and_named(run, small_flags, tmp_path):
    assert run(train, *small_flags)[0] == 0
    first = (tmp_path / "best.pt").read_bytes()
    status, _, err = run(train, *small_flags, "--run-name", "other", "--seed", 1)
    expected = "best.pt, of the run run, is kept as logs/run-best.pt; this run replaces best.pt"
    assert status == 0 and err == f"{expected}\n"
    (tmp_path / "best.pt").write_bytes(first)  # and where that copy is missing, it is made
    (tmp_path / "logs" / "run-best.pt").unlink()
    last = load_checkpoint("logs/other-last.pt")
    (tmp_path / "logs" / "other-last.pt").unlink()
    assert run(train, *small_flags, "--run-name", "third", "--seed", 2)[0] == 0
    assert load_checkpoint("logs/run-best.pt")["args"]["run_name"] == "run"
    restored = load_checkpoint("logs/other-last.pt")
    assert restored["header"] == last["header"] and same(restored["raw_weights"], last["raw_weights"])


def test_a_resume_keeps_the_last_checkpoint_of_another_run(run, small_flags, trained, tmp_path):
    assert run(train, *small_flags, "--run-name", "other", "--seed", 1)[0] == 0
    last = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "logs" / "other-last.pt").unlink()
    assert run(train, "--resume", trained / "last.pt", *small_flags[-4:])[0] == 0
    assert (tmp_path / "last.pt").read_bytes() != last
    kept, before = load_checkpoint(tmp_path / "logs" / "other-last.pt"), torch.load(io.BytesIO(last), weights_only=True)
    assert kept["header"] == before["header"] and same(kept["raw_weights"], before["raw_weights"])


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_a_file_that_is_not_kept_elsewhere_is_not_replaced(run, small_flags, trained, tmp_path, name):
    def refused(*flags, said):
        before = contents(tmp_path)
        status, out, err = run(train, *small_flags, *flags)
        assert status == 2 and not out and err.count("\n") == 1 and said in err and name in err
        assert contents(tmp_path) == before

    (tmp_path / name).write_bytes(b"PK\x03\x04 weights of another tool")
    refused(said="move it, or choose another --out")
    shutil.copy(trained / name, tmp_path)  # of the run "run", whose own files are not here
    refused(said="is of another run of the name run")
    other = load_checkpoint(trained / name)
    (tmp_path / "logs").mkdir()
    save_checkpoint(other | {"args": other["args"] | {"seed": 7}}, tmp_path / "logs" / f"run-{name}")
    refused("--run-name", "new", said="is of another run of the name run")
    state = load_checkpoint(trained / "last.pt")
    save_checkpoint(state | {"args": state["args"] | {"seed": 7}}, tmp_path / "first.pt")
    (tmp_path / "logs" / f"run-{name}").unlink()
    status, _, err = run(train, "--resume", "first.pt", *small_flags[-4:])  # of another seed
    assert status == 2 and "is of another run of the name run" in err


def test_a_copy_that_is_further_than_the_file_of_its_run_is_not_replaced(run, small_flags, trained, tmp_path):
    shutil.copy(trained / "last.pt", tmp_path)
    (tmp_path / "logs").mkdir()
    state, own = load_checkpoint("last.pt"), tmp_path / "logs" / "run-last.pt"
    for change, said in (
        ({"epoch": state["epoch"] - 1}, "last.pt is of a later epoch than logs/run-last.pt"),
        ({"header": state["header"].replace("command", "COMMAND")}, "last.pt is of another run of the name run"),
    ):
        save_checkpoint(state | change, own)
        before = contents(tmp_path)
        status, out, err = run(train, *small_flags, "--run-name", "new")
        assert status == 2 and said in err and err.count("\n") == 1 and not out and contents(tmp_path) == before


def test_a_resume_makes_both_copies_those_of_its_run(run, small_flags, trained, tmp_path, monkeypatch):
    assert run(train, *small_flags, "--run-name", "other", "--seed", 1)[0] == 0
    shutil.copytree(trained / "logs", tmp_path / "logs", dirs_exist_ok=True)
    monkeypatch.setattr(train, "train_epoch", interrupted)
    monkeypatch.setattr(train, "score_pairs", interrupted)
    assert run(train, "--resume", "logs/run-last.pt", *small_flags[-4:])[0] == 130
    assert [load_checkpoint(name)["args"]["run_name"] for name in ("best.pt", "last.pt")] == ["run", "run"]


def test_a_resume_does_not_replace_a_last_checkpoint_of_later_epochs_or_of_another_training(
    run, small_flags, stop_after, tmp_path
):
    stop_after(1)
    assert run(train, *small_flags, "--epochs", 4)[0] == 130
    first = shutil.copy("last.pt", tmp_path / "first.pt")
    stop_after(3)
    assert run(train, "--resume", "last.pt", *small_flags, "--epochs", 4)[0] == 130
    shutil.rmtree("logs")
    before = contents(tmp_path)
    status, _, err = run(train, "--resume", first, *small_flags, "--epochs", 4)
    assert status == 2 and "last.pt is already at epoch 3; --resume that" in err and contents(tmp_path) == before
    state = load_checkpoint("last.pt")
    save_checkpoint(state | {"header": state["header"].replace("command", "COMMAND")}, tmp_path / "last.pt")
    before = contents(tmp_path)
    status, _, err = run(train, "--resume", first, *small_flags, "--epochs", 4)
    assert status == 2 and "last.pt is of another run of the name run" in err and contents(tmp_path) == before


def test_a_finished_run_that_is_scored_again_keeps_its_scores_until_then(
    run, small_flags, trained, tmp_path, monkeypatch
):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(train, "score_pairs", interrupted)
    assert run(train, "--resume", "last.pt", *small_flags[-4:])[0] == 130
    for name in ("logs/run.txt", "logs/run.csv"):
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()


def test_a_continued_run_that_is_interrupted_at_once_names_the_checkpoint_it_came_from(
    run, small_flags, trained, tmp_path, monkeypatch
):
    monkeypatch.setattr(train, "load_digits", interrupted)
    status, _, err = run(train, "--resume", trained / "last.pt", *small_flags[-4:])
    assert status == 130 and f"continue with: python train.py --resume {trained / 'last.pt'}" in err


def test_a_refused_start_leaves_the_folder_of_the_run_that_holds_it(tmp_path):
    with RunFiles(tmp_path, "a").claimed(None):
        with pytest.raises(cli.UserError, match="another run writes to"), RunFiles(tmp_path, "b").claimed(None):
            pytest.fail("two runs hold one folder")
        assert (tmp_path / "logs").is_dir()
    assert not (tmp_path / "logs").exists()  # nothing was written
