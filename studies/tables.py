"""The tables of the pages, as Markdown, from the logs of the runs and the figures of the benchmark."""

import collections
import contextlib
import functools
import json
import re
import textwrap

import train
from studies import plan
from studies.changes import SEARCHES
from studies.combine import combine_tables, consistent_rows
from studies.error_tables import errors_tables
from studies.likeness import compare, distance, likeness_rows, published_figures, read_replay, summary
from studies.markdown import NOT_RECORDED, mean_sd, table, with_error
from studies.published import DESIGNS
from studies.robustness import robustness_tables
from studies.search import search_tables
from studies.speed_tables import LADDER_TABLES, SPEED_TABLES, ladder_tables, speed_tables
from support.checkpoint import ACCURACIES
from support.cli import UserError
from support.files import read_text

HEADS = ("digit", "sum", "joint")
ERRORS = tuple(f"errors-{name}" for name in ("machine", "calibration", "scores", "common", "ensemble", "agreement"))
WEIGHTS = {pair.replace(" ", " : "): plan.weight_flags(pair) for pair in plan.WEIGHTS}
COMBINED = ("combine-large-validation", "combine-base-validation")
AIMS = {  # row of the results: joint accuracy in % and most seconds, set before its recipe was searched
    "`base`": (99.60, 90),
    "`tiny`": (99.42, 60),
    "`large`": (99.77, 600),
    "5 `large`": (99.82, None),
    "`base` distilled": (99.68, None),
    "`tiny` distilled": (99.50, None),
}
CONSISTENT = {  # record of studies/combine.py: row
    "base-again": "`base`, trained again",
    "tiny-again": "`tiny`, trained again",
    "large-cpu": "`large`",
    **{f"{size}-distilled-cpu": f"`{size}` distilled" for size in plan.DISTILLED},
}
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
    "studies/speed.md": (*SPEED_TABLES, *LADDER_TABLES, "precisions"),
    "studies/recipes.md": ("aims", *(f"search-{name}" for name in SEARCHES), *COMBINED, "consistent"),
    "studies/robustness.md": ("robustness", "robustness-shares"),
    "studies/errors.md": (
        *(f"errors-{name}" for name in ("machine", "calibration", "scores", "common", "agreement")),
        *(f"errors-large-{name}" for name in ("scores", "common", "ensemble", "agreement")),
        *(f"errors-sizes-{name}" for name in ("calibration", "scores", "common")),
        *(f"errors-{size}-distilled-agreement" for size in plan.DISTILLED),
    ),
    "logs/README.md": ("index",),
}


def spread(folder, names, column, digits=2):
    """Mean ± standard deviation of a column over runs, as text."""
    return mean_sd([plan.read_accuracies(folder / f"{name}.csv")[column] for name in names], digits)


def tables(folder, runs):
    """{name: Markdown} of every part of the pages that comes from the logs; runs not finished do not count."""
    there = [name for name, flags in runs.items() if plan.finished(folder, name, flags)]

    def seeds(prefix):
        return [name for name in there if re.fullmatch(rf"{re.escape(prefix)}-s\d+", name)]

    def row(prefix, *cells):
        """A row of the runs PREFIX-s0, PREFIX-s1 ...: the cells, their number, the three accuracies."""
        return [*cells, str(len(seeds(prefix))), *(spread(folder, seeds(prefix), f"{head}_accuracy") for head in HEADS)]

    results, published = [], []
    for prefix in filter(seeds, (*plan.OURS, *(f"{size}-distilled" for size in plan.DISTILLED))):
        size, _, distilled = prefix.partition("-")
        parameters = ", ".join(sorted(facts(folder, seeds(prefix), r"^model .*?([\d,]+) parameters"))) or "–"
        epochs = ", ".join(sorted(facts(folder, seeds(prefix), r"^arguments (?:.*\n)*?.* epochs=(\d+)"))) or "–"
        shared = "*" if facts(folder, seeds(prefix), plan.SHARED.format(r"\d+")) else ""
        seconds = spread(folder, seeds(prefix), "train_seconds", 1) + shared
        results.append([*row(prefix, f"`{size}` {distilled}".strip(), parameters, epochs), seconds])
    if (large := folder / "errors-large-cpu.json").exists():
        results += recorded(large, ensemble_of_large, ["results"])["results"]
    for prefix, epochs in (("base", train.make_parser().get_default("epochs")), ("study-default", plan.STUDY_EPOCHS)):
        published.append([*row(prefix, "`base`, ours", str(epochs)), ""])
    for name, design in DESIGNS.items():
        mended = "" if name in plan.FAULTLESS else row(f"{name}-mended")[-1]
        published.append([*row(f"{name}-published", f"`{name}`", str(design.recipe["epochs"])), mended])
    log = folder / "base-s0.txt"
    scores = ["runs", "digit %", "sum %", "joint %"]
    return {
        "base-s0": f"```\n{without_arguments(read_text(log)) if log.exists() else '–'}```",
        "results": table(["network", "parameters", "epochs", *scores, "training, s"], results),
        "aims": aims(results),
        "published": table(["design", "epochs", "runs", *scores[1:], "mended"], published),
        **likeness(folder, seeds),
        "settings": settings(),
        "tries": tries(folder, there),
        "ablations": ablations(row),
        **recorded(folder / "benchmark-cpu.json", speed_tables, SPEED_TABLES),
        **recorded(folder / "ladder-cpu.json", ladder_tables, LADDER_TABLES),
        **recorded(folder / "robustness-cpu.json", robustness_tables, ("robustness",)),
        "robustness-shares": recorded(folder / "robustness-shares.json", robustness_tables, ("means",))["means"],
        **errors(folder),
        **searches(folder),
        **{name: recorded(folder / f"{name}.json", combine_tables, ("combine",))["combine"] for name in COMBINED},
        "consistent": consistent(folder),
        "encodings": study_table("encoding", row, plan.ENCODINGS),
        "precisions": precisions(folder, seeds, row),
        "weights": study_table("digit : sum", row, WEIGHTS),
        "index": index(folder, there),
    }


