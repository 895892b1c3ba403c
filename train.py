"""Train a network that takes an MNIST image and a random number, and answers
with the digit and the sum of the two.

    python train.py --epochs 10 --device cuda
    python train.py --model tiny --seed 1
    python train.py --model fast
    python train.py --resume last.pt

Writes the run's own files, logs/RUN.txt, RUN.csv, RUN-best.pt (the epoch with
the best joint accuracy on 5,000 validation images) and RUN-last.pt (to resume
from), and copies of the two checkpoints as best.pt and last.pt. After 10
epochs, 81 s on two cores of an AMD EPYC, it ends with the test scores:

    mnist test: joint accuracy   99.568 %     432 of 100,000 wrong
"""

import contextlib
import datetime
import shlex
import sys
import time
from functools import partial

from support import cli, flags
from support.cli import UserError, integer, real

# How and where to compute: may change when a run continues, is not stored in a checkpoint and never read from one.
MACHINE = ("compile", "cuda_graph", "data_dir", "device", "out")
NOT_STORED = (*MACHINE, "resume", "dry_run", "find_lr")


def make_parser():
    """The command line. `--model` brings its own defaults for some flags, see support/recipes.py."""
    parser = cli.Parser(__doc__)
    add = parser.add_argument_group("run").add_argument
    add("--epochs", type=integer(1), default=10, help="passes over the training images; large and fast differ")
    add("--seed", type=integer(0), default=0, help="of the weights, order, addends and augmentation")
    add("--device", choices=cli.DEVICES, default="auto", help="auto: CUDA, else MPS, else the CPU")
    add("--deterministic", action="store_true", help="same bits every time on CUDA too; the CPU needs no flag")
    add("--run-name", type=cli.file_name, metavar="RUN", help="name of the files in logs/ (default: model-seed-time)")
    add("--out", default=".", metavar="FOLDER", help="where best.pt, last.pt and logs/ go")
    add("--resume", metavar="FILE", help="continue a run from its last.pt, with the arguments it was started with")
    add("--dry-run", action="store_true", help="take one step and print the header of the log, without a run")
    add("--find-lr", action="store_true", help="train at rates from 1e-7 to 10 and write the losses as CSV; no run")

    add = parser.add_argument_group("data").add_argument
    add("--dataset", choices=flags.DATASETS, default="auto", help="auto: MNIST, else synthetic digits with a warning")
    add("--data-dir", default="data", metavar="FOLDER", help="where MNIST is, or is downloaded to")
    add("--val-size", type=integer(0), default=5000, metavar="N", help="images held out to choose best.pt; 0: none")
    add("--addends-per-image", type=integer(1, 10), default=10, metavar="K", help="different addends for each image")
    add("--augment", type=real(0, 5), default=0.5, help="strength of random shift, rotation, scale and shear")
    add("--augment-corruptions", type=real(0, 1), default=0.0, metavar="SHARE", help="of the images to corrupt")

    add = parser.add_argument_group("network").add_argument
    add("--model", default="base", metavar="NAME", help=f"{', '.join(flags.SIZES)} or another; brings its own defaults")
    add("--addend-encoding", choices=flags.ADDEND_ENCODINGS, default="onehot", help="of the input number")
    add("--sum-encoding", choices=flags.SUM_ENCODINGS, default="onehot", help="of the sum; shift: no head")

    add = parser.add_argument_group("training").add_argument
    add("--batch-size", type=integer(1), default=128, help="images in a step")
    add("--optimizer", choices=flags.OPTIMIZERS, default="adamw", help="tiny: muon; momentum: sgd 0.9, plain-sgd 0")
    add("--schedule", choices=flags.SCHEDULES, default="one-cycle", help="of the learning rate over all epochs")
    add("--learning-rate", "--lr", type=real(0, above=True), default=0.01, help="its peak; tiny and fast differ")
    add("--weight-decay", type=real(0), default=0.1, help="decoupled in adamw and muon, an L2 penalty in the others")
    add("--label-smoothing", type=real(0, 0.999999), default=0.1, help="share of the target spread over all classes")
    add("--digit-weight", type=real(0), default=1.0, help="weight of the digit loss in the total")
    add("--sum-weight", type=real(0), default=1.0, help="weight of the sum loss in the total")
    add("--averaging-eta", type=real(0, 1e6), default=8.0, metavar="ETA",
        help="polynomial-decay average of the weights, over the last 1/(ETA+1) of the steps; 0: none")  # fmt: skip
    add("--precision", choices=("auto", "float32", "bfloat16"), default="auto",
        help="of the forward pass; auto: bfloat16 on an x86 CPU with instructions for it; scores: float32")  # fmt: skip
    add("--compile", action="store_true", help="torch.compile the network; no gain measured on the CPU")
    add("--cuda-graph", action="store_true", help="capture the network's passes as CUDA graphs")
    return parser


