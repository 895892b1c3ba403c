"""The tables of the pages, as Markdown, from the logs of the runs and the figures of the benchmark."""

import collections
import itertools
import json
import re
import statistics
import textwrap

import train
from studies.errors import errors_tables
from studies.likeness import compare, distance, likeness_rows, published_figures, read_replay, summary
from studies.markdown import table
from studies.plan import (
    ABLATIONS,
    ENCODINGS,
    FAULTLESS,
    OURS,
    PRECISIONS,
    SHARED,
    STUDY_EPOCHS,
    TRIES,
    WEIGHTS,
    ablation_name,
    finished,
    groups,
    read_accuracies,
    study_name,
    try_name,
    weight_flags,
)
from studies.published import DESIGNS
from studies.robustness import robustness_tables
from support.cli import UserError
from support.files import read_text

HEADS = ("digit", "sum", "joint")
SPEED = {  # table: sections of benchmark.py
    "fast": ("rival",),
    "target": ("target",),
    "commands": ("commands",),
    "allocator": ("allocator",),
    "loop": ("usual", "overhead", "scoring", "latency"),
    "start": ("start",),
    "options": ("options",),
    "profile": ("profile",),
    "memory": ("memory",),
    "growth": ("growth", "several"),
}
ERRORS = tuple(f"errors-{name}" for name in ("machine", "calibration", "scores", "common", "agreement"))
RIVALS = ("as published", "channels_last", "channels_last, bfloat16", "the same, flattened in place")
COMMANDS = ("train.py --model fast", "evaluate.py --ckpt best.pt", "predict.py --ckpt logs/tiny.pt")
NOT_RECORDED = "Not recorded yet."
LADDER = ("ladder-machine", "ladder-ours", "ladder-rival", "ladder-target")
SEARCHES = ("ablations",)  # of studies/search.py
PUBLISHED_RIVAL = "batches of 256, rate 0.01"
EQUAL = 0.05  # points of joint accuracy: a difference within them does not matter
T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20)  # Student's t, 97.5 %, 1 to 11 degrees
PAGES = {  # page: the tables in it
    "README.md": ("results", "base-s0"),
    "studies/README.md": ("summary", "published", "encodings", "weights"),
    "studies/published.md": (
        "summary",
        "settings",
        "tries",
        "ablations",
        *(f"likeness-{name}" for name in DESIGNS if published_figures(name)),
    ),
    "studies/speed.md": (
        "speed-machine",
        *(f"speed-{name}" for name in ("headline", "gain", *SPEED)),
        *LADDER,
        "precisions",
    ),
    "studies/recipes.md": tuple(f"search-{name}" for name in SEARCHES),
    "studies/robustness.md": ("robustness",),
    "studies/errors.md": ERRORS,
    "logs/README.md": ("index",),
}


