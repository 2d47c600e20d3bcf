"""int8 and fp16 programs of a trained network: accuracy is kept, weights are stored in the lower precision."""

import re

import pytest

from swin_lightning.cli import main
from swin_lightning.export import export
from swin_lightning.inference import Predictor
from tests.support.cli import DIGITS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("onnxscript"), pytest.importorskip("onnxruntime")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        return main(["fit", "-c", DIGITS, "--trainer.max_epochs=8", "--test_after_fit=false"]).run_dir.resolve()


@pytest.mark.parametrize("options", [["--int8"], ["--int8", "--with-preprocessing"], ["--fp16"]], ids=" ".join)
def test_accuracy_is_kept(run, options, capsys):
    onnx = pytest.importorskip("onnx")
    export([str(run), "--format", "onnx", *options, "--output", "a.onnx"])
    out = capsys.readouterr().out
    before, after = map(float, re.search(r"top-1 accuracy, val +([\d.]+) % +([\d.]+) %", out).groups())
    assert before > 50 and abs(before - after) < 3
    assert float(re.search(r"same top-1 +([\d.]+) %", out)[1]) > 95
    model = onnx.load("a.onnx")
    dtype = onnx.TensorProto.INT8 if "--int8" in options else onnx.TensorProto.FLOAT16
    matrices = [tensor for tensor in model.graph.initializer if tensor.data_type == dtype and len(tensor.dims) == 2]
    assert len(matrices) >= 9  # qkv, proj and two of the MLP in each block, and the head
    info = Predictor("a.onnx").program.info
    assert info.precision == options[0].strip("-") and info.includes_preprocessing == (len(options) == 2)
