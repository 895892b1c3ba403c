"""The network: an image and a number go in, the logits of the digit and of the sum come out.

    image [B, 1, 28, 28] ── CNN encoder ── [B, features] ─┐
                                                          concatenate ── FC ── ReLU ─┬─ digit head ── [B, 10]
    addend [B] ── one-hot ── [B, 10] ─────────────────────┘                          └─ sum head ──── [B, 19]

Example: an image of a 7 with the addend 5 should answer 7 and 12. The outputs are raw logits, as cross-entropy wants
them; softmax is for showing probabilities. With K addends for each image, addend [B, K], the encoder runs once an image
and the outputs are [B, K, 10] and [B, K, 19].

The addend can also go in, and the sum come out, in other forms: see ADDEND_ENCODINGS and SUM_ENCODINGS below.

    python model.py --model tiny

prints the layers of a network with their output shapes, parameters and multiply-adds.
"""

import sys
from functools import partial

from support import cli, flags


def make_parser():
    parser = cli.Parser("Print the layers of a network: output shapes, parameters, multiply-adds.")
    parser.add_argument(
        "--model", default="base", metavar="NAME", help=f"{', '.join(flags.SIZES)}, or a published design"
    )
    return parser


if __name__ == "__main__":
    cli.begin_script(make_parser)  # answers --help and a mistyped flag before PyTorch is imported, which takes seconds

import torch
import torch.nn as nn
import torch.nn.functional as F

from data import ADDENDS, DIGITS, SUMS, Batches
from support.layers import table_of
from support.recipes import RECIPES

# ---------------------------------------------------------------------------------------------------------------------
# The network of the task


class TwoHeadNet(nn.Module):
    """What every network of this task has: how its two outputs become losses and probabilities.

    So neither the loop nor the scores need to know what kind of outputs a network has.
    """

    Batches = Batches  # makes the examples that it is trained on

    def __init__(self, sum_encoding="onehot"):
        super().__init__()
        self.sum_encoding = SUM_ENCODINGS[sum_encoding]()

    def digit_loss(self, digit_logits, digit, label_smoothing=0.0):
        """Mean cross-entropy. digit_logits [B, 10] or [B, K, 10], digit [B] int64 in 0-9, or probabilities [B, 10]; a
        scalar."""
        if digit_logits.dim() == 3:
            digit = digit.unsqueeze(1).expand(-1, digit_logits.shape[1], *digit.shape[1:]).flatten(0, 1)
        return F.cross_entropy(digit_logits.flatten(0, -2), digit, label_smoothing=label_smoothing)

    def sum_loss(self, sum_logits, sum_target, label_smoothing=0.0):
        """Mean loss of the sum's encoding. sum_logits [B, 19] or [B, K, 19], sum_target [B] or [B, K] int64 in 0-18; a
        scalar."""
        return self.sum_encoding.loss(sum_logits, sum_target, label_smoothing)

    @torch.no_grad()
    def accuracies(self, digit_logits, sum_logits, digit, sum_target):
        """Accuracy of each head on one batch, [digit, sum] as fractions, [2] float32; shapes as for the losses. Of
        targets that are probabilities, the most probable class counts."""
        digits, sums = digit_logits.argmax(-1), self.sum_encoding.predictions(sum_logits)
        if digit.is_floating_point():
            digit, sum_target = digit.argmax(-1), sum_target.argmax(-1)
        digit = digit if digits.dim() == 1 else digit.unsqueeze(1)
        return torch.stack([(digits == digit).float().mean(), (sums == sum_target).float().mean()])

    def digit_probabilities(self, digit_logits):
        """[..., 10] -> [..., 10]; the largest is the prediction."""
        return digit_logits.softmax(dim=-1)

    def sum_probabilities(self, sum_logits):
        """The sum head's outputs -> [..., 19]; the largest is the prediction."""
        return self.sum_encoding.probabilities(sum_logits)