def spread(folder, names, column, digits=2):
    """Mean ± standard deviation of a column over runs, as text; the mean alone of one run; a dash for none."""
    values = [read_accuracies(folder / f"{name}.csv")[column] for name in names]
    if not values:
        return "–"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def tables(folder, runs):
    """{name: Markdown} of every part of the pages that comes from the logs; runs not finished do not count."""
    there = [name for name, flags in runs.items() if finished(folder, name, flags)]

    def seeds(prefix):
        return [name for name in there if re.fullmatch(rf"{re.escape(prefix)}-s\d+", name)]

    def row(prefix, *cells):
        """A row of the runs PREFIX-s0, PREFIX-s1 ...: the cells, their number, the three accuracies."""
        return [*cells, str(len(seeds(prefix))), *(spread(folder, seeds(prefix), f"{head}_accuracy") for head in HEADS)]

    results, published = [], []
    for size in OURS:
        parameters = ", ".join(sorted(facts(folder, seeds(size), r"^model .*?([\d,]+) parameters"))) or "–"
        epochs = str(train.parse_arguments(["--model", size])[0].epochs)
        shared = " (shared)" if facts(folder, seeds(size), SHARED.format(r"\d+")) else ""
        seconds = spread(folder, seeds(size), "train_seconds", 1) + shared
        results.append([*row(size, f"`{size}`", parameters, epochs), seconds])
    for prefix, epochs in (("base", train.make_parser().get_default("epochs")), ("study-default", STUDY_EPOCHS)):
        published.append([*row(prefix, "`base`, ours", str(epochs)), ""])
    for name, design in DESIGNS.items():
        mended = "" if name in FAULTLESS else row(f"{name}-mended")[-1]
        published.append([*row(f"{name}-published", f"`{name}`", str(design.recipe["epochs"])), mended])
    log = folder / "base-s0.txt"
    scores = ["seeds", "digit %", "sum %", "joint %"]
    return {
        "base-s0": f"```\n{without_arguments(read_text(log)) if log.exists() else '–'}```",
        "results": table(["network", "parameters", "epochs", *scores, "training, s"], results),
        "published": table(["design", "epochs", "runs", *scores[1:], "mended"], published),
        **likeness(folder, seeds),
        "settings": settings(),
        "tries": tries(folder, there),
        "ablations": ablations(row),
        **speed(folder / "benchmark-cpu.json"),
        **ladder(folder / "ladder-cpu.json"),
        **recorded(folder / "robustness-cpu.json", robustness_tables, ("robustness",)),
        **recorded(folder / "errors-cpu.json", errors_tables, ERRORS),
        **{f"search-{name}": search(folder / f"search-{name}.json") for name in SEARCHES},
        "encodings": study_table("encoding", {label: row(study_name(flags)) for label, flags in ENCODINGS.items()}),
        "precisions": study_table("precision", {label: row(study_name(flags)) for label, flags in PRECISIONS.items()}),
        "weights": study_table(
            "digit : sum", {" : ".join(pair.split()): row(study_name(weight_flags(pair))) for pair in WEIGHTS}
        ),
        "index": index(folder, there),
    }


def likeness(folder, seeds):
    """{name: Markdown}: the table of each design beside its published log, and the summary of all."""
    made, compared = {}, {}
    for design in filter(published_figures, DESIGNS):
        runs = [read_replay(folder / f"{name}.csv") for name in seeds(f"{design}-published")]
        compared[design] = compare(design, runs)
        headings = ["quantity", "first", "rebuilt", "last", "rebuilt", "within"]
        made[f"likeness-{design}"] = table(headings, likeness_rows(compared[design]))
    return made | {"summary": summary(compared)}


def settings():
    """The recipe of each design, by the origin of its values, as a list."""
    lines = []
    for name, design in DESIGNS.items():
        lines.append(f"- `{name}`, {', '.join(design.faults) or 'no fault'}.")
        for origin in ("stated", "derived", "fitted", "chosen"):
            values = getattr(design, origin)
            if values:
                words = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in values.items())
                lines += textwrap.wrap(f"*{origin}:* {words}.", 116, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)


def tries(folder, there):
    """The table of the tries of each design, the longest first, then the nearest to its log."""
    rows = []
    for design, flags_of_tries in TRIES.items():
        found = []
        for flags in flags_of_tries:
            name = f"{try_name(design, flags)}-s0"
            if name in there:
                stop, changes = re.match(r"--stop (\d+) ?(.*)", flags).groups()
                found.append((-int(stop), distance(design, read_replay(folder / f"{name}.csv")), changes))
        for stop, away, changes in sorted(found):
            words = re.sub("--|optimizer |activation |ialisation", "", changes) or "as its recipe"
            rows.append([f"`{design}`", words, str(-stop), f"{100 * away:.2f}"])
    return table(["design", "instead of its recipe", "epochs", "distance %"], rows)


def ablations(row):
    """The table of single changes to a design, with links to the logs; `row` makes the cells of its accuracies."""
    rows, links = [], []
    for design, changes in ABLATIONS.items():
        named = {f"`{design}`, as its recipe": f"{design}-published"}
        for change in changes:
            words = change.replace("--", "").replace("+mended", "mended,").replace("+", "of its faults only ")
            named[words] = ablation_name(design, change)
        for words, name in named.items():
            links.append(f"[log {len(links) + 1}]: ../logs/records/{name}-s0.txt")
            rows.append(row(name, f"{words} ([log {len(links)}])"))
    return table(["change", "seeds", "digit %", "sum %", "joint %"], rows) + "\n\n" + "\n".join(links)


