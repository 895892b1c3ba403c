"""The search on held-out images: what each row changes, what the record keeps, what the table says."""

import itertools
import json
from unittest.mock import patch

import pytest
import torch
from torch.optim.swa_utils import update_bn

import data
import model
import train
from conftest import ROOT
from studies import changes, distill, search
from studies.measure import held_out
from studies.tables import searches
from support import optim
from support.cli import UserError

CPU = torch.device("cpu")
OWN = (
    *("network", "warps", "batches", "nesterov", "schedule_function", "train_epoch"),
    *("average", "agreement", "teacher", "teacher_changes"),
)
REPLACING = {what: change for what, change in changes.ABLATIONS.items() if any(name in change for name in OWN)}


@pytest.fixture(scope="module")
def parts(small):
    training, held = held_out("search", *small, 3, search.PARTS)
    return tuple(table[:300] for table in training), tuple(table[:50] for table in held)


@pytest.fixture(scope="module")
def trained(parts):
    """Trains tiny with a change, three steps; returns the sums of the weights that are scored."""

    def train_one(change, teacher=None):
        change = dict(change)
        if "network" in change:  # of base: the same change in words that fit tiny
            small = dict(stages=((8,), (8,), (8, 16)), features=16, hidden=20)
            change["network"] = {name: small.get(name, value) for name, value in change["network"].items()}
        runs, run_class = [], search.Run

        def kept(*arguments, **options):
            runs.append(run_class(*arguments, **options))
            return runs[-1]

        with patch.object(search, "Run", kept):
            figures = search.train_one("tiny", change, *parts, 0, CPU, teacher)
        assert set(figures) == set(search.FIGURES)
        return [value.double().sum().item() for value in runs[-1].scored.parameters()]

    return train_one


@pytest.fixture(scope="module")
def plain(trained):
    return trained({})


@pytest.mark.parametrize("what", REPLACING)
def test_each_replacement_acts_and_leaves_nothing_behind(trained, plain, what):
    def replaced():
        functions = data.draw_warps, train.learning_rate_at, model.TwoHeadNet.Batches
        return dict(model.SIZES), dict(optim.OPTIMIZERS), *functions

    before = replaced()
    assert trained(REPLACING[what]) != plain and replaced() == before


def test_new_statistics_leave_the_weights_and_are_estimated_once(parts):
    scored = []
    for change in ({}, changes.NEW_STATISTICS):
        with (
            changes.changed("tiny", change) as (arguments, _),
            patch.object(distill, "update_bn", wraps=update_bn) as new,
        ):
            run = search.Run("tiny", parts[0], CPU, epochs=2, **arguments)
            run.train()
        assert new.call_count == bool(change) and train.train_epoch is distill.TRAIN_EPOCH
        scored.append(run.scored)
    steps = len(run.batches)
    for name, value in scored[0].state_dict().items():
        other = scored[1].state_dict()[name]
        if name.endswith("num_batches_tracked"):
            assert (value, other) == (2 * steps, steps)  # the training's; the estimate's, after the last epoch
        else:
            assert torch.equal(value, other) == ("running" not in name), name


def test_a_change_of_the_width_leaves_the_depth():
    depth = [len(stage) for stage in model.SIZES["base"]["encoder"].keywords["stages"]]
    changed = [changes.ABLATIONS[what]["network"] for what in ("half the width", "1.5 times the width")]
    for network in changed:
        assert [len(stage) for stage in network["stages"]] == depth


def test_a_pupil_learns_from_the_answers_of_its_teacher(trained, plain, parts):
    def teacher(size, seed):
        asked.append((size, seed))
        return model.build_model(size).eval()

    asked = []
    assert trained(dict(teacher="fast"), teacher) != plain and asked == [("fast", 0)]
    assert trained({}) == plain


