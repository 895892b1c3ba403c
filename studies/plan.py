"""The runs and studies behind the tables: their names, their commands, and whether the log of a run is there."""

import collections
import csv
import math
import re
import shlex

import train
from studies import distill, replay
from studies.published import DESIGNS
from support.checkpoint import ACCURACIES
from support.curves import logged_arguments
from support.files import read_text
from support.recipes import RECIPES

OURS = {"base": range(5), "tiny": range(5), "large": range(5), "fast": range(10)}  # size: seeds
OTHER_SEEDS = range(3)
ROBUST = ("base", "tiny")  # sizes that are trained on corrupted images too
CORRUPTED = 0.25  # share of the training images
PUBLISHED_SEEDS = {"two-branch-lenet": range(5)}  # one of the first three collapses, so its spread needs more
OUR, REPLAY, DISTILL = "train.py --dataset mnist", "-m studies.replay", "-m studies.distill"
DISTILLED = {"base": "--epochs 30 --augment 1", "tiny": "--epochs 30"}  # size: flags; taught by those of "large"
RECORDS, CHECKPOINTS = "logs/records", ".checkpoints"  # the checkpoints, in a folder of the records, are not committed
STUDY_EPOCHS = 3  # of the studies of encodings and weights
# Designs without a fault: there is nothing to mend.
FAULTLESS = tuple(name for name, design in DESIGNS.items() if not design.faults)
# What a write-up leaves open is searched here: flags of studies.replay in place of the design's own recipe.
TRIES = {
    "shared-softmax-lenet": (
        *(
            f"--stop 2 --optimizer adam --momentum 0 --lr {rate} --activation relu"
            for rate in (0.001, 0.003, 0.01, 0.03)
        ),
        *(f"--stop 2 --optimizer sgd --momentum 0.9 --lr {rate} --activation relu" for rate in (0.1, 0.3, 1.0)),
        "--stop 2 --optimizer adam --momentum 0 --lr 0.01 --activation relu --pixels unit",
        "--stop 2 --optimizer adam --momentum 0 --lr 0.01 --activation none",
        "--stop 2 --optimizer sgd --momentum 0.9 --lr 0.3 --activation relu --pixels unit",
        "--stop 2 --optimizer sgd --momentum 0.9 --lr 0.3 --activation none",
        *(
            f"--stop 2 --optimizer {optimizer} --activation relu --initialisation {kind}"
            for optimizer in ("adam --momentum 0 --lr 0.001", "sgd --momentum 0.9 --lr 0.3")
            for kind in ("xavier", "kaiming")
        ),
    ),
    "two-softmax-lenet": (
        *(f"--stop 4 --optimizer adam --momentum 0 --lr {rate} --activation relu" for rate in (0.001, 0.002, 0.003)),
        *(f"--stop 4 --optimizer adam --momentum 0 --lr {rate} --activation none" for rate in (0.001, 0.002, 0.003)),
        "--stop 4 --optimizer adam --momentum 0 --lr 0.002 --activation none --pixels unit",
        "--stop 4 --optimizer sgd --momentum 0.9 --lr 0.1 --activation relu",
        "--stop 4 --optimizer sgd --momentum 0.9 --lr 0.1 --activation none",
        # the nearest of these, to the end of the log
        "--stop 20 --optimizer adam --momentum 0 --lr 0.002 --activation relu",
        *(f"--stop 20 --optimizer adam --momentum 0 --lr {rate} --activation none" for rate in (0.001, 0.0015, 0.002)),
        *(
            f"--stop 20 --optimizer adam --momentum 0 --lr 0.0015 --activation none --initialisation {kind}"
            for kind in ("xavier", "kaiming")
        ),
    ),
    "average-pooling": (
        "--stop 6 --optimizer sgd --momentum 0.9",
        "--stop 6 --optimizer sgd --momentum 0",
        "--stop 6 --optimizer sgd --momentum 0.9 --pixels unit",
        "--stop 6 --optimizer adam",
    ),
    # Their notebooks state the recipe; these show what else the log would allow.
    "argmax-regression": (
        "--stop 1",
        "--stop 1 --precision float32",
        "--stop 1 --optimizer adam",
        "--stop 1 --optimizer adam --lr 0.0001",
        "--stop 1 --momentum 0",
    ),
    "two-branch-lenet": tuple(
        f"--stop 12{change}" for change in ("", " --lr 0.1", " --lr 0.02", " --optimizer adam --lr 0.001")
    ),
}
# One change at a time, so that a table may name a cause: a suffix of the design's name, or flags of studies.replay.
ABLATIONS = {
    "narrow-trunk": (
        "--dropout 0",
        "--dropout-place features",
        "--batch-size 32",
        "--batch-size 64",
        "--width 80",
        "--pixels unit",
        "--momentum 0.9",
        "--schedule one-cycle",
        "--momentum 0.9 --schedule one-cycle",
        "--optimizer adam --lr 0.001",
    ),
    "shared-softmax-lenet": ("--lr 0.03", "+mended --lr 0.03"),
    "two-softmax-lenet": ("+no-nine", "+mended --activation relu"),
    "argmax-regression": ("+argmax", "+raw-addend", "+resample"),
    "two-branch-lenet": ("+no-nine", "+early-softmax"),
}
ENCODINGS = {
    "addend one-hot, sum one-hot": "",
    "addend as a number": "--addend-encoding scalar",
    "addend binary": "--addend-encoding binary",
    "addend embedding": "--addend-encoding embedding",
    "sum binary, five bits": "--sum-encoding binary",
    "sum as a number, mean squared error": "--sum-encoding scalar",
    "sum as a number, root mean squared error": "--sum-encoding scalar-rmse",
    "sum without parameters: the digit shifted": "--sum-encoding shift",
}
PRECISIONS = {"float32": "base-float32", "bfloat16": "base"}  # the names of their runs
SHOWN_TOO = {  # group: runs of other groups that its table shows, by their names without the seed
    "precisions": ("base",),
    "published": ("base", "study-default"),
    "ablations": tuple(f"{design}-published" for design in ABLATIONS),
}
SHARED = "note        {} runs shared the machine, so the seconds are not those of a single run"
WEIGHTS = ("0.9 0.1", "0.7 0.3", "1 1", "0.3 0.7", "0.1 0.9")


