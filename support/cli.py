"""Command lines: argument types, arguments read from a checkpoint, errors in one line.

A script calls `begin_script(make_parser)` before its slow imports and ends with `sys.exit(run_script(main))`. Exit
status 0: done; 2: a wrong input, one line on stderr says what is wrong and what to do; 1: a comparison that a flag
asked for found a difference; 130: Ctrl-C, 143: SIGTERM.
"""

import argparse
import contextlib
import difflib
import gc
import math
import os
import signal
import sys
from pathlib import Path

DEVICES = ("auto", "cuda", "mps", "cpu")
NO_MEMORY = "not enough memory; use fewer images, or a smaller --batch-size or --model where the script has them"
MEMORY_SIGNS = ("not enough memory", "can't allocate memory", "out of memory")  # in the allocators' messages


class UserError(Exception):
    """Something that the user can correct; the message is one line."""


# ---------------------------------------------------------------------------------------------------------------------
# Scripts


def begin_script(make_parser):
    """Answer `--help` and a mistyped flag, which ends the script; else make its imports faster.

    Collecting garbage among the objects of the imports, which all stay, takes a third of the time of the imports. It is
    off until `run_script`, which then leaves those objects out of it: the collection at the exit takes as long again.
    Measured on predict.py, in CPU seconds: 1.4 with both, 2.2 without the second, 2.3 without either.
    """

    def check(argv):
        make_parser().parse_args(argv)

    if status := run_script(check):
        sys.exit(status)
    gc.disable()


def run_script(main, argv=None):
    """Call `main(argv)` and return the exit status; errors of the user and of the machine become one line on stderr.

    What the encoding of stdout lacks is printed as an escape.
    """
    if hasattr(sys.stdout, "reconfigure"):  # None, or not a file, where a program calls this
        sys.stdout.reconfigure(errors="backslashreplace")
    if not gc.isenabled():  # since `begin_script`
        if "triton" not in sys.modules:  # it reports what is not collected at the exit as leaks
            gc.freeze()
        gc.enable()
    prog = Path(sys.argv[0]).name
    try:
        status = main(argv) or 0
        if sys.stdout:  # None: closed
            sys.stdout.flush()  # what is left in its buffer would fail at the exit, with a traceback
        return status
    except UserError as error:
        message = str(error)
    except OSError as error:
        drop_output()
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except MemoryError:
        message = NO_MEMORY
    except RuntimeError as error:  # torch.OutOfMemoryError among them
        if not any(sign in str(error) for sign in MEMORY_SIGNS):
            raise
        message = NO_MEMORY
    except KeyboardInterrupt as interrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 143 if isinstance(interrupt, Terminated) else 130
    print(f"{prog}: error: {one_line(message)}", file=sys.stderr)
    return 2


def drop_output():
    """Drop what stdout still holds where it cannot be written, so that the exit does not try it again."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does."""


@contextlib.contextmanager
def sigterm_as_interrupt():
    """Raise Terminated on SIGTERM."""

    def terminate(signal_number, frame):
        raise Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def warn(message):
    """One line on stderr: something requested is unavailable, the run continues."""
    print(f"WARNING: {one_line(message)}", file=sys.stderr)


def printable(text):
    """The text with escapes for what is not printable."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def one_line(message):
    """The message on one line of at most 1,000 printable characters: a name from a file may hold anything."""
    text = printable(" ".join(message.split()))
    return text if len(text) <= 1000 else text[:1000] + " ..."


# ---------------------------------------------------------------------------------------------------------------------
# Arguments


class Parser(argparse.ArgumentParser):
    """An argument parser that shows defaults, takes no abbreviations and raises UserError."""

    def __init__(self, description, positional=""):
        script = Path(sys.argv[0])
        prog = f"python -m studies.{script.stem}" if script.parent.name == "studies" else f"python {script.name}"
        super().__init__(
            prog=prog,
            usage=f"{prog} [options]{positional}",
            description=description,
            allow_abbrev=False,
            formatter_class=lambda prog: HelpFormatter(prog, max_help_position=28),
        )

    def parse_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        # Files may stand on both sides of a flag. Not with "--": what follows it would be parsed for flags again.
        parse = self.parse_known_args if "--" in args else self.parse_known_intermixed_args
        parsed, unknown = parse(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            close = difflib.get_close_matches(unknown[0].split("=")[0][:50], flags, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return parsed

    def error(self, message):
        raise UserError(f"{message} (see {self.prog} --help)")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Prints the description unchanged, and the default of each flag that has one."""

    def _get_help_string(self, action):
        if isinstance(action.default, bool | None) or action.default is argparse.SUPPRESS:
            return action.help
        return f"{action.help} (default: {action.default})"

    def _get_default_metavar_for_optional(self, action):
        short = {"whole number": "N", "number": "X"}
        return short.get(getattr(action.type, "__name__", None), super()._get_default_metavar_for_optional(action))