def aims(results):
    """The table of the aims beside these rows of the results; for the difference, the mean as it is printed."""
    reached, rows = {name: (joint, seconds) for name, *_, joint, seconds in results}, []
    for name, (aim, limit) in AIMS.items():
        if name in reached:
            joint, seconds = reached[name]
            difference = f"{float(joint.split()[0]) - aim:+.2f}"
            rows.append([name, f"{aim:.2f}", joint, difference, f"{limit or ''}", seconds])
    return table(["network", "aim, joint %", "reached", "difference", "aim, s", "training, s"], rows)


def ensemble_of_large(record):
    """{"results": [the row for the ensemble]} in this record of studies/errors.py."""
    *networks, ensemble = record["networks"]
    scores = [f"{100 * ensemble['scores'][name]:.2f}" for name in ACCURACIES]
    return {"results": [[f"{len(networks)} `large`", "", "", "", *scores, ""]]}


def consistent(folder):
    """The table of consistent answers on the test set, from the records of studies/combine.py."""
    rows = []
    for kind, name in CONSISTENT.items():
        if (path := folder / f"combine-{kind}.json").exists():
            rows += recorded(path, functools.partial(consistent_rows, name=name), ["rows"])["rows"]
    headings = ["network", "each head, %", "agree %", "consistent, %", "difference", "of 5 views, %"]
    return table(headings, rows) if rows else NOT_RECORDED


def likeness(folder, seeds):
    """{name: Markdown}: the table of each design beside its published log, and the summary of all."""
    made, compared = {}, {}
    for design in filter(published_figures, DESIGNS):
        runs = []
        for name in seeds(f"{design}-published"):
            with reading(folder / f"{name}.csv"):
                runs.append(read_replay(folder / f"{name}.csv"))
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
    for design, flags_of_tries in plan.TRIES.items():
        found = []
        for flags in flags_of_tries:
            name = f"{plan.try_name(design, flags)}-s0"
            if name in there:
                stop, changes = re.match(r"--stop (\d+) ?(.*)", flags).groups()
                with reading(folder / f"{name}.csv"):
                    found.append((-int(stop), distance(design, read_replay(folder / f"{name}.csv")), changes))
        for stop, away, changes in sorted(found):
            words = re.sub("--|optimizer |activation |ialisation", "", changes) or "as its recipe"
            rows.append([f"`{design}`", words, str(-stop), f"{100 * away:.2f}"])
    return table(["design", "instead of its recipe", "epochs", "distance %"], rows)


def ablations(row):
    """The table of single changes to a design, with links to the logs; `row` makes the cells of its accuracies."""
    rows, links = [], []
    for design, changes in plan.ABLATIONS.items():
        named = {f"`{design}`, as its recipe": f"{design}-published"}
        for change in changes:
            words = change.replace("--", "").replace("+mended", "mended,").replace("+", "of its faults only ")
            named[words] = plan.ablation_name(design, change)
        for words, name in named.items():
            links.append(f"[log {len(links) + 1}]: ../logs/records/{name}-s0.txt")
            rows.append(row(name, f"{words} ([log {len(links)}])"))
    return table(["change", "seeds", "digit %", "sum %", "joint %"], rows) + "\n\n" + "\n".join(links)


def study_table(heading, row, changes, name_of=plan.study_name):
    """The table of one study: a row for each of its `changes`, {label: flags}; `row` as in `tables`."""
    rows = [row(name_of(flags), label) for label, flags in changes.items()]
    return table([heading, "seeds", "digit %", "sum %", "joint %"], rows)


