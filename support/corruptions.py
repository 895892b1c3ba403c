"""Corruptions of images of digits, for training and for the study of robustness: 13 kinds, at strengths 1 to 5.

    corrupted = corrupt(images, "blur", 3, torch.Generator().manual_seed(0))  # uint8 [N, 1, 28, 28] in and out

After MNIST-C (N. Mu and J. Gilmer, arXiv 1906.02337), written from its description: kinds that a person reads through.
The kinds and their amounts are our own choice, so scores are not comparable with those on the files of MNIST-C.

A corruption is an affine map of the image and a row of `EFFECTS`, which `apply` applies to a batch in the same few
operations whatever its kinds are: nothing waits for a GPU, and an image does not depend on the others of its batch.
"""

import torch
import torch.nn.functional as F

AMOUNTS = {  # kind: its amount at strengths 1 to 5
    "rotation": (10, 20, 30, 40, 50),  # degrees, to either side
    "shift": (2, 3, 4, 5, 6),  # pixels, in a random direction
    "scale": (1.1, 1.25, 1.4, 1.55, 1.7),  # times larger or smaller
    "shear": (0.2, 0.4, 0.6, 0.8, 1.0),  # columns for a row, to either side
    "Gaussian noise": (0.1, 0.2, 0.3, 0.4, 0.5),  # standard deviation, of the range of grey
    "impulse noise": (0.05, 0.1, 0.2, 0.3, 0.4),  # share of the pixels that turn black or white
    "blur": (0.5, 1.0, 1.5, 2.0, 2.5),  # standard deviation of a Gaussian, in pixels
    "contrast": (0.7, 0.5, 0.3, 0.2, 0.1),  # what is left of the distance to mid-grey
    "brightness": (0.15, 0.3, 0.45, 0.6, 0.75),  # added to all pixels, of the range of grey
    "inversion": (1.0, 0.8, 0.6, 0.4, 0.2),  # darkness of the ink on white: strength 1 is the plain negative
    "thick strokes": (0.4, 0.8, 1.2, 1.6, 2.0),  # pixels added to each side of a stroke
    "thin strokes": (0.2, 0.4, 0.6, 0.8, 1.0),  # pixels taken from each side of a stroke
    "occlusion": (4, 6, 8, 10, 12),  # side of a square of a random grey over the digit, in pixels
}
KINDS = tuple(AMOUNTS)
STRENGTHS = (1, 2, 3, 4, 5)
EFFECTS = (  # columns of a row: what `apply` does, in this order
    "stroke",  # pixels added to each side, or, negative, taken
    "blur",  # standard deviation, pixels
    *("gain", "offset"),  # of the grey levels, 0 to 255
    *("noise", "impulse"),  # standard deviation in grey levels; the normal value above which a pixel turns white
    "start",  # where the image's window of the noise begins
    *("top", "left", "side", "grey"),  # of the square
)
WHITE, SIDE, BOX = 255, 28, 20  # the digits of MNIST fill a box of 20 x 20 pixels
PIXELS = SIDE * SIDE
NOISE = 2**18  # normal values that the noise of all images of an epoch is cut from


def corrupt(images, kind, strength, generator):
    """The images with a corruption of this kind and strength: uint8 [N, 1, 28, 28] in and out.

    kind is one of KINDS, strength one of STRENGTHS, and N at least 1. What is drawn comes from `generator`, a
    torch.Generator of the CPU, alone.
    """
    parts = []
    for part in images.split(1000):  # which the cache holds
        kinds, strengths = (torch.full((len(part),), n) for n in (KINDS.index(kind), strength))
        maps, effects = draw(kinds, strengths, generator)
        noise = torch.randn(NOISE, generator=generator)
        parts.append(apply(move(part, maps), effects, noise).round_().to(torch.uint8))
    return torch.cat(parts)


def draw_mix(count, share, generator):
    """(maps, effects, noise) of an epoch in which each image is corrupted with the probability `share`.

    The kind is uniform, the strength the smaller of two uniform ones, so that weak corruptions are more frequent.
    `maps` [count, 2, 3] and `effects` are those of `draw`; noise [NOISE] is normal.
    """
    kinds = torch.randint(len(KINDS), (count,), generator=generator)
    strengths = torch.randint(1, len(STRENGTHS) + 1, (2, count), generator=generator).amin(0)
    kinds[torch.rand(count, generator=generator) >= share] = -1
    return *draw(kinds, strengths, generator), torch.randn(NOISE, generator=generator)


