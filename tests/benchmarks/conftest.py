"""Fixtures of the benchmark tests."""

import pytest

from tests.support.images import write_image, write_photographs


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch):
    """Steps are not repeated to fill a minimum time, and the peak is measured with small matrices."""
    monkeypatch.setattr("benchmarks.timing.PEAK_SIZE", {"cpu": 64})
    monkeypatch.setattr("benchmarks.timing.MIN_SECONDS", 0.0)


@pytest.fixture
def photographs(tmp_path):
    """A folder of forty JPEG images in two classes for training, and one per class for validation."""
    root = write_photographs(tmp_path / "photographs")
    for name in ("cat", "dog"):
        write_image(root / "val" / name / "0.png")
    return str(root)
