"""Six networks from five published write-ups of this task, each with its recipe and its faults as switches.

    python -m studies.replay two-branch-lenet            as it was published: its own loop and its own counting
    python train.py --model two-branch-lenet+mended      the network without its faults, in our loop
    python train.py --model base+no-nine                 our network with one of the faults

The names describe the networks. What a write-up leaves open is fitted to its published log or chosen here, and DESIGNS
says which. All have the interface of `model.AddendNet`, `addend [B, K]` included.
"""

import functools
import itertools
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

import model
from data import ADDENDS, DIGITS, SUMS, Batches, draw_addends, generator_for
from model import SIZES, TwoHeadNet, pair_up

# The faults of the draws, which any network can have, and those of a network, which its class names below.
FAULTS = {
    "no-nine": "the addend is drawn from 0-8, by a function that excludes its stop",
    "resample": "each step draws its batch from a fresh shuffle, so an epoch misses 37 % of the images",
    "shared-softmax": "one softmax over the 29 outputs of both heads, then cross-entropy on each head's part",
    "early-softmax": "softmax before a cross-entropy that applies it again",
    "argmax": "the sum is computed from the argmax of the digit's logits, which has no gradient",
    "raw-addend": "the addend goes in as one real number, not as one-hot",
}
OF_THE_DRAWS = ("no-nine", "resample")


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
    """A published design; `own_faults` are those of FAULTS that are the network's, not of its draws."""

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
    softmax runs over all 29 outputs: the two heads then compete for one unit of probability, and one is left with none.
    Left open: the activations after the fully connected layers (`activation`).
    """

    own_faults = ("shared-softmax", "early-softmax")
    widths = (212, 212, 100)  # of the fully connected layers, the concatenation first

    def __init__(self, faults=(), activation="relu"):
        super().__init__()
        self.shared_softmax, self.early_softmax = "shared-softmax" in faults, "early-softmax" in faults
        between = nn.ReLU if activation == "relu" else nn.Identity
        self.encoder = nn.Sequential(*lenet_layers())
        self.addend_branch = nn.Sequential(nn.Linear(ADDENDS, 20), between())
        layers = [nn.Linear(width, out) for width, out in itertools.pairwise(self.widths)]
        self.fusion = nn.Sequential(*(part for layer in layers for part in (layer, between())))
        self.heads = nn.Linear(self.widths[-1], DIGITS + SUMS)  # one layer of 29 is the same as two of 10 and 19

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
        applied = self.shared_softmax or self.early_softmax
        return normalised(digit_outputs) if applied else super().digit_probabilities(digit_outputs)

    def sum_probabilities(self, sum_outputs):
        applied = self.shared_softmax or self.early_softmax
        return normalised(sum_outputs) if applied else super().sum_probabilities(sum_outputs)


class NarrowTwoBranchLeNet(TwoBranchLeNet):
    """The same with the widths and activations that the notebook of its write-up has; 31,317 parameters."""

    widths = (212, 100, 60)


def normalised(shares):
    """Shares of a probability [..., C] as probabilities that sum to 1; a shared softmax may leave a head nothing."""
    return shares / shares.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)


class NarrowTrunkNet(PublishedNet):
    """A CNN encoder to 15 features, concatenated with the one-hot addend, a shared trunk of two layers, two heads.

    Stated: 15 + 10 = 25 -> two linear layers -> 40 -> heads of 10 and 19, and a dropout of 0.1. Left open: the encoder
    (here that of TwoBranchLeNet and a linear layer), where the dropout stands (here after each layer of the "trunk";
    or on the CNN's "features"), the width between the trunk's layers (40), the activations (ReLU).
    """

    def __init__(self, faults=(), dropout=0.1, dropout_place="trunk", width=40):
        super().__init__()

        def drop(place):
            return nn.Dropout(dropout if place == dropout_place else 0.0)

        self.encoder = nn.Sequential(*lenet_layers(), nn.Linear(192, 15), nn.ReLU(), drop("features"))
        first = [nn.Linear(15 + ADDENDS, width), nn.ReLU(), drop("trunk")]
        self.trunk = nn.Sequential(*first, nn.Linear(width, 40), nn.ReLU(), drop("trunk"))
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
        digit_logits = pair_up(self.encoder(image).float(), addend)
        if self.argmax:
            expected = digit_logits.argmax(dim=-1, keepdim=True).float()
        else:
            digits = torch.arange(DIGITS, device=image.device, dtype=digit_logits.dtype)
            expected = (digit_logits.softmax(dim=-1) * digits).sum(dim=-1, keepdim=True)
        encoded = addend.unsqueeze(-1).float() if self.raw_addend else F.one_hot(addend, ADDENDS).float()
        with torch.autocast(image.device.type, enabled=False):  # a sum in bfloat16 would be rounded
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


class Design(NamedTuple):
    """A network, the faults it was published with, and its recipe for studies/replay.py, by origin of the values."""

    network: type
    faults: tuple
    stated: dict  # by the write-up or its notebook
    derived: dict  # from the figures of its log
    fitted: dict  # to its log: the best of the tries in studies/plan.py
    chosen: dict  # here, where the write-up gives no hint

    @property
    def recipe(self):
        return COMMON | self.chosen | self.fitted | self.derived | self.stated


# What holds where a design says nothing else.
COMMON = dict(
    images=60_000,  # trained on; the rest of the training images validates
    schedule="constant",  # of the learning rate
    momentum=0.0,  # of "sgd"
    digit_weight=1.0,  # of the losses
    sum_weight=1.0,
    pixels="normalised",
    precision="float32",  # of the training's forward pass
    unlogged_epochs=0,  # of training before the log begins
    tested_each_epoch=False,
    averaged_from=0,  # epochs before stochastic weight averaging; 0: none
)
D1 = dict(batch_size=64, digit_weight=0.35, sum_weight=0.15)  # (0.7 digit loss + 0.3 sum loss) / 2, 938 batches
DESIGNS = {
    "narrow-trunk": Design(
        NarrowTrunkNet,
        (),
        stated=dict(learning_rate=0.1, dropout=0.1, epochs=10),
        derived={},
        fitted={},
        chosen=dict(optimizer="sgd", batch_size=128),  # pictures only: there is no log to fit
    ),
    "shared-softmax-lenet": Design(
        TwoBranchLeNet,
        ("no-nine", "shared-softmax"),
        stated=dict(epochs=20),
        derived=D1 | dict(unlogged_epochs=1),  # the log begins with a network that is stuck already
        fitted=dict(optimizer="sgd", momentum=0.9, learning_rate=0.3, activation="relu"),
        chosen={},
    ),
    "two-softmax-lenet": Design(
        TwoBranchLeNet,
        ("no-nine", "early-softmax"),
        stated=dict(epochs=20),
        derived=D1,
        fitted=dict(optimizer="adam", momentum=0.0, learning_rate=0.0015, activation="none"),
        chosen={},
    ),
    "argmax-regression": Design(
        ArgmaxRegressionNet,
        ("argmax", "raw-addend", "resample"),
        stated=dict(epochs=10, batch_size=32, optimizer="sgd", momentum=0.9, learning_rate=0.001),
        derived={},
        fitted={},
        chosen=dict(precision="bfloat16"),  # the first epoch in float32 is among the tries
    ),
    "average-pooling": Design(
        AveragePoolingNet,
        (),
        stated=dict(epochs=20),
        # of its 429 steps an epoch, its tests of 78 batches and its curve of the learning rate
        derived=dict(images=55_000, batch_size=128, schedule="linear-cycle", learning_rate=0.166, averaged_from=15),
        fitted=dict(optimizer="sgd", momentum=0.9),  # OneCycleLR cycles it between 0.95 and 0.85
        chosen={},
    ),
    "two-branch-lenet": Design(
        NarrowTwoBranchLeNet,
        ("no-nine", "early-softmax"),
        stated=dict(
            epochs=29, batch_size=128, optimizer="sgd", momentum=0.9, learning_rate=0.05, tested_each_epoch=True
        ),
        derived={},
        fitted={},
        chosen={},
    ),
}


def training_recipe(design):
    """The defaults of train.py that come nearest to the design's recipe: it has no stochastic weight averaging."""
    recipe = DESIGNS[design].recipe
    same = {name: recipe[name] for name in ("epochs", "batch_size", "learning_rate", "digit_weight", "sum_weight")}
    optimizer = "plain-sgd" if recipe["optimizer"] == "sgd" and not recipe["momentum"] else recipe["optimizer"]
    schedule = "constant" if recipe["schedule"] == "constant" else "one-cycle"
    plain = dict(addends_per_image=1, augment=0.0, averaging_eta=0.0, weight_decay=0.0, label_smoothing=0.0)
    plain |= dict(precision="float32")
    return same | plain | dict(optimizer=optimizer, schedule=schedule)


def parse_name(name):
    """(base, faults) of NAME, NAME+mended or NAME+FAULT, where NAME is one of DESIGNS or of our own sizes.

    Raises KeyError for an unknown name, ValueError for a fault that the network cannot have.
    """
    base, *faults = name.split("+")
    own, published = ((), ()) if base in SIZES else (DESIGNS[base].network.own_faults, DESIGNS[base].faults)
    faults = () if faults == ["mended"] else tuple(faults) or published
    for fault in faults:
        if fault not in (*OF_THE_DRAWS, *own):
            able = ", ".join(["mended", *OF_THE_DRAWS, *own])
            raise ValueError(f"the model {base} cannot have the fault {fault[:100]!r}; choose from {able}")
    return base, faults


def find_model(name):
    """(make, recipe) of a published design or of a size with a fault, as `model.find_model` returns it for ours.

    Raises KeyError and ValueError as `parse_name` does.
    """
    base, faults = parse_name(name)

    def make(addend_encoding="onehot", sum_encoding="onehot"):
        if base in SIZES:
            made = model.make_size(base, addend_encoding, sum_encoding)
        elif (addend_encoding, sum_encoding) == ("onehot", "onehot"):
            made = DESIGNS[base].network(faults)
        else:
            raise ValueError(f"the model {base} has its own encodings; leave --addend-encoding and --sum-encoding out")
        made.Batches = functools.partial(FaultyBatches, faults)
        return made

    return make, model.find_model(base)[1] if base in SIZES else training_recipe(base)


def addends_drawn(faults):
    """How many numbers from 0 are drawn as addends."""
    return ADDENDS - 1 if "no-nine" in faults else ADDENDS


class FaultyBatches(Batches):
    """Batches of the examples as they were published, with the faults "no-nine" and "resample"."""

    def __init__(self, faults, *arguments, **options):
        super().__init__(*arguments, **options)
        self.faults = faults

    def draw_addends(self, epoch):
        return draw_addends(len(self.images), self.addends_per_image, self.seed, epoch, addends_drawn(self.faults))

    def draw_order(self, epoch):
        """With "resample": the first batch of a fresh permutation, again and again."""
        if "resample" not in self.faults:
            return super().draw_order(epoch)
        count, generator = len(self.images), generator_for("order", self.seed, epoch)
        draws = [torch.randperm(count, generator=generator)[: self.batch_size] for _ in range(len(self))]
        return torch.cat(draws)[:count]
