"""The network with fewer kernel launches: through torch.compile, or captured as CUDA graphs.

Both are switched on by flags of `train.py`. Where unavailable, they return the reason and training continues without.
Neither changes the examples; the arithmetic differs by rounding.
"""

import copy

import torch

from support import processes
from support.cli import UserError, one_line


def choose_network(args, model, batches):
    """(network, notes): what the training loop calls for `model`; notes on requested options that are unavailable.

    Raises UserError for shift with embedding: no loss reaches the embedding, so the run could not be resumed.
    """
    if args.sum_encoding == "shift" and args.addend_encoding == "embedding":
        raise UserError("--sum-encoding shift shows the network no addend to embed; leave --addend-encoding out")
    network, notes = processes.data_parallel(model, batches.device), []
    for flag, requested in (("--compile", args.compile), ("--cuda-graph", args.cuda_graph)):
        if not requested:
            continue
        if processes.world_size() > 1:
            problem = "it is for a single process"
        elif network is not model:
            problem = "it does not combine with --compile"
        else:
            network, problem = accelerate(flag, model, next(batches.epoch(0)), args.precision)
        if problem:
            notes.append(f"{flag} is unavailable, continuing without: {problem}")
    return network, notes


def accelerate(flag, model, batch, precision):
    """`model` as --compile or --cuda-graph wants it, tried on `batch` = (image, addend, ...).

    Returns (network, problem). `network` is called as `model` is; a batch of another shape, such as the smaller last
    one, goes through `model` itself. Where it fails, `network` is `model` and `problem` the first line of the cause.
    The trial leaves no trace in the model.
    """
    image, addend, *_ = batch
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    problem = None
    try:
        with torch.autocast(image.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            fast = torch.compile(model, dynamic=False) if flag == "--compile" else captured(model, image, addend)
            digit_logits, sum_logits = fast(image, addend)
        (digit_logits.float().sum() + sum_logits.float().sum()).backward()
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # no compiler, no CUDA, an operation that cannot be captured: of many kinds
        cause = getattr(error, "inner_exception", None) or error.__context__ or error
        problem = one_line(next(iter(str(cause).strip().splitlines()), type(cause).__name__))
    model.zero_grad()
    model.load_state_dict(before)

    def network(new_image, new_addend):
        return (fast if new_image.shape == image.shape else model)(new_image, new_addend)

    return (model, problem) if problem else (network, None)


def captured(model, image, addend):
    """`model` with its forward and its backward pass as CUDA graphs of these shapes: two launches a step."""
    if image.device.type != "cuda":
        raise RuntimeError("it needs --device cuda")
    twin = copy.copy(model)  # has the same tensors; its forward is replaced, and not the model's, which evaluation uses
    # without the cache of weights in bfloat16: the graph would replay with those of its capture
    with torch.autocast("cuda", torch.bfloat16, enabled=torch.is_autocast_enabled("cuda"), cache_enabled=False):
        return torch.cuda.make_graphed_callables(twin, (image, addend))
