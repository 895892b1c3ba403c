"""Train a network that takes an MNIST image and a random number and answers with the digit and the sum of the two.

    python train.py --epochs 10 --device cuda
    python train.py --model tiny --seed 1
    python train.py --model fast
    python train.py --resume last.pt

Writes best.pt (best joint accuracy on 5,000 validation images; without any, the last epoch), last.pt (to go on from),
and, under the run's own name, logs/RUN.txt, logs/RUN.csv, logs/RUN-best.pt and logs/RUN-last.pt. It ends with the test
scores of best.pt and the command that scores it again; on two cores of an AMD EPYC after 74 s of training with

    mnist test: joint accuracy   99.543 %     457 of 100,000 wrong  95 % interval 99.396 to 99.654 %
"""

import argparse
import contextlib
import copy
import datetime
import functools
import math
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

import cli
import graphs
import processes
from checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from data import DATASETS, MEAN, STD, Batches, generator_for, load_digits, split_indices
from evaluate import load_model, predict_pairs, score, short_report
from model import ADDEND_ENCODINGS, SIZES, SUM_ENCODINGS
from published import DESIGNS, FAULTS, MODELS, build_model, check_model, scores_as_published
from runlog import HEADINGS, holds_epochs, lock, make_header, remove_leftovers, table_line, versions, write_log

# What may differ between a run and its continuation; the rest makes the run what it is.
FREE_ON_RESUME = ("compile", "cuda_graph", "data_dir", "device", "out", "resume")

RECIPES = {
    "tiny": dict(learning_rate=0.02, weight_decay=0.05),
    "fast": dict(
        epochs=1,
        val_size=0,  # a single epoch leaves nothing to choose
        batch_size=256,
        learning_rate=0.04,
        augment=0.0,
        ema_decay=0.0,
        precision="bfloat16",
    ),
    **{name: dict(faults=faults) | recipe for name, (_, faults, recipe) in DESIGNS.items()},
}
OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9),
    "plain-sgd": torch.optim.SGD,
}


def make_parser():
    """The command line; every flag is stored in the checkpoint and the log."""
    parser = cli.Parser(__doc__)
    count, fraction = cli.integer(1), cli.real(0, 0.999999)

    add = parser.add_argument_group("the run").add_argument
    add("--epochs", type=count, default=10, help="times through the training images")
    add("--seed", type=cli.integer(0, 2**31 - 1), default=0, help="of the weights, the order, the addends, the warps")
    add("--device", choices=cli.DEVICES, default="auto", help="auto: CUDA, else MPS, else the CPU")
    add("--deterministic", action="store_true", help="the same bits every time on CUDA too; the CPU needs no flag")
    add("--run-name", metavar="NAME", help="of the files in logs/ (default: from model, seed, date and time)")
    add("--out", metavar="FOLDER", default=".", help="where best.pt, last.pt and logs/ go")
    add("--resume", metavar="FILE", help="go on from a last.pt, with the arguments that its run was started with")

    add = parser.add_argument_group("the data").add_argument
    add("--dataset", choices=DATASETS, default="auto", help="auto: MNIST, else synthetic digits with a warning")
    add("--data-dir", metavar="FOLDER", default="data", help="where MNIST is, or is downloaded to")
    add("--val-size", type=cli.integer(0), default=5000, help="images held out to choose best.pt; 0: none")
    add("--addends-per-image", type=cli.integer(1, 10), default=10, metavar="K", help="different addends in a step")
    add("--augment", type=cli.real(0, 5), default=0.5, help="strength of the random shift, rotation, scale, shear")

    add = parser.add_argument_group("the network and its training").add_argument
    add(
        "--model",
        choices=MODELS,
        default="base",
        metavar="NAME",
        help=f"{', '.join(SIZES)}; or published: {', '.join(DESIGNS)}; all but base and large bring their own "
        "defaults, which the log names",
    )
    add("--addend-encoding", choices=ADDEND_ENCODINGS, default="onehot", help="how the addend goes in")
    add(
        "--sum-encoding",
        choices=(*SUM_ENCODINGS, "shift"),
        default="onehot",
        help="how the sum comes out; shift: no parameters",
    )
    add(
        "--faults",
        nargs="+",
        choices=("none", *FAULTS),
        metavar="FAULT",
        help=f"of the published designs, none: mended (default: as published); of {', '.join(FAULTS)}",
    )
    add("--batch-size", type=count, default=128, help="images in a step")
    add("--optimizer", choices=tuple(OPTIMIZERS), default="adamw", help="sgd has a momentum of 0.9")
    add("--schedule", choices=("one-cycle", "constant"), default="one-cycle", help="of the learning rate")
    add("--learning-rate", type=cli.real(0, above=True), default=0.01, help="the peak of one-cycle")
    add("--weight-decay", type=cli.real(0), default=0.1, help="as the optimiser takes it")
    add(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the forward pass in training; scores stay float32",
    )
    add("--compile", action="store_true", help="the network through torch.compile; one process, slower on the CPU")
    add("--cuda-graph", action="store_true", help="record the step once, then replay it: one GPU, adamw or adam")
    add("--ema-decay", type=fraction, default=0.999, help="of the moving average of the weights; 0: no average")
    add("--label-smoothing", type=fraction, default=0.1, help="share of the target spread over all classes")
    add("--digit-weight", type=cli.real(0), default=1.0, help="of the digit's loss in the total")
    add("--sum-weight", type=cli.real(0), default=1.0, help="of the sum's loss in the total")
    return parser


