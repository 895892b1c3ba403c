"""The sections of the benchmark that run in the process of the benchmark: each takes a Setting and yields rows."""

import functools
import itertools
import math
import statistics
import tempfile

import torch

from data import ADDENDS, load_digits, prepare
from evaluate import predict_pairs
from model import FlattenLast, build_model
from studies import measure, rivals
from studies.changes import changed
from studies.measure import EndTraining, Run, in_turns, make_row, rate, seconds_of
from studies.speed_tables import RIVALS

SEEDS = 10  # of the fast recipe and of the public one
TARGETS = (0.9855, 0.99)  # validation joint accuracy; the first is what average-pooling of studies/published.py states
QUICK_TARGETS = (0.3, 0.5)  # `base` reaches these in a few steps
TURN = 20  # steps
OPERATORS = 9  # of a profile


def usual(setting):
    """Images per second of ours and of the usual DataLoader loop: same network, batch size, optimiser, one addend.

    The usual loop runs in the default memory layout and in channels_last, as ours does. The ratio to the second is the
    gain of our batches alone; between the two usual loops lies the gain of the layout.
    """
    device, count = setting.device, len(setting.training[0])

    def network(memory_format=torch.channels_last):
        return Run("two-branch-lenet+mended", setting.training, device, memory_format, epochs=1)

    def usual_epoch(workers, memory_format):
        run = network(memory_format)
        loader = torch.utils.data.DataLoader(
            rivals.UsualDigits(*setting.training),
            run.args.batch_size,
            shuffle=True,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,  # the warm-up round starts them
        )
        return lambda: rivals.usual_epoch(run.model, run.optimizer, loader, device, memory_format)

    jobs = {"ours": rate(count, network().train, device)}
    layouts = {"default": torch.contiguous_format, "channels_last": torch.channels_last}
    for layout, workers in itertools.product(layouts, (0, 2)):
        epoch = usual_epoch(workers, layouts[layout])
        jobs[f"DataLoader, {workers} workers, {layout} layout"] = rate(count, epoch, device)
    figures = in_turns(jobs, setting.repeats)
    for what in list(jobs)[1:]:
        yield make_row(what, "images/s", figures["ours"], figures[what])


def overhead(setting):
    """An epoch of ours against as many bare steps on one fixed batch: 1.05 means that all the rest takes 5 %.

    The two take turns of a few steps, since the speed of a shared machine changes within an epoch.
    """
    training, device = setting.training, setting.device

    def both(run):
        """Seconds of (an epoch of ours, as many bare steps)."""
        batch, steps = next(run.batches.epoch(0)), len(run.batches)
        whole = len(training[0]) / run.args.batch_size  # steps, the smaller last batch as a fraction
        spent, start = [0.0, 0.0], measure.now(device)

        def after_step(done):
            nonlocal start
            turn = (done - 1) % TURN + 1
            if turn == TURN or done == steps:
                spent[0] += measure.now(device) - start
                bare = seconds_of(lambda: measure.bare_steps(run, batch, turn), device)
                spent[1] += bare if done < steps else bare * (turn - steps + whole) / turn
                start = measure.now(device)

        run.train(after_step)
        return spent

    for name in ("two-branch-lenet+mended", "base"):
        changes = {"plain": dict(augment=0.0, averaging_eta=0.0)}
        if name == "base":
            changes |= {"augmented": dict(averaging_eta=0.0), "averaged": dict(augment=0.0), "with its defaults": {}}
        for what, change in changes.items():
            run = Run(name, training, device, epochs=1, **change)
            both(run)  # warm-up
            ours, bare = zip(*(both(run) for _ in range(setting.repeats)), strict=True)
            yield make_row(f"epoch of {name}, {what}", "s", ours, bare)


def target(setting):
    """Seconds of training until the validation joint accuracy first reaches each target; the test joint accuracy there.

    It is checked every 25 steps, which is not timed.
    """
    targets, every = (QUICK_TARGETS, 10) if setting.quick else (TARGETS, 25)
    device = setting.device
    test = load_digits(setting.dataset, setting.data_dir, train=False)[:2]

    def reach(name, seed):
        run = Run(name, setting.training, device, seed=seed)
        steps = run.args.epochs * len(run.batches)
        reached, seconds, start = [], 0.0, measure.now(device)

        def after_step(done):
            nonlocal seconds, start
            if done % every and done < steps:
                return
            seconds += measure.now(device) - start
            joint = measure.joint_accuracy(run.scored, *setting.validation, device)
            while len(reached) < len(targets) and joint >= 100 * targets[len(reached)]:
                reached.append((seconds, measure.joint_accuracy(run.scored, *test, device)))
            if len(reached) == len(targets):
                raise EndTraining
            start = measure.now(device)

        run.train(after_step)
        return reached

    jobs = {name: functools.partial(reach, name) for name in ("base", "fast")}
    figures = in_turns(jobs, setting.repeats, warm_up=False, seeded=True)
    for name, (index, goal) in itertools.product(jobs, enumerate(targets)):
        there = [reached[index] for reached in figures[name] if len(reached) > index]
        seeds = f", {len(there)} of {setting.repeats} seeds" if len(there) < setting.repeats else ""
        what = f"{name} to {100 * goal:.2f} %"
        yield make_row(f"{what} validation joint{seeds}", "s", [seconds for seconds, _ in there])
        yield make_row(f"{what}, test joint there{seeds}", "%", [joint for _, joint in there])


