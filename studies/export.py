"""Write a checkpoint in a form that needs none of these scripts.

    python -m studies.export --onnx tiny.onnx --verify
    python -m studies.export --ckpt best.pt --state-dict base.pth
    python -m studies.export --show-loader > loader.py

ONNX takes grey images, image [batch, 1, 28, 28] uint8, and addend [batch]
int64, and answers with probabilities, digit [batch, 10] and sum [batch, 19].
The plain state_dict loads with PyTorch and the few lines that --show-loader
prints. With --verify the first command also runs the file on the test set and
counts the answers that differ from PyTorch's: for logs/tiny.pt 0 of 100,000
pairs, with probabilities that differ by 1.2e-06 at most.
"""

import contextlib
import importlib
import io
import logging
import sys
import warnings

from support import cli

OPSET = 18


def make_parser():
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--ckpt", default="logs/tiny.pt", metavar="FILE", help="checkpoint of train.py")
    add("--onnx", type=cli.output_file, metavar="FILE", help=f"write the network as ONNX, opset {OPSET}")
    add("--verify", action="store_true", help="compare the ONNX file with PyTorch on all test pairs (onnxruntime)")
    add("--state-dict", type=cli.output_file, metavar="FILE", help="write the weights for torch.load")
    add("--show-loader", action="store_true", help="print a program that loads the state_dict with PyTorch alone")
    add("--data-dir", default="data", metavar="FOLDER", help="where the data sets are, for --verify")
    return parser


if __name__ == "__main__":
    cli.begin_script(make_parser)  # answers --help and a mistyped flag before PyTorch is imported, which takes seconds

import torch
from tqdm import tqdm

from data import ADDENDS, MEAN, STD, load_digits, prepare
from evaluate import load_model
from model import AddendNet, OneHotSum
from support.files import write_atomically

INPUTS, OUTPUTS = ("image", "addend"), ("digit", "sum")
LOADER = """\
import sys
import torch
from torch import nn

net = nn.ModuleDict({{"encoder": nn.Sequential(  # {name}: {parameters:,d} parameters
{encoder}),
    "fusion": nn.Sequential({fusion}), "digit_head": {digit_head}, "sum_head": {sum_head}}})
net.eval().load_state_dict(torch.load(sys.argv[1], weights_only=True))  # python loader.py FILE, of --state-dict

def answer(image, addend):  # grey [B, 1, 28, 28] from 0 to 255, int64 [B] -> logits [B, 10] and [B, 19]
    fused = net["fusion"](torch.cat([net["encoder"]((image / 255 - {mean}) / {std}), torch.eye({addends})[addend]], 1))
    return net["digit_head"](fused), net["sum_head"](fused)

image = nn.functional.pad(torch.full((1, 1, 20, 2), 255.0), (13, 13, 4, 4))  # an upright stroke: a 1
print([logits.argmax().item() for logits in answer(image, torch.tensor([5]))])  # the digit and the sum with 5
"""


class Answers(torch.nn.Module):
    """A network from grey values to probabilities, so that a file of it needs no other code on either side."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image, addend):
        """image [B, 1, 28, 28] uint8, addend [B] int64 in 0-9 -> probabilities [B, 10] and [B, 19]."""
        digit_logits, sum_logits = self.model(prepare(image), addend)
        return self.model.digit_probabilities(digit_logits), self.model.sum_probabilities(sum_logits)


def to_onnx(model):
    """The network as the bytes of an ONNX file with a free batch size, checked by onnx.checker.

    Raises UserError where a package is missing.
    """
    onnx = needed("onnx", "onnxscript")
    batch = torch.export.Dim("batch")
    example = torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    with quiet():
        # strict: otherwise the len() in model.check_inputs makes the example's batch size a constant of the file
        program = torch.export.export(
            Answers(model).eval(), example, dynamic_shapes=({0: batch}, {0: batch}), strict=True
        )
        exported = torch.onnx.export(
            program, dynamo=True, input_names=INPUTS, output_names=OUTPUTS, opset_version=OPSET, verbose=False
        )
    proto = exported.model_proto
    for part in (proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        del part.metadata_props[:]  # where in which file each node came from
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def needed(*names):
    """The first of these optional modules, imported. Raises UserError where one is missing."""
    try:
        modules = [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise cli.UserError(
            f"{error.name} is not installed; this needs: pip install onnx onnxscript onnxruntime"
        ) from None
    return modules[0]


@contextlib.contextmanager
def quiet():
    """Without the exporter's notes on its own inner parts; its errors are exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@torch.inference_mode()
