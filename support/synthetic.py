"""Synthetic digits, for a machine without MNIST: strokes, as distance fields that are bent, inked and blurred."""

import io
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from support.files import write_atomically

DIGITS = 10
FIELD = 64  # pixels of a distance field's side; it spans -0.5 .. 1.5 of the digit's unit box
VARIANTS = 48  # hands that write each digit
VERSION = 1  # of what draws them: caches of another one are made anew


def load_synthetic(data_dir, train):
    """The synthetic (images, digits), made once and cached in `data_dir`/synthetic; see `data.load_digits`."""
    path = Path(data_dir) / "synthetic" / ("train.npz" if train else "test.npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            images, digits, version = file["images"], file["digits"], int(file["version"])
        right = images.dtype == np.uint8 and images.shape == (digits.size, 28, 28) and digits.dtype == np.int64
        whole = right and digits.ndim == 1 and set(digits.tolist()) <= set(range(DIGITS)) and version == VERSION
    except Exception:  # absent or damaged: numpy and zipfile, which checks its checksums, raise many kinds
        whole = False
    if not whole:
        images, digits = make_synthetic(60_000 if train else 10_000, seed=1 if train else 2)
        save_synthetic(path, images, digits)
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(digits)


def save_synthetic(path, images, digits):
    """Write the cache that `load_synthetic` reads: images [N, 28, 28] uint8, digits [N] int64 and the VERSION."""
    buffer = io.BytesIO()
    np.savez(buffer, images=images, digits=digits, version=VERSION)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def make_synthetic(count, seed):
    """Draw `count` grey digits: images [count, 28, 28] uint8 and digits [count] int64, both numpy arrays.

    Each image is one of `VARIANTS` distorted drawings of its digit, with a random slant, rotation, scale and shift, a
    pen of random thickness and a little noise. The same `seed` gives the same images.
    """
    random = np.random.default_rng(seed)
    fields = np.stack([[stroke_distance(digit, random) for _ in range(VARIANTS)] for digit in range(DIGITS)])
    digits = random.integers(0, DIGITS, count)
    images = np.empty((count, 28, 28), np.uint8)
    axis = (np.arange(28, dtype=np.float32) - 13.5) / 20  # MNIST's digits fill 20 of 28 pixels
    y, x = (grid.ravel() for grid in np.meshgrid(axis, axis, indexing="ij"))
    starts = range(0, count, 2000)
    for start in tqdm(starts, "drawing synthetic digits", unit="batch", delay=2, leave=False, disable=None):
        n = min(2000, count - start)
        uniform = random.uniform(-1, 1, (n, 8, 1)).astype(np.float32)
        angle, slant, width, height, right, down, thickness, ink = (uniform[:, i] for i in range(8))
        cos, sin = np.cos(0.2 * angle), np.sin(0.2 * angle)
        px, py = x + 0.1 * right, y + 0.1 * down
        u = (cos * px - sin * py + (0.1 + 0.3 * slant) * py) / (0.75 + 0.2 * width) + 0.5
        v = (sin * px + cos * py) / (1 + 0.15 * height) + 0.5
        field = fields[digits[start : start + n], random.integers(0, VARIANTS, n)].reshape(n, -1)
        pen = 0.065 + 0.035 * thickness
        grey = np.clip((pen - bilinear(field, u, v)) / 0.05 + 0.5, 0, 1) * (235 + 20 * ink)
        grey += random.normal(0, 6, grey.shape).astype(np.float32) * (grey > 0)
        images[start : start + n] = np.clip(grey, 0, 255).astype(np.uint8).reshape(n, 28, 28)
    return images, digits


def stroke_distance(digit, random):
    """Distance from each point of a [FIELD, FIELD] grid to one hand's strokes of `digit`, in units of its box."""
    axis = np.linspace(-0.5, 1.5, FIELD, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), -1)[:, :, None]
    nearest = np.full((FIELD, FIELD), np.inf, np.float32)
    bend = random.normal(0, 0.05, (2, 2, 3))
    for stroke in STROKES[digit]:
        points = np.array(stroke, np.float32)
        # two low frequencies bend the whole digit, a jitter moves each point a little
        phase = np.pi * (points @ bend[0, :, :2].T * 4 + bend[1, :, 2])
        points = points + (bend[0, :, 2] + 0.06 * np.sin(phase * 4)) + random.normal(0, 0.008, points.shape)
        start, step = points[:-1], np.diff(points, axis=0)
        offset = grid - start
        along = np.clip((offset * step).sum(-1) / np.maximum((step * step).sum(-1), 1e-9), 0, 1)
        distance = np.sqrt(((offset - along[..., None] * step) ** 2).sum(-1)).min(-1)
        nearest = np.minimum(nearest, distance)
    return nearest.astype(np.float32)


def bilinear(field, u, v):
    """Values of each row of `field` [n, FIELD * FIELD] at the box coordinates u, v [n, P]."""
    column = np.clip((u + 0.5) * ((FIELD - 1) / 2), 0, FIELD - 1.001)
    row = np.clip((v + 0.5) * ((FIELD - 1) / 2), 0, FIELD - 1.001)
    left, top = column.astype(np.int32), row.astype(np.int32)
    column, row, corner = column - left, row - top, top * FIELD + left

    def take(shift):
        return np.take_along_axis(field, corner + shift, axis=1)

    upper = take(0) * (1 - column) + take(1) * column
    lower = take(FIELD) * (1 - column) + take(FIELD + 1) * column
    return upper * (1 - row) + lower * row


def arc(x, y, width, height, first, last):
    """Points of an ellipse's arc from angle `first` to `last`, in degrees clockwise from the right."""
    angles = np.deg2rad(np.linspace(first, last, 13))
    return [(x + width * np.cos(angle), y + height * np.sin(angle)) for angle in angles]


# Each digit in a box of side 1, x to the right and y down, as strokes of straight pieces.
STROKES = (
    [arc(0.5, 0.5, 0.36, 0.5, 0, 360)],
    [[(0.35, 0.2), (0.55, 0.0), (0.5, 1.0)]],
    [arc(0.5, 0.28, 0.34, 0.28, 190, 390) + [(0.12, 1.0), (0.9, 0.97)]],
    [arc(0.45, 0.26, 0.32, 0.26, 200, 450) + arc(0.45, 0.74, 0.38, 0.26, 270, 510)],
    [[(0.4, 0.0), (0.08, 0.62), (0.92, 0.6)], [(0.72, 0.2), (0.66, 1.0)]],
    [[(0.85, 0.02), (0.25, 0.04), (0.2, 0.45)] + arc(0.45, 0.68, 0.38, 0.32, 220, 500)],
    [[(0.7, 0.0), (0.32, 0.35)] + arc(0.47, 0.72, 0.34, 0.28, 190, 560)],
    [[(0.1, 0.06), (0.88, 0.04), (0.4, 1.0)]],
    [arc(0.5, 0.25, 0.28, 0.25, 90, 450), arc(0.5, 0.75, 0.34, 0.25, -90, 270)],
    [arc(0.48, 0.28, 0.33, 0.28, 10, 370) + [(0.78, 0.6), (0.62, 1.0)]],
)
