"""The run: what it writes, that it can be stopped and continued to the same bits, that the same seed gives the same."""

import copy
import csv
import re

import pytest
import torch

import evaluate
import train
from conftest import FILES_OF_A_RUN, contents, same
from data import Batches, load_digits, split_indices
from model import ADDEND_ENCODINGS, SIZES, SUM_ENCODINGS, build_model
from studies.published import DESIGNS
from support import cli
from support.checkpoint import load_checkpoint, save_checkpoint
from support.optim import Muon, PolynomialAverage, learning_rate_at, orthogonal
from support.runlog import HEADINGS

HEADING = HEADINGS.splitlines()[-1]


def weights_of(path):
    return load_checkpoint(path)["weights"]


def test_mnist_is_learned_from_the_command_line(run, mnist_dir, monkeypatch):
    """One epoch of the base network on a tenth of the real thing, scored on all 100,000 test pairs."""

    def load_a_tenth(*arguments, **half):
        images, digits, name = load_digits(*arguments, **half)
        return (images[:6000], digits[:6000], name) if half["train"] else (images, digits, name)

    monkeypatch.setattr(train, "load_digits", load_a_tenth)
    flags = f"--epochs 1 --val-size 0 --batch-size 32 --seed 1 --data-dir {mnist_dir} --run-name m"
    status, out, _ = run(train, *flags.split(), "--dataset", "mnist")
    assert status == 0 and "of 100,000 wrong" in out
    assert float(re.search(r"joint accuracy +([\d.]+)", out).group(1)) > 70


def test_a_run_leaves_its_files_and_says_how_to_score(run, small_flags, small_dir, tmp_path):
    status, out, _ = run(train, *small_flags)
    assert status == 0
    assert list(contents(tmp_path)) == FILES_OF_A_RUN
    assert (tmp_path / "logs" / "run.txt").read_text() == out  # the log is what was on the screen
    command = out.splitlines()[-1].removeprefix("score it again: python evaluate.py ").split()
    assert command == ["--ckpt", "logs/run-best.pt", "--data-dir", str(small_dir)]
    joint = re.search(r"synthetic test: joint accuracy .*", out).group()
    assert joint in run(evaluate, *command)[1]


def test_the_log_is_plain_aligned_and_repeatable(trained):
    text = (trained / "logs" / "run.txt").read_text()
    assert "\r" not in text and "\x1b" not in text
    for word in ("command", "commit", "versions", "device", "data set", "arguments", "seed=0", "synthetic", "9,941"):
        assert word in text
    lines = text.splitlines()
    table = lines[lines.index(HEADING) :][:3]
    assert len({len(line) for line in table}) == 1
    rows = list(csv.DictReader((trained / "logs" / "run.csv").open()))
    assert [row["split"] for row in rows] == ["validation", "validation", "test"]
    assert f"{100 * float(rows[0]['joint_accuracy']):.3f}" in table[1]


def test_the_losses_of_validation_and_test_are_in_the_log(trained, small, small_dir):
    """Those of the weights that are scored; a test row has no training loss."""
    rows = list(csv.DictReader((trained / "logs" / "run.csv").open()))
    lines = (trained / "logs" / "run.txt").read_text().splitlines()
    for row, line in zip(rows[:2], lines[lines.index(HEADING) + 1 :], strict=False):
        cells = line.split()
        assert cells[2:4] == [f"{float(row[name]):.4f}" for name in ("digit_loss", "sum_loss")]
        assert cells[6:8] == [f"{float(row[name]):.4f}" for name in ("val_digit_loss", "val_sum_loss")]
    model, _ = evaluate.load_model(trained / "best.pt")
    epoch = load_checkpoint(trained / "best.pt")["epoch"]
    _, validation = split_indices(700, 100)
    test = load_digits("synthetic", small_dir, train=False)
    halves = (rows[epoch - 1], small[0][validation], small[1][validation]), (rows[2], *test[:2])
    for row, images, digits in halves:
        losses = evaluate.mean_losses([model], [evaluate.pair_outputs(model, images)], digits)
        assert float(row["val_digit_loss"]) == pytest.approx(losses["digit_loss"], rel=1e-5)
        assert float(row["val_sum_loss"]) == pytest.approx(losses["sum_loss"], rel=1e-5)
    assert rows[2]["digit_loss"] == rows[2]["sum_loss"] == ""