def differences(content, model, images):
    """(answers that differ, largest difference of a probability) of the ONNX file's bytes from the network.

    images [N, 1, 28, 28] uint8, each with all ten addends. Raises UserError without onnxruntime.
    """
    session = needed("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"])
    answers, differing, largest = Answers(model).eval(), 0, 0.0
    for batch in tqdm(images.split(500), "verifying", unit="batch", delay=2, leave=False, disable=None):
        image = batch.repeat_interleave(ADDENDS, dim=0)
        addend = torch.arange(ADDENDS).repeat(len(batch))
        there = session.run(OUTPUTS, {"image": image.numpy(), "addend": addend.numpy()})
        wrong = torch.zeros(len(image), dtype=torch.bool)
        for own, other in zip(answers(image, addend), map(torch.from_numpy, there), strict=True):
            wrong |= own.argmax(dim=1) != other.argmax(dim=1)
            largest = max(largest, (own - other).abs().max().item())
        differing += int(wrong.sum())
    return differing, largest


def to_state_dict(model):
    """The weights as the bytes of a file for torch.load: names and tensors, nothing else."""
    buffer = io.BytesIO()
    torch.save({name: value.contiguous() for name, value in model.state_dict().items()}, buffer)
    return buffer.getvalue()


def loader(model, name):
    """A program that needs PyTorch alone and loads what `to_state_dict` made of this network.

    Raises UserError for a network that is not a plain AddendNet, or has a layer that PyTorch lacks.
    """
    plain = type(model) is AddendNet and model.addend_encoding.kind == "onehot"
    if not plain or type(model.sum_encoding) is not OneHotSum:
        raise cli.UserError(f"--show-loader knows the sizes of model.py with one-hot encodings, not this {name}")
    for layer in model.encoder:
        kind = type(layer).__name__
        if getattr(torch.nn, kind, None) is not type(layer):
            raise cli.UserError(f"--show-loader writes layers of torch.nn; {name} has a {kind}, which PyTorch lacks")
    lines = [[]]
    for layer in model.encoder:
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear) and lines[-1]:  # a line for each layer with weights
            lines.append([])
        lines[-1].append(source(layer))
    return LOADER.format(
        name=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        encoder=",\n".join(f"    {', '.join(line)}" for line in lines),
        fusion=", ".join(map(source, model.fusion)),
        digit_head=source(model.digit_head),
        sum_head=source(model.sum_head),
        mean=MEAN,
        std=STD,
        addends=ADDENDS,
    )


def source(layer):
    """A layer as the Python that makes it, without the arguments that are PyTorch's defaults."""
    kind = type(layer).__name__
    if kind == "Conv2d":
        words = [layer.in_channels, layer.out_channels, layer.kernel_size[0]]
        given = {"stride": layer.stride[0], "padding": layer.padding[0], "groups": layer.groups}
        defaults = {"stride": 1, "padding": 0, "groups": 1}
        words += [f"{key}={value}" for key, value in given.items() if value != defaults[key]]
    elif kind == "Linear":
        words = [layer.in_features, layer.out_features]
    elif kind == "MaxPool2d":
        words = [layer.kernel_size]
    elif kind == "ZeroPad2d":
        words = [layer.padding[0]]
    else:
        words = [layer.num_features] if kind.startswith("BatchNorm") else []
    if kind in ("Conv2d", "Linear") and layer.bias is None:
        words.append("bias=False")
    return f"nn.{kind}({', '.join(map(str, words))})"


def write_new(path, content):
    """Write a file that `main` found absent, and say so."""
    write_atomically(path, content)
    print(f"{path}: {len(content):,d} bytes")


def main(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)
    files = [path for path in (args.onnx, args.state_dict) if path]
    if bool(files) == args.show_loader:
        parser.error("give --onnx or --state-dict or both, or --show-loader alone")
    if args.verify and not args.onnx:
        parser.error("--verify needs --onnx")
    for path in files:
        if path.exists() or [other.resolve() for other in files].count(path.resolve()) > 1:
            raise cli.UserError(f"{path} is taken; choose another name")

    for flag, names in ((args.onnx, ("onnx", "onnxscript")), (args.verify, ("onnxruntime",))):
        if flag:
            needed(*names)  # before anything is written

    model, state = load_model(args.ckpt)
    if args.verify:
        images, _, _ = load_digits(state["dataset"], args.data_dir, train=False)  # before anything is written
    if args.show_loader:
        print(loader(model, state["args"]["model"]), end="")
    if args.state_dict:
        write_new(args.state_dict, to_state_dict(model))
    if args.onnx:
        content = to_onnx(model)
        write_new(args.onnx, content)
    if args.verify:
        differing, largest = differences(content, model, images)
        print(
            f"{len(images) * ADDENDS:,d} pairs: {differing} answers differ from PyTorch's, "
            f"probabilities by {largest:.1e} at most"
        )
        return int(differing > 0)


if __name__ == "__main__":
    sys.exit(cli.run_script(main))
