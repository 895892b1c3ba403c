"""Run every experiment behind the README's tables and write the tables from the runs' logs.

    python reproduce.py            run what is missing in logs/, then rewrite the tables in README.md
    python reproduce.py --check    run nothing; exit status 1 if a table of README.md differs from the logs
    python reproduce.py --quick    one seed, one epoch of 15,000 images of everything; prints the tables, keeps nothing

It can be stopped at any time and called again: finished runs are skipped, the interrupted ones go on where they were.
"""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cli
import train
from checkpoint import write_atomically
from runlog import lock

HERE = Path(__file__).resolve().parent
OURS = {"base": range(5), "tiny": range(5), "fast": range(10)}  # size: seeds
OTHER_SEEDS = range(3)
STUDY_EPOCHS = 3  # of the studies of encodings and weights

# name: (what the write-up states, one line of cause)
PUBLISHED = {
    "narrow-trunk": ("pictures only", "sound; a single rate of 0.1 for ten epochs and 15 features are its limit"),
    "shared-softmax-lenet": (
        "digit 9.7 %, sum about 1 % (training)",
        "one softmax over both heads, then cross-entropy: the digit takes all of it, the sum is left with none",
    ),
    "two-softmax-lenet": (
        "digit 98.4 %, sum 37.3 % (training)",
        "softmax before cross-entropy: the gradient dies where an answer is surely wrong; and never a 9",
    ),
    "argmax-regression": (
        "digit 99.225 %, sum 98.99 % (training)",
        "argmax cuts the sum's gradient; harmless, as the digit's loss trains the classifier. The mend blurs the digit",
    ),
    "average-pooling": (
        "digit 99.319 %, sum 99.219 %, joint 98.551 % (a product)",
        "sound; the product is not the joint accuracy, and 16 test images were dropped",
    ),
    "two-branch-lenet": (
        "digit 16/10000, sum 1 to 11/10000",
        "softmax before cross-entropy; and the counter held the last batch of 16 only",
    ),
}
# Of these the published run and the mended one are the same: their faults, if any, are in the counting.
SAME_WHEN_MENDED = ("narrow-trunk", "average-pooling")
# Cut short to keep the whole within about 90 minutes of two cores: an epoch of this one costs twenty of a LeNet.
SHORTENED = {"argmax-regression": 3}
ENCODINGS = {
    "addend one-hot, sum one-hot": "",
    "addend as a number": "--addend-encoding scalar",
    "addend binary": "--addend-encoding binary",
    "addend embedding": "--addend-encoding embedding",
    "sum binary, five bits": "--sum-encoding binary",
    "sum as a number, squared error": "--sum-encoding scalar",
    "sum as a number, root of it": "--sum-encoding scalar-rmse",
    "sum without parameters: the digit shifted": "--sum-encoding shift",
}
PRECISIONS = {"float32": "", "bfloat16": "--precision bfloat16"}
HEADS = ("digit", "sum", "joint")
FIGURES = ("ours", "rival", "ratio")  # of benchmark.py
SPEED = {  # table: sections of benchmark.py
    "loop": ("usual", "overhead", "scoring", "latency", "start"),
    "fast": ("rival", "target"),
    "options": ("options",),
    "growth": ("growth", "memory", "several"),
}
WEIGHTS = ("0.9 0.1", "0.7 0.3", "1 1", "0.3 0.7", "0.1 0.9")


def plan():
    """Every run: {name: flags of train.py}, in the order in which they are run."""
    runs = {}
    for size, seeds in OURS.items():
        for seed in seeds:
            runs[f"{size}-s{seed}"] = f"--model {size} --seed {seed}"
    for seed in OTHER_SEEDS:
        for design in PUBLISHED:
            epochs = f" --epochs {SHORTENED[design]}" if design in SHORTENED else ""
            runs[f"{design}-published-s{seed}"] = f"--model {design}{epochs} --seed {seed}"
            if design not in SAME_WHEN_MENDED:
                runs[f"{design}-mended-s{seed}"] = f"--model {design} --faults none{epochs} --seed {seed}"
        for flags in (*ENCODINGS.values(), *PRECISIONS.values()):
            runs[f"{study_name(flags)}-s{seed}"] = f"{flags} --epochs {STUDY_EPOCHS} --seed {seed}".strip()
        for weights in WEIGHTS:
            flags = weight_flags(weights)
            runs[f"{study_name(flags)}-s{seed}"] = f"{flags} --epochs {STUDY_EPOCHS} --seed {seed}".strip()
    return {name: f"{flags} --dataset mnist" for name, flags in runs.items()}


def weight_flags(weights):
    """Flags of "digit sum" loss weights; none for the default of 1 and 1."""
    digit_weight, sum_weight = weights.split()
    return "" if digit_weight == sum_weight else f"--digit-weight {digit_weight} --sum-weight {sum_weight}"


