"""Results of a model comparison."""

import json

import pytest

from benchmarks.results_table import build_rows, format_table, save_results
from benchmarks.timing import BenchmarkCase


@pytest.fixture
def rows():
    own = BenchmarkCase("swin_lightning", print, 4e9, first=1.5, seconds=[1.0, 2.0, 4.0], memory=3_000_000)
    other = BenchmarkCase("timm", print, 4e9, first=0.5, seconds=[1.5, 4.0, 10.0])
    peak = BenchmarkCase("matrix product", print, 8e9, seconds=[1.0, 1.0, 1.0])
    return build_rows([own, other], peak, 8, "swin_lightning", {"swin_lightning": 0.0, "timm": 2e-6})


def test_rows_hold_medians_and_ratios_to_own_model(rows):
    own, other = rows
    assert own == {
        "name": "swin_lightning",
        "ms": 2000.0,
        "images_per_s": 4.0,
        "share": 0.25,
        "ratio": (1.0, 1.0, 1.0),
        "memory": 3_000_000,
        "first": 1.5,
        "difference": 0.0,
    }
    assert (other["ms"], other["images_per_s"], other["share"]) == (4000.0, 2.0, 0.125)
    assert other["ratio"] == (2.0, 1.75, 2.25) and other["memory"] is None


def test_table_lists_rows_under_their_columns(rows):
    title, header, own, other, note = format_table("eval: title", rows)
    assert title == "eval: title"
    assert header.split() == ["ms", "images/s", "of", "peak", "relative", "time", "MB", "1st", "step"]
    assert own.split() == ["swin_lightning", "2000.0", "4.0", "25", "%", "1.00", "(1.00-1.00)", "3", "1.5", "s"]
    assert other.split() == ["timm", "4000.0", "2.0", "12", "%", "2.00", "(1.75-2.25)", "0.5", "s"]
    assert own.index("2000.0") + 6 == header.index(" ms") + 3  # right-aligned
    assert note.endswith("logits equal within 2e-06")


def test_results_are_saved_as_json_and_picture(rows, tmp_path):
    path, picture = save_results({"title": "model, batch 8; machine", "eval": rows}, tmp_path / "new")
    assert path.parent == tmp_path / "new" and path.name.startswith("model-")
    result = json.loads(path.read_text())
    assert result["eval"][1]["ratio"] == [2.0, 1.75, 2.25]
    assert picture == path.with_suffix(".png") and picture.read_bytes().startswith(b"\x89PNG")