def parse_arguments(argv):
    """(args, state): the arguments, and the checkpoint to continue from or None. Raises UserError."""
    parser = make_parser()
    args, state = parser.parse_args(argv), None
    try:
        if args.resume is None:
            _, recipe = find_model(args.model)
            parser.set_defaults(**recipe)
            args = parser.parse_args(argv)
            args.run_name = args.run_name or f"{args.model}-s{args.seed}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
        else:
            _, state = load_model(args.resume)
            args = cli.continued_arguments(parser, argv, state["args"], NOT_STORED, args.resume)
            check_progress(state, args.resume, args.epochs, validated=args.val_size > 0)
        args.precision = choose_precision(args.precision, choose_device(args.device))
        build_model(args.model, args.addend_encoding, args.sum_encoding)
    except ValueError as error:
        raise UserError(str(error)) from None
    if args.digit_weight == args.sum_weight == 0:
        raise UserError("--digit-weight and --sum-weight are both 0: there is nothing to learn")
    instead = args.dry_run + args.find_lr
    if instead and (instead > 1 or args.resume is not None or processes.world_size() > 1):
        raise UserError("--dry-run and --find-lr exclude each other, --resume and several processes")
    return args, state


if __name__ == "__main__":
    cli.begin_script(make_parser)  # answers --help and a mistyped flag before PyTorch is imported, which takes seconds

import torch
from tqdm import tqdm

from data import MEAN, STD, generator_for, load_digits, split_indices
from evaluate import answers, load_model, mean_losses, pair_outputs, score, short_report
from model import build_model, find_model
from support import graphs, processes
from support.checkpoint import ACCURACIES, PROGRESS, check_progress, check_tensors, copy_tensors, restore_optimizer
from support.checks import chance_report, refuse_single_images, stop_if_not_finite
from support.device import choose_device, choose_precision, count, set_deterministic
from support.optim import OPTIMIZERS, PolynomialAverage, learning_rate_at
from support.run_files import RunFiles
from support.runlog import continuation, log_head, make_header, table_line, versions
from support.sweep import instead_of_a_run

# ---------------------------------------------------------------------------------------------------------------------
# Network, optimiser, average


def build(args, device, memory_format=torch.channels_last, fused=True):
    """(model, optimizer, averaged) at the start of a run; averaged is None without averaging."""
    torch.manual_seed(args.seed)
    model = build_model(args.model, args.addend_encoding, args.sum_encoding)
    model = processes.sync_batch_norm(model, device).to(device, memory_format=memory_format)
    optimizer = OPTIMIZERS[args.optimizer](
        model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay, fused=fused
    )
    return model, optimizer, PolynomialAverage(model, args.averaging_eta) if args.averaging_eta else None


# ---------------------------------------------------------------------------------------------------------------------
# The loop