def study_table(heading, rows):
    """The table of one study from its rows {label: cells}."""
    return table([heading, "seeds", "digit %", "sum %", "joint %"], [[label, *cells] for label, cells in rows.items()])


def recorded(path, make_tables, names):
    """What `make_tables` makes of the JSON at `path`; where there is none, dashes in place of the tables `names`.

    Raises UserError where it is not the record that `make_tables` reads.
    """
    if not path.exists():
        return dict.fromkeys(names, "–")
    try:
        return make_tables(json.loads(read_text(path)))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise UserError(f"{path} is damaged, or of another version; make it again, or remove it") from None


def speed(path):
    """{name: Markdown} of the benchmark's sections from its JSON, and of the machine they were measured on."""
    record = json.loads(read_text(path)) if path.exists() else {"rows": []}
    rounds = sorted({row["repeats"] for row in record["rows"]})
    commits = {}
    for row in record["rows"]:
        commits.setdefault(row["commit"], {})[row["section"]] = None
    made_by = "; ".join(f"commit {commit}: {', '.join(sections)}" for commit, sections in commits.items())
    head = "{device}; {versions}; medians of {} to {} rounds. Sections by {}."
    made = {"speed-machine": "–"}
    if rounds:
        made["speed-machine"] = textwrap.fill(head.format(rounds[0], rounds[-1], made_by, **record), 118)
    for name, sections in SPEED.items():
        rows = [row for row in record["rows"] if row["section"] in sections]
        made[f"speed-{name}"] = speed_table(rows) if rows else NOT_RECORDED
    figures = {row["what"]: row for row in record["rows"]}
    for name, sentences in (("headline", speed_headline), ("gain", speed_gain)):
        try:
            made[f"speed-{name}"] = sentences(figures)
        except KeyError:  # a row that it is made of
            made[f"speed-{name}"] = NOT_RECORDED
    return made


def speed_headline(rows):
    """The fast recipe against its rival, and whole commands, as a list; `rows` {what: row} of the benchmark."""
    published, alike = (rows[f"training vs public recipe, {name}"] for name in (RIVALS[0], RIVALS[-1]))
    accuracy = rows[f"test joint vs its test digit, {RIVALS[-1]}"]

    def part(row):
        low, high = map(figure, row["spread"])
        return f"{figure(row['ratio'])} (single rounds: {low} to {high}) of the {figure(row['rival'])} s"

    commands = [f"`{name.split(' --ckpt')[0]}` takes {figure(rows[name]['ours'])} s" for name in COMMANDS]
    lines = [
        f"The fast recipe trains for {figure(alike['ours'])} s, to a joint accuracy of {figure(accuracy['ours'])} % on "
        "the test set.",
        f"That is {part(alike)} of the fastest public recipe where it has our memory layout, precision and flattening, "
        f"and {part(published)} that it takes as published. It learns the digit alone, to "
        f"{figure(accuracy['rival'])} %.",
        f"Whole commands: {', '.join(commands)}.",
    ]
    return "\n".join(textwrap.fill(line, 118, initial_indent="- ", subsequent_indent="  ") for line in lines)


def speed_gain(rows):
    """A sentence: the seconds that each change to the rival takes off, and those that lie between it and ours."""
    taken = [rows[f"training vs public recipe, {name}"] for name in RIVALS]
    seconds = [*(figure["rival"] for figure in taken), taken[0]["ours"]]
    layout, precision, flattening, rest = (f"{a - b:.2f} s" for a, b in itertools.pairwise(seconds))
    sentence = (
        f"Of the {seconds[0] - seconds[-1]:.2f} s between the other as published and ours, the memory layout accounts "
        f"for {layout}, then the precision for {precision} and the flattening for {flattening}; the last {rest} lie "
        "between the recipes themselves (derived: differences of the medians)."
    )
    return textwrap.fill(sentence, 118)