def groups():
    """Every run by the tables that it serves: {group: {name: command}}; some runs are in several groups.

    A command is the words after "python": a script of ours, or a module of studies, with its flags.
    """
    found = collections.defaultdict(dict)
    for size, seeds in OURS.items():
        command = f"{OUR} --model {size} --precision {precision_of(size)}"
        found["results"] |= {f"{size}-s{n}": f"{command} --seed {n}" for n in seeds}
    for group, flags_of_runs in (("encodings", ENCODINGS.values()), ("weights", map(weight_flags, WEIGHTS))):
        for flags in flags_of_runs:
            words = " ".join(f"{OUR} {flags} --precision float32 --epochs {STUDY_EPOCHS}".split())
            found[group] |= {f"{study_name(flags)}-s{n}": f"{words} --seed {n}" for n in OTHER_SEEDS}
    float32 = f"{OUR} --model base --precision float32"
    found["precisions"] = {f"{PRECISIONS['float32']}-s{n}": f"{float32} --seed {n}" for n in OURS["base"]}
    for size in ROBUST:
        corrupted = f"{OUR} --model {size} --precision {precision_of(size)} --augment-corruptions {CORRUPTED}"
        found["robustness"] |= {f"{size}-corrupted-s{n}": f"{corrupted} --seed {n}" for n in OTHER_SEEDS}
    for design in DESIGNS:
        seeds = PUBLISHED_SEEDS.get(design, OTHER_SEEDS)
        found["published"] |= {f"{design}-published-s{n}": f"{REPLAY} {design} --seed {n}" for n in seeds}
        if design not in FAULTLESS:
            found["published"] |= {f"{design}-mended-s{n}": f"{REPLAY} {design}+mended --seed {n}" for n in OTHER_SEEDS}
    for design, tries in TRIES.items():
        for flags in tries:
            found["tries"][f"{try_name(design, flags)}-s0"] = f"{REPLAY} {design} {flags} --seed 0"
    for design, changes in ABLATIONS.items():
        for change in changes:
            words = f"{REPLAY} {design}{'' if change.startswith('+') else ' '}{change}"
            names = {n: f"{ablation_name(design, change)}-s{n}" for n in OTHER_SEEDS}
            found["ablations"] |= {name: f"{words} --seed {n}" for n, name in names.items()}
    teachers = " ".join(checkpoint(f"large-s{n}") for n in OURS["large"])
    for size, flags in DISTILLED.items():
        command = f"{DISTILL} --teachers {teachers} -- {OUR.removeprefix('train.py ')} --model {size}"
        command += f" --precision {precision_of(size)} --val-size 0 {flags}"
        found["distilled"] |= {f"{size}-distilled-s{n}": f"{command} --seed {n}" for n in OURS[size]}
    return found


def precision_of(size):
    """The precision of the recorded runs of a size: its recipe's, or what `auto` chose on their machine."""
    return RECIPES.get(size, {}).get("precision", "bfloat16")