def draw(kinds, strengths, generator):
    """Draw a corruption for each image: (maps [N, 2, 3], effects [N, len(EFFECTS)]), both float32.

    kinds [N] int64 are indices into KINDS, -1 for none; strengths [N] int64 from 1 to 5.
    """
    amount = torch.tensor(list(AMOUNTS.values()))[kinds, strengths - 1]
    sign, direction, start, top, left, grey = torch.rand(6, len(kinds), generator=generator)
    sign = (sign < 0.5).float() * 2 - 1

    def only(kind, value, otherwise=0.0):
        return torch.where(kinds == KINDS.index(kind), value, otherwise)

    distance = only("shift", amount) * 2 / SIDE  # affine_grid counts an image as 2 units wide
    size = only("scale", amount**sign, 1.0)
    maps = affine_maps(
        only("rotation", torch.deg2rad(sign * amount)),
        only("shear", sign * amount),
        size,
        size,
        distance * torch.cos(2 * torch.pi * direction),
        distance * torch.sin(2 * torch.pi * direction),
    )
    margin = (SIDE - BOX) / 2
    room = only("occlusion", BOX + 1 - amount)  # places for the square, in the box that holds the digit
    inverted = kinds == KINDS.index("inversion")
    effects = {
        "stroke": only("thick strokes", amount) - only("thin strokes", amount),
        "blur": only("blur", amount),
        "gain": torch.where(inverted, -amount, only("contrast", amount, 1.0)),
        "offset": WHITE * torch.where(inverted, 1.0, only("brightness", amount) + only("contrast", (1 - amount) / 2)),
        "noise": only("Gaussian noise", WHITE * amount),
        "impulse": only("impulse noise", torch.special.ndtri(1 - amount / 2), torch.inf),
        "start": (start * (NOISE - PIXELS)).floor(),
        "top": margin + (top * room).floor(),
        "left": margin + (left * room).floor(),
        "side": only("occlusion", amount),
        "grey": (grey * (WHITE + 1)).floor(),
    }
    return maps, torch.stack([effects[name] for name in EFFECTS], 1)


def affine_maps(angle, shear, width, height, right, down):
    """Affine maps as `affine_grid` takes them, [N, 2, 3], from tensors [N]: radians, factors, halves of the image."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    top = torch.stack([cos * width, (shear * cos - sin) * height, right], 1)
    bottom = torch.stack([sin * width, (shear * sin + cos) * height, down], 1)
    return torch.stack([top, bottom], 1)


def compose(first, second):
    """The affine maps [N, 2, 3] that move an image by `first`, and the result by `second`."""
    linear = first[:, :, :2]
    return torch.cat([linear @ second[:, :, :2], linear @ second[:, :, 2:] + first[:, :, 2:]], 2)


def move(images, maps):
    """The images [N, 1, 28, 28] moved by affine maps [N, 2, 3], bilinear, with black outside; float32, 0 to 255."""
    grid = F.affine_grid(maps, images.shape, align_corners=False)
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def apply(images, effects, noise):
    """Apply the rows `effects` [N, len(EFFECTS)] to images [N, 1, 28, 28] from 0 to 255; float32, 0 to 255.

    noise [NOISE] float32 is drawn from a normal distribution.
    """
    columns = dict(zip(EFFECTS, effects.view(-1, len(EFFECTS), 1, 1, 1).unbind(1), strict=True))
    images = blur(thicken(images, columns["stroke"]), columns["blur"])
    images = images.mul_(columns["gain"]).add_(columns["offset"])

    own = noise.unfold(0, PIXELS, 1).index_select(0, columns["start"].flatten().long()).view_as(images)
    images.addcmul_(own, columns["noise"])
    images = torch.where(own > columns["impulse"], WHITE, torch.where(own < -columns["impulse"], 0, images))

    pixels = torch.arange(SIDE, device=images.device)
    inside = [(pixels >= columns[edge]) & (pixels < columns[edge] + columns["side"]) for edge in ("top", "left")]
    return torch.where(inside[0].mT & inside[1], columns["grey"], images).clamp_(0, WHITE)


def thicken(images, width):
    """Strokes with `width` [N, 1, 1, 1] pixels, -2 to 2, added to each side: images [N, 1, 28, 28] float32.

    Each pixel becomes the maximum of its neighbourhood, or the minimum where the width is negative (dilation and
    erosion of grey levels). Between the whole numbers of pixels the results are interpolated.
    """
    sign = torch.where(width < 0, -1.0, 1.0)
    images, width = images * sign, width * sign
    once = dilate(images)
    twice = dilate(once)
    return sign * torch.where(width > 1, once.lerp(twice, width - 1), images.lerp(once, width))


def dilate(images):
    """The maximum of each pixel and its four neighbours."""
    largest = images.clone()
    for axis in (2, 3):
        for here, there in ((0, 1), (1, 0)):
            part = largest.narrow(axis, here, SIDE - 1)
            torch.maximum(part, images.narrow(axis, there, SIDE - 1), out=part)
    return largest


def blur(images, deviation):
    """Images [N, 1, 28, 28] float32 blurred by a Gaussian of this standard deviation [N, 1, 1, 1], black outside."""
    distances = torch.arange(1 - SIDE, SIDE, device=images.device) ** 2
    weights = torch.softmax(distances / (-2 * deviation.clamp_min(0.1) ** 2), dim=-1)  # 0.1 is no blur
    matrix = weights.unfold(-1, SIDE, 1).flip(-2).squeeze(2)  # [N, 1, 28, 28]: a row of weights for a row of pixels
    return matrix @ images @ matrix