def parse_arguments(argv):
    """(args, state): the arguments, and the checkpoint to go on from or None. Raises UserError on a contradiction."""
    parser = make_parser()
    args = parser.parse_args(argv)
    parser.set_defaults(**RECIPES.get(args.model, {}))
    args = parser.parse_args(argv)
    if "none" in (args.faults or ()) and len(args.faults) > 1:
        parser.error("--faults none goes alone")
    args.faults = without_none(args.faults)
    try:
        check_model(args.model, args.faults, args.addend_encoding, args.sum_encoding)
    except ValueError as error:
        parser.error(str(error))
    if args.digit_weight == args.sum_weight == 0:
        parser.error("--digit-weight and --sum-weight are both 0: there is nothing to learn")
    if args.run_name is not None and not plain(args.run_name):
        parser.error(f"--run-name {args.run_name!r} must be a plain file name")
    if args.resume is None:
        args.run_name = args.run_name or f"{args.model}-s{args.seed}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
        return args, None

    _, state = load_model(args.resume)
    if "optimizer" not in state:
        raise cli.UserError(f"{args.resume} holds weights only, nothing to go on from; resume from a last.pt")
    if not plain(state["args"].get("run_name")):  # it becomes the name of files
        raise cli.UserError(f"{args.resume} names its run {state['args'].get('run_name')!r}, which is no file name")
    for action in parser._actions:  # leaves the flags that were really typed
        action.default = argparse.SUPPRESS
    typed = vars(parser.parse_args(argv))
    if "faults" in typed:
        typed["faults"] = without_none(typed["faults"])
    for name, value in typed.items():
        if name not in FREE_ON_RESUME and value != state["args"].get(name):
            flag, was = "--" + name.replace("_", "-"), state["args"].get(name)
            raise cli.UserError(f"{flag} {value} contradicts the run in {args.resume}, which has {was}; leave it out")
    return argparse.Namespace(**vars(args) | state["args"] | typed), state


def without_none(faults):
    """The faults of `--faults` as a list in which "none" is nothing."""
    return [fault for fault in faults or () if fault != "none"]


def plain(name):
    """Whether `name` names a file, in no other folder, that a terminal can show."""
    if not isinstance(name, str) or not name.isprintable() or not name.strip():
        return False
    return Path(name).name == name != ".."


def learning_rate_at(step, steps, peak, schedule="one-cycle"):
    """Learning rate of `step` (from 0) of `steps`: a straight rise over the first fifth, then a cosine down to 0.

    The one-cycle policy of L. N. Smith and N. Topin, arXiv 1708.07120, without the momentum's cycle; or "constant".
    """
    if schedule == "constant":
        return peak
    rise = 0.2 * steps
    if step < rise:
        return peak * (0.04 + 0.96 * step / rise)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))


class MovingAverage:
    """An exponential moving average of the weights and of batch norm's statistics of `model`, in `module`.

    The decay rises to `decay` as (1 + n) / (10 + n), so the average spans about the last tenth of the n steps so far,
    and a short run is not held back by its start; the first update copies. PyTorch's AveragedModel counts the updates
    in a tensor, and on CUDA each step would wait for that.
    """

    def __init__(self, model, decay):
        self.module, self.decay = copy.deepcopy(model), decay
        pairs = list(zip(tensors_of(self.module), tensors_of(model), strict=True))
        self.averages, self.values = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        self.counters = [pair for pair in pairs if not pair[0].is_floating_point()]  # of the batch norms

    @torch.no_grad()
    def update(self, updates):
        """Take the weights of `model` in, after so many `updates` before."""
        weight = 1 - min(self.decay, (1 + updates) / (10 + updates)) if updates else 1.0
        torch._foreach_lerp_(self.averages, self.values, weight)
        for kept, counter in self.counters:
            kept.copy_(counter)