def study_name(flags):
    """A run's name from its flags: --sum-encoding binary -> study-sum-encoding-binary."""
    return re.sub(r"[\s-]+", "-", f"study {flags or 'default'}")


# ---------------------------------------------------------------------------------------------------------------------
# Running


def finished(folder, name, flags):
    """Whether `folder` has the complete log of a run with the arguments that these flags mean today."""
    try:
        text = (folder / f"{name}.txt").read_text()
        line = re.search(r"^arguments +(.*)$", text, re.MULTILINE).group(1)
        read_test(folder / f"{name}.csv")
    except (OSError, AttributeError, LookupError):
        return False
    args, _ = train.parse_arguments(shlex.split(f"{flags} --run-name {name}"))
    defaults = vars(train.make_parser().parse_args([]))  # what a log from before a flag was there means
    logged = dict(re.findall(r"(\w+)=(.*?)(?= \w+=|$)", line))
    return all(
        logged.get(argument, str(defaults[argument])) == str(value)
        for argument, value in vars(args).items()
        if argument not in train.FREE_ON_RESUME
    )


def run_all(runs, folder, jobs, extra):
    """Run what is not finished, `jobs` at a time, into `folder`. Raises UserError where a run fails."""
    waiting = {name: flags for name, flags in runs.items() if not finished(folder, name, flags)}
    total, start, running = len(waiting), time.monotonic(), {}
    print(f"{len(runs) - total} of {len(runs)} runs are there, {total} to do", flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = next(iter(waiting))
                running[name] = start_run(name, waiting.pop(name), folder, extra, environment)
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
            process.terminate()  # each leaves a checkpoint to go on from
        for process in running.values():
            process.wait()


def start_run(name, flags, folder, extra, environment):
    """Start, or go on with, one run in a folder of its own."""
    work = folder / ".work" / name
    work.mkdir(parents=True, exist_ok=True)
    last = work / "logs" / f"{name}-last.pt"
    if last.exists():
        words = ["--resume", str(last)]
    else:
        with lock(work):  # of a run that was stopped in its first epoch, not of one that goes on by itself
            shutil.rmtree(work / "logs", ignore_errors=True)
        words = shlex.split(f"{flags} --run-name {name}")
    command = [sys.executable, str(HERE / "train.py"), *words, "--out", str(work), *extra]
    with open(work / "output.txt", "w") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)


def keep(name, process, folder):
    """Move the log of a run that ended well to `folder`; its checkpoints go."""
    work = folder / ".work" / name
    if process.returncode:
        said = (work / "output.txt").read_text().strip().splitlines() or [f"exit status {process.returncode}"]
        raise cli.UserError(f"the run {name} failed: {said[-1]}")
    for ending in ("csv", "txt"):
        text = (work / "logs" / f"{name}.{ending}").read_text()
        write_atomically(
            folder / f"{name}.{ending}", text.replace(f" --out {shlex.quote(str(work))}", "").replace(f"{work}/", "")
        )
    shutil.rmtree(work)


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def read_test(path):
    """The test row of a run's CSV file as floats, with `train_seconds`. Raises LookupError where it is not there."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    tests = [row for row in rows if row["split"] == "test"]
    scores = {name: 100 * float(tests[0][name]) for name in map("{}_accuracy".format, HEADS)}
    scores["train_seconds"] = sum(float(row["seconds"]) for row in rows if row["split"] == "validation")
    return scores


def spread(folder, names, column, digits=2):
    """Mean ± standard deviation of a column over runs, as text; the mean alone of one run; a dash for none."""
    values = [read_test(folder / f"{name}.csv")[column] for name in names]
    if not values:
        return "–"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def table(headings, rows):
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def tables(folder, runs):
    """{name: Markdown} of every part of the README that comes from the logs; runs not finished do not count."""
    there = [name for name, flags in runs.items() if finished(folder, name, flags)]

    def row(prefix, *cells):
        """A row of the runs PREFIX-s0, PREFIX-s1 ...: the cells, their number, the three accuracies."""
        names = [name for name in there if re.fullmatch(rf"{re.escape(prefix)}-s\d+", name)]
        return [*cells, str(len(names)), *(spread(folder, names, f"{head}_accuracy") for head in HEADS)]

    results = []
    for size in OURS:
        names = [name for name in there if name.startswith(f"{size}-s")]
        parameters, machine = facts(folder, names)
        epochs = str(train.parse_arguments(["--model", size])[0].epochs)
        seconds = spread(folder, names, "train_seconds", 1)
        results.append([*row(size, f"`{size}`", parameters, epochs), seconds, machine])
    published = [
        row("base", "`base`, ours", str(train.make_parser().get_default("epochs")), "") + ["", ""],
        row("study-default", "`base`, ours", str(STUDY_EPOCHS), "") + ["", ""],
    ]
    for design, (stated, cause) in PUBLISHED.items():
        epochs = SHORTENED.get(design, train.RECIPES[design]["epochs"])
        mended = "the same" if design in SAME_WHEN_MENDED else row(f"{design}-mended")[-1]
        published.append(row(f"{design}-published", f"`{design}`", str(epochs), stated) + [mended, cause])
    log = folder / "base-s0.txt"
    scores = ["seeds", "digit %", "sum %", "joint %"]
    return {
        "base-s0": f"```\n{log.read_text() if log.exists() else '–'}```",
        "results": table(["network", "parameters", "epochs", *scores, "training, s", "machine"], results),
        "published": table(["design", "epochs", "stated", *scores, "mended: joint %", "cause"], published),
        "encodings": table(
            ["encoding", *scores], [row(study_name(flags), label) for label, flags in ENCODINGS.items()]
        ),
        **speed(folder / "benchmark-cpu.json"),
        "precisions": table(
            ["precision", *scores], [row(study_name(flags), label) for label, flags in PRECISIONS.items()]
        ),
        "weights": table(
            ["digit : sum", *scores],
            [row(study_name(weight_flags(pair)), " : ".join(pair.split())) for pair in WEIGHTS],
        ),
    }


def speed(path):
    """{name: Markdown} of benchmark.py's sections from its JSON, and of the machine they were measured on."""
    record = json.loads(path.read_text()) if path.exists() else {"rows": []}
    head = "{device}; {versions}; commit {commit}; medians of {repeats} rounds."
    made = {"speed-machine": head.format(**record) if record["rows"] else "–"}
    for name, sections in SPEED.items():
        rows = []
        for row in record["rows"]:
            if row["section"] in sections:
                spread = " to ".join(map(figure, row["spread"]))
                rows.append([row["what"], row["unit"], *(figure(row[key]) for key in FIGURES), spread])
        made[f"speed-{name}"] = table(["what", "unit", "ours", "other", "ratio", "spread"], rows)
    return made


