"""Checks of a run: batches too small for batch norm, losses that are not finite, answers no better than guessing."""

import torch

from support import processes
from support.cli import UserError
from support.optim import learning_rate_at

CHANCE = 0.15  # the most frequent digit and the most frequent sum are right in 11 % and 10 % of the pairs


def refuse_single_images(model, batches):
    """Raise UserError where batch norm would be given the statistics of one image."""
    tail = len(batches.images) % batches.batch_size or batches.batch_size
    smallest = tail // processes.world_size()
    if smallest < 2 and any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise UserError(
            f"--batch-size {batches.batch_size} gives batch norm a batch of one image"
            f"{'' if tail == batches.batch_size else f', the last of {len(batches.images)}'}; it needs two or more per "
            "process: change --batch-size"
        )


def stop_if_not_finite(losses, model, epoch, args):
    """Raise UserError where a loss of the epoch [steps of an epoch, 2] or a weight is not finite."""
    bad = (~losses.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if not bad and all(value.isfinite().all() for value in model.state_dict().values()):
        return
    step, steps = epoch * len(losses) + (bad[0] if bad else len(losses) - 1), args.epochs * len(losses)
    raise UserError(
        f"the loss is not finite from step {step + 1} of {steps} (epoch {epoch + 1}) on, at the learning "
        f"rate {learning_rate_at(step, steps, args.learning_rate, args.schedule):.3g}; "
        f"{'the last good checkpoint stays; ' if epoch else ''}try a smaller --learning-rate"
    )


def chance_report(scores, args):
    """A line where a head that was trained ended no better than guessing; none where both learned."""
    weights = {"digit": args.digit_weight, "sum": args.sum_weight}
    lost = [head for head, weight in weights.items() if weight and scores[f"{head}_accuracy"] < CHANCE]
    if not lost:
        return []
    return [
        f"note: the {' and the '.join(lost)} {'are' if len(lost) > 1 else 'is'} no better than guessing; "
        f"--learning-rate {args.learning_rate:g} may be too high, the run too short, or an input not connected; "
        'see "My network does not learn the sum" in studies/README.md'
    ]
