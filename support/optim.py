"""Optimisers, the learning-rate schedule and the average of the weights."""

import copy
import functools
import math

import torch


class Muon(torch.optim.AdamW):
    """Muon for weights of two dimensions and more, each as a matrix [out, all else]; AdamW for biases and batch norm.

    K. Jordan, https://kellerjordan.github.io/posts/muon: the update is Nesterov's momentum with all of its singular
    values brought near 1. It is scaled to the size of AdamW's, so that both take the same learning rate and weight
    decay (J. Liu et al., arXiv 2502.16982). PyTorch's own Muon takes matrices only, and no convolutions.
    """

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.dim() > 1 and weight.grad is not None:
                    self.step_matrix(weight, group["lr"], group["weight_decay"])
                    weight.grad = None  # AdamW leaves it out
        super().step()

    def step_matrix(self, weight, learning_rate, weight_decay):
        state = self.state[weight]
        if not state:  # AdamW, which loads the states of all, expects a step in each
            state.update(step=torch.zeros((), device=weight.device), momentum=torch.zeros_like(weight))
        momentum = state["momentum"].lerp_(weight.grad, 1 - 0.95)
        update = orthogonal(weight.grad.lerp(momentum, 0.95).flatten(1))
        size = 0.2 * max(update.shape) ** 0.5
        weight.mul_(1 - learning_rate * weight_decay)
        weight.add_(update.view(weight.shape), alpha=-learning_rate * size)


def orthogonal(matrix):
    """The matrix with its singular values brought near 1, by five steps of a Newton-Schulz iteration; any [m, n]."""
    rows, columns = matrix.shape
    x = matrix.T if rows > columns else matrix
    x = x.bfloat16() if min(rows, columns) > 64 else x  # on CPUs the conversion slows down smaller ones
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.T if rows > columns else x).type_as(matrix)


OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "muon": Muon,
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