def speed_table(rows):
    """The table of rows of the benchmark."""
    cells = []
    for row in rows:
        figures = [figure(row[name]) for name in ("ours", "rival", "ratio")]
        low, high = map(figure, row["spread"])
        cells.append([row["what"], row["unit"], *figures, f"{low} to {high}" if low else ""])
    return table(["what", "unit", "ours", "other", "ratio", "spread"], cells)


def ladder(path):
    """{name: Markdown} of the JSON of studies/ladder.py, and of the machine it was measured on."""
    if not path.exists():
        return dict.fromkeys(LADDER, "–")
    record = json.loads(read_text(path))
    head = "{device}; {versions}; commit {commit}; {} seeds.".format(len(record["rows"][0]["seconds"]), **record)
    return {"ladder-machine": textwrap.fill(head, 118)} | ladder_tables(record)


def ladder_tables(record):
    """{name: Markdown} of the record of studies/ladder.py: changes to the fast recipe, settings of the rival.

    Gains are paired with the recipe or with the rival as published, times with both.
    """
    rows = {kind: [row for row in record["rows"] if row["kind"] == kind] for kind in ("ours", "rival")}
    recipe, made = rows["ours"][0], {}
    published = next(row for row in rows["rival"] if row["what"] == PUBLISHED_RIVAL)
    for kind, head, reference in (("ours", "joint %", recipe), ("rival", "digit %", published)):
        lines = []
        for row in rows[kind]:
            gain = with_error([a - b for a, b in zip(row["accuracy"], reference["accuracy"], strict=True)], "+")
            slower = f", {paired(row, recipe, 'scoring'):.1f} times the scoring" if "shifts" in row["what"] else ""
            times = [
                statistics.median(row["seconds"]),
                *(paired(row, other, "seconds") for other in (recipe, published)),
            ]
            accuracy = with_error(row["accuracy"])
            cells = [row["what"] + slower, accuracy, "" if row is reference else gain]
            lines.append([*cells, *(f"{time:.2f}" for time in times)])
        made[f"ladder-{kind}"] = table(["change", head, "gain", "s", "of ours", "of rival"], lines)
    return made | {"ladder-target": time_to_rival(rows)}


def time_to_rival(rows):
    """A sentence for each rival: the time of the recipe on as many images as it takes to reach its mean accuracy, by
    linear interpolation between half of the images, three quarters and all; the difference where all do not reach it.
    """
    shares = [row for row in rows["ours"] if "of the images" in row["what"]] + [rows["ours"][0]]
    points = [(statistics.mean(row["accuracy"]), statistics.median(row["seconds"])) for row in shares]
    lines = []
    for row in rows["rival"]:
        if not row["what"].startswith(PUBLISHED_RIVAL):
            continue
        goal, seconds = statistics.mean(row["accuracy"]), statistics.median(row["seconds"])
        name = f"the rival's {goal:.2f} % ({row['what']})"
        for (low, before), (high, after) in itertools.pairwise(points):
            if low <= goal <= high:
                reached = before + (after - before) * (goal - low) / (high - low)
                lines.append(f"To {name}, ours takes {reached:.2f} s, {reached / seconds:.2f} of its {seconds:.2f} s.")
                break
        else:
            short = with_error([a - b for a, b in zip(rows["ours"][0]["accuracy"], row["accuracy"], strict=True)], "+")
            lines.append(f"Ours does not reach {name}; the difference is {short} points.")
    return textwrap.fill(" ".join(lines), 118)


def search(path):
    """The table of the JSON of studies/search.py, below the machine and the commits that made it."""
    if not path.exists():
        return "–"
    record = json.loads(read_text(path))
    commits = ", ".join(dict.fromkeys(row["commit"] for row in record["rows"]))
    head = textwrap.fill(f"{record['device']}; {record['versions']}; commit {commits}.", 118)
    return f"{head}\n\n{search_table(record)}"


