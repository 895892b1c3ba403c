"""Training in several processes, on one machine or many, as `torchrun` starts them.

    torchrun --nproc-per-node 2 train.py --device cpu

Each process has the whole data set and takes its part of every batch; PyTorch's DistributedDataParallel averages the
gradients, over gloo on the CPU and nccl on CUDA. Without torchrun there is one process, of rank 0, and the functions
here change nothing.
"""

import contextlib
import datetime
import os

import torch
import torch.distributed as dist

TIMEOUT = datetime.timedelta(hours=1)  # process 0 may have to download the data first


def rank():
    """Number of this process, from 0. Process 0 alone prints and writes."""
    return int(os.environ.get("RANK", 0)) if world_size() > 1 else 0


def world_size():
    """Number of processes of the job."""
    text = os.environ.get("WORLD_SIZE", "")
    return max(1, int(text)) if text.isdecimal() else 1


def launcher():
    """The word or words that start a script in so many processes, on so many machines."""
    if world_size() == 1:
        return "python"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    machines = f"--nnodes {world_size() // here} " if here < world_size() else ""
    return f"torchrun {machines}--nproc-per-node {here}"


@contextlib.contextmanager
def process_group(device):
    """Join the job's other processes; yields the device of this process: its own where there are several GPUs."""
    if world_size() == 1:
        yield device
        return
    if device.type not in ("cpu", "cuda"):
        raise ConnectionError(f"several processes cannot train on {device.type}; choose --device cpu or cuda")
    if device.type == "cuda":
        local_rank = int(os.environ.get("LOCAL_RANK", 0))  # torchrun sets it; others start a process on each machine
        if local_rank >= torch.cuda.device_count():
            raise ConnectionError(f"process {rank()} has no GPU of its own; use a smaller --nproc-per-node")
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    elif os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"] and os.path.exists("/sys/class/net/lo"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo looks the machine's own name up, often in vain
    try:
        try:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        except ValueError as error:
            raise ConnectionError(
                f"WORLD_SIZE asks for {world_size()} processes, but other variables of torchrun are missing or wrong "
                f"({error}); unset it, or start with torchrun"
            ) from None
        yield device
    except RuntimeError as error:
        if "gloo" not in str(error).lower() and not isinstance(error, dist.DistError):
            raise
        message = f"process {rank()} of {world_size()} lost its connection to the others; see their messages"
        raise ConnectionError(message) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def broadcast(value):
    """The `value` of process 0, in every process; the others wait for it."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def sync_batch_norm(model, device):
    """`model` with batch norm over all processes on CUDA; on the CPU each process normalises its own part."""
    if world_size() == 1 or device.type != "cuda":
        return model
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)


def data_parallel(model, device):
    """The network to call in the loop, with gradients averaged over the processes; `model` itself in a single one."""
    if world_size() == 1:
        return model
    return torch.nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def mean(values, weights):
    """The mean of `values` [n, ...] over the processes, with the `weights` [n] of this one."""
    if world_size() == 1:
        return values
    values = values * (torch.tensor(weights, device=values.device) / world_size()).unsqueeze(1)
    dist.all_reduce(values)
    return values


def broadcast_buffers(model):
    """Give every process the batch norm statistics of process 0, so that all score the same network."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def all_gather(parts):
    """Merge tensors [n, ...] over the rows rank, rank + world_size, ... into whole ones, in every process."""
    if world_size() == 1:
        return parts
    gathered = [None] * world_size()
    dist.all_gather_object(gathered, parts)
    count = sum(len(theirs[0]) for theirs in gathered)
    whole = [torch.empty(count, *part.shape[1:], dtype=part.dtype) for part in parts]
    for start, theirs in enumerate(gathered):
        for target, part in zip(whole, theirs, strict=True):
            target[start :: world_size()] = part
    return whole
