"""`swin-lightning export`: files are compared with the checkpoint before they are written; arguments."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from swin_lightning.errors import UserError
from swin_lightning.export import conversion, export
from swin_lightning.inference import Predictor
from swin_lightning.models import SwinTransformer
from swin_lightning.models.weights import load_weights
from tests.support.checkpoint import SIZES, write_checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    write_checkpoint(tmp_path / "best.ckpt")
    return "best.ckpt"


def test_weights(checkpoint, capsys):
    expected = write_checkpoint(Path(checkpoint), window_size=3)
    export([checkpoint, "--format", "timm", "--output", "out/w.safetensors"])
    assert capsys.readouterr().out == "wrote out/w.safetensors (timm format)\n"
    loaded = SwinTransformer(**SIZES | {"window_size": 3}, num_classes=3)
    load_weights(loaded, "out/w.safetensors")
    assert torch.equal(loaded.head.weight, expected.head.weight)
    assert torch.equal(loaded.norm.weight, expected.backbone.norm.weight)
    assert [path.name for path in Path("out").iterdir()] == ["w.safetensors"]


def test_onnx_with_preprocessing(checkpoint, capsys):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript"), pytest.importorskip("onnxruntime")
    export([checkpoint, "--format", "onnx", "--with-preprocessing", "--output", "a.onnx"])
    out = capsys.readouterr().out
    line = r"wrote a.onnx \(onnx opset 18, fp32, 0\.\d MiB\); probabilities differ by at most (\d\.\de[+-]\d+)\n"
    assert float(re.fullmatch(line, out)[1]) < 1e-5
    model = onnx.load("a.onnx")
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["class_names"] == '["cat", "dog", "eel"]' and metadata["std"] == "[0.1, 0.2, 0.3]"
    ((image,), (output,)) = model.graph.input, model.graph.output
    assert [d.dim_value or d.dim_param for d in image.type.tensor_type.shape.dim] == ["height", "width", 3]
    assert [d.dim_value for d in output.type.tensor_type.shape.dim] == [3]
    images = [np.random.default_rng(0).integers(256, size=(*s, 3), dtype=np.uint8) for s in ((30, 50), (3, 4))]
    rows = [[p.probabilities for p in Predictor(path)(images)] for path in ("a.onnx", checkpoint)]
    torch.testing.assert_close(*map(torch.stack, rows), atol=1e-6, rtol=0)
    data = Path("a.onnx").read_bytes()
    for end in (len(data) // 2, len(data) - 1):
        Path("a.onnx").write_bytes(data[:end])
        with pytest.raises(UserError, match=r"'a.onnx' (is no ONNX model .* or is damaged|was not written by)"):
            Predictor("a.onnx")


def test_a_program_that_computes_something_else_is_not_written(checkpoint, monkeypatch):
    Path("a.pt").write_text("earlier")
    write = conversion.write_program

    def wrong(classifier, path, info):
        nn.init.zeros_(classifier.head.weight)
        write(classifier, path, info)
        nn.init.ones_(classifier.head.weight)
        nn.init.normal_(classifier.head.weight)

    monkeypatch.setattr(conversion, "write_program", wrong)
    with pytest.raises(UserError, match=r"nothing written: a probability of the export differs by \d"):
        export([checkpoint, "--format", "torchscript", "--output", "a.pt"])
    assert Path("a.pt").read_text() == "earlier"
    assert sorted(path.name for path in Path().iterdir()) == ["a.pt", "best.ckpt"]


def test_weights_that_read_back_differently_are_not_written(checkpoint, monkeypatch):
    monkeypatch.setattr(conversion, "load_weights", lambda model, path: None)
    with pytest.raises(UserError, match="nothing written"):
        export([checkpoint, "--output", "w.pth"])
    assert [path.name for path in Path().iterdir()] == ["best.ckpt"]


@pytest.mark.slow
def test_other_image_size(checkpoint, capsys):
    export([checkpoint, "--format", "pt2", "--size", "16", "--output", "a.pt2"])
    predictor = Predictor("a.pt2")
    assert predictor.preprocessing.image_size == 16 and predictor.program.info.input_size == (16, 16)
    export([checkpoint, "--format", "pt2", "--size", "16", "24", "--output", "a.pt2"])
    with pytest.raises(UserError, match="states no preprocessing"):
        Predictor("a.pt2")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--output", "w.pth", "--size", "3"],
            r"--size 3 is only valid with --format onnx, pt2, torchscript, not swin_l",
        ),
        (["--output", "w.pth", "--with-preprocessing"], "--with-preprocessing is only valid with --format onnx, pt2"),
        (["--format", "pt2", "--output", "a.pt2", "--int8"], "--int8 is only valid with --format onnx, not pt2"),
        (["--format", "onnx", "--output", "a.onnx", "--int8", "--fp16"], "not allowed with argument"),
        (["--format", "onnx", "--output", "a.onnx", "--calibration", "x"], "--calibration x is only valid with --int8"),
        (["--format", "onnx", "--output", "a.onnx", "--int8"], "give images with --calibration PATH"),
        (["--output", "w.bin"], r"'.*w.bin' must end with .safetensors or .pth"),
        (["--format", "pt2", "--output", "a.pth"], r"'a.pth' must end with .pt2 for --format pt2"),
        (["--format", "pt2", "--output", "a.pt2", "--size", "0"], "--size 0 must be a positive integer"),
        (["--format", "pt2", "--output", "a.pt2", "--size", "8", "8", "8"], "height and width"),
        (["--format", "pt", "--output", "w.pth"], "swin-lightning export: argument --format: invalid choice: 'pt'"),
        ([], "arguments are required: --output"),
    ],
)
def test_invalid_arguments(checkpoint, args, message):
    with pytest.raises(UserError, match=message):
        export([checkpoint, *args])


@pytest.mark.parametrize("option", ["--with-preprocessing", "--int8"])
def test_checkpoint_without_preprocessing(checkpoint, option):
    write_checkpoint(Path(checkpoint), preprocessing=None)
    with pytest.raises(UserError, match=f"{option}: checkpoint 'best.ckpt' does not state its preprocessing"):
        export([checkpoint, "--format", "onnx", option, "--output", "a.onnx"])
