"""What the scripts' command lines share: argument types, the choice of the device, errors in one line.

A script ends with `sys.exit(run_script(main))`. Exit status 0: done; 2: a wrong input, one line on stderr says what is
wrong and what to do; 1: `reproduce.py --check` found a difference; 130: Ctrl-C, 143: SIGTERM.
"""

import argparse
import math
import sys
from pathlib import Path

import torch

from checkpoint import CheckpointError
from data import DataError

NO_MEMORY = "not enough memory for the data and the network; a smaller --batch-size or --model needs less"
DEVICES = ("auto", "cuda", "mps", "cpu")


class UserError(Exception):
    """Something that the user can mend; the message is one line."""


class Parser(argparse.ArgumentParser):
    """An argument parser that shows defaults, takes no abbreviations and complains in one line."""

    def __init__(self, description):
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=lambda prog: HelpFormatter(prog, max_help_position=36, width=120),
        )

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (see python {self.prog} --help)\n")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """The description as it is written; the default behind each flag that has one."""

    def _get_help_string(self, action):
        if isinstance(action.default, bool | None) or action.default is argparse.SUPPRESS:
            return action.help
        default = " ".join(action.default) if isinstance(action.default, list) else action.default
        return f"{action.help} (default: {default})"


def run_script(main, argv=None):
    """Call `main(argv)` and return the exit status; errors of the user and of the machine become one line on stderr."""
    prog = Path(sys.argv[0]).name
    try:
        return main(argv) or 0
    except (UserError, DataError, CheckpointError) as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except (MemoryError, torch.OutOfMemoryError):
        message = NO_MEMORY
    except RuntimeError as error:
        signs = ("not enough memory", "can't allocate memory", "out of memory")  # of the CPU's and MPS's allocators
        if not any(sign in str(error) for sign in signs):
            raise
        message = NO_MEMORY
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    print(f"{prog}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def warn(message):
    """One line on stderr about what is not as it was asked for."""
    print(f"WARNING: {message}", file=sys.stderr)


def integer(low, high=2**31 - 1):
    """An argparse type: a whole number from `low` to `high`, by default the largest that every library takes."""

    def parse(text):
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not {span(low, high)}")
        return value

    parse.__name__ = "whole number"
    return parse


def real(low, high=math.inf, above=False):
    """An argparse type: a finite number from `low` to `high`; with `above`, greater than `low`."""

    def parse(text):
        value = float(text)
        if not math.isfinite(value) or value < low or value > high or (above and value == low):
            raise argparse.ArgumentTypeError(f"{text} is not {'above ' + str(low) if above else span(low, high)}")
        return value

    parse.__name__ = "number"
    return parse


def span(low, high):
    """The range in words."""
    return f"at least {low}" if high == math.inf else f"from {low} to {high}"


def choose_device(name):
    """The torch.device for `--device`; auto takes CUDA, then MPS, then the CPU. Raises UserError if it is absent."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in there if there[kind])
    if not there[name]:
        raise UserError(
            f"--device {name}: this machine or this build of PyTorch has no {name.upper()}; try --device auto"
        )
    return torch.device(name)
