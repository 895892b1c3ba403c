"""How figures look and are written: colours that colour-blind readers tell apart, the same bytes for the same input.

Most colours are those of M. Okabe and K. Ito, "Color Universal Design", 2008; lines differ in marker and stroke too. A
figure is 9 inches wide at 100 dots per inch, which fits a README unscaled.
"""

import io
import math
from pathlib import Path

from support.cli import UserError
from support.files import write_atomically

try:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ImportError:
    matplotlib = None

WIDTH = 9.0  # inches
SHEET = 30  # images on a contact sheet
MARKERS = "osD^vPX*"
COLOURS = {  # the first is black on white and white on black
    "light": ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F"),
    "dark": ("#FFFFFF", "#56B4E9", "#E69F00", "#3FBF9B", "#CC79A7", "#F0E442", "#E8743B", "#B0B0B0"),
}
GROUNDS = {"light": ("#FFFFFF", "#1F2328", "#C9CED4"), "dark": ("#0D1117", "#E6EDF3", "#484F58")}  # page, text, grid
SEQUENTIAL = {"light": "Blues", "dark": "cividis"}


def require_matplotlib():
    """Raise UserError where matplotlib is missing."""
    if matplotlib is None:
        raise UserError("the figures need matplotlib: pip install -r requirements-dev.txt")


def style(theme):
    """A context in which figures have this theme, "light" or "dark"."""
    page, text, grid = GROUNDS[theme]
    settings = {"figure.facecolor": page, "axes.facecolor": page, "savefig.facecolor": page, "text.color": text}
    settings |= {f"{part}.color": text for part in ("xtick", "ytick")}
    settings |= {"axes.edgecolor": text, "axes.labelcolor": text, "grid.color": grid, "legend.edgecolor": grid}
    settings |= {"font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left"}
    settings |= {"font.family": "DejaVu Sans", "lines.markersize": 4, "axes.spines.top": False}
    settings |= {"axes.spines.right": False, "svg.hashsalt": "mnist-addend", "figure.dpi": 100, "savefig.dpi": 100}
    return matplotlib.rc_context(matplotlib.rcParamsDefault | settings)


def look(theme, number):
    """(colour, marker) of the group of runs of this number, from 0."""
    return [*COLOURS[theme][1:], COLOURS[theme][0]][number], MARKERS[number]


def new_figure(height, rows=1, columns=1, **options):
    """(figure, its axes as a list) of the common width, in inches, with room made for all labels."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def save(figure, stem, formats):
    """Write the figure to `stem`.png and the like, without a date; returns the paths."""
    paths = [Path(f"{stem}.{kind}") for kind in formats]
    for kind, path in zip(formats, paths, strict=True):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
        write_atomically(path, buffer.getvalue())
    return paths


def check_format(path):
    """Raise UserError where a figure cannot be written to `path`, before the work that it needs."""
    require_matplotlib()
    if path.suffix not in (".svg", ".png"):
        raise UserError(f"--figure {path}: its name must end in .svg or .png")


def theme_files(path):
    """The files of a figure for light and for dark pages, `path` and NAME-dark; none for None."""
    return [path, path.with_stem(f"{path.stem}-dark")] if path else []


def save_themes(draw, path):
    """Write the figure that draw(theme) returns for each theme to its file of `theme_files`; print the names."""
    for theme, file in zip(("light", "dark"), theme_files(path), strict=True):
        with style(theme):
            print(*save(draw(theme), file.with_name(file.stem), [file.suffix[1:]]))


def log_axis(axes, bands, accuracy=False):
    """Make the y axis logarithmic, around `bands`, a list of (means, lower, upper edges); returns its lowest value.

    Values below that one, such as 0, belong on it. With `accuracy` the values are errors in %; the axis is then
    inverted and labelled with the accuracies.
    """
    means, lows, highs = ([value for band in bands for value in band[n] if value > 0] for n in range(3))
    floor = min(means) / 2 if means else 0.01  # a band as wide as its mean would reach to 0
    low, high = max(floor, min(lows, default=floor)), max(highs, default=2 * floor)
    zero = any(value <= 0 for band in bands for value in band[0])
    low = floor if zero else low
    wider = max(1.0, math.sqrt(2 * low / high))  # a factor of 2 at least, or noise would fill the axis
    low, high = (low if zero else low / wider), high * wider
    for digits in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [digit * 10.0**power for power in range(-9, 10) for digit in digits]
        ticks = [tick for tick in ticks if low * (1.5 if zero else 1) <= tick <= high and not (accuracy and tick > 100)]
        if len(ticks) >= 4:
            break
    values = [0.0] * zero + ticks
    labels = [f"{100 - value if accuracy else value:.6g}" for value in values]
    margin = (high / low) ** 0.06
    axes.set_yscale("log")
    axes.set_ylim(*(high * margin, low / margin)[:: 1 if accuracy else -1])
    axes.set_yticks([low] * zero + ticks, labels)
    axes.minorticks_off()
    return low


def show_image(panel, image, theme, frame, dashed=False):
    """An image of a digit without axes, in a frame of this colour."""
    panel.imshow(image[0].numpy(), cmap="gray_r" if theme == "light" else "gray", vmin=0, vmax=255)
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set(
        visible=True, color=frame, linewidth=2.5, linestyle=(0, (2, 2)) if dashed else "solid", capstyle="butt"
    )


def contact_sheet(entries, theme, title):
    """A figure of at most SHEET images: (image [1, 28, 28] uint8, heading, caption, optionally whether dashed) each."""
    figure, axes = new_figure(9.6, 5, 6)
    for panel, (image, heading, caption, *dashed) in zip(axes, entries, strict=False):
        show_image(panel, image, theme, COLOURS[theme][2], *dashed)
        panel.set_title(heading, loc="center")
        panel.set_xlabel(caption)
    for panel in axes[len(entries) :]:
        panel.set_axis_off()
    figure.suptitle(title)
    return figure


def heat_map(axes, values, theme, label, high, text=None):
    """Draw `values` (rows of floats, nan for none) as coloured cells with `text` in them, a colour bar at the side."""
    colours = matplotlib.colormaps[SEQUENTIAL[theme]].with_extremes(bad=GROUNDS[theme][2])
    picture = axes.imshow(values, cmap=colours, vmin=0, vmax=high, interpolation="nearest", aspect="auto")
    axes.figure.colorbar(picture, ax=axes, label=label, fraction=0.05, pad=0.02, ticks=MaxNLocator(6, integer=high > 5))
    axes.set(xticks=range(len(values[0])), yticks=range(len(values)))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for row, words in enumerate(text or []):
        for column, word in enumerate(words):
            red, green, blue, _ = picture.cmap(picture.norm(values[row][column]))
            bright = 0.3 * red + 0.59 * green + 0.11 * blue > 0.5
            axes.text(column, row, word, ha="center", va="center", fontsize=8, color="black" if bright else "white")