def figure(value):
    """A figure of benchmark.py's as the tables show it; nothing for None."""
    return "" if value is None else f"{value:,.{0 if abs(value) >= 1000 else 2}f}"


def facts(folder, names):
    """(parameters, machine) as the logs of these runs give them; of several machines all."""
    texts = [(folder / f"{name}.txt").read_text() for name in names]
    parameters = {re.search(r"^model .*?([\d,]+) parameters", text, re.MULTILINE).group(1) for text in texts}
    machines = {
        f"{re.search(r'^device +(.*)$', text, re.MULTILINE).group(1)}, {re.search(r'torch [^,+]*', text).group()}"
        for text in texts
    }
    return ", ".join(sorted(parameters)) or "–", "; ".join(sorted(machines)) or "–"


def rewrite(text, made):
    """The README's text with each table between its markers replaced. Raises UserError where markers are missing."""
    for name, markdown in made.items():
        pattern = re.compile(rf"(<!-- from logs: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise cli.UserError(f"README.md lacks the markers <!-- from logs: {name} --> and <!-- end -->")
        text = pattern.sub(lambda match, new=markdown: match.group(1) + new + "\n" + match.group(2), text)
    return text


def main(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("--check", action="store_true", help="compare README.md with the logs, run nothing")
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, nothing kept")
    parser.add_argument(
        "--jobs", type=cli.integer(1), help="runs at a time, which share the cores (default: 1, quick: all)"
    )
    parser.add_argument("--device", choices=cli.DEVICES, default="auto", help="as train.py takes it")
    parser.add_argument("--data-dir", default="data", metavar="FOLDER", help="as train.py takes it")
    args = parser.parse_args(argv)
    if args.check and args.quick:
        parser.error("--check and --quick contradict each other")

    runs, readme = plan(), HERE / "README.md"
    extra = ["--device", args.device, "--data-dir", args.data_dir]
    if args.quick:
        few = "--epochs 1 --val-size 45000"  # trains on 15,000 images
        runs = {name: f"{flags} {few}" for name, flags in runs.items() if name.endswith("-s0")}
        with tempfile.TemporaryDirectory() as folder:
            run_all(runs, Path(folder), args.jobs or os.cpu_count() or 1, extra)
            print("one epoch of 15,000 images each, whatever the column says:\n")
            print("\n\n".join(tables(Path(folder), runs).values()))
        return 0
    if not args.check:
        (HERE / "logs").mkdir(exist_ok=True)
        with lock(HERE / "logs"):
            run_all(runs, HERE / "logs", args.jobs or 1, extra)
    before = readme.read_text()
    after = rewrite(before, tables(HERE / "logs", runs))
    if args.check and before != after:
        print("reproduce.py: README.md differs from the logs; run python reproduce.py", file=sys.stderr)
        return 1
    if before != after:
        write_atomically(readme, after)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, train.terminate)  # ends as Ctrl-C does, with its runs
    sys.exit(cli.run_script(main))
