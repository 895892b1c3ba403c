"""Change one thing at a time, and see on held-out training images whether it
helps.

    python -m studies.search ablations --json logs/records/search-ablations.json
    python -m studies.search base --json logs/records/search-base.json
    python -m studies.search ablations --only "K = 1" "K = 2" --quick

The training images of MNIST are divided into four parts. Seed s trains on all
but part s modulo 4, with the random draws of seed s, and is scored on the
15,000 images of that part with all ten addends; the test set is not read. The
differences to the first row are paired by seed. The file is written after each
training, and a search that is called again goes on there.
"""

import functools
import json
import math
import statistics
import sys
import textwrap

from support import cli
from support.flags import DATASETS

SEEDS, PARTS, QUICK_IMAGES = 5, 4, 1536
NAMES = ("ablations", "base", "tiny", "large", "base-distilled", "tiny-distilled")
SCORES = ("digit_accuracy", "sum_accuracy", "joint_accuracy", "head_agreement")
FIGURES = ("seconds", "parameters", *SCORES)


def make_parser():
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("search", choices=NAMES, help="which rows, of studies/changes.py")
    add("--only", nargs="+", metavar="ROW", help="these rows and the first (default: all)")
    add("--seeds", type=cli.integer(1, 12), help=f"trainings of each row (default: {SEEDS}, quick: 1)")
    add("--quick", action="store_true", help="few images, one epoch: shows only that it runs")
    add("--device", choices=cli.DEVICES, default="auto", help="as train.py takes it")
    add("--dataset", choices=DATASETS, default="auto", help="as train.py takes it")
    add("--data-dir", default="data", metavar="FOLDER", help="as train.py takes it")
    add("--json", type=cli.output_file, metavar="FILE", help="continue this file, or write the figures there")
    return parser


if __name__ == "__main__":
    cli.begin_script(make_parser)  # answers --help and a mistyped flag before PyTorch is imported, which takes seconds

from tqdm import tqdm

import data
import train
from evaluate import answers, pair_outputs, score
from model import build_model
from studies.changes import SEARCHES, changed
from studies.distill import taught_batches
from studies.markdown import mean_sd, table
from studies.measure import Run, check_setting, held_out, keep_memory
from support.device import choose_device, set_deterministic
from support.files import read_text, write_atomically
from support.runlog import environment

EQUAL = 0.05  # points of joint accuracy: a difference within them does not matter
T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20)  # Student's t, 97.5 %, 1 to 11 degrees

# ---------------------------------------------------------------------------------------------------------------------
# Training and scoring


def train_one(size, change, training, held, seed, device, teacher=None):
    """Train `size` with a change; {name: value} of FIGURES, SCORES in %.

    For a change with a teacher, teacher(its size, seed, changes of its arguments) returns the trained network.
    """
    change = dict(change)
    if "teacher" in change:
        network = teacher(change.pop("teacher"), seed, **change.pop("teacher_changes", {}))
        change["batches"] = taught_batches([network])
    with changed(size, change) as (arguments, average):
        run = Run(size, training, device, seed=seed, **arguments)
        if average:
            run.averaged = average(run.model, run.args.epochs * len(run.batches))
            run.scored = run.averaged.module
        seconds = run.seconds()
    scores = score(*answers([run.scored], [pair_outputs(run.scored, held[0], device=device)]), held[1])
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    return dict(seconds=seconds, parameters=parameters) | {name: 100 * scores[name] for name in SCORES}


# ---------------------------------------------------------------------------------------------------------------------
# The record


def describe(change):
    """A change as JSON values: what a class or a function is replaced by is its name."""

    def name(value):
        if isinstance(value, functools.partial):
            return f"{value.func.__name__} {value.keywords}"
        return value.__name__

    return json.loads(json.dumps(change, default=name))


def read_record(path, search, setting):
    """The record at `path`, which this search is to continue. Raises UserError where it is none, or its entries differ
    from those in `setting`."""
    try:
        record = json.loads(read_text(path))
        right = record["search"] == search and all(
            isinstance(row["what"], str)
            and isinstance(row["seed"], int)
            and isinstance(row["change"], dict)
            and isinstance(row["commit"], str)
            and all(isinstance(row[name], int | float) and math.isfinite(row[name]) for name in FIGURES)
            for row in record["rows"]
        )
    except (LookupError, RecursionError, TypeError, ValueError):
        right = False
    if not right:
        raise cli.UserError(f"{path} holds no figures of the search {search}; choose another file, or remove it")
    check_setting(record, setting, path)
    return record


def search_tables(record):
    """{name: Markdown}: the machine, then each row and its differences to the first, paired by seed, with their 95 %
    intervals, those of Student's t."""
    taken = {}
    for row in record["rows"]:
        taken.setdefault(row["what"], {})[row["seed"]] = row
    (first, *_), lines = taken.values(), []
    for what, rows in taken.items():
        joint = [row["joint_accuracy"] for row in rows.values()]
        gains = [row["joint_accuracy"] - first[seed]["joint_accuracy"] for seed, row in rows.items() if seed in first]
        difference = ["", ""]
        if rows is not first and len(gains) > 1:
            middle, half = statistics.mean(gains), T[len(gains) - 2] * statistics.stdev(gains) / len(gains) ** 0.5
            difference = [f"{middle:+.3f} ± {half:.3f}", verdict(middle, half)]
        agreement = statistics.mean(row["head_agreement"] for row in rows.values())
        seconds = statistics.median(row["seconds"] for row in rows.values())
        lines.append([what, str(len(rows)), mean_sd(joint, 3), *difference, f"{agreement:.3f}", f"{seconds:.0f}"])
    commits = ", ".join(dict.fromkeys(row["commit"] for row in record["rows"]))
    head = textwrap.fill(f"{record['device']}; {record['versions']}; commit {commits}; {record['data set']}.", 118)
    made = table(["change", "seeds", "joint %", "difference", "", "agree %", "s"], lines)
    return {f"search-{record['search']}": f"{head}\n\n{made}"}


