"""The published designs: their sizes as stated, and the signs of each fault and of its repair."""

import math

import pytest
import torch

import evaluate
import train
from data import prepare
from model import SUM_ENCODINGS, build_model, to_bits
from studies.published import DESIGNS, FAULTS


def parameters(name):
    return sum(parameter.numel() for parameter in build_model(name).parameters())


def a_batch(size=8, addends=1):
    """Random (image, addend, digit, sum_target)."""
    digit = torch.randint(0, 10, (size,))
    addend = torch.randint(0, 10, (size,) if addends == 1 else (size, addends))
    return torch.randn(size, 1, 28, 28), addend, digit, (digit if addends == 1 else digit.unsqueeze(1)) + addend


def test_sizes_are_those_stated_or_derived():
    assert parameters("shared-softmax-lenet") == parameters("two-softmax-lenet") == 71_573
    assert parameters("argmax-regression") == 100_461
    pooling = build_model("average-pooling")
    assert round(parameters("average-pooling") / 1000, 1) == 17.3
    assert round(sum(p.numel() for p in pooling.encoder.parameters()) / 1000, 1) == 9.9
    assert [sum(p.numel() for p in pooling.trunk[i : i + 2].parameters()) for i in (0, 3)] == [1920, 3720]
    assert build_model("narrow-trunk").trunk[0].in_features == 25


@pytest.mark.parametrize("name", DESIGNS)
def test_every_fault_is_explained_and_can_be_turned_off(name):
    assert set(DESIGNS[name].faults) <= set(FAULTS)
    published, mended = build_model(name), build_model(f"{name}+mended")
    assert published.Batches.args == (DESIGNS[name].faults,) and mended.Batches.args == ((),)
    for chosen in (name, f"{name}+mended", f"{name}+no-nine"):
        assert train.parse_arguments(["--model", chosen])[0].epochs == DESIGNS[name].recipe["epochs"]


def test_softmax_before_cross_entropy_has_a_floor():
    model = build_model("two-softmax-lenet+early-softmax")
    digit, sum_target = torch.arange(10), torch.arange(19)
    perfect_digit, perfect_sum = torch.eye(10), torch.eye(19)  # all probability on the right answer
    assert model.digit_loss(perfect_digit, digit).item() == pytest.approx(math.log(math.e + 9) - 1) == 1.46115
    assert model.sum_loss(perfect_sum, sum_target).item() == pytest.approx(2.0310, abs=1e-4)
    outputs = model(*a_batch()[:2])
    assert all(torch.allclose(output.sum(-1), torch.ones(8)) for output in outputs)
    mended = build_model("two-softmax-lenet+mended")
    assert mended.digit_loss(1000 * perfect_digit, digit).item() == 0


def test_one_softmax_over_both_heads_shares_one_unit():
    model = build_model("shared-softmax-lenet+shared-softmax")
    image, addend, digit, sum_target = a_batch(64)
    digit_outputs, sum_outputs = model(image, addend)
    torch.testing.assert_close(digit_outputs.sum(-1) + sum_outputs.sum(-1), torch.ones(64))
    # the sum loss starts at ln 19 and a whole unit of probability moves it by one at the most
    assert model.sum_loss(sum_outputs, sum_target).item() == pytest.approx(math.log(19), abs=0.01)
    sure = torch.zeros(64, 29).scatter(1, digit.unsqueeze(1), 1.0)  # sure of the digit: nothing is left for the sum
    assert model.sum_loss(sure[:, 10:], sum_target).item() == pytest.approx(math.log(19))


@pytest.mark.parametrize(("fault", "reached"), [("argmax", False), ("mended", True)])
def test_argmax_cuts_the_gradient_of_the_sum(fault, reached):
    model = build_model(f"argmax-regression+{fault}")
    image, addend, _, sum_target = a_batch()
    model.sum_loss(model(image, addend)[1], sum_target).backward()
    gradients = [parameter.grad for parameter in model.encoder.parameters()]
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients) == reached


def test_raw_addend_is_one_input_and_one_hot_ten():
    names = ("argmax-regression+raw-addend", "argmax-regression+mended")
    widths = [build_model(name).adder[0].in_features for name in names]
    assert widths == [2, 11]


@pytest.mark.parametrize(("name", "missed"), [("base+resample", math.exp(-1)), ("base", 0)])
def test_resampling_misses_37_percent_of_the_images(name, missed):
    """Each image holds its own index in two pixels."""
    count = 20_000
    images, index = torch.zeros(count, 1, 28, 28, dtype=torch.uint8), torch.arange(count)
    batches = build_model(name).Batches(images, index, 32)
    seen = torch.cat([digit for _, _, digit, _ in batches.epoch(0)])
    assert len(seen) == count and 1 - len(seen.unique()) / count == pytest.approx(missed, abs=0.01)


@pytest.mark.parametrize("addends_per_image", [1, 3])
@pytest.mark.parametrize(("name", "numbers"), [("tiny+no-nine", 9), ("two-softmax-lenet", 9), ("tiny", 10)])
def test_the_number_nine_is_not_drawn(small, name, numbers, addends_per_image):
    batches = build_model(name).Batches(*small, 64, 0, addends_per_image)
    addends = torch.cat([addend for _, addend, _, _ in batches.epoch(0)])
    assert addends.unique().tolist() == list(range(numbers))