def test_a_teacher_is_trained_once_a_seed_by_its_own_recipe_on_the_images_of_its_pupil(run, small_dir, monkeypatch):
    rows = {"labels": {}, "a": dict(teacher="fast"), "b": dict(teacher="fast", epochs=3)}
    rows["other"] = dict(teacher="fast", teacher_changes=dict(label_smoothing=0.0))
    monkeypatch.setattr(search, "SEARCHES", {"ablations": ("tiny", {}, rows)})
    monkeypatch.setattr(search, "QUICK_IMAGES", 200)
    made, run_class = [], search.Run

    def kept(size, training, device, **options):
        made.append((size, training[0], options))
        return run_class(size, training, device, **options)

    monkeypatch.setattr(search, "Run", kept)
    flags = ["ablations", "--quick", "--seeds", "2", "--dataset", "synthetic", "--data-dir", small_dir]
    assert run(search, *flags, "--device", "cpu")[0] == 0
    assert [size for size, *_ in made] == ["tiny", "fast", "tiny", "tiny", "fast", "tiny"] * 2
    for n, (_, images, options) in enumerate(made):
        assert torch.equal(images, made[n // 6 * 6][1]) and len(images) == 150 and options["seed"] == n // 6
    assert not torch.equal(made[0][1], made[6][1])
    assert all(options["epochs"] == 1 for _, _, options in made)  # with --quick, whatever the row says
    assert made[1][2].keys() == {"seed", "epochs"} and made[4][2]["label_smoothing"] == 0


def test_rows_of_another_change_are_left_out_of_a_search_that_goes_on(run, small_dir, monkeypatch, tmp_path):
    rows = {"as it is": {}, "a": dict(batch_size=50)}
    monkeypatch.setattr(search, "SEARCHES", {"ablations": ("tiny", {}, rows)})
    monkeypatch.setattr(search, "QUICK_IMAGES", 200)
    flags = ["ablations", "--quick", "--dataset", "synthetic", "--data-dir", small_dir, "--json", "a.json"]
    assert run(search, *flags, "--seeds", "2", "--device", "cpu")[0] == 0
    before = json.loads((tmp_path / "a.json").read_text())["rows"]
    rows["a"] = dict(batch_size=75)
    assert run(search, *flags, "--seeds", "1", "--device", "cpu")[0] == 0
    after = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert after[:2] == before[:2] and [(row["what"], row["seed"]) for row in after[2:]] == [("a", 0)]
    assert after[2]["change"] == {"batch_size": 75, "epochs": 1}


def test_the_arguments_of_the_rows_are_flags_of_train():
    known = vars(train.parse_arguments([])[0])
    for _, settings, rows in search.SEARCHES.values():
        for what, change in rows.items():
            arguments = (settings | change).keys() - set(OWN)
            assert arguments <= known.keys(), what


def test_warps_of_one_kind_leave_the_others_at_rest():
    warps = changes.only_warps(("right", "down"))(50, 1.0, 0, 0)
    assert torch.equal(warps[:, :, :2], torch.eye(2).expand(50, 2, 2)) and warps[:, :, 2].abs().min() > 0


def test_the_last_quarter_is_averaged_evenly():
    layer = torch.nn.Linear(1, 1, bias=False)
    average = changes.LastQuarter(layer, 8)
    for step in range(8):
        with torch.no_grad():
            layer.weight.fill_(2.0**step)
        average.update(step)
    assert average.module.weight.item() == (2**6 + 2**7) / 2


def test_the_sum_is_taught_the_digits_answer_shifted_and_the_digit_nothing():
    net = model.build_model("tiny")
    digit_logits, sum_logits = torch.randn(4, 3, 10, requires_grad=True), torch.randn(4, 3, 19, requires_grad=True)
    digit, addend = torch.tensor([7, 0, 9, 3]), torch.tensor([[5, 0, 9]] * 4)
    plain = net.sum_loss(sum_logits, digit.unsqueeze(1) + addend)
    with patch.multiple(model.TwoHeadNet, **changes.taught_by_digit(2.0)):
        net.digit_loss(digit_logits, digit)
        loss = net.sum_loss(sum_logits, digit.unsqueeze(1) + addend)
    loss.backward()
    assert digit_logits.grad is None
    extra = 0
    for row in range(4):
        for k in range(3):
            low = int(addend[row, k])
            extra -= (digit_logits[row, k].softmax(-1) * sum_logits[row, k].log_softmax(-1)[low : low + 10]).sum() / 12
    torch.testing.assert_close(loss, plain + 2 * extra)


def test_a_search_goes_on_where_it_stopped(run, small_dir, tmp_path):
    flags = ["ablations", "--quick", "--dataset", "synthetic", "--data-dir", small_dir, "--device", "cpu"]
    rows = {what: changes.ABLATIONS[what] for what in ("as it is", "K = 1", "K = 2")}
    with (
        patch.object(search, "SEARCHES", {"ablations": ("tiny", {}, rows)}),
        patch.object(search, "QUICK_IMAGES", 200),
        patch.object(search, "train_one", wraps=search.train_one) as called,
    ):
        assert run(search, *flags, "--json", "s.json", "--only", "K = 1")[0] == 0
        assert called.call_count == 2
        status, out, err = run(search, *flags, "--json", "s.json")
        assert status == 0 and called.call_count == 3, err
        rows["K = 1"] = dict(addends_per_image=3)  # the row means something else now
        assert run(search, *flags, "--json", "s.json")[0] == 0 and called.call_count == 4
        assert run(search, *flags, "--json", "s.json", "--seeds", "2")[0] == 0 and called.call_count == 7
        record = json.loads((tmp_path / "s.json").read_text())
        assert "| K = 2 " in out
        assert [(row["what"], row["seed"]) for row in record["rows"]] == list(itertools.product(rows, range(2)))

        def beside(*arguments):
            """Another process writes a row to the same record."""
            rows_of_other = [
                *record["rows"],
                record["rows"][0] | {"seed": 5},
                record["rows"][0] | {"what": "a new row"},
            ]
            (tmp_path / "s.json").write_text(json.dumps(record | {"rows": rows_of_other}))
            return figures

        figures = {name: value for name, value in record["rows"][0].items() if name in search.FIGURES}
        with patch.object(search, "train_one", beside):
            assert run(search, *flags, "--json", "s.json", "--seeds", "3")[0] == 0
        *kept, last = json.loads((tmp_path / "s.json").read_text())["rows"]
        assert sorted(row["seed"] for row in kept) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 5] and last["what"] == "a new row"
        damaged = [record | damage for damage in ({"search": "base"}, {"rows": [{"what": 1}]}, {"rows": None})]
        for text in (*map(json.dumps, damaged), "[" * 100_000):
            (tmp_path / "s.json").write_text(text)
            status, _, err = run(search, *flags, "--json", "s.json")
            assert status == 2 and "holds no figures" in err and err.count("\n") == 1
        for entry in ("data set", "device", "versions"):
            (tmp_path / "s.json").write_text(json.dumps(record | {entry: "others"}))
            status, _, err = run(search, *flags, "--json", "s.json")
            assert status == 2 and f"has other {entry}: others" in err
    status, _, err = run(search, *flags, "--only", "K = 11")
    assert status == 2 and "K = 11" in err


def test_the_table_tells_no_difference_from_too_few_seeds():
    def rows(what, values):
        return [
            dict(what=what, seed=seed, joint_accuracy=value, head_agreement=99.0, seconds=10.0 * seed**2)
            for seed, value in enumerate(values)
        ]

    record = rows("first", [99.0, 99.2, 99.1]) + rows("up", [99.1, 99.31, 99.2]) + rows("same", [99.0, 99.21, 99.1])
    record += rows("wild", [99.0, 99.9, 98.5]) + rows("down", [98.0, 98.2, 98.1]) + rows("one", [99.0])
    where = {"search": "ablations", "device": "cpu", "versions": "torch", "data set": "mnist"}
    record = [row | {"commit": "0000000"} for row in record]
    lines = search.search_tables(where | {"rows": record})["search-ablations"].splitlines()[4:]
    verdicts = [line.split("|")[5].strip() for line in lines]
    assert verdicts == ["", "better", "equal", "open", "worse", ""]
    assert "-1.000 ± 0.000" in lines[4] and "99.100 ± 0.100" in lines[0]
    assert [line.split("|")[7].strip() for line in lines] == ["10"] * 5 + ["0"]  # medians


def test_a_record_of_another_search_is_refused_by_the_tables(tmp_path):
    (tmp_path / "search-tiny.json").write_text((ROOT / "logs" / "records" / "search-base.json").read_text())
    with pytest.raises(UserError, match="is damaged, or of another version"):
        searches(tmp_path)


def test_a_search_is_complete_with_all_its_rows_and_seeds(tmp_path):
    _, settings, rows = changes.SEARCHES["base"]
    figures = dict.fromkeys(search.FIGURES, 1.0) | {"commit": "0000000"}
    made = [
        dict(what=what, seed=seed, change=search.describe(settings | change)) | figures
        for what, change in rows.items()
        for seed in range(search.SEEDS)
    ]
    path = tmp_path / "search-base.json"
    for count, complete in ((len(made), True), (len(made) - 1, False)):
        record = {"search": "base", "rows": made[:count]} | search.recipe_of("base")
        path.write_text(json.dumps(record))
        assert search.is_complete(path) == complete
    path.write_text(json.dumps(record | search.recipe_of("tiny")))
    with pytest.raises(UserError, match="has other recipe"):
        search.is_complete(path)
