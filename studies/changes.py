"""Changes to a training: the rows of studies/search.py, and the replacements that they and studies/ladder.py use."""

import contextlib
import functools
import itertools
from unittest.mock import patch

import torch
import torch.nn as nn
import torch.nn.functional as F

import data
import model
import train
from studies import distill
from support import optim
from support.device import count

# ---------------------------------------------------------------------------------------------------------------------
# What a row may change beside the arguments of train.py


def encoder(features, strides=False, norm=True, dropout=0.0, **size):
    """`model.staged_encoder` with strides in place of max pooling, without batch norm, or with dropout at its end."""
    layers = list(model.staged_encoder(features, **size))
    if strides:
        size = 28
        for layer, following in itertools.pairwise(layers):
            if isinstance(following, nn.MaxPool2d):
                layer.stride, layer.padding = (2, 2), (1 - size % 2,) * 2  # 28 -> 14 -> 7 -> 3, as pooling
                size //= 2
        layers = [layer for layer in layers if not isinstance(layer, nn.MaxPool2d)]
    if not norm:
        layers = [layer for layer in layers if not isinstance(layer, nn.BatchNorm2d)]
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                layer.bias = nn.Parameter(torch.zeros(layer.out_channels))
    return nn.Sequential(*layers, *([nn.Dropout(dropout)] if dropout else []))


WARPS = ("rotation", "shear", "width", "height", "right", "down")  # the columns that data.draw_warps draws


def only_warps(kinds):
    """`data.draw_warps` restricted to these kinds."""
    mask = torch.tensor([float(kind in kinds) for kind in WARPS])
    draw = data.draw_warps
    return lambda count, strength, seed, epoch: draw(count, strength * mask, seed, epoch)


class ElasticBatches(data.Batches):
    """Adds a smooth random displacement of each image's pixels, after P. Simard et al., ICDAR 2003.

    Displacements with a standard deviation of 1 pixel are drawn on a 7 × 7 grid, the pixels between are interpolated.
    """

    deviation = 1  # in pixels

    def epoch(self, epoch):
        generator = data.generator_for("elastic", self.seed, epoch)
        still = torch.eye(2, 3).unsqueeze(0)
        for image, *rest in super().epoch(epoch):
            coarse = torch.randn(len(image), 2, 7, 7, generator=generator) * self.deviation * 2 / 28
            moves = F.interpolate(coarse, size=(28, 28), mode="bicubic").permute(0, 2, 3, 1)
            grid = F.affine_grid(still.expand(len(image), 2, 3), image.shape, align_corners=False) + moves
            black = -data.MEAN / data.STD
            image = F.grid_sample(image - black, grid.to(image), align_corners=False) + black
            yield image.contiguous(memory_format=torch.channels_last), *rest


class SlightElasticBatches(ElasticBatches):
    deviation = 0.5


class LastQuarter(optim.PolynomialAverage):
    """The plain mean of the weights over the last quarter of the steps: stochastic weight averaging, P. Izmailov et
    al., arXiv 1803.05407. `eta` is the number of all steps."""

    @torch.no_grad()
    def update(self, n):
        n -= int(0.75 * self.eta)
        if n >= 0:
            torch._foreach_lerp_(self.averages, self.values, 1 / (n + 1))
            for average, counter in self.counters:
                average.copy_(counter)


def linear(step, steps, peak, schedule):
    """As `optim.learning_rate_at`, with a straight line down in place of the cosine."""
    warm_up = 0.2 * steps
    if step < warm_up:
        return optim.learning_rate_at(step, steps, peak)
    return peak * (steps - step) / (steps - warm_up)


def no_warm_up(step, steps, peak, schedule):
    """As `optim.learning_rate_at`, from the peak on."""
    return optim.learning_rate_at(0.2 * steps + 0.8 * step, steps, peak)


def taught_by_digit(weight):
    """Methods for `TwoHeadNet`: to the sum's loss they add its cross-entropy to the digit's probabilities, shifted by
    the addend, times `weight`. The digit head gets no gradient from it."""
    digit_loss, sum_loss, seen = model.TwoHeadNet.digit_loss, model.TwoHeadNet.sum_loss, {}

    def keep(self, digit_logits, digit, label_smoothing=0.0):
        seen.update(probabilities=digit_logits.detach().softmax(-1), digit=digit)
        return digit_loss(self, digit_logits, digit, label_smoothing)

    def add(self, sum_logits, sum_target, label_smoothing=0.0):
        addend = sum_target - (seen["digit"] if sum_target.dim() == 1 else seen["digit"].unsqueeze(1))
        target = distill.shifted(seen["probabilities"], addend)
        loss = sum_loss(self, sum_logits, sum_target, label_smoothing)
        return loss + weight * F.cross_entropy(sum_logits.flatten(0, -2), target.flatten(0, -2))

    return dict(digit_loss=keep, sum_loss=add)


