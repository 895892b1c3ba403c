"""Which pixels of a grey picture are ink, and which ink is one digit.

    ink, threshold = find_ink(grey, name)
    digits = separate(ink, threshold, name)

`grey` is float32 [height, width] from 0 to 255, `name` what messages call the picture.
"""

import itertools

import numpy as np
from PIL import Image

from support.cli import UserError

CONTRAST = 8  # grey levels, of 255, that ink differs from paper at least


class ImageError(UserError):
    """A picture that cannot be used; the message is one line with the file and the cause."""


# ---------------------------------------------------------------------------------------------------------------------
# Ink and paper


def find_ink(grey, name):
    """(ink, threshold): how much darker, or lighter, than its paper each pixel is, float32 [height, width], and from
    where on it counts as inked. Raises ImageError where there is no ink."""
    level = grey - surface(grey)
    grain = noise(level)
    means = int(grain > 4) + int(grain > 12) if min(grey.shape) >= 100 else 0
    for _ in range(means):
        level = box_mean(level, 1)
    grain *= (1, 1 / 3, 19 / 81)[means]  # what is left of independent noise
    ink = -level if is_dark(level) else level
    ink = ink - paper_below(ink)
    lowest = max(CONTRAST, 9 * grain)  # noise reaches up to 5, and `paper_below` follows it down to -3
    near = spread(ink > lowest, 3)
    if not near.any():
        raise ImageError(f"{name} shows no ink: nothing in it differs clearly in brightness from its background")
    return ink, max(otsu(ink[near]), lowest / 2)


