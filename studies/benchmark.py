"""Measure speed and memory against what one would use instead.

    python -m studies.benchmark --quick        every section on a few images:
                                               shows only that it runs
    python -m studies.benchmark --json logs/records/benchmark-cpu.json
    python -m studies.benchmark --only rival overhead --repeats 10

The ratio is ours / baseline: lower is better for seconds and memory, higher for
anything per second. Figures are medians of the rounds (means for accuracies in
`rival`, the smallest in `commands`). The spread is the smallest and the largest
ratio of a single round, or figure where there is no baseline. Within a round
everything is measured in turn, A B A B, so that a slow phase of a shared
machine affects all alike. One more round comes first as a warm-up, except in
`target`, `memory`, `allocator` and `several` and, with --quick, in `start`,
`commands` and `growth`. --repeats does not apply to all: `rival` has at least
ten rounds, `start` at most five, `growth` and `several` at most three,
`memory` two, `profile` one.
"""

import json
import math
import sys
import time
from pathlib import Path

from support import cli
from support.flags import DATASETS

# The functions of sections.py, subprocesses.py and commands.py that measure a section, in the order of the record.
SECTION_NAMES = (
    *("usual", "overhead", "target", "scoring", "latency", "start", "commands", "memory", "allocator"),
    *("options", "profile", "growth", "several", "rival"),
)


def make_parser():
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="a few images and steps: shows only that it runs")
    add("--only", nargs="+", choices=SECTION_NAMES, metavar="NAME", help=f"of {', '.join(SECTION_NAMES)}")
    add("--repeats", type=cli.integer(1), help="rounds of most measurements (default: 5, quick: 1)")
    add("--device", choices=cli.DEVICES, default="auto", help="auto: CUDA, else MPS, else the CPU")
    add("--dataset", choices=DATASETS, default="auto", help="as train.py takes it")
    add("--data-dir", default="data", metavar="FOLDER", help="as train.py takes it")
    add("--json", type=cli.output_file, metavar="FILE", help="write the figures here too; --only keeps other sections")
    return parser


if __name__ == "__main__":
    cli.begin_script(make_parser)  # answers --help and a mistyped flag before PyTorch is imported, which takes seconds

from data import load_digits, split_indices
from studies import commands, measure, sections, subprocesses
from studies.speed_tables import speed_table
from support.device import choose_device, set_deterministic
from support.files import read_text, write_atomically
from support.runlog import environment

QUICK_IMAGES = 1280  # ten batches of 128
MODULES = (sections, subprocesses, commands)
SECTIONS = {name: next(getattr(part, name) for part in MODULES if hasattr(part, name)) for name in SECTION_NAMES}


def main(argv=None):
    args = make_parser().parse_args(argv)

    device = choose_device(args.device)
    set_deterministic(False, device)  # as train.py does
    measure.keep_memory()
    images, digits, dataset = load_digits(args.dataset, args.data_dir, train=True)
    training, validation = split_indices(len(images), len(images) // 12)
    if args.quick:
        training, validation = training[:QUICK_IMAGES], validation[:500]
    halves = [(images[index], digits[index]) for index in (training, validation)]
    repeats = args.repeats or (1 if args.quick else 5)
    folder = str(Path(args.data_dir).resolve())
    setting = measure.Setting(device, repeats, args.quick, dataset, folder, *halves)
    header = environment(device) | {
        "data set": f"{dataset}: {len(training):,d} training images",
        "repeats": f"{repeats}{', --quick: few images, rough figures' if args.quick else ''}",
    }
    kept = other_sections(args.json, args.only, header) if args.json and args.only and args.json.exists() else []
    print("\n".join(f"{word:10s}{text}" for word, text in header.items()), end="\n\n", flush=True)
    rows = []
    for name in [name for name in SECTIONS if not args.only or name in args.only]:
        begun = time.perf_counter()
        made = {"section": name} | {entry: header[entry] for entry in ("commit", "date")}
        measured = [made | row for row in SECTIONS[name](setting)]
        rows += measured
        print(f"{name}, measured in {time.perf_counter() - begun:.0f} s\n\n{speed_table(measured)}\n", flush=True)
    if args.json:
        rows = sorted(kept + rows, key=lambda row: SECTION_NAMES.index(row["section"]))
        write_atomically(args.json, json.dumps(header | {"rows": rows}, indent=1) + "\n")


def other_sections(path, measured, header):
    """The rows in the JSON at `path` of sections that are not measured now. Raises UserError for another file, or a
    record of another machine, data set or other versions than in the `header`."""
    try:
        record = json.loads(read_text(path))
        kept = [row for row in record["rows"] if row["section"] not in measured]
        right = all(map(is_row, kept))
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
        right = False
    if not right:
        raise cli.UserError(f"{path} is not a record of this benchmark; choose another --json")
    measure.check_setting(record, {name: header[name] for name in ("device", "versions", "data set")}, path)
    return kept


def is_row(row):
    """Whether a row from a file has what the tables read; raises the errors above where its form is another."""
    low, high = row["spread"]
    texts = [row[name] for name in ("section", "commit", "what", "unit")]
    figures = [figure for figure in (row["ours"], row["rival"], row["ratio"], low, high) if figure is not None]
    printable = all(isinstance(text, str) and text.isprintable() for text in texts)
    known = row["section"] in SECTION_NAMES and isinstance(row["repeats"], int)
    return known and printable and all(map(math.isfinite, figures))


if __name__ == "__main__":
    sys.exit(cli.run_script(main))
