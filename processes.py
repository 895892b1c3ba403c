"""Training in several processes, on one machine or many, as `torchrun` starts them.

    torchrun --nproc-per-node 2 train.py --device cpu

Each process has the whole data set and takes its share of every batch; the gradients are averaged by PyTorch's
DistributedDataParallel, over gloo on the CPU and nccl on CUDA. Without torchrun there is one process, of rank 0, and
the functions here do nothing.
"""

import contextlib
import datetime
import os

import torch
import torch.distributed as dist

PATIENCE = datetime.timedelta(hours=1)  # of processes that wait for process 0, which may have to download the data


def rank():
    """Number of this process, from 0. Process 0 alone prints and writes."""
    return int(os.environ.get("RANK", 0))


def world():
    """Number of processes of the job."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextlib.contextmanager
def joined(device):
    """Join the job's other processes; yields the device of this one: of several CUDA devices its own."""
    if world() == 1:
        yield device
        return
    if device.type == "cuda":
        if int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count():
            raise ConnectionError(f"process {rank()} has no GPU of its own; a smaller --nproc-per-node fits")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    elif os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"] and os.path.exists("/sys/class/net/lo"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo looks the machine's own name up, often in vain
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        yield device
    except RuntimeError as error:
        if "gloo" not in str(error).lower() and not isinstance(error, dist.DistError):
            raise
        raise ConnectionError(f"process {rank()} of {world()} lost the others; see their messages") from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def told_by_first(value):
    """The `value` of process 0, in every process; the others wait for it."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def share(model, device):
    """The network to call in the loop, with gradients averaged over the processes; `model` itself in a single one."""
    if world() == 1:
        return model
    return torch.nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def synchronise_batch_norm(model, device):
    """`model` with batch norm over all processes on CUDA; elsewhere as it is, each process normalising its share."""
    if world() == 1 or device.type != "cuda":
        return model
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)


def add_up(tensor):
    """The sum of `tensor` over the processes, in place."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def take_buffers_of_first(model):
    """Give every process the batch norm statistics of process 0, so that all score the same network."""
    if world() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def interleave(parts):
    """Put (digit, sum) predictions of images rank, rank + world, ... back in order, in every process."""
    if world() == 1:
        return parts
    gathered = [None] * world()
    dist.all_gather_object(gathered, parts)
    count = sum(len(digit_predictions) for digit_predictions, _ in gathered)
    whole = [torch.empty(count, part.shape[1], dtype=part.dtype) for part in parts]
    for start, theirs in enumerate(gathered):
        for target, part in zip(whole, theirs, strict=True):
            target[start :: world()] = part
    return whole