def is_dark(level):
    """Whether the ink is darker than the paper.

    Thin strokes leave their surroundings far to one side, which edges of shadow do not. Where the strokes are about as
    wide as what is between them, most of the picture's rim is paper.
    """
    local = level - box_mean(level, max(1, max(level.shape) // 6))
    local = local - local.mean()
    square = local * local
    skewness = (square * local).mean() / (square.mean() ** 1.5 + 1e-9)
    if abs(skewness) > 1:
        return skewness < 0
    rim = np.concatenate([level[0], level[-1], level[1:-1, 0], level[1:-1, -1]])
    return np.mean(rim > otsu(level)) > 0.5


def surface(grey):
    """The paper's brightness under uneven light: a quadratic surface, fitted without the pixels that do not fit.

    The ink is among the pixels left out, so whether it is dark or light need not be known.
    """
    step = max(1, max(grey.shape) // 80)
    sample = grey[::step, ::step]
    y, x = (np.arange(n) / max(grey.shape) for n in grey.shape)
    powers = [(i, j) for i in range(3) for j in range(3 - i)]
    terms = np.stack([np.outer(y[::step] ** i, x[::step] ** j) for i, j in powers], -1).reshape(-1, len(powers))
    rim = np.ones(sample.shape, bool)
    rim[2:-2, 2:-2] = False
    kept, values = rim.ravel(), sample.ravel()
    for _ in range(6):
        factors = np.linalg.lstsq(terms[kept], values[kept], rcond=None)[0]
        wrong = np.abs(values - terms @ factors)
        kept = wrong <= max(2 * np.median(wrong[kept]), 2.0)
    paper = sum(f * np.outer(y**i, x**j) for f, (i, j) in zip(factors, powers, strict=True)).astype(np.float32)
    middle = np.median(values[rim.ravel()])
    flat = np.median(np.abs(values[rim.ravel()] - middle)) < 8
    if flat and (paper.min() < grey.min() - 16 or paper.max() > grey.max() + 16):  # ink on the rim has bent it
        paper = np.full_like(grey, middle)
    return paper


def paper_below(ink):
    """The part of `ink` that is a shadow with an edge, not strokes: its morphological opening by a square."""
    step = max(1, min(max(ink.shape) // 100, *ink.shape))
    height, width = (n // step * step for n in ink.shape)
    coarse = ink[:height, :width].reshape(height // step, step, width // step, step).mean((1, 3))
    reach = max(2, max(coarse.shape) // 6)
    coarse = slide(slide(coarse, reach, np.min), reach, np.max)
    return np.asarray(Image.fromarray(coarse).resize(ink.shape[::-1], Image.Resampling.BILINEAR))


def slide(values, reach, function):
    """Minimum or maximum over a square of 2 * reach + 1 around each pixel."""
    for axis in (0, 1):
        pad = [(reach, reach) if axis == other else (0, 0) for other in (0, 1)]
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, pad, mode="edge"), 2 * reach + 1, axis)
        values = function(windows, axis=-1)
    return values


def noise(level):
    """Standard deviation of the noise: the median second difference, which slopes and rare edges do not change."""
    return float(np.median(np.abs(np.diff(level, 2, axis=1)))) / 0.6745 / 6**0.5 if level.shape[1] > 2 else 0.0


def box_mean(values, reach):
    """Mean over a square of 2 * reach + 1 around each pixel."""
    width = 2 * reach + 1
    padded = np.pad(values.astype(np.float64), ((reach + 1, reach), (reach + 1, reach)), mode="edge")
    sums = padded.cumsum(0).cumsum(1)
    return (
        (sums[width:, width:] - sums[:-width, width:] - sums[width:, :-width] + sums[:-width, :-width]) / width**2
    ).astype(np.float32)


def otsu(values):
    """The threshold that parts the values best in two (N. Otsu, IEEE Trans. SMC 9, 1979)."""
    counts, edges = np.histogram(values, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = counts.cumsum()
    total = (counts * centres).cumsum()
    above = below[-1] - below
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    return float(edges[1 + np.argmax(np.nan_to_num(between[:-1]))])


# ---------------------------------------------------------------------------------------------------------------------
# Digits


def separate(ink, threshold, name):
    """The ink of each digit alone, from left to right: a list of float32 [height, width], zero elsewhere.

    Pieces that lie above one another or nearly touch are one digit; specks and what runs along the rim are none.
    Raises ImageError where the digits stand in several lines.
    """
    mask = ink > threshold
    labels = label(spread(mask, max(1, min(ink.shape) // 320)))
    areas = np.bincount(labels[mask], minlength=2)
    areas[0] = 0
    pieces = [Piece(labels == number) for number in np.argsort(-areas)[:50] if areas[number] >= 0.03 * areas.max()]
    inner = [piece for piece in pieces if piece.on_rim < min(ink.shape) / 2]
    groups = sorted(inner or pieces, key=lambda piece: -piece.height)
    while pair := next((pair for pair in itertools.combinations(groups, 2) if belongs(pair[1], pair[0])), None):
        pair[0].join(pair[1])
        groups.remove(pair[1])
    tallest = max(group.height for group in groups)
    groups = sorted((group for group in groups if group.height >= 0.35 * tallest), key=lambda group: group.left)
    for one, other in itertools.pairwise(groups):
        if other.left + other.right < 2 * one.right and (other.top > one.bottom or one.top > other.bottom):
            raise ImageError(f"{name} shows several lines of digits; cut it into pictures of one line or one digit")
    return [np.where(group.mask, ink, 0) for group in groups]


class Piece:
    """A connected piece of ink: its mask, box, and pixels on the picture's rim."""

    def __init__(self, mask):
        self.mask = mask
        self.measure()

    def measure(self):
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        self.top, self.bottom, self.left, self.right = rows[0], rows[-1], columns[0], columns[-1]
        self.height = self.bottom - self.top + 1
        self.on_rim = sum(int(edge.sum()) for edge in (self.mask[0], self.mask[-1], self.mask[:, 0], self.mask[:, -1]))

    def join(self, other):
        self.mask = self.mask | other.mask
        self.measure()


def belongs(piece, group):
    """Whether a piece is part of the digit of a taller one."""
    beside = max(piece.left, group.left) - min(piece.right, group.right)  # below 0: so far they overlap
    apart = max(piece.top, group.top) - min(piece.bottom, group.bottom)
    above = beside < -0.5 * (piece.right - piece.left) and apart < 0.25 * group.height
    small = piece.height < 0.35 * group.height and max(beside, apart) < 0.15 * group.height
    gap = round(0.06 * group.height)  # of a broken stroke
    return above or small or (max(beside, apart) <= gap and bool((spread(piece.mask, gap) & group.mask).any()))


def label(mask):
    """Number the 8-connected pieces of a mask from 1 on: int64 [height, width], 0 outside."""
    numbers = np.full(np.add(mask.shape, 2), -1)
    numbers[1:-1, 1:-1][mask] = np.arange(mask.sum())
    inside = numbers[1:-1, 1:-1]
    pairs = []
    for neighbour in (numbers[1:-1, 2:], numbers[2:, 1:-1], numbers[2:, 2:], numbers[2:, :-2]):
        both = mask & (neighbour >= 0)
        pairs.append((inside[both], neighbour[both]))
    one, other = np.concatenate(pairs, axis=1)
    root = np.arange(mask.sum())
    while (root[one] != root[other]).any():  # each piece's roots shrink to its smallest number
        low = np.minimum(root[one], root[other])
        np.minimum.at(root, root[one], low)
        np.minimum.at(root, root[other], low)
        while (root[root] != root).any():
            root = root[root]
    labels = np.zeros(mask.shape, np.int64)
    labels[mask] = np.unique(root, return_inverse=True)[1] + 1
    return labels


def spread(mask, steps, first=0):
    """The mask grown by so many pixels, as an octagon; in a negated mask, the ink grows thinner. `first` is the number
    of steps before these."""
    for step in range(first, first + steps):
        padded = np.pad(mask, 1)
        around = padded[1:-1] | padded[:-2] | padded[2:]
        square = around[:, 1:-1] | around[:, :-2] | around[:, 2:]
        cross = around[:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
        mask = square if step % 2 else cross
    return mask
