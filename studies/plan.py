"""The runs behind the tables: their names, their flags, and whether the log of one is there."""

import csv
import re
import shlex

import train
from model import SIZES
from studies.published import DESIGNS
from support.checkpoint import ACCURACIES
from support.files import read_text

OURS = {"base": range(5), "tiny": range(5), "fast": range(10)}  # size: seeds
OTHER_SEEDS = range(3)
STUDY_EPOCHS = 3  # of the studies of encodings, weights and precision
# As published and mended they train alike: their faults, if any, are in the counting.
SAME_WHEN_MENDED = ("narrow-trunk", "average-pooling")
# Shortened, to keep the whole within about 90 minutes on two cores: one epoch takes as long as six to ten of a LeNet.
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
SHARED = "note        {} runs shared the machine, so the seconds are not those of a single run"
WEIGHTS = ("0.9 0.1", "0.7 0.3", "1 1", "0.3 0.7", "0.1 0.9")


def plan():
    """Every run: {name: flags of train.py}, in the order in which they are run."""
    runs = {}
    for size, seeds in OURS.items():
        for seed in seeds:
            runs[f"{size}-s{seed}"] = f"--model {size} --seed {seed}"
    for seed in OTHER_SEEDS:
        for design in DESIGNS:
            epochs = f" --epochs {SHORTENED[design]}" if design in SHORTENED else ""
            runs[f"{design}-published-s{seed}"] = f"--model {design}{epochs} --seed {seed}"
            if design not in SAME_WHEN_MENDED:
                runs[f"{design}-mended-s{seed}"] = f"--model {design}+mended{epochs} --seed {seed}"
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


def finished(folder, name, flags):
    """Whether `folder` has the complete log of a run with the arguments that these flags mean today."""
    try:
        logged = logged_arguments(read_text(folder / f"{name}.txt"))
        read_test(folder / f"{name}.csv")
    except (OSError, LookupError):
        return False
    args, _ = train.parse_arguments(shlex.split(f"{flags} --run-name {name}"))
    defaults = vars(train.make_parser().parse_args([]))  # what a log from before a flag existed means
    return all(
        logged.get(argument, str(defaults[argument])) == str(value)
        for argument, value in vars(args).items()
        if argument not in (*train.MACHINE, "resume")
    )


def logged_arguments(text):
    """{name: value as text} of a log's arguments, in the words of today's flags. Raises LookupError without any."""
    (lines,) = re.findall(r"^arguments +(.*(?:\n {12}.*)*)", text, re.MULTILINE) or [""]
    logged = dict(re.findall(r"(\w+)=(.*?)(?= \w+=|$)", " ".join(lines.split())))
    if not logged:
        raise LookupError("no arguments")
    # Logs from before two flags changed. The average is the same: its old decay was never reached in these runs.
    if "ema_decay" in logged:
        logged["averaging_eta"] = str(8.0 if float(logged.pop("ema_decay")) else 0.0)
    if logged.pop("faults", None) == "[]" and logged["model"] not in (*SIZES, *SAME_WHEN_MENDED):
        logged["model"] += "+mended"
    return logged


def read_test(path):
    """The test row of a run's CSV file as floats, with `train_seconds`. Raises LookupError where it is not there."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    tests = [row for row in rows if row["split"] == "test"]
    scores = {name: 100 * float(tests[0][name]) for name in ACCURACIES}
    scores["train_seconds"] = sum(float(row["seconds"]) for row in rows if row["split"] == "validation")
    return scores