def tensors_of(model):
    """The parameters and buffers."""
    return [*model.parameters(), *model.buffers()]


def build(args, device, memory_format=torch.channels_last, fused=True):
    """(model, optimizer, averaged) at the start of a run; averaged is None without a moving average."""
    torch.manual_seed(args.seed)
    model = build_model(args.model, args.faults, args.addend_encoding, args.sum_encoding)
    model = processes.synchronise_batch_norm(model, device).to(device, memory_format=memory_format)
    own = dict(lr=args.learning_rate, weight_decay=args.weight_decay, fused=fused)
    if recorded(args, device):  # a graph reads the rate, and counts its steps, where it is
        own |= dict(lr=torch.tensor(args.learning_rate, device=device), capturable=True)
    optimizer = OPTIMIZERS[args.optimizer](model.parameters(), **own)
    return model, optimizer, MovingAverage(model, args.ema_decay) if args.ema_decay else None


def recorded(args, device):
    """Whether --cuda-graph was given and can be had."""
    able = device.type == "cuda" and processes.world() == 1 and args.optimizer in ("adamw", "adam")
    return args.cuda_graph and able


def prepare_step(args, model, optimizer, batches):
    """(take_step, notes): what takes the step of a batch, as the flags want it; a line on each that cannot be had."""
    device, notes = batches.device, []
    network = processes.share(model, device)
    if args.compile and processes.world() > 1:
        notes.append("--compile is for a single process, going on without")
    elif args.compile:
        network, note = graphs.compile_network(model, next(batches.epoch(0)), args.precision)
        notes += [note] if note else []
    take_step = functools.partial(train_step, args, model, network, optimizer)
    if recorded(args, device):
        take_step = graphs.CapturedStep(take_step)
    elif args.cuda_graph:
        notes.append("--cuda-graph is for adamw or adam on a single GPU, going on without")
    return take_step, notes


def train_step(args, model, network, optimizer, batch, weight):
    """One step on `batch`: its digit loss and its sum loss, [2], which stay on the device.

    `network` is `model`, or what calls it: compiled, or shared with other processes, where `weight` is this one's part.
    """
    image, addend, digit, sum_target = batch
    with torch.autocast(image.device.type, torch.bfloat16, enabled=args.precision == "bfloat16"):
        digit_logits, sum_logits = network(image, addend)
    digit_loss = model.digit_loss(digit_logits.float(), digit, args.label_smoothing)
    sum_loss = model.sum_loss(sum_logits.float(), sum_target, args.label_smoothing)
    loss = weight * args.digit_weight * digit_loss + weight * args.sum_weight * sum_loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return torch.stack([digit_loss, sum_loss]).detach()


def train_epoch(args, model, optimizer, averaged, take_step, batches, epoch):
    """Take the steps of one epoch; yields the losses of each, [2]. Nothing here waits for the device."""
    torch.manual_seed(generator_for("network", args.seed, epoch).initial_seed())  # for a network with dropout
    model.train()
    for step, batch in enumerate(batches.epoch(epoch)):
        done = epoch * len(batches) + step
        rate = learning_rate_at(done, args.epochs * len(batches), args.learning_rate, args.schedule)
        set_learning_rate(optimizer, rate)
        losses = take_step(batch, batches.weight(step))
        if averaged:
            averaged.update(done)
        yield losses


