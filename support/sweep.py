"""What train.py does in place of a run: --dry-run takes one step, --find-lr trains at a growing learning rate.

--find-lr is the range test of L. N. Smith, arXiv 1506.01186, section 3.3, with a rate that grows by the same factor
each step. `plot.py` draws its CSV.
"""

import csv
import io
import math
import shlex

import torch

from support.cli import UserError
from support.files import write_atomically
from support.optim import SWEEP, learning_rate_at

STEPS = 300  # of a sweep, at least
SMOOTHING = 0.15  # standard deviation of the smoothing, in powers of ten of the rate
COLUMNS = ("learning_rate", "digit_loss", "sum_loss", "loss", "smoothed_loss")


def instead_of_a_run(args, files, batches, train_epoch):
    """Do what --dry-run or --find-lr asks for; returns lines of text. train_epoch(epoch) is as in train.py."""
    files.refuse_unwritable()
    if args.dry_run:
        files.refuse_to_lose_files(None)
        batches.images, batches.digits = batches.images[: args.batch_size], batches.digits[: args.batch_size]
        batches.drawn.clear()  # draws of all images, where a trial on CUDA has made them
        digit_loss, sum_loss = train_epoch(0)[0, :2].tolist()
        return [f"dry run: one step taken, digit loss {digit_loss:.4f}, sum loss {sum_loss:.4f}; no run was written"]
    path = files.logs / f"{args.run_name}-find-lr.csv"
    if path.exists():
        raise UserError(f"{path} is there already; choose another --run-name")
    args.epochs, args.schedule = math.ceil(STEPS / len(batches)), "sweep"
    return write_sweep(path, torch.cat([train_epoch(epoch)[:, :2].cpu() for epoch in range(args.epochs)]), args)


def smooth(losses, decades):
    """The losses [S] at the rates 10 ** decades [S], each averaged with its neighbours by a Gaussian.

    It is centred, so that it moves no rise or fall along the axis; the usual moving average lags behind. Losses count
    as twice the first at most: a few that explode would hide what came before them.
    """
    losses = losses.clamp(max=2 * losses[0].item())

    def averaged(some):
        weights = torch.exp(-0.5 * ((some.unsqueeze(1) - decades) / SMOOTHING) ** 2)
        return weights @ losses / weights.sum(dim=1)

    return torch.cat([averaged(some) for some in decades.split(1000)])  # [S, S] weights at once take too much memory


def suggestions(smoothed, decades):
    """(steepest, rise): the rates at the steepest fall of the smoothed losses, and at their lowest point after it.

    Raises UserError where they do not fall.
    """
    lowest = int(smoothed.argmin())
    slope = torch.diff(smoothed) / torch.diff(decades)
    if lowest < 2 or smoothed[lowest] > 0.98 * smoothed[0]:
        raise UserError(f"the loss falls at no learning rate from {SWEEP[0]:g} to {SWEEP[1]:g}")
    return 10 ** decades[int(slope[:lowest].argmin())].item(), 10 ** decades[lowest].item()


def write_sweep(path, losses, args):
    """Write the CSV of a sweep from the losses [S, 2] of its steps; returns lines of text that say what it shows.

    Steps from the first loss that is not finite on are left out. Raises UserError where the first is not finite, or
    nothing was learned.
    """
    bad = (~losses.isfinite().all(dim=1)).nonzero().flatten().tolist()
    heads = losses.double()[: bad[0] if bad else None]
    if not len(heads):
        raise UserError("the loss is not finite in the first step, before any learning; check the network and the data")
    rates = [learning_rate_at(step, len(losses), None, "sweep") for step in range(len(heads))]
    decades = torch.tensor(rates, dtype=torch.float64).log10()
    total = heads @ torch.tensor([args.digit_weight, args.sum_weight], dtype=torch.float64)
    smoothed = smooth(total, decades)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    columns = (10**decades, *heads.unbind(1), total, smoothed)
    table.writerows([f"{value:.6g}" for value in row] for row in torch.stack(columns, 1).tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue())
    try:
        steepest, rise = suggestions(smoothed, decades)
    except UserError as error:
        raise UserError(f"{error}; its CSV is {path}") from None
    return [
        f"{len(losses)} steps at learning rates from {SWEEP[0]:g} to {SWEEP[1]:g} (arXiv 1506.01186)",
        f"the loss falls fastest at {steepest:.2g} and rises from {rise:.2g} on",
        f"written: {path}; draw it: python plot.py {shlex.quote(str(path))}",
    ]
