"""The device that a run computes on, and how exactly."""

import os
import platform
from pathlib import Path

import torch

from support.cli import UserError


def choose_device(name):
    """The torch.device for `--device`; auto takes CUDA, then MPS, then the CPU. Raises UserError if it is absent.

    On CUDA, float32 means float32: convolutions do not round to TF32, which is PyTorch's default there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in there if there[kind])
    if not there[name]:
        raise UserError(
            f"--device {name}: this machine or this build of PyTorch has no {name.upper()}; try --device auto"
        )
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(name)


def set_deterministic(deterministic, device):
    """Let cuDNN choose its algorithms by speed, since the shapes are fixed, or by determinism."""
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    if deterministic != torch.are_deterministic_algorithms_enabled():  # a call imports much of PyTorch: a second
        torch.use_deterministic_algorithms(deterministic, warn_only=device.type == "mps")  # which lacks some


def choose_precision(name, device):
    """ "float32" or "bfloat16" for `--precision`; auto takes bfloat16 on an x86 CPU with instructions for it.

    Elsewhere the gain has not been measured. It is settled before a run, which keeps it when it continues.
    """
    instructions = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch 2.11 may lack it
    there = any(instructions.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return name if name != "auto" else "bfloat16" if device.type == "cpu" and there else "float32"


def describe_device(device, processes):
    """The device in a line: its kind, its name, the threads or the processes."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    threads = "" if device.type == "cuda" else f", {count(torch.get_num_threads(), 'thread')}"
    return f"{device.type}: {name}{threads}{f', {processes} processes' if processes > 1 else ''}"


def processor():
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def count(number, noun):
    """1 epoch, 2 epochs."""
    return f"{number:,d} {noun}{'' if number == 1 else 's'}"