def set_learning_rate(optimizer, rate):
    """Give all parameters this learning rate; in place where a CUDA graph reads it."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def load_optimizer(optimizer, state):
    """Take over the state, but not how that run kept its rate and its steps: with a CUDA graph or without."""
    kept = [{name: group[name] for name in ("lr", "capturable") if name in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, kept, strict=True):
        group.update(own)


def train(args, state, device, folder, argv):
    """The run: it leaves its files. `state` is the checkpoint to go on from, or None; `argv` goes into the log."""
    first = processes.rank() == 0  # of several processes this one writes

    # --- data
    dataset = args.dataset if state is None else state["dataset"]
    if first:  # which downloads, falls back and warns
        images, digits, dataset = load_digits(dataset, args.data_dir, train=True)
    dataset = processes.told_by_first(dataset)
    if not first:
        images, digits, _ = load_digits(dataset, args.data_dir, train=True)
    if args.val_size >= len(images):
        raise cli.UserError(f"--val-size {args.val_size} leaves none of the {len(images)} training images to train on")
    training, validation = split_indices(len(images), args.val_size)
    val_images, val_digits = images[validation], digits[validation]
    batches = Batches(
        images[training],
        digits[training],
        args.batch_size,
        args.seed,
        args.addends_per_image,
        args.augment,
        device,
        addends=9 if "no-nine" in args.faults else 10,
        resample="resample" in args.faults,
        rank=processes.rank(),
        world=processes.world(),
    )
    val_images = val_images.to(batches.home)

    # --- network
    model, optimizer, averaged = build(args, device)
    refuse_single_images(model, batches)
    scored = averaged.module if averaged else model  # the weights that are validated, kept and tested

    # --- where a run begins, or goes on
    first_epoch, history, best = 0, [], None
    if state is not None:
        try:
            first_epoch, history, best, header = state["epoch"], state["history"], state["best"], state["header"]
            model.load_state_dict(state["raw_weights"])
            load_optimizer(optimizer, state["optimizer"])
            if averaged:
                averaged.module.load_state_dict(state["weights"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise cli.UserError(f"{args.resume} does not fit this version of train.py: {error}") from None
        if first:
            save_last(folder, args.run_name, state)  # a kill may have come between the two files
        print(f"going on after epoch {first_epoch} of {args.epochs}\n")
    take_step, notes = prepare_step(args, model, optimizer, batches)
    if not batches.resident:
        notes.append("the images stay in the host's memory, for want of the device's, and are sent ahead")
    for note in notes:
        cli.warn(note)
    if state is None:
        header = make_header(argv, args, dataset, device, model, len(training), len(validation), notes)
    print("\n".join([header, HEADINGS, *map(table_line, history)]), flush=True)
    if first:
        write_log(folder, args.run_name, header, history)

    # --- the loop
    for epoch in range(first_epoch, args.epochs):
        losses = torch.empty(len(batches), 2, device=device)  # stays on the device until the epoch ends
        start = time.perf_counter()
        silent = None if first else True  # None: on a terminal only
        steps = train_epoch(args, model, optimizer, averaged, take_step, batches, epoch)
        for step, pair in enumerate(tqdm(steps, f"epoch {epoch + 1}", len(batches), leave=False, disable=silent)):
            losses[step] = pair
        losses = mean_over_processes(losses, batches).cpu()  # waits for the device
        seconds = time.perf_counter() - start
        stop_if_not_finite(losses, model, epoch, args)

        # --- after each epoch: validate, write
        row = {"epoch": epoch + 1, "learning_rate": float(optimizer.param_groups[0]["lr"]), "seconds": seconds}
        row["digit_loss"], row["sum_loss"] = losses.double().mean(dim=0).tolist()
        if args.val_size:
            scores = score(*predict_shared(scored, val_images, device), val_digits)
            row |= {name: scores[name] for name in ("digit_accuracy", "sum_accuracy", "joint_accuracy")}
        history.append(row)
        print(table_line(row), flush=True)
        improved = best is None or not args.val_size or row["joint_accuracy"] > best["joint_accuracy"]
        weights = {name: value.cpu().clone() for name, value in scored.state_dict().items()}
        if improved:
            best = {"epoch": epoch + 1, "joint_accuracy": row.get("joint_accuracy"), "weights": weights}
        state = {
            "args": {name: value for name, value in vars(args).items() if name != "resume"},
            "dataset": dataset,
            "normalisation": [MEAN, STD],
            "versions": versions(),
            "epoch": epoch + 1,
            "weights": weights,
            "raw_weights": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "history": history,
            "best": best,
            "header": header,
        }
        if improved and first:
            save_best(folder, args.run_name, state)
        if first:
            save_last(folder, args.run_name, state)
            write_log(folder, args.run_name, header, history)

    # --- the test set is opened here, once
    if first:
        save_best(folder, args.run_name, state)
    scored.load_state_dict(best["weights"])
    images, digits, _ = load_digits(dataset, args.data_dir, train=False)
    predictions = predict_shared(scored, images, device)
    scores = score(*predictions, digits)
    seconds = sum(row["seconds"] for row in history)
    elsewhere = "" if args.data_dir == "data" else f" --data-dir {shlex.quote(args.data_dir)}"
    ending = [
        "",
        f"{args.epochs} epochs trained in {seconds:.1f} s, data preparation in, validation and writing out",
        f"the weights of epoch {best['epoch']} score",
        short_report(scores, dataset),
        *scores_as_published(args.faults, *predictions, digits, args.batch_size),
        f"score it again: python evaluate.py --ckpt {shlex.quote(str(folder / 'best.pt'))}{elsewhere}",
    ]
    print("\n".join(ending))
    if first:
        write_log(folder, args.run_name, header, history, ending, scores)


def refuse_single_images(model, batches):
    """Raise UserError where batch norm would be given the statistics of one image."""
    tail = len(batches.images) % batches.batch_size or batches.batch_size
    smallest = min(tail, batches.batch_size) // processes.world()
    if smallest < 2 and any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise cli.UserError(
            f"--batch-size {batches.batch_size} leaves a process a batch of one image at the end of the "
            f"{len(batches.images)}, too few for batch norm; choose another"
        )


def mean_over_processes(losses, batches):
    """The whole batches' losses [steps, 2] from those of this process's parts."""
    weights = [batches.weight(step) / processes.world() for step in range(len(losses))]
    return processes.add_up(losses * torch.tensor(weights, device=losses.device).unsqueeze(1))


def predict_shared(model, images, device):
    """`predict_pairs` with the images shared out among the processes; all get all of the predictions."""
    processes.take_buffers_of_first(model)
    part = predict_pairs([model], images[processes.rank() :: processes.world()], device=device)
    return processes.interleave(part)


def stop_if_not_finite(losses, model, epoch, args):
    """Raise UserError where a loss of the epoch [steps of an epoch, 2] or a weight is not finite."""
    bad = (~losses.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if not bad and all(value.isfinite().all() for value in model.state_dict().values()):
        return
    step, steps = epoch * len(losses) + (bad[0] if bad else len(losses) - 1), args.epochs * len(losses)
    raise cli.UserError(
        f"the loss is not finite from step {step + 1} of {steps} (epoch {epoch + 1}) on, at the learning "
        f"rate {learning_rate_at(step, steps, args.learning_rate, args.schedule):.3g}; the last good checkpoint stays; "
        "try a smaller --learning-rate"
    )


def save_best(folder, run_name, state):
    """Write best.pt, and the same under the run's own name: what `evaluate.py` needs, without the optimiser."""
    names = ("args", "dataset", "normalisation", "versions", "epoch", "best")
    kept = {name: state[name] for name in names} | {"weights": state["best"]["weights"]}
    kept["epoch"], kept["best"] = state["best"]["epoch"], {"joint_accuracy": state["best"]["joint_accuracy"]}
    for path in (folder / "logs" / f"{run_name}-best.pt", folder / "best.pt"):
        save_checkpoint(path, kept)


