"""The tables of speed.md, as Markdown, from the records of studies/benchmark.py and studies/ladder.py."""

import itertools
import statistics
import textwrap

from studies.markdown import NOT_RECORDED, table, with_error

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
RIVALS = ("as published", "channels_last", "channels_last, bfloat16", "the same, flattened in place")
COMMANDS = ("train.py --model fast", "evaluate.py --ckpt best.pt", "predict.py --ckpt logs/tiny.pt")
SPEED_TABLES = tuple(f"speed-{name}" for name in ("machine", "headline", "gain", *SPEED))
LADDER_TABLES = ("ladder-machine", "ladder-ours", "ladder-rival", "ladder-target")
PUBLISHED_RIVAL = "batches of 256, rate 0.01"


def speed_tables(record):
    """{name: Markdown} of the benchmark's sections from its record, and of the machine they were measured on."""
    rounds = sorted({row["repeats"] for row in record["rows"]})
    commits = {}
    for row in record["rows"]:
        commits.setdefault(row["commit"], {})[row["section"]] = None
    made_by = "; ".join(f"commit {commit}: {', '.join(sections)}" for commit, sections in commits.items())
    head = "{device}; {versions}; {data set}; {} to {} rounds. Sections by {}."
    made = {"speed-machine": textwrap.fill(head.format(rounds[0], rounds[-1], made_by, **record), 118)}
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
    accuracy = rows[f"joint vs its test digit, {RIVALS[-1]}"]

    def part(row):
        low, high = map(figure, row["spread"])
        return f"{figure(row['ratio'])} (single rounds: {low} to {high}) of the {figure(row['rival'])} s"

    commands = [f"`{name.split(' --ckpt')[0]}` takes {figure(rows[name]['ours'])} s" for name in COMMANDS]
    lines = [
        f"The fast recipe trains for {figure(alike['ours'])} s, to a joint accuracy of {figure(accuracy['ours'])} % on "
        "the test set.",
        f"That is {part(alike)} of the fastest public recipe in our memory layout and in bfloat16, flattened as "
        f"ours, and {part(published)} that it takes as published. It learns the digit alone, to "
        f"{figure(accuracy['rival'])} %.",
        f"Whole commands, the fastest of several rounds: {', '.join(commands)}.",
    ]
    return "\n".join(textwrap.fill(line, 118, initial_indent="- ", subsequent_indent="  ") for line in lines)


def speed_gain(rows):
    """A sentence: the seconds that each change to the rival takes off, and those that lie between it and ours."""
    taken = [rows[f"training vs public recipe, {name}"] for name in RIVALS]
    seconds = [*(figure["rival"] for figure in taken), taken[0]["ours"]]
    layout, precision, flattening, rest = (f"{a - b:.2f} s" for a, b in itertools.pairwise(seconds))
    sentence = (
        f"Of the {seconds[0] - seconds[-1]:.2f} s between the baseline as published and ours, the memory layout "
        f"accounts for {layout}, then the precision for {precision} and the flattening for {flattening}; "
        f"the last {rest} lie between the recipes themselves (derived: differences of the medians)."
    )
    return textwrap.fill(sentence, 118)


def speed_table(rows):
    """The table of rows of the benchmark."""
    cells = []
    for row in rows:
        figures = [figure(row[name]) for name in ("ours", "rival", "ratio")]
        low, high = map(figure, row["spread"])
        cells.append([row["what"], row["unit"], *figures, f"{low} to {high}" if low else ""])
    return table(["what", "unit", "ours", "baseline", "ratio", "spread"], cells)


def ladder_tables(record):
    """{name: Markdown} of the record of studies/ladder.py: the machine, changes to the fast recipe, settings of the
    rival. Gains are paired with the recipe or with the rival as published, times with both.
    """
    words = "{device}; {versions}; commit {commit}; {data set}; {} seeds."
    head = words.format(len(record["rows"][0]["seconds"]), **record)
    made = {"ladder-machine": textwrap.fill(head, 118)}
    rows = {kind: [row for row in record["rows"] if row["kind"] == kind] for kind in ("ours", "rival")}
    recipe = rows["ours"][0]
    published = next(row for row in rows["rival"] if row["what"] == PUBLISHED_RIVAL)
    for kind, heading, reference in (("ours", "joint %", recipe), ("rival", "digit %", published)):
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
        made[f"ladder-{kind}"] = table(["change", heading, "gain", "s", "of ours", "of public"], lines)
    return made | {"ladder-target": time_to_rival(rows)}


def time_to_rival(rows):
    """A sentence for each rival: the time of the recipe on as many images as it takes to reach its mean accuracy, by
    linear interpolation between half of the images, three quarters and all. Where half suffice, it says so; where all
    do not reach it, the difference, mean ± standard error.
    """
    shares = [row for row in rows["ours"] if "of the images" in row["what"]] + [rows["ours"][0]]
    points = [(statistics.mean(row["accuracy"]), statistics.median(row["seconds"])) for row in shares]
    lines = []
    for row in rows["rival"]:
        if not row["what"].startswith(PUBLISHED_RIVAL):
            continue
        goal, seconds = statistics.mean(row["accuracy"]), statistics.median(row["seconds"])
        name = f"the public recipe's {goal:.2f} % ({row['what']})"
        if goal < points[0][0]:
            lines.append(f"With half of the images the mean of ours is above {name}.")
            continue
        for (low, before), (high, after) in itertools.pairwise(points):
            if low <= goal <= high:
                reached = before + (after - before) * (goal - low) / (high - low)
                lines.append(f"To {name}, ours takes {reached:.2f} s, {reached / seconds:.2f} of its {seconds:.2f} s.")
                break
        else:
            short = with_error([b - a for a, b in zip(rows["ours"][0]["accuracy"], row["accuracy"], strict=True)])
            lines.append(f"The mean of ours is {short} points below {name}.")
    return textwrap.fill(" ".join(lines), 118)


def paired(row, reference, name):
    """The median ratio of the figures of two rows, round by round."""
    return statistics.median(a / b for a, b in zip(row[name], reference[name], strict=True))


def figure(value):
    """A figure of the benchmark as the tables show it; nothing for None."""
    return "" if value is None else f"{value:,.{0 if abs(value) >= 1000 else 2}f}"
