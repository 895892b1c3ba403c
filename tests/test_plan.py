"""Which runs serve which table, and where the records come from."""

import ast
import json
import subprocess

import pytest

import train
from conftest import ROOT
from studies import older_code, reproduce
from studies.plan import DISTILL, RECORDS, REPLAY, SHARED, groups, needed, plan, read_accuracies, studies
from studies.tables import aims, index_rows, likeness, tables, tries
from support.cli import UserError

HEADER = """\
command     python train.py
date        {date}
commit      {commit}
device      cpu: A, 1 thread
arguments   {arguments}

"""


def test_only_takes_the_runs_of_these_tables(run, monkeypatch):
    assert reproduce.GROUPS == tuple(dict.fromkeys([*groups(), *(group for group, *_ in studies().values())]))
    taken = []
    monkeypatch.setattr(reproduce, "run_all", lambda runs, *rest: taken.append(set(runs)))
    monkeypatch.setattr(reproduce, "make_studies", lambda *arguments: None)
    monkeypatch.setattr(reproduce, "tables", lambda *arguments: pytest.exit("not in a test"))
    for only in (["weights"], ["weights", "tries"], []):
        with pytest.raises(pytest.exit.Exception):
            run(reproduce, *(["--only", *only] if only else []))
        wanted = {name for group, runs in groups().items() if group in only or not only for name in runs}
        assert taken[-1] == wanted == set(plan(only or None))
    teachers = {f"large-s{seed}" for seed in range(5)}
    read = {f"base-s{seed}" for seed in range(5)} | {"tiny-s0", "fast-s0"}
    assert set(plan(["errors"])) == teachers | read  # whose checkpoints it reads
    bases = {f"base-s{seed}" for seed in range(5)}
    assert set(plan(["precisions"])) == bases | set(groups()["precisions"])  # which the table shows too
    assert set(plan(["published"])) - set(groups()["published"]) == bases | {f"study-default-s{n}" for n in range(3)}
    assert "two-branch-lenet-published-s4" in plan(["ablations"])
    assert set(plan(["distilled"])) == teachers | set(groups()["distilled"])
    assert {"study-default-s0", "study-digit-weight-0.9-sum-weight-0.1-s2"} <= taken[0] and len(taken[0]) == 15
    status, _, err = run(reproduce, "--only", "weight")
    assert status == 2 and "weights" in err


def test_the_aims_stand_beside_the_rows_that_have_one():
    rows = [["`base`", "99.10 ± 0.03", "65.4"], ["`fast`", "99.03", "1.9"], ["5 `large`", "99.90", ""]]
    lines = [line.split("|")[1:-1] for line in aims(rows).splitlines()[2:]]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["`base`", "99.60", "99.10 ± 0.03", "-0.50", "90", "65.4"],
        ["5 `large`", "99.82", "99.90", "+0.08", "", ""],
    ]


def write_run(folder, name, command, date="2026-01-01", commit="abc", seconds=1, note=""):
    """The log of a run in which all scores are 1, as plan.finished reads it."""
    args, _ = train.parse_arguments([*command.split()[1:], "--run-name", name])
    arguments = " ".join(f"{key}={value}" for key, value in vars(args).items() if key not in train.NOT_STORED)
    head = HEADER.format(date=date, commit=commit, arguments=arguments)
    (folder / f"{name}.txt").write_text(head.removesuffix("\n") + note + "\n")
    rows = f"validation,{seconds},1,1,1\ntest,,1,1,1\n"
    (folder / f"{name}.csv").write_text(f"split,seconds,digit_accuracy,sum_accuracy,joint_accuracy\n{rows}")


def test_the_index_has_a_line_for_each_date_commit_and_machine(tmp_path):
    commands = {f"base-s{seed}": f"train.py --epochs 1 --seed {seed}" for seed in range(2)}
    for seed, (name, command) in enumerate(commands.items()):
        write_run(tmp_path, name, command, f"2026-01-0{seed + 1}", f"abc{seed}")
    lines = [line.split("|") for line in tables(tmp_path, commands)["index"].splitlines()[2:]]
    assert [[cell.strip() for cell in line[1:-1]] for line in lines] == [
        ["`base`", "1", "results", "abc0", "2026-01-01", "A, 1"],
        ["`base`", "1", "results", "abc1", "2026-01-02", "A, 1"],
    ]


