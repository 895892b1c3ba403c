"""Tables as Markdown."""

import statistics

NOT_RECORDED = "Not recorded yet."  # in place of a table


def table(headings, rows):
    """A Markdown table, padded so that it reads as plain text too."""
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    padded = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    rule = " | ".join("-" * width for width in widths)
    return "\n".join(f"| {line} |" for line in [padded[0], rule, *padded[1:]])


def mean_sd(values, digits=2):
    """Mean ± standard deviation as text; the mean alone of one value; a dash for none."""
    if not values:
        return "–"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def with_error(values, sign="", digits=2):
    """Mean ± standard error as text."""
    return f"{statistics.mean(values):{sign}.{digits}f} ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}"