def verdict(middle, half):
    """What a difference with the 95 % interval middle ± half, in points, tells: better or worse where the interval
    excludes 0; else equal where it lies within EQUAL points, and open where it does not."""
    if abs(middle) > half:
        return "better" if middle > 0 else "worse"
    return "open" if abs(middle) + half > EQUAL else "equal"


def recipes_of(search):
    """What the rows of a search change, in words: {"recipe", "network"} of its size, and those of its teachers."""
    size, _, rows = SEARCHES[search]
    found = recipe_of(size)
    for teacher in sorted({change["teacher"] for change in rows.values() if "teacher" in change}):
        found |= {f"{name} of {teacher}": value for name, value in recipe_of(teacher).items()}
    return found


def recipe_of(size):
    """{"recipe", "network"} of a size, in words."""
    args = vars(train.parse_arguments(["--model", size])[0])
    recipe = " ".join(
        f"{name}={value}" for name, value in args.items() if name not in (*train.NOT_STORED, "run_name", "precision")
    )
    sizes = [list(value.shape) for value in build_model(size).parameters()]
    return {"recipe": recipe, "network": f"weights of {sizes}"}


def is_complete(path):
    """Whether the record at `path` has all rows of its search with all seeds. Raises UserError as `read_record`."""
    name = path.stem.removeprefix("search-")
    _, settings, rows = SEARCHES[name]
    found = {(row["what"], row["seed"]): row["change"] for row in read_record(path, name, recipes_of(name))["rows"]}
    wanted = {(what, seed): describe(settings | change) for what, change in rows.items() for seed in range(SEEDS)}
    return wanted.items() <= found.items()


def main(argv=None):
    args = make_parser().parse_args(argv)
    size, settings, rows = SEARCHES[args.search]
    missing = [what for what in args.only or () if what not in rows]
    if missing:
        raise cli.UserError(f"there is no row {missing[0]!r} in {args.search}; choose from {', '.join(rows)}")
    first = next(iter(rows))
    chosen = [what for what in rows if not args.only or what in (first, *args.only)]
    keep_memory()
    device = choose_device(args.device)
    set_deterministic(False, device)
    images, digits, dataset = data.load_digits(args.dataset, args.data_dir, train=True)
    seeds, quick = args.seeds or (1 if args.quick else SEEDS), {}
    if args.quick:
        images, digits, quick = images[:QUICK_IMAGES], digits[:QUICK_IMAGES], {"epochs": 1}
    where = environment(device)
    setting = {"data set": f"{dataset}: {len(images):,d} images"} | recipes_of(args.search)
    setting |= {name: where[name] for name in ("device", "versions")}
    record = {"search": args.search, "rows": []} | where | setting
    if args.json and args.json.exists():
        record |= read_record(args.json, args.search, setting)
    meant = {what: describe(settings | change | quick) for what, change in rows.items()}

    def current(row):
        """Whether a row of the record was trained as its name means today, or has a name that is no longer known."""
        return row["what"] not in meant or row["change"] == meant[row["what"]]

    done = {(row["what"], row["seed"]): row for row in filter(current, record["rows"])}
    record["rows"] = list(done.values())

    @functools.lru_cache(1)  # for the rows of a seed
    def teacher(size, seed, **changes):
        """Trained by its own recipe but for the changes, on the images that its pupil is trained on."""
        run = Run(size, held_out("search", images, digits, seed, PARTS)[0], device, seed=seed, **changes | quick)
        run.train()
        return run.scored.eval()

    jobs = [(seed, what) for seed in range(seeds) for what in chosen]
    for seed, what in tqdm(jobs, unit="training", leave=False, disable=None):
        change = settings | rows[what] | quick
        if (what, seed) in done:
            continue
        training, held = held_out("search", images, digits, seed, PARTS)
        figures = train_one(size, change, training, held, seed, device, teacher)
        made = {name: where[name] for name in ("commit", "date")}
        if args.json and args.json.exists():  # another process may have added rows
            others = read_record(args.json, args.search, setting)["rows"]
            done |= {(row["what"], row["seed"]): row for row in filter(current, others)}
        done[what, seed] = dict(what=what, seed=seed, change=meant[what]) | made | figures
        names = [*rows, *sorted({what for what, _ in done} - rows.keys())]  # rows of another version stay, at the end
        record["rows"] = sorted(done.values(), key=lambda row: (names.index(row["what"]), row["seed"]))
        if args.json:
            write_atomically(args.json, json.dumps(record, indent=1) + "\n")
    print(*search_tables(record).values())


if __name__ == "__main__":
    sys.exit(cli.run_script(main))