def estimate_at_the_end(args, *parts):
    """As `train_epoch` of train.py; in the last epoch as that of studies/distill.py, which then estimates batch norm's
    statistics anew. Each estimate replaces the one before, so the last is enough."""
    *_, epoch = parts
    last = epoch + 1 == args.epochs
    return (distill.train_epoch if last else distill.TRAIN_EPOCH)(args, *parts)


# ---------------------------------------------------------------------------------------------------------------------
# The rows: arguments of train.py; "network": arguments of `encoder`, or of the size; "warps": the only ones;
# "batches", "schedule_function", "train_epoch" and "average" replace what their names say; "nesterov": momentum of SGD;
# "agreement": `taught_by_digit`; "teacher": the size of a network whose answers replace the labels; "teacher_changes":
# arguments of its training.

ADAMW, MUON, SGD = dict(optimizer="adamw"), dict(optimizer="muon"), dict(optimizer="sgd", weight_decay=5e-4)
ABLATIONS = {
    "as it is": {},
    **{f"K = {k}": dict(addends_per_image=k) for k in (1, 2, 5)},
    **{f"augmentation {strength}": dict(augment=strength) for strength in (0.0, 0.25, 0.75, 1.0, 1.5)},
    "of the augmentation only rotation": dict(warps=("rotation",)),
    "of the augmentation only shear": dict(warps=("shear",)),
    "of the augmentation only scale": dict(warps=("width", "height")),
    "of the augmentation only shift": dict(warps=("right", "down")),
    "elastic distortion too": dict(batches=ElasticBatches),
    "elastic distortion of half a pixel too": dict(batches=SlightElasticBatches),
    "elastic distortion alone": dict(batches=ElasticBatches, augment=0.0),
    **{f"averaging exponent {eta}": dict(averaging_eta=eta) for eta in (3.0, 20.0)},
    "no averaging": dict(averaging_eta=0.0),
    "mean of the last quarter": dict(average=LastQuarter),
    "mean of a quarter, constant rate 0.003": dict(average=LastQuarter, schedule="constant", learning_rate=0.003),
    **{f"label smoothing {share}": dict(label_smoothing=share) for share in (0.0, 0.05, 0.2)},
    **{f"weight decay {decay}": dict(weight_decay=decay) for decay in (0.0, 0.03, 0.3)},
    "half the width": dict(network=dict(stages=((8,), (16,), (32, 32)), features=32, hidden=64)),
    "1.5 times the width": dict(network=dict(stages=((24,), (48,), (96, 96)), features=96, hidden=192)),
    "one convolution in each stage": dict(network=dict(stages=((16,), (32,), (64,)))),
    "two convolutions in each stage": dict(network=dict(stages=((16, 16), (32, 32), (64, 64)))),
    **{f"hidden layer of {width}": dict(network=dict(hidden=width)) for width in (32, 512)},
    "strides, no pooling": dict(network=dict(strides=True)),
    "no batch norm": dict(network=dict(norm=False)),
    "no batch norm, rate 0.002": dict(network=dict(norm=False), learning_rate=0.002),
    **{f"dropout {share}": dict(network=dict(dropout=share)) for share in (0.1, 0.3)},
    **{f"rate {rate}": dict(learning_rate=rate) for rate in (0.003, 0.02)},
    **{f"SGD, rate {rate}": SGD | dict(learning_rate=rate) for rate in (0.05, 0.2)},
    **{f"SGD with Nesterov momentum, rate {r}": SGD | dict(nesterov=True, learning_rate=r) for r in (0.05, 0.2)},
    **{f"Muon, rate {rate}": MUON | dict(learning_rate=rate) for rate in (0.005, 0.01, 0.03)},
    "constant rate 0.003": dict(schedule="constant", learning_rate=0.003),
    "linear decay": dict(schedule_function=linear),
    "no warm-up": dict(schedule_function=no_warm_up),
    "batches of 32, rate 0.005": dict(batch_size=32, learning_rate=0.005),
    **{f"batches of {size}": dict(batch_size=size) for size in (64, 256)},
    "batches of 512, rate 0.02": dict(batch_size=512, learning_rate=0.02),
    "float32": dict(precision="float32"),
    "sum weight 3": dict(sum_weight=3.0),
    **{f"sum taught by the digit, weight {weight}": dict(agreement=weight) for weight in (1.0, 3.0)},
    "sum without parameters": dict(sum_encoding="shift"),
    **{count(epochs, "epoch"): dict(epochs=epochs) for epochs in (1, 2, 5, 10, 30)},
}
WIDE, DEEP = ((16,), (32, 32), (64, 64)), ((16, 16), (32, 32), (64, 64))  # channels; with features for 120,000 weights
TAUGHT = dict(teacher="large", label_smoothing=0.0)  # as studies/distill.py, but by one teacher
NEW_STATISTICS = dict(train_epoch=estimate_at_the_end)
LARGER = dict(batch_size=256, precision="bfloat16")
TRIES = {  # base, tiny, large: with AdamW unless a row names another optimiser; tiny at 0.02, its rate with AdamW
    "base": {
        "AdamW": {},
        "channels 16 / 32, 32 / 64, 64": dict(network=dict(stages=WIDE, features=60)),
        "channels 16, 16 / 32, 32 / 64, 64": dict(network=dict(stages=DEEP, features=56)),
        "sum without parameters": dict(sum_encoding="shift"),
        "Muon, rate 0.01": MUON | dict(learning_rate=0.01),
        "Muon, channels 16 / 32, 32 / 64, 64": MUON | dict(network=dict(stages=WIDE, features=60)),
        "a quarter of the images corrupted": dict(augment_corruptions=0.25),
    },
    "tiny": {
        "AdamW": {},
        "14 epochs": dict(epochs=14),
        "linear decay": dict(schedule_function=linear),
        **{f"Muon, rate {rate}": MUON | dict(learning_rate=rate) for rate in (0.02, 0.04, 0.08)},
        "batches of 256, bfloat16": LARGER,
        "Muon, rate 0.04, bfloat16": MUON | dict(learning_rate=0.04, precision="bfloat16"),
        "Muon, rate 0.04, batches of 256": MUON | dict(learning_rate=0.04, batch_size=256),
        "Muon, rate 0.04, batches of 256, bfloat16": MUON | LARGER | dict(learning_rate=0.04),
        "Muon, 0.04, 256 in bfloat16, 14 epochs": MUON | LARGER | dict(learning_rate=0.04, epochs=14),
    },
    "base-distilled": {  # with new statistics, as its runs
        "labels": {},
        "answers of a large": TAUGHT,
        "answers of a large, 15 epochs": TAUGHT | dict(epochs=15),
        # smoothed labels take from a teacher what a pupil could learn of the other classes: R. Müller et al., arXiv
        # 1906.02629
        "answers of a large without smoothing": TAUGHT | dict(teacher_changes=dict(label_smoothing=0.0)),
    },
    "tiny-distilled": {
        "labels": {},
        "labels, statistics anew": NEW_STATISTICS,
        "answers of a large": TAUGHT,
        "answers of a large, statistics anew": TAUGHT | NEW_STATISTICS,
    },
    "large": {
        "as it is": {},
        "augmentation 1.5": dict(augment=1.5),
        "rate 0.005": dict(learning_rate=0.005),
        "label smoothing 0.05": dict(label_smoothing=0.05),
        "10 epochs, 1.24 million parameters": dict(
            network=dict(stages=((32, 64), (64, 128), (128, 256)), features=256), epochs=10
        ),
        "Muon, rate 0.005": MUON | dict(learning_rate=0.005),
        "hidden layer of 1024": dict(network=dict(hidden=1024)),
        "sum taught by the digit, weight 1": dict(agreement=1.0),
        "hidden layer of 1024, taught sum": dict(network=dict(hidden=1024), agreement=1.0),
    },
}
SEARCHES = {  # name: size, arguments of all rows, rows
    "ablations": ("base", dict(epochs=3), ABLATIONS),
    "base": ("base", ADAMW, TRIES["base"]),
    "tiny": ("tiny", ADAMW | dict(learning_rate=0.02), TRIES["tiny"]),
    "large": ("large", ADAMW, TRIES["large"]),
    "base-distilled": ("base", dict(epochs=30, augment=1.0) | NEW_STATISTICS, TRIES["base-distilled"]),
    "tiny-distilled": ("tiny", dict(epochs=30), TRIES["tiny-distilled"]),
}


