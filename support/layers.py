"""What a network consists of, found by running it: its layers with shapes and costs, and what leads where."""

from collections import namedtuple

import torch
import torch.nn as nn

Layer = namedtuple("Layer", "name kind shape parameters multiply_adds")


@torch.inference_mode()
def layers_of(model, image, addend):
    """The layers, in the order in which they compute, for an image [1, 1, 28, 28] and an addend [1].

    A list of `Layer`: `shape` is the output's, without the batch; `multiply_adds` are those of one pass in
    convolutions and linear layers. The network is left in the mode, training or not, that it came in.
    """
    found = []

    def note(name):
        def hook(module, inputs, output):
            weight = getattr(module, "weight", None)
            cost = output.numel() * weight[0].numel() if isinstance(module, nn.Conv2d | nn.Linear) else 0
            parameters = sum(parameter.numel() for parameter in module.parameters())
            found.append(Layer(name, kind_of(module), tuple(output.shape[1:]), parameters, cost))

        return hook

    run_with_hooks(model, image, addend, {n: (note(n), None) for n, m in model.named_modules() if not [*m.children()]})
    return found


def kind_of(module):
    """A layer in a word or two."""
    if isinstance(module, nn.Conv2d):
        groups = f", {module.groups} groups" if module.groups > 1 else ""
        stride = f", stride {module.stride[0]}" if module.stride[0] > 1 else ""
        return f"conv {module.kernel_size[0]}×{module.kernel_size[1]}{stride}{groups}"
    if isinstance(module, nn.MaxPool2d):
        return f"max pool {module.kernel_size}×{module.kernel_size}"
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return "batch norm"
    if hasattr(module, "kind"):
        return module.kind
    return {"Linear": "linear", "Flatten": "flatten"}.get(type(module).__name__, type(module).__name__)


def run_with_hooks(model, image, addend, hooks):
    """Call the network in eval mode with {name of a module: (forward hook, forward pre-hook or None)}."""
    modules, mode = dict(model.named_modules()), model.training
    handles = [modules[name].register_forward_hook(after) for name, (after, _) in hooks.items()]
    handles += [modules[name].register_forward_pre_hook(before) for name, (_, before) in hooks.items() if before]
    try:
        return model.eval()(image, addend)
    finally:
        model.train(mode)
        for handle in handles:
            handle.remove()


def table_of(model, name, image, addend):
    """The layers as an aligned text, with their sums and the size of the weights."""
    layers = layers_of(model, image, addend)
    rows = [("layer", "kind", "output", "parameters", "multiply-adds")]
    for layer in layers:
        numbers = (f"{number:,d}" if number else "-" for number in (layer.parameters, layer.multiply_adds))
        rows.append((layer.name, layer.kind, " × ".join(map(str, layer.shape)), *numbers))
    total = sum(parameter.numel() for parameter in model.parameters())
    cost = sum(layer.multiply_adds for layer in layers)
    rows.append(("total", "", "", f"{total:,d}", f"{cost:,d}"))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    aligned = [
        "  ".join(c.ljust(w) if n < 3 else c.rjust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    size = sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6
    return "\n".join(
        [
            f"{name}: one image and one addend; shapes without the batch",
            "",
            *aligned[:-1],
            "-" * len(aligned[0]),
            aligned[-1],
            "",
            f"{size:.3f} MB with the statistics of batch norm; multiply-adds are of convolutions and linear layers",
        ]
    )


def connections(model, image, addend):
    """What leads where, [(source, target), ...], among "image", "addend", the network's children, "digit" and "sum".

    Found in the graph that autograd records, from each child's inputs back to the outputs of others. The addend has no
    gradient: it leads to a part whose inputs change with it although the outputs of all other sources do not.
    """
    children = [name for name, _ in model.named_children()]
    runs = [trace(model, image, torch.full_like(addend, number), children) for number in (0, 1)]
    (sources, inputs, outputs), (_, other_inputs, others) = runs
    found = []
    for target, names in sources.items():
        changed = [name for name in names if name in outputs and not torch.equal(outputs[name], others[name])]
        if not changed and not all(map(torch.equal, inputs[target], other_inputs[target])):
            names = [*names, "addend"]
        found += [(name, target) for name in names]
    return found


def trace(model, image, addend, children):
    """({target: its sources}, {target: its inputs}, {child: its output}) of one pass."""
    made, inputs, outputs = {}, {}, {}

    def before(name):
        return lambda module, arguments: inputs.update({name: arguments})

    def after(name):
        def hook(module, arguments, output):
            marked = output if output.requires_grad else output.detach().requires_grad_()
            marked = marked.clone()  # a node of its own in the graph
            made[marked.grad_fn], outputs[name] = name, marked
            return marked

        return hook

    with torch.enable_grad():
        image = image.clone().requires_grad_().clone()
        made[image.grad_fn] = "image"
        ends = run_with_hooks(model, image, addend, {name: (after(name), before(name)) for name in children})
    inputs |= {"digit": ends[:1], "sum": ends[1:]}
    return {target: origins([t.grad_fn for t in given], made) for target, given in inputs.items()}, inputs, outputs


def origins(nodes, made):
    """Names, in `made`, of the nearest of its nodes at or before these nodes of autograd's graph."""
    found, seen, waiting = [], set(), [node for node in nodes if node is not None]
    while waiting:
        node = waiting.pop()
        if node in made:
            found.append(made[node])
        elif node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions if before is not None]
    return sorted(set(found))
