"""The figure of a network: its parts as boxes, with the layers in them, and arrows from each part to those it feeds."""

import torch

from support import figures
from support.layers import connections, layers_of


def draw_architecture(model, name, theme):
    """The parts of the network as boxes with their layers, from left to right in the order in which they depend."""
    inputs = torch.zeros(1, 1, 28, 28), torch.zeros(1, dtype=torch.int64)
    links, layers = connections(model, *inputs), layers_of(model, *inputs)
    boxes = {"image": ["1×28×28"], "addend": ["0 to 9"]}
    for layer in layers:
        numbers = f"{layer.parameters:,d}" if layer.parameters else ""
        shape = "×".join(map(str, layer.shape))
        boxes.setdefault(layer.name.split(".")[0], []).append((layer.kind, shape, numbers))
    for part, output in zip(("digit", "sum"), model.eval()(*inputs), strict=True):
        boxes[part] = [f"{output.shape[-1]} logits" if output.shape[-1] > 1 else "a number"]
    boxes = {part: aligned(lines) for part, lines in boxes.items() if any(part in link for link in links)}
    depths = {}
    for part in boxes:  # in the order in which they compute
        depths[part] = max([depths[source] + 1 for source, target in links if target == part], default=0)
    return arrange(boxes, depths, links, name, sum(layer.parameters for layer in layers), theme)


def aligned(lines):
    """Lines of a box: columns of kind, shape and parameters padded to their width."""
    if isinstance(lines[0], str):
        return lines
    kind, shape, numbers = (max(map(len, column)) for column in zip(*lines, strict=True))
    return [f"{a:{kind}s} {b:>{shape}s} {c:>{numbers}s}".rstrip() for a, b, c in lines]


def arrange(boxes, depths, links, name, parameters, theme):
    """Draw the boxes in columns by depth, and an arrow for each link."""
    columns = [[part for part in boxes if depths[part] == depth] for depth in range(max(depths.values()) + 1)]
    widths = [max(len(line) for part in column for line in [part, *boxes[part]]) + 2 for column in columns]
    gap = 4  # characters between columns
    total = sum(widths) + gap * (len(columns) - 1)
    size = min(10, 0.97 * 72 * figures.WIDTH / (total + 1) / 0.602)  # points; a character is 0.602 of that wide
    heights = [sum(len(boxes[part]) + 1.8 for part in column) + 2.0 * (len(column) - 1) for column in columns]
    height = max(heights)
    figure = figures.Figure(figsize=(figures.WIDTH, height * size * 1.45 / 72 + 0.7))
    panel = figure.add_axes((0.01, 0.01, 0.98, 0.99 - 0.5 / figure.get_figheight()))
    panel.set(xlim=(-0.5, total + 0.5), ylim=(height + 0.2, -0.2))
    panel.set_axis_off()
    page, text, _ = figures.GROUNDS[theme]
    shape = dict(boxstyle="round,pad=0,rounding_size=0.5", facecolor=page, linewidth=1.5)
    font, colours, places, x = dict(size=size, va="center", family="DejaVu Sans Mono"), figures.COLOURS[theme], {}, 0
    for column, width, tall in zip(columns, widths, heights, strict=True):
        y = (height - tall) / 2
        for part in column:
            lines = boxes[part]
            deep = len(lines) + 1.8
            edge = {"image": colours[1], "addend": colours[1], "digit": colours[2], "sum": colours[2]}.get(part, text)
            box = figures.matplotlib.patches.FancyBboxPatch((x, y), width, deep, edgecolor=edge, **shape)
            panel.add_patch(box)
            panel.text(x + 1, y + 0.75, part.replace("_", " "), weight="bold", **font)
            for number, words in enumerate(lines):
                panel.text(x + 1, y + 1.8 + number, words, **font)
            places[part] = (x, y + deep / 2, x + width)
            y += deep + 2.0
        x += width + gap
    for source, target in links:
        start, end = (places[source][2], places[source][1]), (places[target][0], places[target][1])
        panel.annotate("", end, start, arrowprops=dict(arrowstyle="-|>", color=text, linewidth=1.2))
    figure.suptitle(f"{name}: {parameters:,d} parameters (layer, output shape, parameters)", x=0.01, ha="left")
    return figure