def precisions(folder, seeds, row):
    """The table of the precisions, and the differences of the runs with the same seed; `row` as in `tables`."""
    made = study_table("precision", row, plan.PRECISIONS, str)
    pairs = [[f"{name}-s{seed}" for name in plan.PRECISIONS.values()] for seed in plan.OURS["base"]]
    pairs = [pair for pair in pairs if all(name in seeds(without_seed(name)) for name in pair)]
    if len(pairs) < 2:
        return made
    found = [[plan.read_accuracies(folder / f"{name}.csv") for name in pair] for pair in pairs]
    gains = [bfloat16["joint_accuracy"] - float32["joint_accuracy"] for float32, bfloat16 in found]
    sentence = (
        f"With bfloat16 in place of float32 and the same seed, joint accuracy changes by {with_error(gains, '+', 3)} "
        f"points (mean ± standard error of {len(gains)} seeds)"
    )
    return f"{made}\n\n{textwrap.fill(f'{sentence}.', 118)}"


def searches(folder):
    """{name: Markdown}: the tables of the records of studies/search.py."""
    made = {}
    for name in SEARCHES:
        made |= recorded(folder / f"search-{name}.json", search_tables, (f"search-{name}",))
    return made


def errors(folder):
    """{name: Markdown}: the tables of the records of studies/errors.py."""
    made = {}
    for kind in ("", "-large", "-sizes", *(f"-{size}-distilled" for size in plan.DISTILLED)):
        make_tables = functools.partial(tables_of_sizes, folder) if kind == "-sizes" else errors_tables
        found = recorded(folder / f"errors{kind}-cpu.json", make_tables, ERRORS)
        made |= {name.replace("errors", f"errors{kind}"): text for name, text in found.items()}
    return made


def tables_of_sizes(folder, record):
    """The tables of the first network of each size, from this record of some and from those of base and large."""
    paths = [folder / "errors-cpu.json", folder / "errors-large-cpu.json"]
    read = [record, *(json.loads(read_text(path)) for path in paths if path.exists())]
    networks = {network["name"]: network for record in read for network in record["networks"]}
    first = [f"{size}-s0" for size in plan.OURS if f"{size}-s0" in networks]
    return errors_tables(record | {"networks": [networks[name] for name in first]})


def recorded(path, make_tables, names):
    """What `make_tables` makes of the JSON at `path`; where there is none, NOT_RECORDED for each of `names`.

    Raises UserError where it is not the record that `make_tables` reads.
    """
    if not path.exists():
        return dict.fromkeys(names, NOT_RECORDED)
    with reading(path):
        made = make_tables(json.loads(read_text(path)))
        return {name: made[name] for name in names}


@contextlib.contextmanager
def reading(path):
    """A context that raises UserError where what is read from the record `path` is not of its form."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is damaged, or of another version ({cause}); make it again, or remove it") from None


def index(folder, names):
    """The table of all records: those that differ in the seed alone share a line, and so do a design's tries, where
    commit, date and machine are the same too."""
    tables_of, runs, rows = {}, collections.Counter(), []
    for group, members in plan.groups().items():
        for name in members:
            tables_of.setdefault(without_seed(name), {})[group] = None
    for name in names:
        text = read_text(folder / f"{name}.txt")
        found = [re.search(rf"^{entry} +(.*)$", text, re.MULTILINE) for entry in ("commit", "date", "device")]
        commit, date, device = ("" if entry is None else entry[1] for entry in found)
        runs[without_seed(name), commit, date, short_device(device)] += 1
    for (prefix, *made), number in runs.items():
        used = next(iter(tables_of[prefix])) if len(tables_of[prefix]) == 1 else "several"
        rows.append([f"`{prefix}`", str(number), used, *made])
    for path in sorted(folder.glob("*.json")):
        rows += recorded(path, functools.partial(index_rows, path.name), ["index"])["index"]
    return table(["records", "runs", "table", "commit", "date", "machine, threads"], rows)


def index_rows(file, record):
    """{"index": the rows of the index for the record of a study}: one for each commit and date."""
    rows = [row for row in record.get("rows", ()) if "commit" in row] or [record]
    made = sorted({(row["commit"], row.get("date", "")) for row in rows})
    group = plan.studies().get(file, ("by hand",))[0]
    return {"index": [[f"`{file}`", "", group, commit, date, short_device(record["device"])] for commit, date in made]}


def short_device(device):
    """The device of a log for a narrow column: cpu: Intel(R) Xeon(R) Processor @ 2.10GHz, 2 threads -> Intel Xeon
    2.1 GHz, 2."""
    return re.sub(r"^cpu: |\(R\)| Processor| @| threads?$|(?<=\d)0?(?=GHz)", "", device).replace("GHz", " GHz")


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
