"""Six networks from five published write-ups of this task, each with its recipe and its faults as switches.

    python train.py --model two-branch-lenet             as it was published
    python train.py --model two-branch-lenet+mended      without its faults
    python train.py --model base+no-nine                 our network with one of the faults

They were found as public write-ups and are named here by what they are. What a write-up states is built as stated; what
it leaves open is chosen here and said so in the class. All of them answer as `model.AddendNet` does, with K addends
too, and run through the same data, the same loop and the same scores.
"""

import functools
import itertools

import torch
import torch.nn as nn
import torch.nn.functional as F

import model
from data import ADDENDS, DIGITS, SUMS, Batches, draw_addends, generator_for
from model import SIZES, TwoHeadNet, pair_up

# The faults of the data and of the scores any network can have; those of the network are named by its class below.
FAULTS = {
    "no-nine": "the addend is drawn from 0-8: a range whose end was taken to be part of it",
    "resample": "each step draws its batch from a fresh shuffle, so an epoch misses 37 % of the images",
    "shared-softmax": "one softmax over the 29 outputs of both heads, then cross-entropy on each head's part",
    "early-softmax": "softmax before a cross-entropy that applies it again",
    "argmax": "the sum is computed from the argmax of the digit's logits, which has no gradient",
    "raw-addend": "the addend goes in as one real number, not as one-hot",
    "product": "joint accuracy is the product of the two accuracies, not a count",
    "last-batch": "only the last batch of the test is counted",
    "dropped-batch": "the smaller last batch of the test is not counted",
}


def conv_relu(*channels, kernel=3):
    """Convolutions without padding, each with ReLU: conv_relu(1, 16, 32) has two."""
    layers = []
    for width, out in itertools.pairwise(channels):
        layers += [nn.Conv2d(width, out, kernel), nn.ReLU()]
    return layers


def lenet_layers():
    """Image branch like LeNet's, [B, 1, 28, 28] -> [B, 192]."""
    first = [nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2)]
    return [*first, nn.Conv2d(6, 12, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]


class PublishedNet(TwoHeadNet):
    """A published design; `own_faults` are those of FAULTS that are the network's, not of its draws or its scores."""

    own_faults = ()

    def forward(self, image, addend):
        """The common form: `trunk` sees the features of `encoder` and the one-hot addend, two heads read it."""
        features = pair_up(self.encoder(image), addend)
        fused = self.trunk(torch.cat([features, F.one_hot(addend, ADDENDS).float()], dim=-1))
        return self.digit_head(fused), self.sum_head(fused)


class TwoBranchLeNet(PublishedNet):
    """LeNet-like image branch, a linear branch for the one-hot addend, concatenated, fully connected, two heads.

    71,573 parameters. As published, with "early-softmax", both heads end in a softmax; cross-entropy, which applies its
    own, then cannot fall under ln(e + 9) - 1 = 1.46115 and ln(e + 18) - 1 = 2.0310. Or, with "shared-softmax", one
    softmax runs over all 29 outputs: the two heads then compete for one unit of probability, the digit takes it and the
    sum is left with none. Left open: the activations (ReLU here).
    """

    own_faults = ("shared-softmax", "early-softmax")

    def __init__(self, faults=()):
        super().__init__()
        self.shared_softmax, self.early_softmax = "shared-softmax" in faults, "early-softmax" in faults
        self.encoder = nn.Sequential(*lenet_layers())
        self.addend_branch = nn.Sequential(nn.Linear(ADDENDS, 20), nn.ReLU())
        self.fusion = nn.Sequential(nn.Linear(212, 212), nn.ReLU(), nn.Linear(212, 100), nn.ReLU())
        self.heads = nn.Linear(100, DIGITS + SUMS)  # one layer of 29 is the same as two of 10 and 19

    def forward(self, image, addend):
        features = pair_up(self.encoder(image), addend)
        encoded = self.addend_branch(F.one_hot(addend, ADDENDS).float())
        outputs = self.heads(self.fusion(torch.cat([features, encoded], dim=-1)))  # [..., 29]
        if self.shared_softmax:
            outputs = outputs.softmax(dim=-1)
        digit_outputs, sum_outputs = outputs.split([DIGITS, SUMS], dim=-1)
        if self.early_softmax:
            return digit_outputs.softmax(dim=-1), sum_outputs.softmax(dim=-1)
        return digit_outputs, sum_outputs

    def digit_probabilities(self, digit_outputs):
        if self.shared_softmax or self.early_softmax:  # the softmax has been applied
            return normalised(digit_outputs)
        return super().digit_probabilities(digit_outputs)

    def sum_probabilities(self, sum_outputs):
        if self.shared_softmax or self.early_softmax:
            return normalised(sum_outputs)
        return super().sum_probabilities(sum_outputs)


def normalised(shares):
    """Shares of a probability [..., C] as probabilities that sum to 1; a shared softmax may leave a head nothing."""
    return shares / shares.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)


