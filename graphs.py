"""The same steps with fewer launches: the network compiled, or the whole step recorded as a CUDA graph.

Both are switched on by flags of `train.py`, and both fall back to the plain way with a word where they are not to be
had. Neither changes the examples; the arithmetic differs by rounding.
"""

import warnings

import torch

import cli

WARM_UP = 3  # steps, so that every kernel and workspace is there before the recording


def cause_of(error):
    """The first line of what an error says, or of the error behind it."""
    error = getattr(error, "inner_exception", None) or error.__context__ or error
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def compile_network(model, batch, precision):
    """`model` through torch.compile, tried on `batch` = (image, addend, ...), for batches of just that size.

    Returns (network, note): `model` itself and why, where it cannot be compiled; the weights are as they were.
    """
    image, addend, *_ = batch
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shape, note = image.shape, None
    model.train()
    try:
        compiled = torch.compile(model, dynamic=False)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            digit_logits, sum_logits = compiled(image, addend)
        (digit_logits.float().sum() + sum_logits.float().sum()).backward()
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # no compiler, or one that fails: of many kinds
        compiled, note = model, f"--compile is not to be had here, going on without: {cause_of(error)}"
    model.zero_grad()
    model.load_state_dict(before)

    def network(image, addend):
        whole = image.shape == shape
        return (compiled if whole else model)(image, addend)  # a smaller last batch is not worth another compilation

    return network, note


class CapturedStep:
    """A training step that is recorded once as a CUDA graph and then replayed: one launch instead of hundreds.

    `step(batch, weight)` takes a tuple of tensors and returns one tensor; it may not wait for the device nor read a
    number that changes, unless from a tensor. It is called as itself the first WARM_UP times, for a batch of another
    shape (the smaller last one) and, after a word, where the recording fails. The result is overwritten by the next
    call. See "CUDA semantics, CUDA Graphs" in PyTorch's documentation; there is one process only, so `weight` is 1.
    """

    def __init__(self, step):
        self.step, self.calls, self.batch, self.result, self.replay = step, 0, None, None, None

    def __call__(self, batch, weight=1):
        if self.calls == 0:
            self.batch = tuple(tensor.clone() for tensor in batch)
        if any(new.shape != old.shape for new, old in zip(batch, self.batch, strict=True)):
            return self.unrecorded(batch, weight)
        self.calls += 1
        if self.calls <= WARM_UP:
            return aside(self.unrecorded, batch)
        for recorded, tensor in zip(self.batch, batch, strict=True):
            recorded.copy_(tensor)
        if self.calls == WARM_UP + 1:
            try:
                self.replay, self.result = record(self.step, self.batch)
            except RuntimeError as error:
                cli.warn(f"--cuda-graph: the step cannot be recorded, going on without: {cause_of(error)}")
        if self.replay is None:
            return self.unrecorded(batch, weight)
        self.replay()
        return self.result

    def unrecorded(self, batch, weight):
        """The step itself."""
        with warnings.catch_warnings():  # the optimiser is made for a recording, and says so
            warnings.filterwarnings("ignore", message=".*capturable")
            return self.step(batch, weight)


def aside(step, batch):
    """One real step on a stream of its own, as a recording wants it before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = step(batch, 1)
    torch.cuda.current_stream().wait_stream(stream)
    return result


def record(step, batch):
    """Record `step` on `batch` without running it; returns (what runs it, its result)."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step(batch, 1)
    return graph.replay, result
