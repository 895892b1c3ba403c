"""Run the experiments behind the tables, and write the tables from the logs.

Records that the index says were made "by hand" are left to their own commands.

    python -m studies.reproduce          run what is missing in logs/records/,
                                         runs first, then studies; then rewrite
                                         the tables and figures
    python -m studies.reproduce --only weights
                                         run only what the table of the loss
                                         weights needs
    python -m studies.reproduce --check  run nothing; exit status 1 if a table
                                         differs from the logs
    python -m studies.reproduce --quick  one seed, one epoch of 15,000 images of
                                         the runs behind some of the tables,
                                         which are printed; keeps nothing

It can be stopped at any time and called again: finished runs are skipped,
interrupted ones continue, those of studies.replay and studies.distill start
again. The figures need matplotlib, which is in requirements-dev.txt.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support import cli

GROUPS = (  # of runs, then of studies, in studies.plan
    *("results", "encodings", "weights", "precisions", "robustness"),
    *("published", "tries", "ablations", "distilled"),
    *("errors", "recipes", "speed"),
)
QUICK = ("results", "published", "encodings", "precisions", "weights")  # the tables that --quick prints


def make_parser():
    parser = cli.Parser(__doc__)
    names = ", ".join(GROUPS)
    parser.add_argument("--only", nargs="+", choices=GROUPS, metavar="TABLE", help=f"run only what these need: {names}")
    parser.add_argument("--check", action="store_true", help="compare the tables with the logs, run nothing")
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, nothing kept")
    parser.add_argument("--jobs", type=cli.integer(1), help="runs at a time, on shared cores (default: 1, quick: all)")
    parser.add_argument("--device", choices=cli.DEVICES, default="auto", help="as train.py takes it")
    parser.add_argument("--data-dir", default="data", metavar="FOLDER", help="as train.py takes it")
    return parser


if __name__ == "__main__":
    cli.begin_script(make_parser)  # answers --help and a mistyped flag before PyTorch is imported, which takes seconds

import train
from studies import figures
from studies.older_code import by_older_code
from studies.plan import CHECKPOINTS, RECORDS, REPLAY, SHARED, finished, needed, plan, studies
from studies.search import is_complete
from studies.tables import PAGES, rewrite, tables
from support.checkpoint import CheckpointError, load_checkpoint
from support.figures import require_matplotlib
from support.files import lock, read_text, write_atomically

ROOT = Path(__file__).resolve().parent.parent
BEGUN = "begun.json"  # in the folder of a run that is not finished


def run_all(runs, folder, jobs, extra, read=()):
    """Run what is not finished, `jobs` at a time, into `folder`; and those of the runs `read` that have no checkpoint.
    A run whose command reads checkpoints of others waits for those.

    Raises UserError where a run fails.
    """
    to_do, read = {name for name, command in runs.items() if not finished(folder, name, command)}, set(read)
    while True:  # a run that is made again for its checkpoint may read others
        read |= set().union(*(needed(runs[name]) for name in to_do))
        gone = {name for name in read & runs.keys() if not (folder / CHECKPOINTS / f"{name}.pt").exists()}
        if gone <= to_do:
            break
        to_do |= gone
    waiting = {name: command for name, command in runs.items() if name in to_do}
    total, start, running = len(waiting), time.monotonic(), {}
    print(f"{len(runs) - total} of {len(runs)} runs are there, {total} to do", flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    try:
        while waiting or running:
            ready = [name for name in waiting if not needed(waiting[name]) & (waiting.keys() | running.keys())]
            for name in ready[: jobs - len(running)]:
                running[name] = start_run(name, waiting.pop(name), folder, jobs, extra, environment)
            for name, process in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    keep(name, process, folder)
                    done = total - len(waiting) - len(running)
                    left = (time.monotonic() - start) / done * (total - done) / 60
                    print(f"{done}/{total} {name}, about {left:.0f} min left", flush=True)
            time.sleep(0.2)
    finally:
        for process in running.values():
            process.terminate()  # train.py leaves a checkpoint to continue from
        for process in running.values():
            process.wait()


def start_run(name, command, folder, jobs, extra, environment):
    """Start one run, one of `jobs` at a time, in a folder of its own; or continue it, if its command is the same.

    The folder holds the command, and the most runs that there were at a time.
    """
    work = folder / ".work" / name
    work.mkdir(parents=True, exist_ok=True)
    last, begun = work / "logs" / f"{name}-last.pt", work / BEGUN
    try:
        before, most = json.loads(read_text(begun))
    except (OSError, RecursionError, TypeError, ValueError):  # none, or damaged
        before, most = None, jobs
    if before == command and isinstance(most, int) and can_continue(last, name, [*shlex.split(command), *extra]):
        words = ["train.py", "--resume", str(last), "--out", str(work)]
        jobs = max(jobs, most)
    else:
        with lock(work):  # of a run that was stopped in its first epoch, not of one that still runs
            shutil.rmtree(work / "logs", ignore_errors=True)
            for copy in ("best.pt", "last.pt"):
                (work / copy).unlink(missing_ok=True)
        place = ["--name", name, "--out", str(work / "logs")]
        words = shlex.split(command)
        words += place if command.startswith(REPLAY) else ["--run-name", name, "--out", str(work)]
    write_atomically(begun, json.dumps([command, jobs]))
    with open(work / "output.txt", "w") as output:
        return subprocess.Popen(
            [sys.executable, *words, *extra], stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=ROOT
        )


def can_continue(last, name, words):
    """Whether the checkpoint `last` is there, and of the run with the arguments that these words mean today."""
    try:
        stored = load_checkpoint(last)["args"]
    except (CheckpointError, LookupError):
        return False
    args, _ = train.parse_arguments([*words[1:], "--run-name", name])
    return stored == {argument: value for argument, value in vars(args).items() if argument not in train.NOT_STORED}


def keep(name, process, folder):
    """Move the log of a run that ended well to `folder`, with a note where runs shared the machine, and the best
    checkpoint to its folder CHECKPOINTS, for the studies of trained networks; delete the rest."""
    work = folder / ".work" / name
    if process.returncode:
        said = read_text(work / "output.txt").strip().splitlines() or [f"exit status {process.returncode}"]
        cause = said[-1] if process.returncode > 0 else f"killed by signal {-process.returncode}"
        raise cli.UserError(f"the run {name} failed: {cause}")
    _, jobs = json.loads(read_text(work / BEGUN))
    for ending in ("csv", "txt"):
        text = read_text(work / "logs" / f"{name}.{ending}")
        for place in (work / "logs", work):
            text = text.replace(f" --out {shlex.quote(str(place))}", "").replace(f"{place}/", "")
        if jobs > 1:
            text = text.replace("\n\n", f"\n{SHARED.format(jobs)}\n\n", 1)  # the header ends in an empty line
        write_atomically(folder / f"{name}.{ending}", text)
    best = work / "logs" / f"{name}-best.pt"
    if best.exists():  # not of studies.replay
        (folder / CHECKPOINTS).mkdir(exist_ok=True)
        best.replace(folder / CHECKPOINTS / f"{name}.pt")
    shutil.rmtree(work)


def make_studies(missing, records, extra):
    """Make these records of studies, {file: command}, one after the other. Raises UserError where one fails."""
    for file, command in missing.items():
        print(f"{file}: python {command}", flush=True)
        words = [sys.executable, *shlex.split(command), "--json", str(records / file), *extra]
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            status = process.wait()
        finally:
            process.terminate()
            process.wait()
        if status:
            raise cli.UserError(f"the study behind {file} failed")


def is_made(path, read):
    """Whether the record of a study is there, a search complete, and one of networks with all the runs `read`."""
    if not path.exists():
        return False
    if path.name.startswith("search-"):
        return is_complete(path)
    try:
        networks = json.loads(read_text(path)).get("networks", [])
        return read <= {network.get("name", network.get("checkpoint")).removesuffix(".pt") for network in networks}
    except (AttributeError, RecursionError, TypeError, ValueError):  # damaged
        return False


def main(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.check and args.quick:
        parser.error("--check and --quick contradict each other")
    if args.check and (args.only or args.jobs):
        parser.error("--check compares all tables and runs nothing; leave out --only and --jobs")
    shown = [name for name in QUICK if name in (args.only or QUICK)]
    if args.quick and not shown:
        parser.error(f"--quick makes the tables {', '.join(QUICK)}; choose --only from these")

    runs, records = plan(shown if args.quick else args.only), ROOT / RECORDS
    extra = ["--device", args.device, "--data-dir", args.data_dir]
    if args.quick:
        few = {"train.py": "--epochs 1 --val-size 45000", "-m": "--epochs 1 --images 15000"}
        runs = {name: f"{command} {few[command.split()[0]]}" for name, command in runs.items() if name.endswith("-s0")}
        with tempfile.TemporaryDirectory() as folder:
            run_all(runs, Path(folder), args.jobs or os.cpu_count() or 1, extra)
            print("one epoch of 15,000 images each, whatever the column says:\n")
            made = tables(Path(folder), runs)
            print("\n\n".join(made[name] for name in shown))
        return 0
    if not args.check:
        require_matplotlib()
        records.mkdir(parents=True, exist_ok=True)
        with lock(records):
            chosen = {file: words for file, (group, words) in studies().items() if group in (args.only or GROUPS)}
            missing = {file: words for file, words in chosen.items() if not is_made(records / file, needed(words))}
            run_all(runs, records, args.jobs or 1, extra, set().union(*map(needed, missing.values())))
            make_studies(missing, records, extra)
    made, differing = tables(records, plan()), []
    if older := by_older_code(records):
        print(older, file=sys.stderr)
    for page in PAGES:
        before = read_text(ROOT / page)
        after = rewrite(page, before, made)
        if before != after:
            differing.append(page)
            if not args.check:
                write_atomically(ROOT / page, after)
    if not args.check:
        figures.main(["--data-dir", args.data_dir])
    if args.check and differing:
        print(f"reproduce.py: {', '.join(differing)} differ from the logs; run {parser.prog}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    with cli.sigterm_as_interrupt():  # ends as Ctrl-C does, with its runs
        sys.exit(cli.run_script(main))
