"""The figures of the pages: what is said of records that cannot be drawn. test_replay.py draws those of the designs."""

import pytest

from studies import figures

DAMAGED = {
    "robustness-cpu.json": "[1]",
    "narrow-trunk-published-s0.csv": "design,quantity,epoch,value\nnarrow-trunk,epoch_loss,1,x\n",
    "two-branch-lenet-published-s1.csv": "design,quantity,epoch,value\ntwo-branch-lenet,epoch_loss,1,2\n",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_record_is_answered_in_one_line(run, tmp_path, monkeypatch, name):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(figures, "RECORDS", tmp_path)
    (tmp_path / name).write_text(DAMAGED[name])
    status, out, err = run(figures, "--out", str(tmp_path))
    assert status == 2 and not out and err.count("\n") == 1 and f"{name} is damaged" in err


def test_the_images_are_those_of_the_data_folder_that_is_given(run, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(figures, "RECORDS", tmp_path)
    monkeypatch.setattr(figures.plot, "write_figures", lambda args, **_: asked.append(args.data_dir))
    monkeypatch.setattr(figures, "draw_errors", lambda data_dir, *_: asked.append(data_dir))
    monkeypatch.setattr(figures.support.figures, "save_themes", lambda draw, path: draw("light"))
    (tmp_path / "errors-large-cpu.json").write_text("{}")
    asked = []
    assert run(figures, "--out", str(tmp_path), "--data-dir", "elsewhere")[0] == 0 and asked == ["elsewhere"] * 3
