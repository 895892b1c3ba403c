"""Pictures of digits brought to MNIST's form: a PNG, JPEG or other file of FORMATS in, uint8 [28, 28] out, light ink
on black.

    for digit in read_digits("seven.png"):
        ...  # [28, 28] uint8, as MNIST's images

MNIST was made from black and white images: fitted into a box of 20 x 20 pixels by aspect ratio, whose smoothing makes
the greys, and laid into 28 x 28 with the centre of mass of the ink in the middle (Y. LeCun, L. Bottou, Y. Bengio,
P. Haffner, "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 86, 1998, section III.A, and
http://yann.lecun.com/exdb/mnist/). Before that, support/ink.py tells a photo's ink from its paper.
"""

import contextlib
import io
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from support.ink import CONTRAST, ImageError, find_ink, separate, spread

SIDE, BOX = 28, 20  # MNIST's image, and the box in it that the digit is fitted into
# No EPS, which Pillow hands to Ghostscript, nor anything else that is no plain picture.
FORMATS = ("PNG", "JPEG", "MPO", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "TGA", "ICO")
# Those of a folder's images. HEIC is among them so that it is refused by name and not skipped.
SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".avif"),
    *(".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico", ".heic", ".heif"),
)
BYTES_LIMIT, PIXELS_LIMIT = 100_000_000, 50_000_000  # of a file and, decoded, in memory
WORKING_SIDE = 600  # pixels of the longer side at which ink is looked for
FINE = 10  # pixels for one of MNIST's at least, where strokes are measured and drawn thicker or thinner
STROKES = (1.6, 2.6)  # a stroke's width in MNIST's pixels, below and above which it is redrawn


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
    if str(path) == "-" and sys.stdin is None:
        raise ImageError(f"{name} is closed")
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
        raise ImageError(f"{name} is damaged or of a format that is not read here; save it as PNG or JPEG") from None


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
