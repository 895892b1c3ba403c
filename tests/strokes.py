"""Digits drawn in ways unlike MNIST, to try what `support.images` makes of pictures: pens, paper, light, cameras.

    pictures = drawn_pictures(per_kind=20)  # (kind, digit, picture) of every kind, digits 0 to 9 in turn

The strokes are those of `support.synthetic`, each wobbled anew. A picture is uint8 [height, width], or [height, width,
3 or 4] where it is coloured or transparent.
"""

import numpy as np
from PIL import Image, ImageFilter

from support.synthetic import FIELD, bilinear, stroke_distance

PAPER, INK = 235.0, 30.0


def cover(digit, random, side=240, height=0.6, pen=0.065, slant=0.0, angle=0.0, centre=(0.5, 0.5)):
    """How much of each pixel is inked, [side, side] float from 0 to 1.

    height: the digit's, as a part of the picture's; pen: half a stroke's width, as a part of the digit's height; angle
    in radians; centre (x, y) of the digit in the picture.
    """
    field = stroke_distance(digit, random).reshape(1, FIELD * FIELD)
    axis = (np.arange(side) + 0.5) / side
    x, y = np.meshgrid((axis - centre[0]) / height, (axis - centre[1]) / height)
    x, y = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    u, v = (x + slant * y) / 0.8 + 0.5, y + 0.5  # MNIST's digits are narrower than high
    distance = bilinear(field, u.reshape(1, -1), v.reshape(1, -1)).reshape(side, side)
    distance[(abs(u - 0.5) > 0.95) | (abs(v - 0.5) > 0.95)] = 1
    return np.clip((pen - distance) * height * side + 0.5, 0, 1)


def on_paper(inked, paper=PAPER, ink=INK):
    """Ink of one grey or colour on paper of another."""
    return paper + inked * (ink - paper)


def blur(picture, radius):
    return np.asarray(Image.fromarray(picture.astype(np.uint8)).filter(ImageFilter.BoxBlur(radius)), float)


def light(side, random):
    """A lamp on one side and dark corners: [side, side], from 1 down to about 0.45."""
    x, y = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    angle = random.uniform(0, 2 * np.pi)
    return 0.8 + 0.2 * (np.cos(angle) * x + np.sin(angle) * y) / 1.41 - 0.075 * (x**2 + y**2)


def shadow(side, random):
    """A straight, slightly soft edge across the picture, darker on one side."""
    x, y = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    angle, place = random.uniform(0, 2 * np.pi), random.uniform(-0.4, 0.4)
    return 1 - 0.3 / (1 + np.exp(-(np.cos(angle) * x + np.sin(angle) * y - place) * 25))


def specks(digit, random):
    picture = on_paper(cover(digit, random))
    picture[random.random(picture.shape) < 0.01] = INK
    for x, y in random.integers(5, 230, (6, 2)):
        picture[y : y + 4, x : x + 4] = INK
    return picture


def coloured(digit, random):
    paper, ink = [([250, 240, 170], [30, 60, 200]), ([255, 255, 255], [200, 40, 40]), ([20, 70, 40], [240, 240, 220])][
        random.integers(3)
    ]
    return on_paper(cover(digit, random)[..., None], np.array(paper, float), np.array(ink, float))


def transparent(digit, random):
    inked = cover(digit, random)
    return np.stack([np.full(inked.shape, shade) for shade in (30, 30, 90)] + [inked * 255], -1)


def cropped(digit, random):
    inked = cover(digit, random)
    rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
    return on_paper(inked[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def icon(digit, random):
    picture = Image.fromarray(on_paper(cover(digit, random, height=0.8)).astype(np.float32))
    return np.asarray(picture.resize((24, 24), Image.Resampling.BOX))


def photo(digit, random):
    inked = cover(digit, random, side=600, height=0.35, pen=0.04, angle=random.uniform(-0.1, 0.1), centre=(0.45, 0.55))
    picture = blur(on_paper(inked, paper=215.0, ink=70.0), 2) * light(600, random) * shadow(600, random)
    picture = picture[..., None] * [1.0, 0.95, 0.85]
    return picture + random.normal(0, 8, picture.shape)


KINDS = {  # kind: function(digit, generator) -> picture
    "plain": lambda digit, random: on_paper(cover(digit, random)),
    "thick": lambda digit, random: on_paper(cover(digit, random, pen=random.uniform(0.095, 0.12))),
    "thin": lambda digit, random: on_paper(cover(digit, random, pen=random.uniform(0.016, 0.022))),
    "small": lambda d, random: on_paper(cover(d, random, side=500, height=0.12, centre=random.uniform(0.15, 0.85, 2))),
    "off_centre": lambda d, random: on_paper(cover(d, random, height=0.45, centre=random.choice([0.28, 0.72], 2))),
    "slanted": lambda digit, random: on_paper(cover(digit, random, height=0.5, slant=random.choice([-0.15, 0.45]))),
    "turned": lambda digit, random: on_paper(cover(digit, random, angle=random.choice([-0.2, 0.2]))),
    "wide": lambda digit, random: on_paper(cover(digit, random)).repeat(3, axis=1)[:, ::2],
    "inverted": lambda digit, random: on_paper(cover(digit, random), paper=15.0, ink=245.0),
    "shaded": lambda digit, random: on_paper(cover(digit, random)) * light(240, random),
    "shadowed": lambda digit, random: on_paper(cover(digit, random, pen=0.05)) * shadow(240, random),
    "noisy": lambda d, random: on_paper(cover(d, random), paper=200.0, ink=60.0) + random.normal(0, 22, (240, 240)),
    "specks": specks,
    "blurred": lambda digit, random: blur(blur(on_paper(cover(digit, random)), 6), 6),
    "low_contrast": lambda d, random: on_paper(cover(d, random), 180.0, 155.0) + random.normal(0, 2, (240, 240)),
    "coloured": coloured,
    "transparent": transparent,
    "cropped": cropped,
    "icon": icon,
    "photo": photo,
}


def draw(kind, digit, random):
    """A picture of one kind: uint8."""
    return np.clip(KINDS[kind](digit, random), 0, 255).astype(np.uint8)


def drawn_pictures(per_kind=20, seed=0):
    """Yield (kind, digit, picture): `per_kind` of each kind, the digits 0 to 9 in turn."""
    random = np.random.default_rng(seed)
    for kind in KINDS:
        for number in range(per_kind):
            yield kind, number % 10, draw(kind, number % 10, random)


def seven(**look):
    """A dark 7 on light paper, uint8 [240, 240]."""
    return on_paper(cover(7, np.random.default_rng(7), **look)).astype(np.uint8)


def save(path, picture, mode=None, **options):
    """Save a picture, converted to Pillow's `mode` where one is given; returns the path."""
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    (image.convert(mode, dither=Image.Dither.NONE) if mode else image).save(path, **options)
    return path