class AddendNet(TwoHeadNet):
    """The network drawn above: image features and addend concatenated, one fully connected layer, two heads."""

    def __init__(self, encoder, features, hidden, addend_encoding="onehot", sum_encoding="onehot"):
        """encoder: makes the image network, given the number of features; hidden: width of the FC layer after the
        fusion."""
        super().__init__(sum_encoding)
        self.encoder = encoder(features)
        self.addend_encoding = AddendEncoding(addend_encoding)
        self.fusion = nn.Sequential(nn.Linear(features + self.addend_encoding.width, hidden), nn.ReLU())
        self.digit_head = nn.Linear(hidden, DIGITS)
        self.sum_head = nn.Linear(hidden, self.sum_encoding.width)

    def forward(self, image, addend):
        """image [B, 1, 28, 28] float32, addend [B] or [B, K] int64 in 0-9 -> (digit_logits, sum_logits)."""
        check_inputs(image, addend)
        features = pair_up(self.encoder(image), addend)  # [B, features], or [B, K, features]
        fused = self.fusion(torch.cat([features, self.addend_encoding(addend)], dim=-1))
        return self.digit_head(fused), self.sum_head(fused)


def pair_up(features, addend):
    """Image features [B, F] for each addend: as they are for addend [B], [B, K, F] for addend [B, K]."""
    return features if addend.dim() == 1 else features.unsqueeze(1).expand(-1, addend.shape[1], -1)


def check_inputs(image, addend):
    """Raise TypeError or ValueError with the wanted shapes where the inputs have others."""
    if not (isinstance(image, torch.Tensor) and isinstance(addend, torch.Tensor)):
        raise TypeError(
            f"image and addend must be tensors, not {type(image).__name__} and {type(addend).__name__}; "
            "a 5 for one image is torch.tensor([5])"
        )
    if image.dim() != 4 or image.shape[1:] != (1, 28, 28) or not image.is_floating_point():
        raise ValueError(
            f"image must be [B, 1, 28, 28] as data.prepare makes it, not {image.dtype} {list(image.shape)}"
        )
    if addend.dim() not in (1, 2) or len(addend) != len(image) or addend.dtype != torch.int64:
        raise ValueError(
            f"addend must be int64 [B] or [B, K], here with B = {len(image)}, not {addend.dtype} {list(addend.shape)}"
        )


# ---------------------------------------------------------------------------------------------------------------------
# CNN encoders and sizes


