"""Pictures of digits brought to MNIST's form: any file that Pillow reads in, uint8 [28, 28] out, light ink on black.

    for digit in read_digits("seven.png"):
        ...  # [28, 28] uint8, as MNIST's images

MNIST was made from black and white images: fitted into a box of 20 x 20 pixels by aspect ratio, whose smoothing makes
the greys, and laid into 28 x 28 with the centre of mass of the ink in the middle (Y. LeCun, L. Bottou, Y. Bengio,
P. Haffner, "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 86, 1998, section III.A, and
http://yann.lecun.com/exdb/mnist/). Before that, a photo needs its ink told from its paper.
"""

import contextlib
import io
import itertools
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from support.cli import UserError

SIDE, BOX = 28, 20  # MNIST's image, and the box in it that the digit is fitted into
# No EPS, which Pillow hands to Ghostscript, nor anything else that is no plain picture.
FORMATS = ("PNG", "JPEG", "MPO", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "TGA", "ICO")
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".avif", ".jp2", ".ppm", ".pgm", ".tga")
BYTES_LIMIT, PIXELS_LIMIT = 100_000_000, 50_000_000  # of a file and, decoded, in memory
WORKING_SIDE = 600  # pixels of the longer side at which ink is looked for
FINE = 10  # pixels for one of MNIST's at least, where strokes are measured and drawn thicker or thinner
CONTRAST = 8  # grey levels, of 255, that ink differs from paper at least
STROKES = (1.6, 2.6)  # a stroke's width in MNIST's pixels, below and above which it is redrawn


class ImageError(UserError):
    """A picture that cannot be used; the message is one line with the file and the cause."""


def read_digits(path, split=False):
    """The digits in the picture `path` ("-": standard input), a list of uint8 [28, 28] in MNIST's form.

    With `split` one for each digit, from left to right, else the only one. Raises ImageError: unreadable, too large, no
    ink, or several digits without `split`.
    """
    grey, name = read_grey(path), name_of(path)
    if (mnist := as_it_is(grey)) is not None:
        return [mnist]
    ink, threshold = find_ink(grey, name)
    digits = [fit(part, threshold) for part in separate(ink, threshold, name)]
    if len(digits) > 1 and not split:
        raise ImageError(f"{name} shows {len(digits)} digits or more; --split reads them from left to right")
    return digits


# ---------------------------------------------------------------------------------------------------------------------
# Files


