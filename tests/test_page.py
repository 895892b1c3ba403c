"""The page where people draw: it is the one that its script makes, and its weights give the network's answers."""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import data
import model
from conftest import ROOT
from studies import page
from support import checkpoint, cli

TINY, PAGE = ROOT / "logs" / "tiny.pt", ROOT / "docs" / "index.html"


def test_the_committed_page_is_the_one_that_the_script_makes(run):
    assert run(page, "--ckpt", TINY, "--out", PAGE, "--check") == (0, "", "")


def test_the_page_is_small_and_names_no_other_address():
    text = PAGE.read_text(encoding="utf-8")
    assert len(text.encode()) < page.LIMIT
    used = re.sub(r"data:image/svg\+xml[^\"]*", "", text).replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"https?://\S+", used) == ["http://yann.lecun.com/exdb/mnist/"]  # in a comment
    assert not re.search(r"(?:src|href)=\"(?!data:)|@import|fetch\(|XMLHttpRequest|sendBeacon|WebSocket", text)


@pytest.mark.parametrize("name", ["tiny", "base"])
def test_the_weights_in_the_page_give_the_networks_answers(name, small):
    """Computed from the page's own description and bytes, in the way of its script, with PyTorch's operations."""
    net = model.build_model(name)
    for layer in net.encoder:  # batch norm as after training, a third of its scales negative
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.weight.data.normal_(0.5)
            layer.bias.data.normal_()
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    image, addend = data.prepare(small[0][:20]), torch.arange(20) % 10
    with torch.no_grad():
        wanted = net.eval()(image, addend)
    description, weights = page.network(net)
    values = torch.from_numpy(np.frombuffer(weights, "<f4").copy())

    def take(*shape):
        nonlocal values
        taken, values = values[: math.prod(shape)], values[math.prod(shape) :]
        return taken.view(shape)

    for entry in description["convolutions"]:
        shape = entry["outputs"], entry["inputs"] // entry["groups"], entry["kernel"], entry["kernel"]
        image = F.conv2d(image, take(*shape), padding=entry["padding"], groups=entry["groups"])
        image = F.max_pool2d(image, 2) if entry["pool"] else image
        scale, shift = take(entry["outputs"], 1, 1), take(entry["outputs"], 1, 1)
        image = (image * scale + shift).relu()
    fused = torch.cat([image.flatten(1), F.one_hot(addend, 10)], 1)
    sizes = {part: (description[part]["outputs"], description[part]["inputs"]) for part in ("fusion", "digit", "sum")}
    fused = F.linear(fused, take(*sizes["fusion"]), take(sizes["fusion"][0])).relu()
    for part, logits in zip(("digit", "sum"), wanted, strict=True):
        torch.testing.assert_close(
            F.linear(fused, take(*sizes[part]), take(sizes[part][0])), logits, atol=1e-4, rtol=1e-4
        )
    assert not len(values)


def test_a_page_of_another_network_is_written_and_checked(run, trained):
    flags = "--ckpt", trained / "best.pt", "--out", "mine.html"
    assert run(page, *flags, "--check")[0] == 1  # there is none yet
    status, out, _ = run(page, *flags)
    assert status == 0 and re.fullmatch(r"mine.html: [\d,]+ bytes, tiny\n", out)
    assert run(page, *flags, "--check")[0] == 0
    status, _, err = run(page, "--ckpt", TINY, "--out", "mine.html", "--check")
    assert status == 1 and "mine.html differs" in err and err.endswith(" --out mine.html\n")
    assert run(page, "--ckpt", TINY, "--out", "mine.html")[0] == 0  # a page of this script is replaced


def test_a_file_that_is_not_its_page_stays(run, tmp_path):
    (tmp_path / "mine.html").write_text("mine")
    status, _, err = run(page, "--ckpt", TINY, "--out", "mine.html")
    assert status == 2 and "choose another --out" in err and (tmp_path / "mine.html").read_text() == "mine"
    template = page.TEMPLATE.read_bytes()
    status, _, err = run(page, "--ckpt", TINY, "--out", page.TEMPLATE)
    assert status == 2 and "would overwrite a file that is read" in err and page.TEMPLATE.read_bytes() == template


@pytest.mark.parametrize("accuracy", ["<script>", 7, float("nan"), [1], -1.0])
def test_a_forged_accuracy_does_not_get_into_the_page(run, tmp_path, accuracy):
    state = checkpoint.load_checkpoint(TINY) | {"joint_accuracy": accuracy}
    checkpoint.save_checkpoint(state, tmp_path / "forged.pt")
    status, _, err = run(page, "--ckpt", "forged.pt", "--out", "mine.html")
    assert status == 2 and "joint_accuracy is damaged" in err and not (tmp_path / "mine.html").exists()


@pytest.mark.parametrize(
    ("name", "encodings", "message"),
    [
        ("fast", (), "tiny, base and large"),
        ("tiny", ("onehot", "shift"), "learned sum"),
        ("tiny", ("scalar", "onehot"), "one-hot addend"),
        ("tiny", ("onehot", "binary"), "one-hot sum"),
    ],
)
def test_a_network_that_the_page_does_not_know_is_refused(name, encodings, message):
    with pytest.raises(cli.UserError, match=message):
        page.network(model.build_model(name, *encodings))


def test_the_default_network_fits_into_a_page(run, tmp_path):
    state = checkpoint.load_checkpoint(TINY)
    base = state | {"args": state["args"] | {"model": "base"}, "weights": model.build_model("base").state_dict()}
    checkpoint.save_checkpoint(base, tmp_path / "base.pt")
    assert run(page, "--ckpt", "base.pt", "--out", "mine.html")[0] == 0


def test_a_network_that_makes_the_page_too_large_is_refused(run, tmp_path):
    state = checkpoint.load_checkpoint(TINY)
    large = state | {"args": state["args"] | {"model": "large"}, "weights": model.build_model("large").state_dict()}
    checkpoint.save_checkpoint(large, tmp_path / "large.pt")
    status, _, err = run(page, "--ckpt", "large.pt", "--out", "mine.html")
    assert status == 2 and "more than 700,000; tiny is smaller" in err and not (tmp_path / "mine.html").exists()
