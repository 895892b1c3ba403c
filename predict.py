"""Your own image and a number: which digit it shows, and the sum of the two.

    python predict.py --image seven.png --number 5
    python predict.py --image photo.jpg --split --json
    cat seven.png | python predict.py --image - --number 5

Without --number one is drawn at random. The image may be a photo or a
drawing, of any size, dark on light or light on dark; it is brought to MNIST's
form, and what the network then saw is drawn in the terminal, above

    seven.png: digit 7 (91.4 %), plus 5: sum 12 (91.1 %)
"""

import json
import random
import sys
from pathlib import Path

from support import cli


def make_parser():
    parser = cli.Parser(__doc__, " [IMAGE ...]")
    add = parser.add_argument
    add("files", nargs="*", metavar="IMAGE", help="the same as --image")
    add("--image", nargs="+", metavar="FILE", help="images, folders of images, - for standard input")
    add("--number", type=cli.integer(0, 9), help="what to add (default: drawn at random for each digit)")
    add("--split", action="store_true", help="read several digits in an image, from left to right")
    add("--ckpt", metavar="FILE", help="checkpoint (default: best.pt, else the committed logs/tiny.pt)")
    add("--json", action="store_true", help="print JSON, with all probabilities and the network's input")
    add("--save-input", type=cli.output_file, metavar="FILE", help="write the network's input, 28 x 28 pixels, as PNG")
    return parser


if __name__ == "__main__":
    cli.begin_script(make_parser)  # answers --help and a mistyped flag before PyTorch is imported, which takes seconds

import numpy as np
import torch
from tqdm import tqdm

from data import ADDENDS, prepare
from evaluate import consistent_answers, load_model
from support.files import write_atomically
from support.images import ImageError, image_files, name_of, png, read_digits

TINY = Path(__file__).resolve().parent / "logs" / "tiny.pt"  # comes with the scripts
BATCH = 500  # digits that are answered at a time
BLOCKS = " ▀▄█"  # neither, the upper, the lower, both of two pixels
GREYS = " .:-=+*#%@"


def read_all(paths, split):
    """(path, digit) of each digit in each picture, digits uint8 [28, 28], and a line for each unusable picture."""
    found, problems = [], []
    for path in tqdm(paths, unit="image", delay=2, leave=False, disable=None):
        try:
            found += [(path, digit) for digit in read_digits(path, split)]
        except ImageError as error:
            problems.append(str(error))
    return found, problems


@torch.inference_mode()
def answer(model, digits, numbers):
    """Probabilities of the digits and the sums, [N, 10] and [N, 19] float32, for digits [N] of uint8 [28, 28]."""
    found = []
    for start in range(0, len(digits), BATCH):
        image = prepare(torch.from_numpy(np.stack(digits[start : start + BATCH])).unsqueeze(1))
        digit_logits, sum_logits = model(image, torch.tensor(numbers[start : start + BATCH]))
        found.append((model.digit_probabilities(digit_logits), model.sum_probabilities(sum_logits)))
    return tuple(map(torch.cat, zip(*found, strict=True)))


def picture(digit, encoding):
    """A digit uint8 [28, 28] as text: two pixels a character where the `encoding` has half blocks, else ASCII."""
    try:
        BLOCKS.encode(encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return "\n".join("".join(2 * GREYS[int(grey) * len(GREYS) // 256] for grey in row).rstrip() for row in digit)
    inked = (digit >= 96).astype(int)
    return "\n".join("".join(BLOCKS[k] for k in row).rstrip() for row in inked[::2] + 2 * inked[1::2])


def record(path, digit, number, digit_probabilities, sum_probabilities):
    """One answer as plain values, for `--json`."""
    digit_answer, sum_answer = int(digit_probabilities.argmax()), int(sum_probabilities.argmax())
    consistent_digit, consistent_sum = consistent_answers(digit_probabilities, sum_probabilities, torch.tensor(number))
    return {
        "image": str(path),
        "number": number,
        "digit": digit_answer,
        "digit_probability": float(digit_probabilities[digit_answer]),
        "sum": sum_answer,
        "sum_probability": float(sum_probabilities[sum_answer]),
        "consistent_digit": int(consistent_digit),
        "consistent_sum": int(consistent_sum),
        "digit_probabilities": digit_probabilities.tolist(),
        "sum_probabilities": sum_probabilities.tolist(),
        "input": digit.tolist(),
    }


def in_words(entry):
    """One answer as a line."""
    name = cli.one_line(str(name_of(entry["image"])))
    line = (
        f"{name}: digit {entry['digit']} ({100 * entry['digit_probability']:.1f} %), "
        f"plus {entry['number']}: sum {entry['sum']} ({100 * entry['sum_probability']:.1f} %)"
    )
    if entry["digit"] + entry["number"] != entry["sum"]:
        line += "; the two answers disagree, the most probable that agree are "
        line += f"{entry['consistent_digit']} and {entry['consistent_sum']}"
    return line


def main(argv=None):
    args = make_parser().parse_args(argv)
    given = [*args.files, *(args.image or [])]
    if not given:
        raise cli.UserError("no image given; run python predict.py --image FILE --number 5")
    if given.count("-") > 1:
        raise cli.UserError("standard input (-) can be read once")
    stray = next((name for name in given if len(name) == 1 and name.isdigit() and not Path(name).exists()), None)
    if stray:
        raise cli.UserError(f"there is no image {stray}; did you mean --number {stray}?")
    ckpt = args.ckpt
    if ckpt is None:
        ckpt = "best.pt" if Path("best.pt").exists() or not TINY.exists() else TINY
    paths = [path for name in given for path in image_files(name)]
    if args.save_input:
        if args.save_input.suffix.lower() != ".png":
            raise cli.UserError(f"--save-input {args.save_input} is written as PNG; let its name end in .png")
        cli.refuse_overwriting([*paths, ckpt], **{"save-input": args.save_input})
    model, state = load_model(ckpt)
    found, problems = read_all(paths, args.split)
    if args.save_input and len(found) > 1:
        raise cli.UserError(f"--save-input holds one digit, and these are {len(found)}")

    numbers = [random.randrange(ADDENDS) if args.number is None else args.number for _ in found]
    probabilities = answer(model, [digit for _, digit in found], numbers) if found else ([], [])
    if found and not all(part.isfinite().all() for part in probabilities):
        raise cli.UserError(f"{ckpt}: its answers are not finite numbers; train again")
    entries = [record(path, digit, *rest) for (path, digit), *rest in zip(found, numbers, *probabilities, strict=True)]
    if args.save_input and found:
        write_atomically(args.save_input, png(found[0][1]))
    if args.json:
        print(json.dumps(entries, indent=1))
    elif entries:
        print(f"network: {state['args']['model']}, {cli.one_line(str(ckpt))}")
        show(entries, drawn=args.number is None)
    for problem in problems[:-1]:
        print(f"{Path(sys.argv[0]).name}: error: {cli.one_line(problem)}", file=sys.stderr)
    if problems:
        raise cli.UserError(problems[-1])


def show(entries, drawn):
    """Print the pictures and the answers; `drawn`: the numbers were drawn at random."""
    encoding = getattr(sys.stdout, "encoding", None)  # None: stdout is closed
    for entry in entries:
        print(picture(np.array(entry["input"]), encoding))
        print(in_words(entry) + (f" ({entry['number']} was drawn at random)" if drawn else ""))


if __name__ == "__main__":
    sys.exit(cli.run_script(main))