def test_seconds_of_runs_that_shared_the_machine_have_a_star(tmp_path):
    seconds = []
    for note in (f"{SHARED.format(2)}\n", ""):
        write_run(tmp_path, "large-s0", "train.py --model large --epochs 1", seconds=90, note=note)
        (line,) = tables(tmp_path, {"large-s0": "train.py --model large --epochs 1"})["results"].splitlines()[2:]
        seconds.append(line.split("|")[-2].strip())
    assert seconds == ["90.0*", "90.0"]


@pytest.fixture
def committed(tmp_path, monkeypatch):
    """A repository in place of this one: committed(file, content) writes, commits and returns the commit."""

    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(
            ["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    def commit(file, content):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(content)
        git("add", "-A")
        git("commit", "-m", content)
        older_code.code_of.cache_clear()
        return git("rev-parse", "--short", "HEAD")

    git("init")
    monkeypatch.setattr(older_code, "ROOT", tmp_path)
    yield commit
    older_code.code_of.cache_clear()


def test_a_record_is_not_of_older_code_where_only_an_encoding_changed_that_it_does_not_use(tmp_path, committed):
    first = committed("model.py", "class BinarySum:\n    bits = 5\n")
    records = tmp_path / "records"
    records.mkdir()
    for encoding in ("onehot", "binary"):
        log = HEADER.format(date="", commit=first, arguments=f"seed=0 sum_encoding={encoding}")
        (records / f"{encoding}.txt").write_text(log)
    assert older_code.by_older_code(records) is None
    committed("model.py", "class BinarySum:\n    bits = 6\n")
    assert older_code.by_older_code(records) == f"1 of 2 records are of older code of the loop: 1 of {first}"


def test_records_of_another_loop_are_counted_by_commit(tmp_path, committed):
    committed("evaluate.py", "def score():\n    return 1\n")
    first, second = committed("train.py", "1"), committed("train.py", 'add(2, help="a")')
    committed("studies/replay.py", "3")
    last = committed(
        "train.py", '"""Not code."""\nfrom support.a import add\nadd(2, help="nor this")  # nor this\nfiles.write()'
    )
    committed("evaluate.py", "def score():\n    return 1\n\n\ndef main():\n    score()\n")  # as the loops see it
    records = tmp_path / "records"
    records.mkdir()

    def record(name, commit, command="train.py"):
        head = HEADER.format(date="", commit=commit, arguments="seed=0")
        (records / f"{name}.txt").write_text(head.replace("train.py", command))

    record("a", second)
    record("b", last)
    record("c", last, REPLAY)
    assert older_code.by_older_code(records) is None  # the change of the replays is none of theirs
    for name, commit in (("d", first), ("e", first), ("f", f"{last}-dirty"), ("g", f"--output={tmp_path}/option")):
        record(name, commit)
    record("h", second, REPLAY)
    record("i", last, DISTILL)  # without that file
    record("j", committed("studies/distill.py", "4"), DISTILL)
    said = older_code.by_older_code(records)
    counts = f"2 of {first}, 1 of {last}-dirty, 1 of --output={tmp_path}/option, 1 of {second}, 1 of {last}"
    assert said == f"6 of 10 records are of older code of the loop: {counts}"
    assert not list(tmp_path.glob("option*"))  # the commit of a log is no option of git
    committed("evaluate.py", "def score():\n    return 2\n")
    assert older_code.by_older_code(records).startswith("10 of 10 records")


@pytest.mark.parametrize(
    "line, left_out",
    [
        ("from support.runlog import commit", True),
        ("from support.optim import OPTIMIZERS", False),  # a file that is compared: another import, another loop
        ("from data import MEAN", False),
        ("files.save()", True),
        ("batches.save()", False),
    ],
)
def test_of_the_loops_what_changes_no_result_is_left_out(line, left_out):
    assert older_code.left_out(ast.parse(line).body[0]) is left_out


def test_of_evaluate_only_what_the_loops_run_is_compared():
    lines = ["from a import b", "N = 1", "def score(x): return half(x)", "def half(x): return x / N", "def main(): b()"]
    kept = older_code.reached(ast.parse("\n".join(lines)).body, ["score"])
    assert [ast.unparse(node).splitlines()[0] for node in kept] == ["N = 1", "def score(x):", "def half(x):"]
    taken = set()
    for file in (*older_code.DISTILL_LOOP, *older_code.REPLAY_LOOP):
        imports = [node for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.ImportFrom)]
        taken |= {alias.name for node in imports if node.module == "evaluate" for alias in node.names}
    assert taken == set(older_code.SCORING)


def test_the_studies_scored_the_networks_of_the_logs():
    """They read checkpoints, which are not committed; a run that is recorded again makes them those of another."""
    compared = set()
    for path in (ROOT / RECORDS).glob("*-*.json"):
        if not path.stem.endswith(("-cpu", "-again")):
            continue  # of searches, or of networks without logs
        record = json.loads(path.read_text())
        for number, network in enumerate(record.get("networks", ())):
            if "scores" in network:  # of studies.errors
                joint = 100 * network["scores"]["joint_accuracy"]
            elif "rows" in network:  # of studies.robustness
                (joint,) = (row["joint"] for row in network["rows"] if row["kind"] == "clean")
            else:  # of studies.combine
                joint = record["rows"][0]["joint_accuracy"][number]
            name = network.get("name", network.get("checkpoint")).removesuffix(".pt")
            if name != "ensemble":
                compared.add((path.name, name))
                log = f"again/{name.replace('-again', '')}.csv" if "-again" in name else f"{name}.csv"
                logged = read_accuracies(ROOT / RECORDS / log)["joint_accuracy"]
                assert joint == pytest.approx(logged, abs=1e-9), (path.name, name)
    wanted = {(file, name) for file, (_, command) in studies().items() for name in needed(command)}
    assert compared > wanted


def test_the_index_has_each_commit_of_a_record_with_its_date():
    made = [("b", "2026-01-02"), ("a", "2026-01-01"), ("b", "2026-01-02")]
    rows = [dict(commit=commit, date=date) for commit, date in made]
    record = dict(commit="a", date="2026-01-01", device="cpu: X, 1 thread")
    lines = index_rows("search-base.json", record | {"rows": rows})["index"]
    assert [line[3:] for line in lines] == [["a", "2026-01-01", "X, 1"], ["b", "2026-01-02", "X, 1"]]
    record["device"] = "cpu: X(R) Processor @ 2.10GHz, 2 threads"
    (line,) = index_rows("errors-cpu.json", record)["index"]
    assert line == ["`errors-cpu.json`", "", "errors", *lines[0][3:5], "X 2.1 GHz, 2"]


@pytest.mark.parametrize(("old", "new"), [("average-pooling,2,", "average,2,"), ("_loss,", "_lost,")])
def test_a_damaged_record_of_a_published_design_is_named_in_one_line(tmp_path, old, new):
    for name in ("average-pooling-published-s0", "average-pooling-try-stop-6-optimizer-adam-s0"):
        text = (ROOT / RECORDS / f"{name}.csv").read_text()
        assert old in text
        (tmp_path / f"{name}.csv").write_text(text.replace(old, new))
    with pytest.raises(UserError, match=r"optimizer-adam-s0.csv is damaged"):
        tries(tmp_path, ["average-pooling-try-stop-6-optimizer-adam-s0"])
    if new == "average,2,":
        with pytest.raises(UserError, match=r"published-s0.csv is damaged"):
            likeness(tmp_path, lambda prefix: [f"{prefix}-s0"] if prefix.startswith("average-pooling") else [])