def search_table(record):
    """The table of a record of studies/search.py: each row, and its differences to the first, paired by seed.

    The interval is that of Student's t at 95 %. A difference is better or worse where the interval excludes 0, equal
    where it lies within EQUAL points, and else open: too few seeds to tell.
    """
    taken = {}
    for row in record["rows"]:
        taken.setdefault(row["what"], {})[row["seed"]] = row
    first, lines = next(iter(taken.values())), []
    for what, rows in taken.items():
        joint = [row["joint_accuracy"] for row in rows.values()]
        gains = [row["joint_accuracy"] - first[seed]["joint_accuracy"] for seed, row in rows.items() if seed in first]
        gain = verdict = ""
        if rows is not first and len(gains) > 1:
            middle, half = statistics.mean(gains), T[len(gains) - 2] * statistics.stdev(gains) / len(gains) ** 0.5
            gain = f"{middle:+.3f} ± {half:.3f}"
            verdict = "open" if abs(middle) + half > EQUAL else "equal"
            verdict = verdict if abs(middle) <= half else "better" if middle > 0 else "worse"
        agreement = statistics.mean(row["head_agreement"] for row in rows.values())
        seconds = statistics.median(row["seconds"] for row in rows.values())
        deviation = f" ± {statistics.stdev(joint):.3f}" if len(joint) > 1 else ""
        cells = [f"{statistics.mean(joint):.3f}{deviation}", gain, verdict, f"{agreement:.3f}", f"{seconds:.0f}"]
        lines.append([what, str(len(rows)), *cells])
    return table(["change", "seeds", "joint %", "difference", "", "agree %", "s"], lines)


def paired(row, reference, name):
    """The median ratio of the figures of two rows, round by round."""
    return statistics.median(a / b for a, b in zip(row[name], reference[name], strict=True))


def with_error(values, sign=""):
    """Mean ± standard error as text."""
    return f"{statistics.mean(values):{sign}.2f} ± {statistics.stdev(values) / len(values) ** 0.5:.2f}"


def figure(value):
    """A figure of the benchmark as the tables show it; nothing for None."""
    return "" if value is None else f"{value:,.{0 if abs(value) >= 1000 else 2}f}"


def index(folder, names):
    """The table of all records: those that differ in the seed alone share a line, and so do a design's tries, where
    commit, date and machine are the same too."""
    tables_of, runs, rows = {}, collections.Counter(), []
    for group, members in groups().items():
        for name in members:
            tables_of.setdefault(without_seed(name), {})[group] = None
    for name in names:
        text = read_text(folder / f"{name}.txt")
        found = [re.search(rf"^{entry} +(?:cpu: )?(.*)$", text, re.MULTILINE) for entry in ("commit", "date", "device")]
        runs[(without_seed(name), *("" if entry is None else entry[1] for entry in found))] += 1
    for (prefix, *made), number in runs.items():
        used = ", ".join(tables_of[prefix]) if len(tables_of[prefix]) < 3 else "several"
        rows.append([f"`{prefix}`", str(number), used, *made])
    for path in sorted(folder.glob("*.json")):
        record = json.loads(read_text(path))
        commits = {row["commit"] for row in record.get("rows", ()) if "commit" in row} or {record["commit"]}
        machine = record["device"].removeprefix("cpu: ")
        rows += [[f"`{path.name}`", "", "", commit, record.get("date", ""), machine] for commit in sorted(commits)]
    return table(["records", "runs", "table", "commit", "date", "machine"], rows)


def without_seed(name):
    """The name of a run without its seed; tries of a design share one, and so do ablations."""
    return re.sub(r"-(try|ablation)-.*", r"-\1-...", re.sub(r"-s\d+$", "", name))


def without_arguments(log):
    """A log without the list of all arguments, which takes several lines."""
    return re.sub(r"^arguments .*\n(?: {12}.*\n)*", "", log, flags=re.MULTILINE)


def facts(folder, names, pattern):
    """The set of what the pattern finds in the logs of these runs."""
    texts = [read_text(folder / f"{name}.txt") for name in names]
    return {found for text in texts for found in re.findall(pattern, text, re.MULTILINE)}


def rewrite(page, text, made):
    """The page's text with its tables between their markers replaced. Raises UserError where markers are missing."""
    for name in PAGES[page]:
        pattern = re.compile(rf"(<!-- from logs: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise UserError(f"{page} lacks the markers <!-- from logs: {name} --> and <!-- end -->")
        text = pattern.sub(lambda match, name=name: match.group(1) + made[name] + "\n" + match.group(2), text)
    return text