def test_the_training_accuracies_count_the_pairs_as_each_step_finds_them(run, small, small_flags, tmp_path):
    """With a learning rate that moves nothing they are those of the initial network on the augmented batches."""
    flags = [*small_flags, "--epochs", 1, "--learning-rate", 1e-30, "--batch-size", 64, "--model", "two-branch-lenet"]
    assert run(train, *flags, "--augment", 0.5)[0] == 0
    (row, _) = csv.DictReader((tmp_path / "logs" / "run.csv").open())
    args = load_checkpoint("last.pt")["args"]
    torch.manual_seed(args["seed"])
    model = build_model("two-branch-lenet")
    training, _ = split_indices(700, 100)
    batches = model.Batches(small[0][training], small[1][training], 64, args["seed"], args["addends_per_image"], 0.5)
    right = torch.zeros(2)
    for image, addend, digit, sum_target in batches.epoch(0):  # the last has 24 of the 600 images
        digit_outputs, sum_outputs = model(image, addend)
        digit = digit.view(-1, *[1] * (addend.dim() - 1)).expand(addend.shape)
        right += torch.stack([(digit_outputs.argmax(-1) == digit).sum(), (sum_outputs.argmax(-1) == sum_target).sum()])
    accuracies = [float(row["train_digit_accuracy"]), float(row["train_sum_accuracy"])]
    assert accuracies == pytest.approx((right / 600 / args["addends_per_image"]).tolist(), abs=1e-6)


def test_best_is_the_epoch_with_the_best_validation(trained):
    best, last = load_checkpoint(trained / "best.pt"), load_checkpoint(trained / "last.pt")
    joints = [row["joint_accuracy"] for row in last["history"]]
    assert best["epoch"] == 1 + joints.index(max(joints)) and last["epoch"] == 2
    assert same(best["weights"], last["best"]["weights"])


def test_without_validation_the_last_epoch_is_kept(run, small_flags):
    status, out, _ = run(train, *small_flags, "--val-size", 0)
    assert status == 0 and "scores of epoch 2" in out
    assert same(weights_of("best.pt"), weights_of("last.pt"))


def test_auto_uses_synthetic_digits_with_a_warning(run, small_flags, monkeypatch):
    monkeypatch.setattr("support.mnist.MIRRORS", ("http://127.0.0.1:9/",))
    flags = ["auto" if flag == "synthetic" else flag for flag in small_flags]
    status, out, err = run(train, *flags)
    assert status == 0 and "WARNING" in err and "scores are not MNIST's" in err
    assert "synthetic test: joint" in out and load_checkpoint("best.pt")["dataset"] == "synthetic"
    flags = ["mnist" if flag == "synthetic" else flag for flag in [*small_flags, "--run-name", "other"]]
    status, _, err = run(train, *flags)
    assert status == 2 and "could not be downloaded" in err


def test_bfloat16_is_for_the_forward_pass_of_training_alone(run, small_flags, trained):
    assert run(train, *small_flags, "--precision", "bfloat16")[0] == 0
    state = load_checkpoint("last.pt")
    assert all(value.dtype != torch.bfloat16 for value in state["raw_weights"].values())
    exact = load_checkpoint(trained / "last.pt")
    for ours, other in zip(state["history"], exact["history"], strict=True):
        assert ours["sum_loss"] != other["sum_loss"] and ours["sum_loss"] == pytest.approx(other["sum_loss"], rel=0.02)


@pytest.mark.parametrize(
    "flags",
    [
        *(f"--model {name}" for name in (*SIZES, *DESIGNS)),
        *(f"--model base --sum-encoding {encoding}" for encoding in (*SUM_ENCODINGS, "shift")),
        *(f"--model base --addend-encoding {encoding}" for encoding in ADDEND_ENCODINGS),
    ],
)
def test_every_network_takes_a_step_in_bfloat16(run, small_dir, flags):
    data = ["--dataset", "synthetic", "--data-dir", str(small_dir), "--val-size", "100"]
    status, out, _ = run(train, *flags.split(), *data, "--precision", "bfloat16", "--device", "cpu", "--dry-run")
    assert status == 0 and "one step taken" in out