def scoring(setting):
    """Scored pairs per second: one CNN pass per image, as evaluate.py does it, against one pass per pair."""
    images, _ = setting.first(5000)
    model, device = build_model("base").to(setting.device, memory_format=torch.channels_last), setting.device
    pairs = len(images) * ADDENDS
    jobs = {
        "ours": rate(pairs, lambda: predict_pairs([model], images, device=device), device),
        "rival": rate(pairs, lambda: rivals.predict_pair_by_pair(model, images, device), device),
    }
    figures = in_turns(jobs, setting.repeats)
    yield make_row("one CNN pass per image vs per pair", "pairs/s", figures["ours"], figures["rival"])


def latency(setting):
    """One prediction, from the uint8 image to both answers; and images per second by batch size."""
    model, device = build_model("base").to(setting.device, memory_format=torch.channels_last).eval(), setting.device

    @torch.inference_mode()
    def predict(images):
        outputs = model(prepare(images.to(device)), torch.full((len(images),), 5, device=device))
        return [logits.argmax(-1).tolist() for logits in outputs]

    def milliseconds(count, calls):
        images, _ = setting.first(count)
        return sorted(1000 * seconds_of(lambda: predict(images), device) for _ in range(calls))

    calls = 50 if setting.quick else 10_000
    jobs = {n: functools.partial(milliseconds, n, max(3, calls // n)) for n in (1, 8, 64, 512)}
    figures = in_turns(jobs, setting.repeats)
    for what, percent in (("median", 50), ("95th percentile", 95)):
        times_of_one = [times[len(times) * percent // 100] for times in figures[1]]
        yield make_row(f"one prediction, {what}", "ms", times_of_one)
    for n, rounds in figures.items():
        rates = [1000 * len(setting.first(n)[0]) / statistics.mean(times) for times in rounds]
        yield make_row(f"predictions, {n} at a time", "images/s", rates)


def options(setting):
    """Seconds of an epoch of `base` with one option changed, against the defaults: below 1, the change is faster."""
    device, default = setting.device, torch.get_num_threads()
    training = setting.first(12_800)

    def job(**changes):
        run = Run("base", training, device, epochs=1, **changes)
        return None if run.notes else run.seconds

    def with_one_thread(seconds):
        torch.set_num_threads(1)
        taken = seconds()
        torch.set_num_threads(default)
        return taken

    choices = {
        "without channels_last": job(memory_format=torch.contiguous_format),
        "with float32": job(precision="float32"),
        "with bfloat16": job(precision="bfloat16"),
        "without the fused optimiser": job(fused=False),
        "with 1 thread": functools.partial(with_one_thread, job()),
        "without augmentation": job(augment=0.0),
        "without averaging of the weights": job(averaging_eta=0.0),
        "with 1 addend per image": job(addends_per_image=1),
        "with nothing changed": job(),  # shows the noise
        "with torch.compile, compiled before": None if setting.quick else job(compile=True),
        "with CUDA graphs": job(cuda_graph=True),
    }
    choices = {what: seconds for what, seconds in choices.items() if seconds}  # those available
    figures = in_turns({"default": job(), **choices}, setting.repeats)
    for what in choices:
        yield make_row(what, "s", figures[what], figures["default"])


def profile(setting):
    """Shares of the operators in the time of an epoch of `base` and of `fast`, by torch.profiler, the largest first."""
    device = setting.device
    training = setting.first(12_800)
    activity = torch.profiler.ProfilerActivity
    for name in ("base", "fast"):
        run = Run(name, training, device, epochs=1)
        run.train()  # warm-up
        activities = [activity.CPU] + ([activity.CUDA] if device.type == "cuda" else [])
        with torch.profiler.profile(activities=activities) as profiler:
            run.train()
        own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
        spent = {event.key: getattr(event, own) for event in profiler.key_averages()}
        total = sum(spent.values())
        largest = sorted(spent, key=spent.get, reverse=True)[:OPERATORS]
        for operator in largest:
            label = operator.removeprefix("aten::").removeprefix("autograd::engine::evaluate_function: ")
            yield make_row(f"{name}: {label}", "%", [100 * spent[operator] / total])
        rest = total - sum(spent[operator] for operator in largest)
        yield make_row(f"{name}: {len(spent) - OPERATORS} others together", "%", [100 * rest / total])


def growth(setting):
    """Seconds of an epoch of `base` as the work grows, against the smallest; and the growth exponents.

    An exponent x means that from one size to the next time grows as size ** x; 1 is in proportion. The images are
    repeated, the augmentation makes them differ. Of 16 times the images, all draws and a sixteenth of the steps are
    timed and the other steps taken in proportion.
    """
    (images, digits), device = setting.first(640 if setting.quick else 12_800), setting.device

    def job(times=1, name="base", folder=None, **changes):
        file = measure.write_images(images, times, folder) if folder else None
        repeated = measure.map_images(file) if folder else images.repeat(times, 1, 1, 1)
        run = Run(name, (repeated, digits.repeat(times)), device, epochs=1, **changes)

        def seconds():
            if times < 16:
                return run.seconds()
            counted, marks = len(run.batches) // times, [measure.now(device)]

            def after_step(done):
                if done in (1, 1 + counted):
                    marks.append(measure.now(device))
                if done > counted:
                    raise EndTraining

            run.train(after_step)
            begun, first, last = marks
            return first - begun + (last - first) * (len(run.batches) - 1) / counted

        return seconds

    def size_of(label):
        return label if isinstance(label, int) else sum(value.numel() for value in build_model(label).parameters())

    studies = {
        "images": ("{} x the images", {times: job(times) for times in (1, 4, 16)}),
        "addends": ("{} of 10 addends per image", {k: job(addends_per_image=k) for k in (1, 2, 5, 10)}),
        "parameters": ("size {}", {name: job(name=name) for name in ("tiny", "base", "large")}),
    }
    for what, (words, study) in studies.items():
        figures = in_turns(study, min(setting.repeats, 3), not setting.quick)
        first = figures[next(iter(study))]
        for label in study:
            yield make_row(f"epoch, {words.format(label)}", "s", figures[label], first)
        for small, large in itertools.pairwise(study):
            span = math.log(size_of(large) / size_of(small))
            exponents = [math.log(b / a) / span for a, b in zip(figures[small], figures[large], strict=True)]
            yield make_row(f"growth exponent in {what}, {small} to {large}", "", exponents)
    with tempfile.TemporaryDirectory() as folder:
        places = {"mapped": job(16, folder=folder), "in memory": job(16)}
        figures = in_turns(places, min(setting.repeats, 3), not setting.quick)
        yield make_row("epoch, 16 x the images, mapped from disk vs in memory", "s", *figures.values())


def rival(setting):
    """Our fast recipe against the fastest public one, from the first step to the last, on all training images.

    The public recipe as published, in our memory layout, in bfloat16 too, and without the copies of flattening in that
    layout; against the last two also ours on whole images, not cropped. The public one answers with
    the digit only: the row "joint vs its test digit" compares accuracies of different tasks, both in %.
    """
    device = setting.device
    images, digits, _ = load_digits(setting.dataset, setting.data_dir, train=True)
    training = setting.training if setting.quick else (images, digits)
    test = load_digits(setting.dataset, setting.data_dir, train=False)[:2]

    def ours(seed, **network):
        with changed("fast", dict(network=network)):
            run = Run("fast", training, device, seed=seed)
            seconds = run.seconds()
        return seconds, measure.joint_accuracy(run.scored, *test, device)

    def theirs(seed, **options):
        recipe = rivals.FastestPublicRecipe(*training, device, seed=seed, **options)
        return seconds_of(recipe.train, device), 100 * recipe.accuracy(*test)

    layout = dict(memory_format=torch.channels_last)
    tuned = layout | dict(bfloat16=True)
    options = dict(zip(RIVALS, ({}, layout, tuned, tuned | dict(flatten=FlattenLast)), strict=True))
    jobs = {"ours": ours, "whole images": functools.partial(ours, crop=0)}
    jobs |= {name: functools.partial(theirs, **changes) for name, changes in options.items()}
    repeats = setting.repeats if setting.quick else max(SEEDS, setting.repeats)
    seconds, accuracy = {}, {}
    for name, pairs in in_turns(jobs, repeats, seeded=True).items():
        seconds[name], accuracy[name] = zip(*pairs, strict=True)
    for name in options:
        yield make_row(f"training vs public recipe, {name}", "s", seconds["ours"], seconds[name])
        what = f"joint vs its test digit, {name}"
        yield make_row(what, "%", accuracy["ours"], accuracy[name], middle=statistics.mean)
    for name in list(options)[2:]:
        yield make_row(f"training on whole images vs {name}", "s", seconds["whole images"], seconds[name])
        what = f"joint on whole images vs {name}"
        yield make_row(what, "%", accuracy["whole images"], accuracy[name], middle=statistics.mean)