class NarrowTrunkNet(PublishedNet):
    """A CNN encoder to 15 features, concatenated with the one-hot addend, a shared trunk of two layers, two heads.

    Stated: 15 + 10 = 25 -> two linear layers -> 40 -> heads of 10 and 19. Left open: the encoder (here that of
    TwoBranchLeNet and a linear layer), the width between the trunk's layers (40), the activations (ReLU).
    """

    def __init__(self, faults=()):
        super().__init__()
        self.encoder = nn.Sequential(*lenet_layers(), nn.Linear(192, 15), nn.ReLU())
        self.trunk = nn.Sequential(nn.Linear(15 + ADDENDS, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU())
        self.digit_head = nn.Linear(40, DIGITS)
        self.sum_head = nn.Linear(40, SUMS)


class ArgmaxRegressionNet(PublishedNet):
    """A convolutional digit classifier; its answer and the addend go through 2 -> 5 -> 5 -> 1 to a real-valued sum.

    100,461 parameters. With "argmax" the sum's loss cannot reach the classifier, since argmax has no gradient; mended,
    the softmax's expected digit takes its place. The three linear layers with nothing between them are one, which is no
    fault here: a sum is linear. With "raw-addend" the number goes in as it is; mended, as one-hot, 11 -> 5 -> 5 -> 1.
    """

    own_faults = ("argmax", "raw-addend")

    def __init__(self, faults=()):
        super().__init__(sum_encoding="scalar")
        self.argmax, self.raw_addend = "argmax" in faults, "raw-addend" in faults
        self.encoder = nn.Sequential(
            *conv_relu(1, 16, 32, 64),
            nn.MaxPool2d(2),
            *conv_relu(64, 16, kernel=1),
            *conv_relu(16, 32, 64, 64),
            nn.Conv2d(64, DIGITS, 5),
            nn.Flatten(),  # 10 logits
        )
        width = 1 + (1 if self.raw_addend else ADDENDS)
        self.adder = nn.Sequential(nn.Linear(width, 5), nn.Linear(5, 5), nn.Linear(5, 1))

    def forward(self, image, addend):
        digit_logits = pair_up(self.encoder(image), addend)
        if self.argmax:
            expected = digit_logits.argmax(dim=-1, keepdim=True).float()
        else:
            digits = torch.arange(DIGITS, device=image.device, dtype=digit_logits.dtype)
            expected = (digit_logits.softmax(dim=-1) * digits).sum(dim=-1, keepdim=True)
        encoded = addend.unsqueeze(-1).float() if self.raw_addend else F.one_hot(addend, ADDENDS).float()
        return digit_logits, self.adder(torch.cat([expected, encoded], dim=-1))  # [..., 10], [..., 1]


class AveragePoolingNet(PublishedNet):
    """A CNN to global average pooling and a 1x1 convolution, 20 features; with the one-hot addend through two blocks.

    Stated: 17.3 K parameters; 9.9 K in the CNN, 1.9 K and 3.7 K in the blocks (linear without bias and batch norm,
    width 60, fits both), 600 and 1.1 K in the heads. Left open: the CNN's layers, chosen here to give 9.9 K.
    """

    def __init__(self, faults=()):
        super().__init__()

        def conv(width, out):
            return [nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]

        def block(width, out):
            return [nn.Linear(width, out, bias=False), PairBatchNorm(out), nn.ReLU()]

        self.encoder = nn.Sequential(
            *conv(1, 8),
            *conv(8, 8),
            *conv(8, 16),
            nn.MaxPool2d(2),
            *conv(16, 16),
            *conv(16, 16),
            nn.MaxPool2d(2),
            *conv(16, 20),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(20, 20, 1),
            nn.Flatten(),
        )
        self.trunk = nn.Sequential(*block(20 + ADDENDS, 60), *block(60, 60))
        self.digit_head = nn.Linear(60, DIGITS, bias=False)
        self.sum_head = nn.Linear(60, SUMS, bias=False)


class PairBatchNorm(nn.Module):
    """Batch norm over the last dimension of [B, F] or [B, K, F]."""

    def __init__(self, features):
        super().__init__()
        self.norm = nn.BatchNorm1d(features)

    def forward(self, x):
        return self.norm(x.flatten(0, -2)).view_as(x)


# The designs by name: the network, the faults it was published with, and its recipe in the words of train.py's flags.
# All of them draw one addend an image, do not augment and do not average, unless it says so.
PLAIN = dict(
    addends_per_image=1, augment=0.0, averaging_eta=0.0, weight_decay=0.0, label_smoothing=0.0, schedule="constant"
)
DESIGNS = {
    "narrow-trunk": (
        NarrowTrunkNet,
        (),
        # the rate is stated, the optimiser and the batch are not
        PLAIN | dict(epochs=10, batch_size=128, optimizer="plain-sgd", learning_rate=0.1),
    ),
    "shared-softmax-lenet": (
        TwoBranchLeNet,
        ("no-nine", "shared-softmax"),
        # "various learning rates and batch sizes"; the batch is derived
        PLAIN | dict(epochs=20, batch_size=64, optimizer="adam", learning_rate=0.001),
    ),
    "two-softmax-lenet": (
        TwoBranchLeNet,
        ("no-nine", "early-softmax"),
        PLAIN | dict(epochs=20, batch_size=64, optimizer="adam", learning_rate=0.001),
    ),
    "argmax-regression": (
        ArgmaxRegressionNet,
        ("argmax", "raw-addend", "resample"),
        # the optimiser and its rate are not stated
        PLAIN | dict(epochs=10, batch_size=32, optimizer="adam", learning_rate=0.001),
    ),
    "average-pooling": (
        AveragePoolingNet,
        ("product", "dropped-batch"),
        # the peak rate is what its learning rate finder suggested; the moving average stands for its weight averaging
        PLAIN
        | dict(
            epochs=20, batch_size=128, optimizer="sgd", learning_rate=0.166, schedule="one-cycle", averaging_eta=8.0
        ),
    ),
    "two-branch-lenet": (
        TwoBranchLeNet,
        ("early-softmax", "last-batch"),
        # the optimiser and its rate are not stated; the epochs are those of its log
        PLAIN | dict(epochs=29, batch_size=128, optimizer="adam", learning_rate=0.001),
    ),
}
SHARED_FAULTS = ("no-nine", "resample", "product", "last-batch", "dropped-batch")  # of the draws and the scores


def find_model(name):
    """(make, recipe) of a published design, as `model.find_model` returns it for ours.

    A name is a design of DESIGNS, with the faults that it was published with; NAME+mended, without; or NAME+FAULT with
    just these faults of FAULTS, where NAME may also be one of our own sizes. Raises KeyError for an unknown name,
    ValueError for a fault that the network cannot have.
    """
    name, *faults = name.split("+")
    if name in SIZES:
        own, (_, recipe) = (), model.find_model(name)
    else:
        network, published, recipe = DESIGNS[name]
        own, faults = network.own_faults, faults or published
    faults = () if list(faults) == ["mended"] else tuple(faults)
    for fault in faults:
        if fault not in (*SHARED_FAULTS, *own):
            able = ", ".join(["mended", *SHARED_FAULTS, *own])
            raise ValueError(f"the model {name} cannot have the fault {fault[:100]!r}; choose from {able}")

    def make(addend_encoding="onehot", sum_encoding="onehot"):
        if name in SIZES:
            made = model.make_size(name, addend_encoding, sum_encoding)
        elif (addend_encoding, sum_encoding) == ("onehot", "onehot"):
            made = network(faults)
        else:
            raise ValueError(f"the model {name} has its own encodings; leave --addend-encoding and --sum-encoding out")
        made.Batches = functools.partial(FaultyBatches, faults)
        made.extra_report = functools.partial(report, faults)
        return made

    return make, recipe


class FaultyBatches(Batches):
    """Batches of the examples as they were published, with the faults "no-nine" and "resample"."""

    def __init__(self, faults, *arguments, **options):
        super().__init__(*arguments, **options)
        self.faults = faults

    def draw_addends(self, epoch):
        addends = 9 if "no-nine" in self.faults else ADDENDS
        return draw_addends(len(self.images), self.addends_per_image, self.seed, epoch, addends)

    def draw_order(self, epoch):
        """With "resample": the first batch of a fresh permutation, again and again."""
        if "resample" not in self.faults:
            return super().draw_order(epoch)
        count, generator = len(self.images), generator_for("order", self.seed, epoch)
        draws = [torch.randperm(count, generator=generator)[: self.batch_size] for _ in range(len(self))]
        return torch.cat(draws)[:count]


def report(faults, digit_predictions, sum_predictions, digits, batch_size):
    """What the write-up would have reported under its faults of counting, as lines of text; none where it counts all.

    The predictions are those of `evaluate.predict_pairs`; as published, each image has one random addend.
    """
    addends = draw_addends(len(digits), 1, seed=0, epoch=0)
    digit_right = digit_predictions.gather(1, addends).squeeze(1) == digits
    sum_right = sum_predictions.gather(1, addends).squeeze(1) == digits + addends.squeeze(1)
    last = len(digits) % batch_size or batch_size
    lines = []
    if "product" in faults:
        product = digit_right.double().mean().item() * sum_right.double().mean().item()
        lines.append(f"as published, digit times sum accuracy: {100 * product:.3f} %")
    if "last-batch" in faults:
        right = (
            f"digit {int(digit_right[-last:].sum())}/{len(digits)}, sum {int(sum_right[-last:].sum())}/{len(digits)}"
        )
        lines.append(f"as published, right in the last batch of {last}: {right}")
    if "dropped-batch" in faults and last < batch_size:
        lines.append(
            f"as published, without the last {last} images: digit {100 * digit_right[:-last].double().mean():.3f} %, "
            f"sum {100 * sum_right[:-last].double().mean():.3f} %"
        )
    return lines