def staged_encoder(features, stages, groups=1):
    """Three stages of 3x3 convolutions, each with batch norm and ReLU: [B, 1, 28, 28] -> [B, features].

    stages: channels of each stage's convolutions. Max pooling ends a stage (28 -> 14 -> 7 -> 3), right after the
    convolution, so that batch norm and ReLU work on a quarter of the values. A last convolution sees all of the 3x3 map
    and leaves one number a feature; its weights are 9 * channels * features / groups.
    """
    layers, width = [], 1
    for stage in stages:
        for out in stage:
            layers += [nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            width = out
        layers.insert(-2, nn.MaxPool2d(2))
    layers += [nn.Conv2d(width, features, 3, groups=groups, bias=False), nn.BatchNorm2d(features), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten())


def strided_encoder(features, layers=((32, 0, True), (96, 0, False)), crop=2):
    """As `staged_encoder`, for speed: a strided 5x5 convolution comes first, then 3x3 ones, and a linear layer on all
    of the last map (28 -> 24 -> 10 -> 5 -> 3), so that a single layer works on a large image.

    layers: channels of each convolution, its padding, whether max pooling follows; crop: pixels cut off each side.
    """
    stack, width, side = [nn.ZeroPad2d(-crop)], 1, 28 - 2 * crop
    for out, padding, pooled in layers:
        kernel, stride = (5, 2) if width == 1 else (3, 1)
        stack.append(nn.Conv2d(width, out, kernel, stride, padding, bias=False))
        width, side = out, (side + 2 * padding - kernel) // stride + 1
        if pooled:
            stack.append(nn.MaxPool2d(2))
            side //= 2
        stack += [nn.BatchNorm2d(out), nn.ReLU()]
    linear = nn.Linear(width * side**2, features, bias=False)
    return nn.Sequential(*stack, FlattenLast(), linear, nn.BatchNorm1d(features), nn.ReLU())


class FlattenLast(nn.Module):
    """[B, C, H, W] -> [B, H * W * C], without the copies that `nn.Flatten` makes of a map in channels_last."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


SIZES = {
    "tiny": dict(encoder=partial(staged_encoder, stages=((8,), (16, 16), (16, 16)), groups=16), features=16, hidden=26),
    "base": dict(encoder=partial(staged_encoder, stages=((16,), (32,), (64, 64))), features=64, hidden=128),
    "large": dict(encoder=partial(staged_encoder, stages=((32,), (64, 64), (128, 128))), features=128, hidden=256),
    "fast": dict(encoder=strided_encoder, features=64, hidden=128),
}


def find_model(name):
    """(make, recipe) of the model of that name.

    make(addend_encoding, sum_encoding) returns the network, freshly initialised from PyTorch's global generator; recipe
    holds the defaults of train.py that go with it. Names that are not in SIZES are those of `studies.published`.
    Raises ValueError for an unknown name.
    """
    if name in SIZES:
        return partial(make_size, name), RECIPES.get(name, {})
    from studies import published  # a study, which imports this module

    try:
        return published.find_model(name)
    except KeyError:
        names = ", ".join([*SIZES, *published.DESIGNS])
        raise ValueError(f"unknown model {name[:100]!r}; choose from {names}") from None


def make_size(name, addend_encoding="onehot", sum_encoding="onehot"):
    """The network of that entry of SIZES. `sum_encoding` is one of SUM_ENCODINGS, or "shift" for ShiftNet."""
    if sum_encoding == "shift":
        return ShiftNet(**SIZES[name], addend_encoding=addend_encoding)
    return AddendNet(**SIZES[name], addend_encoding=addend_encoding, sum_encoding=sum_encoding)


def build_model(name="base", addend_encoding="onehot", sum_encoding="onehot"):
    """A freshly initialised network. Raises ValueError for a name or an encoding that does not exist."""
    if not isinstance(name, str):
        raise ValueError("the model's name is not a text")
    for kind, value, choices in (
        ("addend", addend_encoding, ADDEND_ENCODINGS),
        ("sum", sum_encoding, (*SUM_ENCODINGS, "shift")),
    ):
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"unknown {kind} encoding; choose from {', '.join(choices)}")
    return find_model(name)[0](addend_encoding, sum_encoding)


# ---------------------------------------------------------------------------------------------------------------------
# How the addend goes in


class AddendEncoding(nn.Module):
    """addend [...] int64 in 0-9 -> [..., width] float32.

    onehot: a 5 is 0, 0, 0, 0, 0, 1, 0, 0, 0, 0.   scalar: a 5 is 5.0.   binary: a 5 is 1, 0, 1, 0, the lowest first.
    embedding: a 5 is the sixth of ten learned vectors of width 10.
    """

    WIDTHS = {"onehot": ADDENDS, "scalar": 1, "binary": 4, "embedding": ADDENDS}  # noqa: RUF012

    def __init__(self, kind):
        super().__init__()
        self.kind, self.width = kind, self.WIDTHS[kind]
        if kind == "embedding":
            self.table = nn.Embedding(ADDENDS, self.width)

    def forward(self, addend):
        if self.kind == "onehot":
            return F.one_hot(addend, ADDENDS).float()
        if self.kind == "scalar":
            return addend.unsqueeze(-1).float()
        if self.kind == "binary":
            return to_bits(addend, self.width)
        return self.table(addend)


ADDEND_ENCODINGS = tuple(AddendEncoding.WIDTHS)


# ---------------------------------------------------------------------------------------------------------------------
# How the sum comes out: an encoding turns the outputs of the sum head into a loss and into probabilities


class OneHotSum:
    """One logit for each of the 19 sums, cross-entropy: a 12 is the thirteenth of 19."""

    width = SUMS

    def loss(self, output, sum_target, label_smoothing=0.0):
        """Mean loss. output [..., width], sum_target [...] int64 in 0-18, or probabilities [..., 19]; a scalar."""
        target = sum_target.flatten(0, output.dim() - 2)
        return F.cross_entropy(output.flatten(0, -2), target, label_smoothing=label_smoothing)

    def probabilities(self, output):
        """output [..., width] -> [..., 19], which sum to 1; the largest is the prediction."""
        return output.softmax(dim=-1)

    def predictions(self, output):
        """output [..., width] -> the most probable sum [...] int64, here without the cost of the softmax."""
        return output.argmax(dim=-1)


class BinarySum(OneHotSum):
    """One logit for each of five bits, the lowest first, binary cross-entropy: a 12 is 0, 0, 1, 1, 0."""

    width = 5

    def loss(self, output, sum_target, label_smoothing=0.0):
        bits = to_bits(sum_target, self.width) * (1 - label_smoothing) + 0.5 * label_smoothing
        return F.binary_cross_entropy_with_logits(output, bits)

    def probabilities(self, output):
        """The bits' probabilities multiplied, over the 19 sums that exist: no answer is 19 to 31."""
        output = output.float()  # bfloat16 where it comes from a network under autocast
        bits = to_bits(torch.arange(SUMS, device=output.device), self.width)  # [19, 5]
        log_probabilities = F.logsigmoid(output) @ bits.T + F.logsigmoid(-output) @ (1 - bits).T
        return log_probabilities.softmax(dim=-1)

    def predictions(self, output):
        return self.probabilities(output).argmax(dim=-1)


class ScalarSum(OneHotSum):
    """One real number, mean squared error, rounded to the nearest sum: a 12 is 12.0."""

    width = 1

    def loss(self, output, sum_target, label_smoothing=0.0):
        return F.mse_loss(output.squeeze(-1), sum_target.to(output.dtype))

    def probabilities(self, output):
        """All on the nearest sum."""
        return F.one_hot(self.predictions(output), SUMS).to(output.dtype)

    def predictions(self, output):
        return output.squeeze(-1).round().nan_to_num(0).clamp(0, SUMS - 1).long()


class RootScalarSum(ScalarSum):
    """As ScalarSum, with the root of the mean squared error as the loss."""

    def loss(self, output, sum_target, label_smoothing=0.0):
        return (super().loss(output, sum_target) + 1e-8).sqrt()  # the root's slope at 0 is not finite


def to_bits(number, width):
    """number [...] int64 -> its lowest `width` bits [..., width] float32, the lowest first."""
    return (number.unsqueeze(-1) >> torch.arange(width, device=number.device)).bitwise_and(1).float()


SUM_ENCODINGS = {"onehot": OneHotSum, "binary": BinarySum, "scalar": ScalarSum, "scalar-rmse": RootScalarSum}


class ShiftNet(AddendNet):
    """AddendNet's digit, and a sum without parameters: the digit's logits shifted by the addend.

    The baseline for a learned sum head: the sum is wrong exactly where the digit is wrong.
    """

    IMPOSSIBLE = -30.0  # log-probability of a sum that no digit gives with this addend

    def __init__(self, **size):
        super().__init__(**size)
        del self.sum_head

    def forward(self, image, addend):
        """As AddendNet, but the fusion sees zeros in place of the addend."""
        check_inputs(image, addend)
        features = pair_up(self.encoder(image), addend)
        nothing = features.new_zeros(*features.shape[:-1], self.addend_encoding.width)
        digit_logits = self.digit_head(self.fusion(torch.cat([features, nothing], dim=-1)))
        sums = addend.unsqueeze(-1) + torch.arange(DIGITS, device=addend.device)  # [..., 10]: digit + addend
        log_probabilities = digit_logits.log_softmax(dim=-1)  # float32 under CUDA's autocast, unlike the logits
        sum_logits = log_probabilities.new_full((*addend.shape, SUMS), self.IMPOSSIBLE)
        return digit_logits, sum_logits.scatter(-1, sums, log_probabilities)


# ---------------------------------------------------------------------------------------------------------------------
# The table of a network


def main(argv=None):
    name = make_parser().parse_args(argv).model
    try:
        model = build_model(name)
    except ValueError as error:
        raise cli.UserError(str(error)) from None
    print(table_of(model, name, torch.zeros(1, 1, 28, 28), torch.zeros(1, dtype=torch.int64)))


if __name__ == "__main__":
    sys.exit(cli.run_script(main))