@pytest.mark.parametrize("name", ["two-softmax-lenet", "shared-softmax-lenet", "two-softmax-lenet+mended"])
def test_an_ensemble_applies_the_softmax_once(small, name):
    """The mean of two networks' probabilities, also of those whose outputs are probabilities."""
    models = [build_model(name).eval() for _ in range(2)]
    for model in models:
        for parameter in model.heads.parameters():
            parameter.data *= 30  # sure of their answers, so that a second softmax changes the mean
    image, addend = prepare(small[0][:200]), torch.arange(10).expand(200, 10)
    probabilities = []
    for model in models:
        outputs = model(image, addend)[0]
        probabilities.append(outputs.softmax(-1) if "mended" in name else outputs / outputs.sum(-1, keepdim=True))
        torch.testing.assert_close(model.digit_probabilities(outputs), probabilities[-1])
    digit_predictions, _ = evaluate.predict_pairs(models, small[0][:200])
    assert torch.equal(digit_predictions, (probabilities[0] + probabilities[1]).argmax(-1))


# ---------------------------------------------------------------------------------------------------------------------
# Encodings


def test_bits_are_those_of_the_number():
    assert to_bits(torch.tensor([0, 5, 18]), 5).tolist() == [[0, 0, 0, 0, 0], [1, 0, 1, 0, 0], [0, 1, 0, 0, 1]]


@pytest.mark.parametrize("name", SUM_ENCODINGS)
def test_a_prediction_is_the_most_probable_sum(name):
    encoding = SUM_ENCODINGS[name]()
    output = 8 * torch.randn(2, 50, encoding.width, generator=torch.Generator().manual_seed(1))
    assert torch.equal(encoding.predictions(output), encoding.probabilities(output).argmax(dim=-1))


@pytest.mark.parametrize("name", SUM_ENCODINGS)
def test_a_perfect_output_decodes_to_its_sum_and_costs_nothing(name):
    encoding, sums = SUM_ENCODINGS[name](), torch.arange(19)
    output = {
        "onehot": torch.eye(19) * 100,
        "binary": (to_bits(sums, 5) - 0.5) * 200,
        "scalar": sums.unsqueeze(1).float(),
        "scalar-rmse": sums.unsqueeze(1).float(),
    }[name]
    probabilities = encoding.probabilities(output)
    assert torch.equal(probabilities.argmax(-1), sums)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(19))
    assert encoding.loss(output, sums).item() < 1e-3
    assert encoding.loss(output.flip(0), sums).item() > 1


def test_a_binary_answer_is_a_sum_that_exists():
    # all bits set would be 31; the best sum that exists is 15
    assert SUM_ENCODINGS["binary"]().probabilities(torch.full((1, 5), 3.0)).argmax(-1).item() == 15


def test_a_real_number_beyond_the_sums_is_taken_to_the_nearest():
    output = torch.tensor([[-3.0], [4.4], [4.6], [50.0], [float("nan")]])
    assert SUM_ENCODINGS["scalar"]().probabilities(output).argmax(-1).tolist() == [0, 4, 5, 18, 0]


def test_the_shifted_sum_keeps_the_precision_of_log_softmax(monkeypatch):
    """CUDA's autocast computes log_softmax in float32 and leaves the logits in bfloat16; that of the CPU does not."""
    log_softmax = torch.Tensor.log_softmax
    monkeypatch.setattr(torch.Tensor, "log_softmax", lambda logits, dim: log_softmax(logits.float(), dim))
    model = build_model("tiny", sum_encoding="shift")
    with torch.autocast("cpu", torch.bfloat16):
        digit_logits, sum_logits = model(torch.randn(2, 1, 28, 28), torch.tensor([3, 4]))
    assert digit_logits.dtype == torch.bfloat16 and sum_logits.dtype == torch.float32


def test_the_shifted_sum_is_wrong_only_with_the_digit():
    model = build_model("tiny", sum_encoding="shift").eval()
    image, addend, _, _ = a_batch(50, addends=10)
    addend = torch.arange(10).expand(50, 10)
    digit_logits, sum_logits = model(image, addend)
    assert torch.equal(digit_logits.argmax(-1) + addend, sum_logits.argmax(-1))
    torch.testing.assert_close(digit_logits, digit_logits[:, :1].expand(-1, 10, -1))  # it does not see the addend


@pytest.mark.parametrize("flags", ["--addend-encoding scalar", "--sum-encoding binary", "--sum-encoding shift"])
def test_encodings_train_and_score_from_the_command_line(run, small_flags, small_dir, flags):
    status, out, _ = run(train, *small_flags, *flags.split(), "--epochs", 1)
    assert status == 0
    scored = run(evaluate, "--ckpt", "best.pt", "--data-dir", small_dir)[1]
    assert next(line for line in out.splitlines() if "joint accuracy" in line) in scored


@pytest.mark.parametrize("name", DESIGNS)
def test_designs_train_and_resume_from_the_command_line(run, small_flags, small_dir, name):
    flags = [name if flag == "tiny" else flag for flag in small_flags]
    status, _, err = run(train, *flags, "--epochs", 1)
    assert status == 0, err
    status, _, err = run(train, "--resume", "last.pt", "--device", "cpu", "--data-dir", small_dir)
    assert status == 0, err