def studies():
    """The records that are not of a single run: {file: (group, command)}.

    The command is to be followed by `--json FILE`; the search continues its file, the others start again.
    """
    robust = [f"{size}{kind}-s{n}" for size in ROBUST for kind in ("", "-corrupted") for n in OTHER_SEEDS]
    ours = {size: [f"{size}-s{n}" for n in OURS[size]] for size in ("base", "large")}
    pupils = {f"{size}-distilled": [f"{size}-distilled-s{n}" for n in OURS[size]] for size in DISTILLED}
    read = {
        "robustness-cpu.json": ("robustness", "-m studies.robustness", robust),
        "errors-cpu.json": ("errors", "-m studies.errors --ensemble", ours["base"]),
        "errors-large-cpu.json": ("errors", "-m studies.errors --ensemble", ours["large"]),
        "errors-sizes-cpu.json": ("errors", "-m studies.errors", ["tiny-s0", "fast-s0"]),
        **{f"errors-{kind}-cpu.json": ("distilled", "-m studies.errors", names) for kind, names in pupils.items()},
        "combine-large-cpu.json": ("recipes", "-m studies.combine", ours["large"]),
        **{f"combine-{kind}-cpu.json": ("recipes", "-m studies.combine", names) for kind, names in pupils.items()},
        "search-ablations.json": ("recipes", "-m studies.search ablations --dataset mnist", []),
        "ladder-cpu.json": ("speed", "-m studies.ladder --dataset mnist", []),
        "benchmark-cpu.json": ("speed", "-m studies.benchmark --dataset mnist", []),
    }
    return {
        file: (group, " ".join([command, *(["--ckpt"] if runs else []), *map(checkpoint, runs)]))
        for file, (group, command, runs) in read.items()
    }


def checkpoint(name):
    """The path of a recorded run's best checkpoint, which is not committed."""
    return f"{RECORDS}/{CHECKPOINTS}/{name}.pt"


def needed(command):
    """The names of the recorded runs whose checkpoints this command reads."""
    return set(re.findall(rf"{RECORDS}/{re.escape(CHECKPOINTS)}/(\S+)\.pt", command))


def plan(only=None):
    """The runs of these groups, or of all: {name: command}, in the order in which they are run; with them those that
    their tables show too, and those whose checkpoints a run or a study of them reads."""
    made = groups()
    runs = {name: command for group in made.values() for name, command in group.items()}
    if only is None:
        return runs
    shown = {prefix for group in only for prefix in SHOWN_TOO.get(group, ())}
    wanted = {name: command for name, command in runs.items() if name.rpartition("-s")[0] in shown}
    wanted |= {name: command for group in only for name, command in made.get(group, {}).items()}
    commands = [*wanted.values(), *(command for group, command in studies().values() if group in only)]
    read = set().union(*map(needed, commands))
    return {name: command for name, command in runs.items() if name in wanted or name in read}


def try_name(design, flags):
    """The name of a try, without its seed."""
    return slug(f"{design} try {flags}")


def ablation_name(design, change):
    """The name of an ablation's runs, without their seed."""
    return slug(f"{design} ablation {change}")


def slug(text):
    """A text as part of a file's name."""
    return re.sub(r"[\s+-]+", "-", text)


def weight_flags(weights):
    """Flags of "digit sum" loss weights; none for the default of 1 and 1."""
    digit_weight, sum_weight = weights.split()
    return "" if digit_weight == sum_weight else f"--digit-weight {digit_weight} --sum-weight {sum_weight}"


def study_name(flags):
    """A run's name from its flags: --sum-encoding binary -> study-sum-encoding-binary."""
    return slug(f"study {flags or 'default'}")


def finished(folder, name, command):
    """Whether `folder` has the complete log of a run with the arguments that this command means today."""
    try:
        text = read_text(folder / f"{name}.txt")
        logged = logged_arguments(text)
        read_accuracies(folder / f"{name}.csv")
    except (OSError, LookupError, TypeError, ValueError):  # missing, cut, or no number where one belongs
        return False
    if command.startswith(REPLAY):
        _, wanted = replay.parse_arguments(shlex.split(command.removeprefix(REPLAY)))
        return logged == {name: str(value) for name, value in wanted.items()}
    if command.startswith(DISTILL):
        teaching, flags = command.split(" -- ")
        if teaching not in text:
            return False
        args = distill.train_arguments(shlex.split(flags))
    else:
        args, _ = train.parse_arguments(shlex.split(command)[1:])
    args.run_name = name
    defaults = vars(train.make_parser().parse_args([]))  # what a log from before a flag existed means
    return all(
        logged.get(argument, str(defaults[argument])) == str(value)
        for argument, value in vars(args).items()
        if argument not in train.NOT_STORED
    )


def read_accuracies(path):
    """The accuracies of a run on all test pairs, in per cent, from its CSV file; of a run of train.py also the seconds
    of its training.

    Raises LookupError where they are missing, TypeError or ValueError where one is not a finite number.
    """
    rows = list(csv.DictReader(read_text(path).splitlines()))
    if rows and "quantity" in rows[0]:  # of studies/replay.py
        ours = {row["quantity"]: 100 * float(row["value"]) for row in rows}
        scores = {name: ours[f"all_pairs_{name}"] for name in ACCURACIES}
    else:
        tests = [row for row in rows if row["split"] == "test"]
        scores = {name: 100 * float(tests[0][name]) for name in ACCURACIES}
        scores["train_seconds"] = sum(float(row["seconds"]) for row in rows if row["split"] == "validation")
    if not all(map(math.isfinite, scores.values())):
        raise ValueError("a score is not finite")
    return scores
