"""Write the page where people draw a digit, with a trained network in it.

    python -m studies.page              writes docs/index.html
    python -m studies.page --check      exit status 1 if it differs
    python -m studies.page --ckpt best.pt --out mine.html
                                        with another network

The page is studies/page.html with the network's weights put in: one file that
needs nothing else and sends nothing. Open it in a browser; with #7+5 behind
its address it shows a sample of a 7 and the number 5. The script ends with

    docs/index.html: 79,789 bytes, tiny
"""

import argparse
import base64
import json
import re
import shlex
import sys
from pathlib import Path

from support import cli


def make_parser():
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--ckpt", default="logs/tiny.pt", metavar="FILE", help="checkpoint of train.py")
    add("--out", default="docs/index.html", metavar="FILE", help="the page")
    add("--check", action="store_true", help="compare the page with what would be written, write nothing")
    return parser


if __name__ == "__main__":
    cli.begin_script(make_parser)  # answers --help and a mistyped flag before PyTorch is imported, which takes seconds

import numpy as np
import torch

from data import MEAN, STD
from evaluate import load_model
from model import AddendNet, OneHotSum
from support.checkpoint import check, number
from support.files import read_text, write_atomically
from support.synthetic import STROKES

TEMPLATE = Path(__file__).with_suffix(".html")
MARK = "<!-- made by: python -m studies.page -->"
LIMIT = 700_000  # bytes of the page
DATASETS = {"mnist": "MNIST", "synthetic": "synthetic digits"}


def fold(encoder):
    """The convolutions of a `model.staged_encoder`, in order: a list of (description, weight, scale, shift).

    Batch norm becomes a scale and a shift a channel. They stay apart from the convolution's weights: max pooling comes
    between the two, and a negative scale would turn its maximum into a minimum. Raises UserError for another encoder.
    """
    kinds = [type(layer).__name__ for layer in encoder]
    short = {"Conv2d": "c", "MaxPool2d": "p", "BatchNorm2d": "b", "ReLU": "r", "Flatten": "f"}
    if not re.fullmatch("(cp?br)+f", "".join(short.get(kind, "?") for kind in kinds)):
        raise cli.UserError("the page knows the encoders of tiny, base and large only")
    convolutions = []
    for layer in encoder:
        if isinstance(layer, torch.nn.Conv2d):
            description = {
                "inputs": layer.in_channels, "outputs": layer.out_channels, "kernel": layer.kernel_size[0],
                "padding": layer.padding[0], "groups": layer.groups, "pool": False,
            }  # fmt: skip
            weight = numbers(layer.weight)
        elif isinstance(layer, torch.nn.MaxPool2d):
            description["pool"] = True
        elif isinstance(layer, torch.nn.BatchNorm2d):
            scale = numbers(layer.weight) / np.sqrt(numbers(layer.running_var) + layer.eps)
            shift = numbers(layer.bias) - scale * numbers(layer.running_mean)
            convolutions.append((description, weight, scale, shift))
    return convolutions


def numbers(tensor):
    """A tensor as float64, in which sums and roots are the same on every machine once rounded to float32."""
    return tensor.detach().double().contiguous().numpy()


def network(model):
    """(description, weights): what the page's script reads, a dict and the bytes of all float32 in its order.

    Raises UserError for a network that the script does not know.
    """
    if type(model) is not AddendNet or model.addend_encoding.kind != "onehot":
        raise cli.UserError("the page knows networks with a one-hot addend and a learned sum only")
    if type(model.sum_encoding) is not OneHotSum:
        raise cli.UserError("the page knows networks with a one-hot sum only")
    convolutions = fold(model.encoder)
    arrays = [array for _, *three in convolutions for array in three]
    description = {"mean": MEAN, "std": STD, "convolutions": [entry for entry, *_ in convolutions]}
    for name, layer in (("fusion", model.fusion[0]), ("digit", model.digit_head), ("sum", model.sum_head)):
        description[name] = {"inputs": layer.in_features, "outputs": layer.out_features}
        arrays += [numbers(layer.weight), numbers(layer.bias)]
    return description, b"".join(array.astype("<f4").tobytes() for array in arrays)


def make_page(path):
    """(text, name): the page with the network of the checkpoint at `path`, and that network's name.

    Raises UserError where the checkpoint cannot be used, or makes a page that is too large.
    """
    model, state = load_model(path)
    description, weights = network(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    facts = f"The network has {parameters:,d} parameters and was trained on {DATASETS[state['dataset']]}"
    accuracy = state.get("joint_accuracy")
    if accuracy is not None:
        check(number(accuracy) and accuracy <= 1, path, "joint_accuracy")
        facts += f"; on held-out images, both answers are right in {100 * accuracy:.1f} % of the pairs"
    if state["args"].get("label_smoothing"):
        facts += ". It was trained with label smoothing, so even sure answers stay below 100 %"
    strokes = [[[[round(float(x), 3), round(float(y), 3)] for x, y in line] for line in lines] for lines in STROKES]
    parts = {
        "FACTS": f"{facts}. Everything is computed in your browser; nothing is sent anywhere.",
        "NETWORK": json.dumps(description),
        "SAMPLES": json.dumps(strokes, separators=(",", ":")),
        "WEIGHTS": base64.b64encode(weights).decode(),
    }
    page = re.sub(r"{{([A-Z]+)}}", lambda match: parts[match.group(1)], read_text(TEMPLATE))
    if len(page.encode()) > LIMIT:
        raise cli.UserError(f"the page would have {len(page.encode()):,d} bytes, more than {LIMIT:,d}; tiny is smaller")
    return page, state["args"]["model"]


def main(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)

    (page, name), out = make_page(args.ckpt), Path(args.out)
    before = read_text(out) if out.is_file() else None
    if args.check:
        if before != page:
            command = " ".join([parser.prog, *map(shlex.quote, cli.flags_of(parser, args, ["ckpt", "out"]))])
            message = f"{args.out} differs from the network and studies/page.html; run {command}"
            print(f"page.py: {message}", file=sys.stderr)
        return int(before != page)
    try:
        cli.refuse_overwriting([args.ckpt, TEMPLATE], out=cli.output_file(args.out))
    except argparse.ArgumentTypeError as error:
        raise cli.UserError(str(error)) from None
    if before is not None and MARK not in before[:200]:
        raise cli.UserError(f"{args.out} is not a page of this script; choose another --out")
    write_atomically(out, page)
    print(f"{args.out}: {len(page.encode()):,d} bytes, {name}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run_script(main))
