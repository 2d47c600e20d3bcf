"""`swin-lightning benchmark inference`."""

import pytest

from swin_lightning.benchmark import VARIANTS as NAMES
from swin_lightning.benchmark import benchmark
from swin_lightning.benchmark.inference import (
    VARIANTS,
    Result,
    recommendation,
    report_inference,
    results_figure,
    results_table,
)
from swin_lightning.errors import UserError
from tests.support.checkpoint import write_checkpoint

RESULTS = [
    Result("eager", 10.0, 12.0, 100.0, 8, 200.0, 0.9),
    Result("onnx", 5.0, 6.0, 150.0, 8, 100.0, 0.9),
    Result("int8", 2.0, 3.0, 300.0, 32, 50.0, 0.8),
]


def test_table_and_recommendation():
    rows = [row.split() for row in results_table(RESULTS).splitlines()]
    assert rows[0][0] == "variant" and rows[1] == ["PyTorch", "10.00", "12.00", "100.0", "8", "200", "90.00", "%"]
    text = "Recommended here with an accuracy within 0.5 points: ONNX Runtime, fp32, for single images and for batches."
    assert recommendation(RESULTS) == text  # int8 lost too much
    close = [*RESULTS[:2], RESULTS[2]._replace(accuracy=0.896, median_ms=7.0)]
    assert recommendation(close).endswith("fp32 for single images, ONNX Runtime, int8 in batches of 32.")
    unlabelled = [result._replace(accuracy=None) for result in RESULTS]
    assert recommendation(unlabelled) == "Recommended here: ONNX Runtime, int8, for single images and for batches."
    left, right = results_figure(RESULTS).axes
    assert [bar.get_width() for bar in left.patches] == [2.0, 5.0, 10.0]
    assert [bar.get_width() for bar in right.patches] == [300.0, 150.0, 100.0]


def test_names_of_the_option():
    assert tuple(VARIANTS) == NAMES


def test_invalid_arguments(tmp_path):
    with pytest.raises(UserError, match=r"benchmark inference takes no option --data.path=x"):
        benchmark(["inference", "a.ckpt", "--data.path=x"])
    with pytest.raises(UserError, match="--images 0 must be at least 1"):
        benchmark(["inference", "a.ckpt", "--images", "0"])
    write_checkpoint(tmp_path / "a.ckpt", preprocessing=None)
    with pytest.raises(UserError, match="does not state its preprocessing"):
        benchmark(["inference", "a.ckpt"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_measurement_of_a_checkpoint(tmp_path, capsys):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    write_checkpoint(tmp_path / "a.ckpt")
    report_inference("a.ckpt", seconds=0.1, output="a.png", variants=("eager", "pt2", "onnx", "int8"))
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith(("PyTorch", "torch.export", "ONNX Runtime, fp32"))]
    assert len(rows) == 3 and all(0 < float(row.split()[-5]) < 1000 for row in rows)  # median
    assert "Recommended here: " in out and (tmp_path / "a.png").is_file()