def integer(low, high=2**31 - 1):
    """An argparse type: a whole number from `low` to `high`, by default the largest that every library takes."""

    def parse(text):
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not {span(low, math.inf if value < low else high)}")
        return value

    parse.__name__ = "whole number"
    return parse


def real(low, high=3.4e38, above=False):
    """An argparse type: a number from `low` to `high`, by default about the largest float32; with `above`, greater than
    `low`."""

    def parse(text):
        value = float(text)
        if not low <= value <= high or (above and value == low):
            wanted = f"above {low}" if above and value <= low else span(low, math.inf if value < low else high)
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        return value

    parse.__name__ = "number"
    return parse


def file_name(text):
    """An argparse type: a printable name of a file, without a folder."""
    if not text.isprintable() or not text.strip() or Path(text).name != text or text == ".." or len(text) > 200:
        raise argparse.ArgumentTypeError(f"{text[:200]!r} must be a plain file name of at most 200 characters")
    return text


def output_file(text):
    """An argparse type: the path of a file to write, in a folder that exists; no checkpoint, which would be lost."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no folder {path.parent}")
    if not path.name or (path.exists() and not path.is_file()):  # a folder, or a device, which a rename would replace
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a file")
    if not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text}: {path.parent} cannot be written to")
    with contextlib.suppress(OSError), open(path, "rb") as file:  # where it is there, and may be read
        if file.read(4) == b"PK\x03\x04":
            raise argparse.ArgumentTypeError(f"{text} is a checkpoint or an archive; choose another name")
    return path


def refuse_overwriting(paths, **outputs):
    """Raise UserError where an output, {flag: path, list of paths or None}, is the same file as another or one of
    `paths`, which are read."""
    taken = {os.path.realpath(path): "a file that is read" for path in paths}  # Path.resolve fails on a loop of links
    for flag, written in outputs.items():
        for output in filter(None, written if isinstance(written, list) else [written]):
            if (file := os.path.realpath(output)) in taken:
                raise UserError(f"--{flag} {output} would overwrite {taken[file]}; choose another name")
            taken[file] = f"what --{flag} writes"


def run_names(paths):
    """The names of the runs behind checkpoints NAME-best.pt or NAME.pt. Raises UserError for two of the same name,
    which a table cannot tell apart."""
    names = [Path(path).stem.removesuffix("-best") for path in paths]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two checkpoints have the name {name}; the tables tell them apart by it: rename one")
    return names


def span(low, high):
    """The range in words."""
    return f"at least {low}" if high == math.inf else f"from {low} to {high}"


def flags_of(parser, args, names):
    """The flags that set the arguments `names` to what they are in `args`, as words; defaults are left out."""
    words = []
    for action in parser._actions:
        if action.dest in names and (value := getattr(args, action.dest)) != action.default:
            words += [action.option_strings[0]] if action.nargs == 0 else [action.option_strings[0], str(value)]
    return words


# ---------------------------------------------------------------------------------------------------------------------
# The arguments of a continued run


def continued_arguments(parser, argv, stored, machine, source):
    """The arguments of a run that continues from the file `source`, as a namespace.

    `stored` are the arguments in that file; each is checked as if it had been typed. The names in `machine` (folders,
    the device) are never taken from the file. Flags in `argv` may repeat a stored value. Raises UserError.
    """
    expected = {action.dest for action in parser._actions if action.dest != "help"} - set(machine)
    if not isinstance(stored, dict) or set(stored) != expected:
        raise UserError(f"{source} holds other arguments than this version has; start a new run")
    words = []
    for action in parser._actions:
        value = stored.get(action.dest)
        if action.dest not in expected or (value is False and action.nargs == 0):
            continue
        try:
            if not isinstance(value, bool | int | float | str):
                raise ValueError
            words.append(action.option_strings[0] + ("" if value is True else f"={value}"))
        except ValueError:  # raised by Python too, where an integer is too long to print
            raise UserError(f"{source} holds a damaged argument {action.option_strings[0]}") from None
    try:
        args = parser.parse_args(words)
    except UserError as error:
        raise UserError(f"{source} holds a damaged argument: {error}") from None

    for action in parser._actions:  # leaves the flags that were really typed
        action.default = argparse.SUPPRESS
    for name, value in vars(parser.parse_args(argv)).items():
        was = getattr(args, name)
        if name not in machine and value != was:
            flag = "--" + name.replace("_", "-")
            why = "; the learning-rate schedule spans all epochs of a run" if name in ("epochs", "schedule") else ""
            raise UserError(
                f"{flag} {value} contradicts the run in {source}, which has {was}{why}: leave {flag} out to continue "
                f"that run, or start a new one without --resume"
            )
        setattr(args, name, value)
    return args
