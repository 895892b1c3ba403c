"""Optimisers, the learning-rate schedule and the average of the weights."""

import copy
import functools
import math

import torch

OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9),
    "plain-sgd": torch.optim.SGD,
}
SWEEP = (1e-7, 10.0)  # from and to where the schedule of --find-lr rises


def learning_rate_at(step, steps, peak, schedule="one-cycle"):
    """Learning rate of `step` (from 0) of `steps`: linear warm-up over the first fifth, then a cosine down to 0.

    The one-cycle policy of L. N. Smith and N. Topin, arXiv 1708.07120, without the momentum's cycle; or "constant".
    With "sweep", which no run has, it rises over SWEEP by the same factor each step.
    """
    if schedule == "sweep":
        return SWEEP[0] * (SWEEP[1] / SWEEP[0]) ** (step / max(1, steps - 1))
    if schedule == "constant":
        return peak
    warm_up = 0.2 * steps
    if step < warm_up:
        return peak * (0.04 + 0.96 * step / warm_up)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


class PolynomialAverage:
    """The polynomial-decay average of the weights of `model` and of batch norm's statistics, in `module`.

    O. Shamir and T. Zhang, arXiv 1212.1824, section 4: the n-th update takes the current weights in with the weight
    (eta + 1) / (n + eta + 2), so the average spans about the last 1 / (eta + 1) of the steps so far, whatever their
    number; the first update copies. PyTorch's AveragedModel counts the updates in a tensor, and on CUDA each step
    would wait for that.
    """

    def __init__(self, model, eta):
        self.module, self.eta = copy.deepcopy(model), eta
        pairs = list(zip(tensors_of(self.module), tensors_of(model), strict=True))
        self.averages, self.values = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        self.counters = [pair for pair in pairs if not pair[0].is_floating_point()]  # of the batch norms

    @torch.no_grad()
    def update(self, n):
        """Take in the current weights of the model, after `n` updates before."""
        weight = 1 - (n + 1) / (n + self.eta + 2) if n else 1.0
        torch._foreach_lerp_(self.averages, self.values, weight)
        for average, counter in self.counters:
            average.copy_(counter)


def tensors_of(model):
    """The parameters and buffers."""
    return [*model.parameters(), *model.buffers()]
