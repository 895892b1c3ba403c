"""The network: an image and a number go in, the logits of the digit and of the sum come out.

    image [B, 1, 28, 28] ── CNN encoder ── [B, features] ─┐
                                                          concatenate ── FC ── ReLU ─┬─ digit head ── [B, 10]
    addend [B] ── one-hot ── [B, 10] ─────────────────────┘                          └─ sum head ──── [B, 19]

Example: an image of a 7 with the addend 5 should answer 7 and 12. The outputs are raw logits: cross-entropy wants them,
and softmax is for showing probabilities only. With K addends for each image, addend [B, K], the encoder runs once an
image and the outputs are [B, K, 10] and [B, K, 19].
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from data import ADDENDS, DIGITS, SUMS


class TwoHeadNet(nn.Module):
    """What every network of this task has: how its two outputs become losses and probabilities.

    A network with other outputs overrides these, so that neither the loop nor the scores need to know.
    """

    def digit_loss(self, digit_logits, digit, label_smoothing=0.0):
        """Mean cross-entropy. digit_logits [B, 10] or [B, K, 10], digit [B] int64 in 0-9; a scalar."""
        if digit_logits.dim() == 3:
            digit = digit.unsqueeze(1).expand(digit_logits.shape[:2])
        return F.cross_entropy(digit_logits.flatten(0, -2), digit.flatten(), label_smoothing=label_smoothing)

    def sum_loss(self, sum_logits, sum_target, label_smoothing=0.0):
        """Mean cross-entropy. sum_logits [B, 19] or [B, K, 19], sum_target [B] or [B, K] int64 in 0-18; a scalar."""
        return F.cross_entropy(sum_logits.flatten(0, -2), sum_target.flatten(), label_smoothing=label_smoothing)

    def digit_probabilities(self, digit_logits):
        """[..., 10]; the largest is the prediction."""
        return digit_logits.softmax(dim=-1)

    def sum_probabilities(self, sum_logits):
        """[..., 19]; the largest is the prediction."""
        return sum_logits.softmax(dim=-1)


class AddendNet(TwoHeadNet):
    """The network of this module's docstring.

    The encoder is three times convolution 3x3, max pooling, batch norm, ReLU (28 -> 14 -> 7 -> 3), and a last
    convolution that sees all of the 3x3 map and leaves one number a feature. Pooling comes before the batch norm and
    the ReLU because they then work on a quarter of the values; the result is as good.
    """

    def __init__(self, channels, features, hidden, groups=1):
        """channels: of the three convolutions; features: of the image; hidden: width of the FC layer after the fusion;
        groups: of the last convolution, which has 9 * channels[-1] * features / groups weights."""
        super().__init__()
        layers, width = [], 1
        for out in channels:
            layers += [nn.Conv2d(width, out, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(out), nn.ReLU()]
            width = out
        layers += [nn.Conv2d(width, features, 3, groups=groups, bias=False), nn.BatchNorm2d(features), nn.ReLU()]
        self.encoder = nn.Sequential(*layers, nn.Flatten())
        self.fusion = nn.Sequential(nn.Linear(features + ADDENDS, hidden), nn.ReLU())
        self.digit_head = nn.Linear(hidden, DIGITS)
        self.sum_head = nn.Linear(hidden, SUMS)

    def forward(self, image, addend):
        """image [B, 1, 28, 28] float32, addend [B] or [B, K] int64 in 0-9 -> (digit_logits, sum_logits)."""
        features = self.encoder(image)  # [B, features]
        number = F.one_hot(addend, ADDENDS).to(features.dtype)  # [B, 10] or [B, K, 10]
        if addend.dim() == 2:
            features = features.unsqueeze(1).expand(-1, addend.shape[1], -1)  # [B, K, features]
        fused = self.fusion(torch.cat([features, number], dim=-1))
        return self.digit_head(fused), self.sum_head(fused)


SIZES = {
    "tiny": dict(channels=(8, 16, 32), features=32, hidden=40, groups=32),
    "base": dict(channels=(24, 48, 64), features=64, hidden=128),
    "large": dict(channels=(64, 128, 256), features=192, hidden=256),
}


def build_model(name):
    """The network of that name, freshly initialised from PyTorch's global generator."""
    return AddendNet(**SIZES[name])