# ---------------------------------------------------------------------------------------------------------------------
# Making a change


@contextlib.contextmanager
def changed(size, change):
    """Within this context `Run` of that size builds and trains with the change; yields what is left for the caller:
    (arguments of train.py, the class of an average in place of the usual one or None)."""
    change = dict(change)
    network, made_of = change.pop("network", {}), model.SIZES[size]
    own = {name: network[name] for name in ("features", "hidden") if name in network}
    built = {name: value for name, value in network.items() if name not in own}
    made = functools.partial(made_of["encoder"])
    make = encoder if made.func is model.staged_encoder else made.func
    own["encoder"] = functools.partial(make, **made.keywords | built)
    patches = [patch.dict(model.SIZES, {size: made_of | own})]
    if "warps" in change:
        patches.append(patch.object(data, "draw_warps", only_warps(change.pop("warps"))))
    if "batches" in change:
        patches.append(patch.object(model.TwoHeadNet, "Batches", change.pop("batches")))
    if change.pop("nesterov", False):
        nesterov = functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True)
        patches.append(patch.dict(optim.OPTIMIZERS, sgd=nesterov))
    if "schedule_function" in change:
        patches.append(patch.object(train, "learning_rate_at", change.pop("schedule_function")))
    if "train_epoch" in change:
        patches.append(patch.object(train, "train_epoch", change.pop("train_epoch")))
    if "agreement" in change:
        patches.append(patch.multiple(model.TwoHeadNet, **taught_by_digit(change.pop("agreement"))))
    average = change.pop("average", None)
    with contextlib.ExitStack() as stack:
        for each in patches:
            stack.enter_context(each)
        yield change, average
