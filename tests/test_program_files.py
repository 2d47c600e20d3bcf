"""Exported programs that are damaged, of another program, or used in a way that they do not support."""

import json
import warnings

import pytest
import torch

from swin_lightning.errors import UserError
from swin_lightning.inference import Predictor
from swin_lightning.program_files import METADATA_FILE, Program, ProgramInfo, program_format
from tests.support.checkpoint import CLASSES, PREPROCESSING

INFO = ProgramInfo(CLASSES, (24, 24), PREPROCESSING, includes_preprocessing=True, precision="int8")


def write_torchscript(path, metadata, outputs=3):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        traced = torch.jit.trace(torch.nn.Linear(2, outputs), torch.zeros(1, 2))
        torch.jit.save(traced, path, _extra_files={METADATA_FILE: json.dumps(metadata)})


def test_metadata_round_trip(tmp_path):
    for info in (INFO, ProgramInfo(["a, b", "ü"], (24, 32), None)):
        assert ProgramInfo.from_metadata(tmp_path, info.metadata()) == info
    assert json.loads(INFO.metadata()["mean"]) == [0.4, 0.5, 0.6] and INFO.metadata()["crop_ratio"] == "0.75"


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".pt"])
@pytest.mark.filterwarnings("ignore")  # of torch about a file that is no archive
def test_damaged_files(tmp_path, suffix):
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    path = tmp_path / f"a{suffix}"
    for content in (b"", b"no program", b"\x08\x08" + b"\0" * 100):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"program '.*' is no .* or is damaged \(.+\)$") as caught:
            Predictor(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"producer": '"other"'}, {"class_names": "3"}, {"crop_ratio": "x"}, {"mean": None}, None]
)
def test_files_of_other_programs(tmp_path, change):
    metadata = {} if change is None else INFO.metadata() | change
    write_torchscript(tmp_path / "a.pt", {name: value for name, value in metadata.items() if value is not None})
    with pytest.raises(UserError, match=r"was not written by `swin-lightning export`"):
        Program(tmp_path / "a.pt")


def test_foreign_onnx(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    value = onnx.helper.make_tensor_value_info
    ends = [value("a", onnx.TensorProto.FLOAT, [1]), value("b", onnx.TensorProto.FLOAT, [1])]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["a"], ["b"])], "g", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), "a.onnx")
    with pytest.raises(UserError, match=r"program 'a.onnx' was not written by `swin-lightning export`"):
        Predictor("a.onnx")


def test_unsupported_use(tmp_path):
    path = tmp_path / "a.pt"
    write_torchscript(path, INFO.metadata(), outputs=4)
    for options in ({"device": "cuda"}, {"precision": "bf16-mixed"}):
        with pytest.raises(UserError, match="runs on the CPU as exported"):
            Predictor(path, **options)
    with pytest.raises(UserError, match="4 outputs, but 3 class names"):
        Program(path)(torch.zeros(1, 2))
    with pytest.raises(UserError, match="takes images before their preprocessing"):
        Predictor(path).probabilities(torch.zeros(1, 3, 24, 24))
    write_torchscript(path, ProgramInfo(CLASSES, (24, 32), None).metadata())
    with pytest.raises(UserError, match="states no preprocessing"):
        Predictor(path)
    with pytest.raises(UserError, match=r"must end with .onnx, .pt2, .pt"):
        program_format("a.ckpt")
    with pytest.raises(UserError, match="no such file"):
        Program("missing.onnx")