@pytest.mark.parametrize(("there", "wanted"), [(True, "bfloat16"), (False, "float32"), (None, "float32")])
def test_the_precision_follows_the_processor(monkeypatch, there, wanted):
    """`base` takes bfloat16 where the CPU has instructions for it; `tiny`, designs and a flag's value do not follow."""
    if there is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities")  # a PyTorch that cannot tell
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": there})

    def precision(*words):
        return train.parse_arguments(["--device", "cpu", *words])[0].precision

    assert precision() == wanted
    assert precision("--precision", "float32") == precision("--model", "tiny") == "float32"
    assert precision("--model", "two-branch-lenet") == "float32" and precision("--precision", "bfloat16") == "bfloat16"


def test_a_continued_run_keeps_its_precision_on_another_processor(run, small_flags, stop_after, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    stop_after(1)
    assert run(train, *small_flags, "--model", "base", "--precision", "auto")[0] == 130
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    stop_after(None)
    assert run(train, "--resume", "last.pt", "--data-dir", small_flags[-1], "--device", "cpu")[0] == 0
    assert load_checkpoint("last.pt")["args"]["precision"] == "float32"


def test_a_checkpoint_that_leaves_the_precision_open_trains_as_the_processor_can(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    state = load_checkpoint(trained / "last.pt")
    state["args"]["precision"] = "auto"
    save_checkpoint(state, tmp_path / "last.pt")
    assert train.parse_arguments(["--resume", str(tmp_path / "last.pt"), "--device", "cpu"])[0].precision == "bfloat16"


def test_one_cycle_rises_to_the_peak_and_falls_to_nothing():
    rates = [learning_rate_at(step, 1000, 0.5) for step in range(1000)]
    assert rates.index(max(rates)) == 200 and max(rates) == 0.5
    assert rates[0] == pytest.approx(0.02) and rates[-1] < 1e-5


def test_the_average_follows_the_formula_of_polynomial_decay():
    model = torch.nn.Linear(1, 1, bias=False)
    averaged = PolynomialAverage(model, 3.0)
    expected = None
    for n, value in enumerate((1.0, 2.0, 4.0, 8.0)):
        torch.nn.init.constant_(model.weight, value)
        averaged.update(n)
        weight = (3 + 1) / (n + 3 + 2)  # Shamir and Zhang's (eta + 1) / (t + eta), with t = n + 2
        expected = value if n == 0 else (1 - weight) * expected + weight * value
        assert averaged.module.weight.item() == pytest.approx(expected)


def test_muon_is_pytorchs_own_for_a_matrix_and_adamw_for_a_bias():
    ours = torch.nn.Linear(30, 20)
    theirs = copy.deepcopy(ours)
    options = dict(lr=0.1, weight_decay=1.0)
    optimizers = [
        Muon(ours.parameters(), **options),
        torch.optim.Muon([theirs.weight], adjust_lr_fn="match_rms_adamw", **options),
        torch.optim.AdamW([theirs.bias], **options),
    ]
    for _ in range(3):
        for value, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            value.grad = torch.randn_like(value)
            other.grad = value.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(ours.bias, theirs.bias)
    torch.testing.assert_close(ours.weight, theirs.weight, atol=0.004, rtol=0)  # PyTorch's works in bfloat16


@pytest.mark.parametrize("shape", [(10, 30), (30, 10), (70, 100)])
def test_muons_updates_have_nearly_equal_singular_values(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, shape[1])
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert values.max() < 1.3 and values.median() > 0.6 and not orthogonal(torch.zeros(shape)).any()


def test_muon_moves_convolutions_in_channels_last_as_others():
    layers = [torch.nn.Conv2d(3, 4, 3)]
    layers.append(copy.deepcopy(layers[0]).to(memory_format=torch.channels_last))
    for layer in layers:
        optimizer = Muon(layer.parameters(), lr=0.1, weight_decay=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            layer(torch.ones(2, 3, 5, 5).cumsum(-1)).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(layers[0].weight, layers[1].weight)


# Each changes the weights that the run of `few_flags` ends with. What is not listed has a test of its own.
FLAGS_THAT_ACT = [
    *("--epochs 1", "--seed 1", "--val-size 20", "--addends-per-image 3", "--augment 0", "--model fast"),
    *("--addend-encoding scalar", "--addend-encoding binary", "--addend-encoding embedding"),
    *("--sum-encoding binary", "--sum-encoding scalar", "--sum-encoding scalar-rmse", "--sum-encoding shift"),
    *("--optimizer adamw", "--optimizer adam", "--optimizer sgd", "--optimizer plain-sgd"),
    *("--batch-size 32", "--schedule constant", "--sum-weight 0.5", "--averaging-eta 0", "--averaging-eta 20"),
    *("--learning-rate 0.003", "--lr 0.003", "--weight-decay 1", "--label-smoothing 0", "--digit-weight 0.5"),
    *("--precision bfloat16", "--augment-corruptions 0.5"),
]


@pytest.fixture(scope="module")
def weights_without_flag(few_flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    assert cli.run_script(train.main, [*few_flags, "--out", str(folder)]) == 0
    return weights_of(folder / "last.pt")


@pytest.mark.parametrize("flag", FLAGS_THAT_ACT)
def test_each_flag_changes_the_result(run, few_flags, weights_without_flag, flag):
    assert run(train, *few_flags, *flag.split())[0] == 0
    assert not same(weights_of("last.pt"), weights_without_flag)


def test_every_flag_is_tested_to_act_or_named_here():
    elsewhere = {"deterministic", "run_name", "dataset", *train.NOT_STORED}
    tested = {flag.split()[0] for flag in FLAGS_THAT_ACT}
    flags = {action.dest: action.option_strings for action in train.make_parser()._actions if action.dest != "help"}
    for name, strings in flags.items():
        assert name in elsewhere or tested & set(strings), name


def test_deterministic_asks_torch_for_it(run, small_flags, monkeypatch):
    asked, ask = [], torch.use_deterministic_algorithms

    def record(mode, **options):
        asked.append((mode, torch.backends.cudnn.benchmark))
        ask(mode, **options)

    monkeypatch.setattr(torch, "use_deterministic_algorithms", record)
    assert run(train, *small_flags, "--epochs", 1, "--deterministic")[0] == 0
    assert asked == [(True, False), (False, True)] and not torch.are_deterministic_algorithms_enabled()
    assert run(train, *small_flags, "--epochs", 1, "--run-name", "other")[0] == 0 and torch.backends.cudnn.benchmark
    assert len(asked) == 2  # the call would import a thousand modules


def test_a_run_that_ends_at_chance_says_so_and_names_the_learning_rate(run, small_flags):
    status, out, _ = run(train, *small_flags, "--learning-rate", "3", "--weight-decay", 0)
    assert (
        status == 0
        and "note: the digit and the sum are no better than guessing; --learning-rate 3 may be too high" in out
    )
    status, out, _ = run(train, *small_flags, "--digit-weight", 0, "--run-name", "sum", "--epochs", 1)
    assert "note: the digit" not in out  # it was not to be learned
    assert "\n1 epoch trained in" in out


def test_training_never_waits_for_the_device_within_an_epoch(run, small_flags, monkeypatch):
    """No step reads a value back: reading inside the loop would raise here."""
    batches = Batches.epoch

    def epoch(self, number):
        for batch in batches(self, number):
            with monkeypatch.context() as patch:
                for name in ("item", "tolist", "cpu", "to", "numpy", "__int__", "__float__", "__bool__"):
                    patch.setattr(torch.Tensor, name, lambda *_: pytest.fail("the step read a value back"))
                yield batch

    monkeypatch.setattr(Batches, "epoch", epoch)
    assert run(train, *small_flags, "--epochs", 1)[0] == 0


def test_a_batch_of_one_image_is_refused_before_training(run, small_flags):
    """Batch norm has no statistics of one value; 600 = 599 + 1 would only find out at the epoch's end."""
    for size in (1, 599):
        status, _, err = run(train, *small_flags, "--batch-size", size)
        assert status == 2 and err.count("\n") == 1 and "one image" in err and "batch norm" in err
    # a network without batch norm can take it
    assert run(train, *small_flags, "--epochs", 1, "--model", "two-branch-lenet", "--batch-size", 599)[0] == 0


def test_data_that_do_not_fit_train_the_same_and_the_log_says_so(run, small_flags, trained, monkeypatch):
    monkeypatch.setattr("data.fits", lambda size, device: False)
    status, out, _ = run(train, *small_flags)
    assert status == 0 and re.search("^note .*host memory", out, re.MULTILINE)
    assert same(weights_of("last.pt"), weights_of(trained / "last.pt"))