def train_epoch(args, model, network, optimizer, averaged, batches, epoch):
    """Train for one epoch; returns the losses of digit and sum and their accuracies in each step, [steps, 4].

    `network` calls `model`: directly, accelerated, or in parallel with other processes. No step waits for the device.
    """
    torch.manual_seed(generator_for("network", args.seed, epoch).initial_seed())  # for a network with dropout
    figures = torch.empty(len(batches), 4, device=batches.device)
    model.train()
    progress = tqdm(batches.epoch(epoch), f"epoch {epoch + 1}", len(batches), leave=False, disable=None)
    for step, (image, addend, digit, sum_target) in enumerate(progress):
        done = epoch * len(batches) + step
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(done, args.epochs * len(batches), args.learning_rate, args.schedule)

        with torch.autocast(image.device.type, torch.bfloat16, enabled=args.precision == "bfloat16"):
            digit_logits, sum_logits = network(image, addend)
        digit_loss = model.digit_loss(digit_logits.float(), digit, args.label_smoothing)
        sum_loss = model.sum_loss(sum_logits.float(), sum_target, args.label_smoothing)
        loss = args.digit_weight * digit_loss + args.sum_weight * sum_loss
        optimizer.zero_grad()
        (loss * batches.weight(step)).backward()  # the weight is 1 in a single process
        optimizer.step()

        if averaged:
            averaged.update(done)
        figures[step, :2] = torch.stack([digit_loss, sum_loss]).detach()
        figures[step, 2:] = model.accuracies(digit_logits, sum_logits, digit, sum_target)
    return processes.mean(figures, [batches.weight(step) for step in range(len(batches))])


def train(args, state, device, files, command):
    """The run. `state` is the checkpoint to continue from, or None; the words of the `command` go into the log."""
    # --- data
    dataset = args.dataset if state is None else state["dataset"]
    if processes.rank() == 0:  # it may have to download
        images, digits, dataset = load_digits(dataset, args.data_dir, train=True)
    dataset = processes.broadcast(dataset)
    if processes.rank() > 0:
        images, digits, _ = load_digits(dataset, args.data_dir, train=True)
    if args.val_size >= len(images):
        raise UserError(f"--val-size {args.val_size} leaves none of the {len(images)} training images to train on")
    training, validation = split_indices(len(images), args.val_size)
    val_images, val_digits = images[validation], digits[validation]

    # --- network
    model, optimizer, averaged = build(args, device)
    scored = averaged.module if averaged else model  # the weights that are validated, kept and tested
    batches = model.Batches(
        images[training], digits[training], args.batch_size, args.seed, args.addends_per_image, args.augment, device,
        processes.rank(), processes.world_size(), corrupted=args.augment_corruptions,
    )  # fmt: skip
    refuse_single_images(model, batches)
    if state is not None:
        copy_tensors(state["weights"], scored.state_dict(), args.resume, "weights")
        copy_tensors(state["raw_weights"], model.state_dict(), args.resume, "raw_weights")
        check_tensors(state["best"]["weights"], model.state_dict(), args.resume, "best")
        restore_optimizer(optimizer, state["optimizer"], args.resume)
    network, notes = graphs.choose_network(args, model, batches)
    if not batches.resident:
        notes.append("the images do not fit on the device; they stay in host memory and batches are prefetched")
    for note in notes:
        cli.warn(note)

    # --- the contents of last.pt
    fixed = {name: value for name, value in vars(args).items() if name not in NOT_STORED}
    fixed = {"args": fixed, "dataset": dataset, "normalisation": [MEAN, STD], "versions": versions()}
    if state is None:
        header = make_header(command, fixed["args"], dataset, device, model, len(training), len(validation), notes)
        state = fixed | {"header": header, "continued": [], "epoch": 0, "history": [], "best": None}
    else:
        state = fixed | {name: state[name] for name in PROGRESS}
        files.take_over(state)
        complete = f"the run is complete ({count(args.epochs, 'epoch')}) and is only scored again"
        continuing = f"continuing after epoch {state['epoch']} of {args.epochs}"
        print(f"{complete if state['epoch'] == args.epochs else continuing}, writing to {files.logs}\n")
        state["continued"].append(continuation(state["header"], state["epoch"], device, notes))
    if args.dry_run or args.find_lr:
        epochs = partial(train_epoch, args, model, network, optimizer, None, batches)
        print("\n".join([header, "", *instead_of_a_run(args, files, batches, epochs)]))
        return
    print("\n".join([log_head(state), *map(table_line, state["history"])]), flush=True)
    files.write_log(state)
    files.keep_copies_of_others()

    for epoch in range(state["epoch"], args.epochs):
        start = time.perf_counter()
        figures = train_epoch(args, model, network, optimizer, averaged, batches, epoch).cpu()  # waits for the device
        row = {"epoch": epoch + 1, "seconds": time.perf_counter() - start}
        stop_if_not_finite(figures[:, :2], model, epoch, args)
        row |= {"learning_rate": optimizer.param_groups[0]["lr"]}
        names = ("digit_loss", "sum_loss", "train_digit_accuracy", "train_sum_accuracy")
        row |= zip(names, batches.mean(figures).tolist(), strict=True)

        # --- validation
        if args.val_size:
            scores = score_pairs(scored, val_images, val_digits, device)
            row |= {"val_digit_loss": scores["digit_loss"], "val_sum_loss": scores["sum_loss"]}
            row |= {name: scores[name] for name in ACCURACIES}

        # --- saving
        weights = {name: value.cpu().clone() for name, value in scored.state_dict().items()}
        state["epoch"], state["weights"], state["raw_weights"] = epoch + 1, weights, model.state_dict()
        state["optimizer"] = optimizer.state_dict()["state"]
        state["history"].append(row)
        best = state["best"]
        if best is None or not args.val_size or row["joint_accuracy"] > best["joint_accuracy"]:
            state["best"] = {"epoch": epoch + 1, "joint_accuracy": row.get("joint_accuracy"), "weights": weights}
            files.save_best(state)
        files.save_last(state)
        files.write_log(state)
        print(table_line(row), flush=True)

    # --- the test set is opened here, once
    scored.load_state_dict(state["best"]["weights"])
    images, digits, _ = load_digits(dataset, args.data_dir, train=False)
    scores = score_pairs(scored, images, digits, device)
    words = ["--ckpt", str(files.best), *cli.flags_of(make_parser(), args, ["data_dir"])]
    ending = [
        "",
        f"{count(args.epochs, 'epoch')} trained in {sum(row['seconds'] for row in state['history']):.1f} s, without "
        f"validation and saving; scores of epoch {state['best']['epoch']}:",
        short_report(scores, dataset),
        *chance_report(scores, args),
        f"log: {files.text}, {files.csv}; checkpoint: {files.best}, copied to {files.folder / 'best.pt'}",
        f"score it again: python evaluate.py {shlex.join(words)}",
    ]
    print("\n".join(ending))
    files.write_log(state, ending, scores)


