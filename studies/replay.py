"""Run a published design as its write-up did, and count as it counted.

    python -m studies.replay two-branch-lenet --seed 0
    python -m studies.replay two-branch-lenet+mended       without its faults
    python -m studies.replay two-branch-lenet --lr 0.1 --name higher-rate
                                                           another try

A loop of its own beside that of train.py, because the write-ups' loops are
what is repeated: their images, their optimiser, the last epoch, accuracies
counted while the network trains or on a test of their own making. It records
the quantities that the write-up logs, under their names in
studies/published_logs.csv, and at the end our count: all 100,000 test pairs
with the last weights. Writes logs/NAME.txt and logs/NAME.csv.
"""

import csv
import io
import shlex
import sys
import textwrap
import time
from pathlib import Path

from support import cli

# Of studies.published, whose import takes seconds, and `--help` should not.
DESIGN_NAMES = (
    "narrow-trunk",
    "shared-softmax-lenet",
    "two-softmax-lenet",
    "argmax-regression",
    "average-pooling",
    "two-branch-lenet",
)


def make_parser():
    parser = cli.Parser(__doc__, " DESIGN")
    add = parser.add_argument
    add("design", metavar="DESIGN", help=f"{', '.join(DESIGN_NAMES)}; with +mended or +FAULT as in train.py")
    add("--seed", type=cli.integer(0), default=0, help="of the weights, order and addends")
    add("--data-dir", default="data", metavar="FOLDER", help="as train.py takes it")
    add("--device", choices=cli.DEVICES, default="auto", help="as train.py takes it")
    add("--name", type=cli.file_name, help="of the two files (default: DESIGN-sSEED)")
    add("--out", default="logs", metavar="FOLDER", help="where they go")
    add("--stop", type=cli.integer(1), help="end after that many logged epochs, of a schedule that spans all")
    add = parser.add_argument_group("instead of the recipe's").add_argument
    add("--epochs", type=cli.integer(1), help="in the log; a schedule spans them")
    add("--images", type=cli.integer(1, 60_000), help="trained on; the rest of the training images validates")
    add("--batch-size", type=cli.integer(2), help="images in a step")
    add("--optimizer", choices=("adam", "sgd"), help="Adam, or SGD with --momentum")
    add("--learning-rate", "--lr", type=cli.real(0, above=True), help="constant, or the peak of the schedule")
    add("--momentum", type=cli.real(0, 0.9999), help="of SGD; in a cycle, above 0: between 0.95 and 0.85")
    add("--schedule", choices=("constant", "one-cycle", "linear-cycle"), help="OneCycleLR, its fall cosine or linear")
    add("--precision", choices=("float32", "bfloat16"), help="of the forward pass in training")
    add("--pixels", choices=("normalised", "unit"), help="images with mean 0 and deviation 1, or from 0 to 1")
    add("--initialisation", choices=("xavier", "kaiming"), help="of all weights, biases 0 (default: PyTorch's own)")
    add("--activation", choices=("relu", "none"), help="after fully connected layers (the LeNets)")
    add("--dropout", type=cli.real(0, 0.99), help="its rate (narrow-trunk)")
    add("--dropout-place", choices=("trunk", "features"), help="after the trunk's layers or the CNN (narrow-trunk)")
    add("--width", type=cli.integer(1), help="between the layers of the trunk (narrow-trunk)")
    return parser


if __name__ == "__main__":
    cli.begin_script(make_parser)  # answers --help and a mistyped flag before PyTorch is imported, which takes seconds

import torch
import torch.nn as nn
from torch.optim import swa_utils
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from data import MEAN, STD, generator_for, load_digits, prepare, split_indices
from evaluate import answers, mean_losses, pair_outputs, score, short_report
from studies.published import DESIGNS, FaultyBatches, addends_drawn, parse_name
from support.device import choose_device
from support.files import write_atomically
from support.runlog import environment

COLUMNS = ("design", "epoch", "quantity", "value")
HEADINGS = "epoch  epoch loss  train digit %  train sum %"
# Given to the network where the command line or the recipe has them.
NETWORK_OPTIONS = ("activation", "dropout", "dropout_place", "width")
INITIALISATIONS = {"xavier": nn.init.xavier_uniform_, "kaiming": nn.init.kaiming_normal_}
PLACE = ("data_dir", "device", "name", "out")  # do not change a result and are not logged