def image_files(path):
    """The image files in a folder, sorted by name, or the file `path` itself. Raises ImageError for an empty folder."""
    if str(path) == "-" or not Path(path).is_dir():
        return [path]
    files = sorted(file for file in Path(path).iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise ImageError(f"no image is in the folder {path}; looked for {', '.join(SUFFIXES)}")
    return files


def png(image):
    """The bytes of a PNG file of an image uint8 [height, width]."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def name_of(path):
    """What messages call the picture."""
    return "standard input" if str(path) == "-" else path


def read_grey(path):
    """The picture as float32 [height, width] from 0 to 255, upright, on white where it is transparent."""
    name = name_of(path)
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if str(path) == "-" else open(path, "rb") as file:
            content = file.read(BYTES_LIMIT + 1)
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror or error}") from None
    if not content:
        raise ImageError(f"{name} is empty")
    if len(content) > BYTES_LIMIT:
        raise ImageError(f"{name} has more than {BYTES_LIMIT // 10**6} MB")
    Image.init()  # else it knows the most common formats only
    formats = [name for name in FORMATS if name in Image.OPEN]  # an older Pillow has fewer
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata; the size is checked below
            with Image.open(io.BytesIO(content), formats=formats) as image:
                image.draft("L", (WORKING_SIDE, WORKING_SIDE))  # a JPEG is decoded at a fraction of its size
                if image.width * image.height > PIXELS_LIMIT:
                    raise ImageError(f"{name} has {image.width} x {image.height} pixels; make it smaller")
                return to_grey(shrink(ImageOps.exif_transpose(image)))
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"{name} has too many pixels; make it smaller") from None
    except Exception:  # Pillow raises many kinds on damaged files
        raise ImageError(f"{name} is damaged or not a picture that Pillow reads; save it as PNG or JPEG") from None


def shrink(image):
    """The image with its longer side at WORKING_SIDE or a little more, each pixel the mean of those that it was."""
    if image.mode[0] in "IF":
        values = np.asarray(image, np.float32)
        values = np.nan_to_num(values, posinf=0, neginf=0)
        ranges = {"F": (1, 255, 65535), "I": (255, 65535)}.get(image.mode, (65535,))
        white = next((top for top in ranges if values.max() <= top), values.max())
        image = Image.fromarray(np.clip(values * (255 / white), 0, 255))
    elif image.mode != "L" or image.has_transparency_data:
        image = image.convert("RGBA")  # palettes and colour keys too
    return image.reduce(max(1, max(image.size) // WORKING_SIDE))


def to_grey(image):
    """Float32 [height, width]; an image whose ink shows only on black is laid on black, else on white."""
    if image.mode != "RGBA":
        return np.asarray(image, np.float32)
    for paper in ("white", "black"):
        page = Image.new("RGBA", image.size, paper)
        page.alpha_composite(image)
        grey = np.asarray(page.convert("L"), np.float32)
        if np.ptp(grey) >= CONTRAST:
            break
    return grey


def as_it_is(grey):
    """The picture as uint8 where it is in MNIST's form already, light on black or black on white, else None."""
    if grey.shape != (SIDE, SIDE):
        return None
    grey = grey.round().astype(np.uint8)
    for image in (grey, 255 - grey):
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        if len(rows) and max(np.ptp(rows), np.ptp(columns)) < BOX and image.max() >= 128:
            centre = [mass_centre(image, axis) for axis in (0, 1)]
            if max(abs(place - SIDE / 2) for place in centre) <= 1:
                return image
    return None


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
        raise ImageError(f"{name} shows no ink: nothing in it differs clearly from its background")
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

    Ink is what is left out, so it is known neither here nor needed whether it is dark or light.
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
    return sum(f * np.outer(y**i, x**j) for f, (i, j) in zip(factors, powers, strict=True)).astype(np.float32)


def paper_below(ink):
    """What of `ink` is shade with an edge rather than strokes: what stays where a square opens it (morphology)."""
    step = max(1, max(ink.shape) // 100)
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
    """Standard deviation of the noise: the median second difference, which knows neither slopes nor rare edges."""
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
    labels = label(spread(mask, max(1, max(ink.shape) // 320)))
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


# ---------------------------------------------------------------------------------------------------------------------
# MNIST's form


def fit(ink, threshold):
    """One digit's ink in MNIST's form: uint8 [28, 28]. Pens much thinner or thicker than MNIST's are drawn again."""
    mask, unit = cut_out(ink, threshold)
    width = stroke_width(mask) / unit
    wanted = min(max(width, STROKES[0]), STROKES[1])
    steps = round(abs(width - wanted) * unit / 2)
    if steps:
        drawn = spread(np.pad(mask, steps), steps) if width < wanted else ~spread(~np.pad(mask, 1), steps)
        if drawn.any():
            mask, unit = cut_out(drawn.astype(np.float32), 0.5)
    height, width = (max(1, round(n / unit)) for n in mask.shape)
    small = Image.fromarray(mask.astype(np.float32) * 255).resize((width, height), Image.Resampling.BOX)
    return centred(np.asarray(small).round().astype(np.uint8))


def cut_out(ink, threshold):
    """(mask, unit): the digit alone in black and white, bool [height, width], large enough to see its strokes, and the
    pixels of it that become one of MNIST's."""
    rows, columns = (np.flatnonzero((ink > threshold).any(axis)) for axis in (1, 0))
    ink = np.pad(ink, 1)[rows[0] : rows[-1] + 3, columns[0] : columns[-1] + 3]
    scale = max(1, BOX * FINE / max(np.ptp(rows) + 1, np.ptp(columns) + 1))
    size = [round(n * scale) for n in ink.shape[::-1]]
    ink = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BICUBIC))
    mask = ink > min(threshold, 0.9 * ink.max())  # a faint dot may lose by the resizing
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return mask, max(mask.shape) / BOX


def stroke_width(mask):
    """A stroke's width in pixels: half of a line's area is gone once a quarter of its width is off on both sides."""
    left, outside, steps = [1.0], ~np.pad(mask, 1), 0
    while left[-1] > 0.5:
        outside = spread(outside, 1, first=steps)
        left.append(1 - (outside[1:-1, 1:-1] & mask).sum() / mask.sum())
        steps += 1
    return 4 * (steps - 1 + (left[-2] - 0.5) / (left[-2] - left[-1]))


def centred(digit):
    """A digit in a black image of 28 x 28, with its centre of mass in the middle, as near as whole pixels let it be."""
    image = np.zeros((SIDE, SIDE), np.uint8)
    places = []
    for axis, length in enumerate(digit.shape):
        places.append(min(max(0, round(SIDE / 2 - mass_centre(digit, axis))), SIDE - length))
    image[places[0] : places[0] + digit.shape[0], places[1] : places[1] + digit.shape[1]] = digit
    return image


def mass_centre(image, axis):
    """Where the centre of mass lies along an axis, in pixels from the image's edge."""
    weights = image.sum(1 - axis, dtype=np.float64)
    return float(weights @ (np.arange(len(weights)) + 0.5) / weights.sum())