def save_last(folder, run_name, state):
    """Write last.pt, and the same under the run's own name: all that it takes to go on."""
    for path in (folder / "logs" / f"{run_name}-last.pt", folder / "last.pt"):
        save_checkpoint(path, state)


# ---------------------------------------------------------------------------------------------------------------------


def refuse_to_write_over(last, run_name, state):
    """Raise UserError where the folder holds another run of this name. `state`: of the run to go on with, or None."""
    if state is None and (last.exists() or holds_epochs(last.with_name(f"{run_name}.txt"))):
        advice = f" or --resume {last}" if last.exists() else ""
        raise cli.UserError(f"there is a run {run_name} in {last.parent}; choose another --run-name{advice}")
    with contextlib.suppress(CheckpointError):  # none, or a damaged one that is nothing to lose
        if state is not None and load_checkpoint(last).get("header") != state.get("header"):
            raise cli.UserError(f"{last} is of another run of the name {run_name}; choose another --out")


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does."""


def terminate(signal_number, frame):
    raise Terminated


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(map(str, argv))
    args, state = parse_arguments(argv)
    device = cli.choose_device(args.device)
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True, warn_only=device.type == "mps")  # which lacks some
    folder = Path(args.out)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    last = folder / "logs" / f"{args.run_name}-last.pt"
    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        with processes.joined(device) as device:
            if processes.rank() > 0:  # process 0 alone prints and writes
                with open(os.devnull, "w") as nowhere:
                    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                        train(args, state, device, folder, argv)
                return 0
            for needed in (folder, folder / "logs"):
                if not os.access(needed, os.W_OK):
                    raise cli.UserError(f"{needed} cannot be written to; choose another --out")
            with lock(folder):
                refuse_to_write_over(last, args.run_name, state)
                remove_leftovers(folder)
                train(args, state, device, folder, argv)
    except KeyboardInterrupt as interrupt:
        again = f"go on with: python train.py --resume {shlex.quote(str(last))}"
        advice = again if last.exists() else "no epoch was done yet; start it again"
        if processes.rank() == 0:
            print(f"train.py: interrupted; {advice}", file=sys.stderr)
        return 143 if isinstance(interrupt, Terminated) else 130
    finally:
        with contextlib.suppress(OSError):  # empty where the run was refused, else it stays
            (folder / "logs").rmdir()
        signal.signal(signal.SIGTERM, previous)
        torch.use_deterministic_algorithms(False)


if __name__ == "__main__":
    sys.exit(cli.run_script(main))