def parse_arguments(argv):
    """(args, recipe): where to run, and what: the recipe of the design with the flags in place of its own values."""
    args = make_parser().parse_args(argv)
    try:
        design, _ = parse_name(args.design)
        recipe = {"design": args.design, "seed": args.seed} | DESIGNS[design].recipe
    except (KeyError, ValueError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"choose from {', '.join(DESIGNS)}"
        raise cli.UserError(f"no design {args.design}; {reason}") from None
    given = {name: value for name, value in vars(args).items() if value is not None and name not in PLACE}
    args.name = args.name or f"{args.design}-s{args.seed}"
    recipe |= given
    if recipe.get("stop", 0) > recipe["epochs"]:
        raise cli.UserError(f"--stop {recipe['stop']} is after the last of {recipe['epochs']} epochs")
    return args, recipe


def build(recipe):
    """The network of the recipe, freshly initialised from its seed. Raises UserError for an option it does not have."""
    design, faults = parse_name(recipe["design"])
    options = {name: recipe[name] for name in NETWORK_OPTIONS if name in recipe}
    torch.manual_seed(recipe["seed"])
    try:
        model = DESIGNS[design].network(faults, **options)
    except TypeError:
        raise cli.UserError(f"{design} does not take all of these options: {', '.join(options)}") from None
    if "initialisation" in recipe:
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                INITIALISATIONS[recipe["initialisation"]](module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    if recipe["pixels"] == "unit":
        model.register_forward_pre_hook(lambda model, inputs: (inputs[0] * STD + MEAN, *inputs[1:]))
    return model


def make_optimizer(recipe, model, steps):
    """(optimizer, scheduler) for so many steps; the scheduler is None for a constant rate."""
    rate = recipe["learning_rate"]
    if recipe["optimizer"] == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=recipe["momentum"])
    if recipe["schedule"] == "constant":
        return optimizer, None
    fall = "linear" if recipe["schedule"] == "linear-cycle" else "cos"
    cycle = recipe["momentum"] > 0  # from 0.95 to 0.85 and back, as OneCycleLR does by default
    return optimizer, OneCycleLR(optimizer, rate, total_steps=steps, anneal_strategy=fall, cycle_momentum=cycle)


# ---------------------------------------------------------------------------------------------------------------------
# The loop


def replay(recipe, training, test, device, say=print):
    """Train and count by the recipe. training and test are (images, digits) as `load_digits` returns them.

    Returns (rows, scores): (epoch, quantity, value) of each recorded figure, and our scores of the last weights.
    """
    images, digits = training
    _, faults = parse_name(recipe["design"])
    kept, held = split_indices(len(images), len(images) - recipe["images"])
    validation = images[held], digits[held]
    model = build(recipe).to(device, memory_format=torch.channels_last)
    size, seed, unlogged = recipe["batch_size"], recipe["seed"], recipe["unlogged_epochs"]
    batches = FaultyBatches(faults, images[kept], digits[kept], size, seed, device=device)
    epochs = unlogged + recipe["epochs"]
    optimizer, scheduler = make_optimizer(recipe, model, epochs * len(batches))
    averaged, rows = None, []

    def drawn(epoch):  # one addend for each image of an evaluation
        generator = generator_for("evaluation", seed, epoch)
        return torch.randint(0, addends_drawn(faults), (len(images),), generator=generator)

    last = recipe.get("stop", recipe["epochs"])
    for epoch in range(unlogged + last):
        if epoch == recipe["averaged_from"] > 0:
            averaged = swa_utils.AveragedModel(model)
            scheduler = swa_utils.SWALR(optimizer, swa_lr=optimizer.param_groups[0]["lr"])  # constant from here
        losses, right, rates = train_epoch(model, optimizer, scheduler, batches, epoch, recipe)
        if averaged:
            averaged.update_parameters(model)
        if epoch < unlogged:
            continue
        figures = training_figures(losses, right, len(batches.images))
        if len(held) >= size:
            figures |= mean_of_batches("val", *score_batches(model, *validation, size, drawn(epoch)))
        if recipe["tested_each_epoch"]:
            figures |= totals("test", *score_batches(model, *test, size, drawn(epoch)))
        say(table_line(epoch + 1 - unlogged, figures))
        rows += [(epoch + 1 - unlogged, *figure) for figure in figures.items()]
        if scheduler:
            steps = enumerate(rates, epoch * len(batches))
            rows += [(f"step {step}", "learning_rate", rate) for step, rate in steps if step % 50 == 49]

    if averaged:
        update_bn(averaged, batches, epochs)
        model = averaged.module
    index = torch.arange(len(test[0]))
    if "resample" in faults:  # its test draws with replacement too
        generator = generator_for("test", seed)
        index = torch.cat([torch.randperm(len(index), generator=generator)[:size] for _ in index[::size]])
    figures = mean_of_batches("test", *score_batches(model, test[0][index], test[1][index], size, drawn(epochs)))
    outputs = [pair_outputs(model, test[0], device=device)]
    scores = score(*answers([model], outputs), test[1]) | mean_losses([model], outputs, test[1])
    figures |= {f"all_pairs_{head}_accuracy": scores[f"{head}_accuracy"] for head in ("digit", "sum", "joint")}
    return rows + [(last, *figure) for figure in figures.items()], scores


def train_epoch(model, optimizer, scheduler, batches, epoch, recipe):
    """Train for one epoch and count meanwhile, with the answers from before each step.

    Returns for each batch, on the CPU: losses [batches, 3] (in all, digit, sum) float64, right answers [batches, 2],
    and the learning rates as a list.
    """
    model.train()
    losses, right, rates = [], [], []
    progress = tqdm(batches.epoch(epoch), f"epoch {epoch + 1}", len(batches), leave=False, disable=None)
    for image, addend, digit, sum_target in progress:
        with torch.autocast(image.device.type, torch.bfloat16, enabled=recipe["precision"] == "bfloat16"):
            (digit_loss, sum_loss), answers = forward(model, image, addend, digit, sum_target)
        loss = recipe["digit_weight"] * digit_loss + recipe["sum_weight"] * sum_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
        if scheduler:
            scheduler.step()
        losses.append(torch.stack([loss, digit_loss, sum_loss]).detach())
        right.append(answers)
    return torch.stack(losses).double().cpu(), torch.stack(right).cpu(), rates


def update_bn(averaged, batches, epoch):
    """Batch norm's statistics of the averaged weights, from one more pass over the images."""

    class OneInput(nn.Module):  # swa_utils.update_bn calls the network with the first entry of each batch
        def __init__(self):
            super().__init__()
            self.model = averaged

        def forward(self, pair):
            return self.model(*pair)

    progress = tqdm(batches.epoch(epoch), "batch norm", len(batches), delay=2, leave=False, disable=None)
    swa_utils.update_bn(([(image, addend)] for image, addend, _, _ in progress), OneInput())


# ---------------------------------------------------------------------------------------------------------------------
# Counting


def forward(model, image, addend, digit, sum_target):
    """One pass of a batch: the losses of digit and sum, and how many digits and sums are right, [2] int64."""
    digit_outputs, sum_outputs = model(image, addend)
    digits = model.digit_probabilities(digit_outputs.detach()).argmax(-1) == digit
    sums = model.sum_probabilities(sum_outputs.detach()).argmax(-1) == sum_target
    losses = model.digit_loss(digit_outputs.float(), digit), model.sum_loss(sum_outputs.float(), sum_target)
    return losses, torch.stack([digits.sum(), sums.sum()])


@torch.inference_mode()
def score_batches(model, images, digits, size, addends):
    """Score uint8 images in batches of `size`, each with the next of `addends`, which may be more.

    Returns for each batch, on the CPU in float64: mean losses [batches, 2] and right answers [batches, 2] of the digit
    and the sum, and sizes [batches, 1].
    """
    model.eval()
    device = next(model.parameters()).device
    losses, right, sizes = [], [], []
    tables = [table.to(device).split(size) for table in (images, digits, addends[: len(images)])]
    progress = tqdm(zip(*tables, strict=True), "scoring", len(tables[0]), delay=2, leave=False, disable=None)
    for image, digit, addend in progress:
        batch_losses, answers = forward(model, prepare(image), addend, digit, digit + addend)
        losses.append(torch.stack(batch_losses))
        right.append(answers)
        sizes.append(torch.tensor([len(image)]))
    return tuple(torch.stack(figures).double().cpu() for figures in (losses, right, sizes))


def training_figures(losses, right, images):
    """What the write-ups log of the training itself, as {quantity: value}; sums over batches are not divided."""
    digits, sums = right.sum(0).tolist()
    return {
        "epoch_loss": losses[:, 0].sum().item(),
        "train_digits_right": digits,
        "train_sums_right": sums,
        "train_digit_percent": 100 * digits / images,
        "train_sum_percent": 100 * sums / images,
        "last_batch_train_loss": losses[-1, 0].item(),
        "last_batch_digit_loss": losses[-1, 1].item(),
        "last_batch_sum_loss": losses[-1, 2].item(),
    }


def mean_of_batches(split, losses, right, sizes):
    """Means over the batches, and of the products of their two accuracies; a smaller last batch is left out."""
    full = sizes[:, 0] == sizes[0, 0]
    accuracies = right[full] / sizes[full]
    digit, sums = accuracies.mean(0).tolist()
    return {
        f"{split}_loss": losses[full].sum(1).mean().item(),
        f"{split}_digit_accuracy": digit,
        f"{split}_sum_accuracy": sums,
        f"{split}_total_accuracy": accuracies.prod(1).mean().item(),
    }


def totals(split, losses, right, sizes):
    """Losses as undivided sums over the images, and the right answers of the last batch, whatever its size."""
    digit, sums = (losses * sizes).sum(0).tolist()
    return {
        f"{split}_digit_loss_total": digit,
        f"{split}_sum_loss_total": sums,
        "last_batch_digits_right": int(right[-1, 0]),
        "last_batch_sums_right": int(right[-1, 1]),
    }


# ---------------------------------------------------------------------------------------------------------------------
# The files


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(map(str, argv))
    args, recipe = parse_arguments(argv)
    build(recipe)  # refuses an option that the network does not have
    device = choose_device(args.device)
    text, table = (Path(args.out) / f"{args.name}.{ending}" for ending in ("txt", "csv"))
    if text.exists() or table.exists():
        raise cli.UserError(f"there is a run {args.name} in {args.out}; choose another --name or --out")
    Path(args.out).mkdir(parents=True, exist_ok=True)
    training = load_digits("mnist", args.data_dir, train=True)[:2]
    test = load_digits("mnist", args.data_dir, train=False)[:2]
    lines, start = header(argv, recipe, device), time.perf_counter()

    def say(line):
        print(line, flush=True)
        lines.append(line)

    print("\n".join(lines))
    rows, scores = replay(recipe, training, test, device, say)
    say(f"\n{time.perf_counter() - start:.0f} s; the last weights on all test pairs:\n{short_report(scores, 'mnist')}")
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([args.design, *row] for row in rows)
    write_atomically(table, content.getvalue())
    write_atomically(text, "\n".join(lines) + "\n")


def table_line(epoch, figures):
    """The figures of an epoch on a line: the training's, then those of an evaluation, where there was one."""
    line = f"{epoch:5d}  {figures['epoch_loss']:10.4f}"
    line += f"  {figures['train_digit_percent']:13.3f}  {figures['train_sum_percent']:11.3f}"
    if "val_loss" in figures:
        line += f"    validation: loss {figures['val_loss']:.4f}"
        line += ", {:.3f}, {:.3f} and {:.3f} %".format(
            *(100 * figures[f"val_{head}_accuracy"] for head in ("digit", "sum", "total"))
        )
    if "test_digit_loss_total" in figures:
        line += f"    test: losses {figures['test_digit_loss_total']:.1f} and {figures['test_sum_loss_total']:.1f}"
    return line


def header(argv, recipe, device):
    """What it takes to repeat the run, as lines."""
    arguments = textwrap.wrap(" ".join(f"{name}={value}" for name, value in recipe.items()), 108)
    command = f"python -m studies.replay {shlex.join(argv)}"
    entries = {"command": command, **environment(device), "arguments": f"\n{'':12s}".join(arguments)}
    return [f"{name:11s} {value}" for name, value in entries.items()] + ["", HEADINGS]


if __name__ == "__main__":
    sys.exit(cli.run_script(main))
