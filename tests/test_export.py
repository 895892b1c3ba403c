"""Exported files: they answer as the checkpoint does, without the scripts of this project."""

import ast
import contextlib
import io
import sys

import pytest
import torch

import data
import evaluate
import model
from conftest import ROOT
from studies import export
from support import cli

TINY = ROOT / "logs" / "tiny.pt"


@pytest.fixture(scope="module")
def exported(trained, small_dir, tmp_path_factory):
    """(path, output) of one call that writes and verifies an ONNX file; an export takes seconds."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    path, output = tmp_path_factory.mktemp("export") / "net.onnx", io.StringIO()
    flags = ["--ckpt", trained / "best.pt", "--onnx", path, "--verify", "--data-dir", small_dir]
    with contextlib.redirect_stdout(output):
        assert cli.run_script(export.main, list(map(str, flags))) == 0
    return path, output.getvalue()


def test_the_onnx_file_is_valid_and_names_what_goes_in_and_out(exported):
    import onnx

    proto = onnx.load(exported[0])
    onnx.checker.check_model(proto, full_check=True)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", export.OPSET)]
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    assert shapes.pop("image") == ["batch", 1, 28, 28]
    assert shapes == {"addend": ["batch"], "digit": ["batch", 10], "sum": ["batch", 19]}
    assert str(ROOT).encode() not in exported[0].read_bytes()


def test_the_onnx_file_answers_as_pytorch_does(exported):
    assert "1,500 pairs: 0 answers differ" in exported[1]  # 150 test images in the folder of --data-dir


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_onnx_file_takes_any_batch_size(exported, trained, small, batch):
    import onnxruntime

    session = onnxruntime.InferenceSession(exported[0], providers=["CPUExecutionProvider"])
    image, addend = small[0][:batch], torch.arange(batch)
    digit, total = session.run(["digit", "sum"], {"image": image.numpy(), "addend": addend.numpy()})
    net, _ = evaluate.load_model(trained / "best.pt")
    digit_logits, sum_logits = net(data.prepare(image), addend)
    torch.testing.assert_close(torch.from_numpy(digit), digit_logits.softmax(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.from_numpy(total), sum_logits.softmax(1), atol=1e-5, rtol=0)


def test_verifying_notices_another_network(exported, small):
    other = model.build_model("tiny").eval()
    differing, largest = export.differences(exported[0].read_bytes(), other, small[0][:50])
    assert differing > 100 and largest > 0.1


@pytest.mark.long
def test_the_committed_network_exported_gives_the_same_answers_on_all_test_pairs(run, mnist_dir):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    status, out, _ = run(export, "--ckpt", TINY, "--onnx", "tiny.onnx", "--verify", "--data-dir", mnist_dir)
    assert status == 0 and "100,000 pairs: 0 answers differ" in out


def test_the_loader_is_short_needs_pytorch_alone_and_gives_the_same_logits(run, monkeypatch, small, capsys):
    assert run(export, "--ckpt", TINY, "--state-dict", "tiny.pth")[0] == 0
    status, program, _ = run(export, "--ckpt", TINY, "--show-loader")
    assert status == 0
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(program))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported == {"sys", "torch"}
    assert program.count("\n") <= 20
    monkeypatch.setattr("sys.argv", ["loader.py", "tiny.pth"])
    scope = {}
    exec(program, scope)
    assert capsys.readouterr().out == "[1, 6]\n"  # its example is an upright stroke and the number 5
    image, addend = small[0][:8], torch.arange(8)
    theirs = scope["answer"](image, addend)
    ours = evaluate.load_model(TINY)[0](data.prepare(image), addend)
    for their, our in zip(theirs, ours, strict=True):
        torch.testing.assert_close(their, our, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", model.SIZES)
def test_the_loader_builds_every_size_whose_layers_pytorch_has(name, tmp_path, monkeypatch):
    net = model.build_model(name).eval()
    if name == "fast":
        with pytest.raises(cli.UserError, match="fast has a FlattenLast, which PyTorch lacks"):
            export.loader(net, name)
        net.encoder[8] = torch.nn.Flatten()
    (tmp_path / "net.pth").write_bytes(export.to_state_dict(net))
    monkeypatch.setattr("sys.argv", ["loader.py", str(tmp_path / "net.pth")])
    scope = {}
    exec(export.loader(net, name), scope)
    image, addend = torch.randint(256, (3, 1, 28, 28), dtype=torch.uint8), torch.arange(3)
    for their, our in zip(scope["answer"](image, addend), net(data.prepare(image), addend), strict=True):
        torch.testing.assert_close(their, our, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("encodings", [("onehot", "shift"), ("onehot", "binary"), ("scalar", "onehot")])
def test_a_network_of_another_form_gets_no_loader(encodings):
    with pytest.raises(cli.UserError, match="--show-loader knows"):
        export.loader(model.build_model("tiny", *encodings), "tiny")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --onnx or --state-dict or both, or --show-loader alone"),
        (["--show-loader", "--onnx", "a"], "give --onnx or --state-dict or both, or --show-loader alone"),
        (["--verify", "--state-dict", "a"], "--verify needs --onnx"),
        (["--onnx", "a", "--state-dict", "a"], "a is taken"),
        (["--onnx", "there"], "there is taken"),
        (["--state-dict", "there"], "there is taken"),
        (["--ckpt", "absent.pt", "--show-loader"], "no checkpoint absent.pt"),
    ],
)
def test_a_wrong_call_writes_nothing(run, tmp_path, flags, message):
    (tmp_path / "there").write_text("mine")
    status, out, err = run(export, *flags)
    assert status == 2 and message in err and err.count("\n") == 1 and not out
    assert [path.name for path in tmp_path.iterdir()] == ["there"] and (tmp_path / "there").read_text() == "mine"


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_one_line_that_says_how_to_install(run, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    status, _, err = run(export, "--ckpt", TINY, "--onnx", "tiny.onnx", "--verify")
    assert status == 2 and "pip install onnx onnxscript onnxruntime" in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