def score_pairs(model, images, digits, device):
    """The scores on every image with every addend, the images divided among the processes; the same in each."""
    processes.broadcast_buffers(model)
    mine = images[processes.rank() :: processes.world_size()]
    outputs = processes.all_gather(pair_outputs(model, mine, device=device))
    return score(*answers([model], [outputs]), digits) | mean_losses([model], [outputs], digits)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(map(str, argv))
    args, state = parse_arguments(argv)
    device = choose_device(args.device)
    set_deterministic(args.deterministic, device)
    files, is_run = RunFiles(args.out, args.run_name), not (args.dry_run or args.find_lr)
    claim = files.claimed(state) if is_run else contextlib.nullcontext()
    try:
        with cli.sigterm_as_interrupt(), processes.process_group(device) as device, claim:
            train(args, state, device, files, ["train.py", *argv])
    except KeyboardInterrupt as interrupt:
        if processes.rank() == 0:
            advice = files.advice(args.resume, cli.flags_of(make_parser(), args, MACHINE), is_run)
            print(f"train.py: interrupted; {advice}", file=sys.stderr)
        return 143 if isinstance(interrupt, cli.Terminated) else 130
    finally:
        set_deterministic(False, device)  # for the next run of the same process


if __name__ == "__main__":
    sys.exit(cli.run_script(main))
