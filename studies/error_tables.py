"""The tables and the figure of errors.md, from the records of studies/errors.py."""

import textwrap
from collections import Counter

from studies.markdown import table
from support import figures
from support.checkpoint import ACCURACIES
from support.device import count

HEADS = ("digit", "sum")


def errors_tables(record):
    """{name: Markdown} of the record; "errors-images" has every misread image, "errors-common" those of all networks,
    "errors-ensemble" those of the ensemble."""
    networks = record["networks"]
    by_index = misread_by(networks)
    alone = [row["name"] for row in networks if not row["ensemble"]]
    common = [n for n, rows in by_index.items() if set(alone) <= rows.keys()]
    together = misread_by([row for row in networks if row["ensemble"]])
    judged, each = record["judged_wrong"], f"each of the {len(alone)} networks" if alone[1:] else "the network"
    machine = "{device}; {versions}; commit {commit}; {data set}.".format(**record)
    return {
        "errors-machine": textwrap.fill(machine, 118),
        "errors-calibration": calibration_table(networks),
        "errors-scores": scores_table(networks, judged),
        "errors-agreement": table(
            ["network", *networks[0]["agreement"]],
            [[row["name"], *(f"{pairs:,d}" for pairs in row["agreement"].values())] for row in networks],
        ),
        "errors-images": images_table(networks, by_index, judged),
        "errors-common": misread_list({n: by_index[n] for n in common}, each, judged),
        "errors-ensemble": misread_list(together, "the ensemble", judged),
    }


def misread_by(networks):
    """{index in the test set: {name of a network that misreads the image: how}} of these entries of a record."""
    found = {}
    for network in networks:
        for image in network["misread"]:
            found.setdefault(image["index"], {})[network["name"]] = image
    return dict(sorted(found.items()))


def calibration_table(networks):
    """The table of each head's temperature and expected calibration error (ECE), before and after scaling by it."""
    rows = []
    for network in networks:
        cells = [network["name"], f"{network['fitted_on']:,d} {'seen in training' if network['seen'] else 'held out'}"]
        for entry in network["calibration"].values():
            errors = (f"{100 * entry[when]['ece']:.2f}" for when in ("before", "after"))
            cells += [f"{entry['temperature']:.3f}", *errors]
        rows.append(cells)
    headings = [heading for head in HEADS for heading in (f"T, {head}", "ECE %", "scaled")]
    return table(["network", "fitted on", *headings], rows)


def scores_table(networks, judged):
    """The table of misread images and accuracies, with all images and without those judged wrong."""
    rows = []
    for network in networks:
        indices = [image["index"] for image in network["misread"]]
        among = str(len(set(indices) & set(judged))) if judged else "–"
        cells, without = [], network["scores_without"]
        for name in ACCURACIES:
            cells += [f"{100 * network['scores'][name]:.3f}", f"{100 * without[name]:.3f}" if without else "–"]
        rows.append([network["name"], str(len(indices)), among, *cells])
    headings = [heading for head in ("digit", "sum", "joint") for heading in (f"{head} %", "without")]
    return table(["network", "misread", "judged wrong", *headings], rows)


def images_table(networks, by_index, judged):
    """A row for each misread image: its label, and the answer of each network that misread it."""
    rows = []
    for n, misreadings in by_index.items():
        images = [misreadings.get(network["name"]) for network in networks]
        said = [f"{image['answer']} ({100 * image['confidence']:.0f} %)" if image else "" for image in images]
        rows.append([f"{n}{mark(n, judged)}", str(label_of(misreadings)), *said])
    return table(["no.", "label", *(network["name"] for network in networks)], rows)


def misread_list(by_index, who, judged):
    """Images that `who` misread, as wrapped text: index, label, answers."""
    words = []
    for n, misreadings in by_index.items():
        said = sorted({image["answer"] for image in misreadings.values()})
        words.append(f"{n}{mark(n, judged)} ({label_of(misreadings)} read as {' or '.join(map(str, said))})")
    images = f"{count(len(words), 'image')} misread by {who}{': ' if words else ''}"
    return textwrap.fill(f"{images}{', '.join(words)}.", 118)


def label_of(misreadings):
    """The label of an image, from how networks misread it."""
    return next(iter(misreadings.values()))["label"]


def mark(index, judged):
    """What is behind an image's index: a star where people judged its label wrong."""
    return "*" if index in judged else ""


def draw_misread(record, images, theme):
    """The images that most checkpoints misread, the surest answers first among as many; dashed where judged wrong.

    images: those of the test set, [N, 1, 28, 28] uint8. The ensemble is not counted.
    """
    networks = [network for network in record["networks"] if not network["ensemble"]]
    by_index = misread_by(networks)

    def confidence(n):
        return max(image["confidence"] for image in by_index[n].values())

    order = sorted(by_index, key=lambda n: (-len(by_index[n]), -confidence(n)))
    entries = []
    for n in order[: figures.SHEET]:
        misreadings = by_index[n]
        answer = Counter(image["answer"] for image in misreadings.values()).most_common(1)[0][0]
        how = f"{len(misreadings)} of {len(networks)}" if len(networks) > 1 else f"{100 * confidence(n):.1f} % sure"
        judged = n in record["judged_wrong"]
        heading = f"{label_of(misreadings)} read as {answer}{' *' if judged else ''}"
        entries.append((images[n], heading, f"{how}, no. {n}", judged))
    shown = f"{len(entries)} of {count(len(order), 'image')}"
    title = f"{shown} misread by {networks[0]['name']}, the surest answers first"
    if len(networks) > 1:
        title = f"{shown} misread by any of {len(networks)} networks, those that most of them misread first"
    if record["judged_wrong"]:
        title += "\n* and dashed: people judged the label wrong"
    return figures.contact_sheet(entries, theme, title)
