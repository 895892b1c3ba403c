"""The network with fewer kernel launches: through torch.compile, or captured as CUDA graphs.

Both are switched on by flags of `train.py`. Where unavailable, they return the reason and training continues without.
Neither changes the examples; the arithmetic differs by rounding.
"""

import torch
import torch.nn as nn

from support import processes


def choose_network(args, model, batches):
    """(network, notes): what the training loop calls for `model`; notes on requested options that are unavailable."""
    network, notes = processes.data_parallel(model, batches.device), []
    accelerators = {"--compile": compiled} if args.compile else {}
    accelerators |= {"--cuda-graph": captured} if args.cuda_graph else {}
    for flag, accelerator in accelerators.items():
        if processes.world_size() > 1:
            problem = "it is for a single process"
        elif network is not model:
            problem = "it does not combine with --compile"
        else:
            network, problem = accelerate(accelerator, model, next(batches.epoch(0)), args.precision)
        notes += [f"{flag} is unavailable, continuing without: {problem}"] if problem else []
    return network, notes


class Wrapper(nn.Module):
    """Calls `model`; its own `forward` can be replaced without touching the model's, which evaluation uses."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image, addend):
        return self.model(image, addend)


def compiled(model, image, addend):
    """`model` through torch.compile, for these shapes alone."""
    return torch.compile(model, dynamic=False)


def captured(model, image, addend):
    """`model` with its forward and its backward pass as CUDA graphs of these shapes: two launches a step."""
    if image.device.type != "cuda":
        raise RuntimeError("it needs --device cuda")
    # without the cache of weights in bfloat16: the graph would replay with those of its capture
    with torch.autocast("cuda", torch.bfloat16, enabled=torch.is_autocast_enabled("cuda"), cache_enabled=False):
        return torch.cuda.make_graphed_callables(Wrapper(model), (image, addend))


def accelerate(accelerator, model, batch, precision):
    """`model` through `accelerator` (`compiled` or `captured`), tried on `batch` = (image, addend, ...).

    Returns (network, problem). `network` is called as `model` is; a batch of another shape, such as the smaller last
    one, goes through `model` itself. Where the accelerator fails, `network` is `model` and `problem` the cause. The
    trial leaves no trace in the model.
    """
    image, addend, *_ = batch
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    try:
        with torch.autocast(image.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            fast = accelerator(model, image, addend)
            digit_logits, sum_logits = fast(image, addend)
        (digit_logits.float().sum() + sum_logits.float().sum()).backward()
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # no compiler, no CUDA, an operation that cannot be captured: of many kinds
        return restored(model, before), cause_of(error)
    restored(model, before)

    def network(new_image, new_addend):
        return (fast if new_image.shape == image.shape else model)(new_image, new_addend)

    return network, None


def restored(model, weights):
    """`model` with these weights and without gradients."""
    model.zero_grad()
    model.load_state_dict(weights)
    return model


def cause_of(error):
    """The first line of what an error says, or of the error behind it."""
    error = getattr(error, "inner_exception", None) or error.__context__ or error
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
