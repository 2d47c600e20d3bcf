"""Fixtures of the benchmark tests."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch):
    """Steps are not repeated to fill a minimum time, and the peak is measured with small matrices."""
    monkeypatch.setattr("benchmarks.timing.PEAK_SIZE", {"cpu": 64})
    monkeypatch.setattr("benchmarks.timing.MIN_SECONDS", 0.0)


@pytest.fixture
def photographs(tmp_path):
    """A folder of forty JPEG images in two classes for training, and four for validation."""
    rng = np.random.default_rng(0)
    for i in range(44):
        path = tmp_path / "photographs" / ("train" if i < 40 else "val") / ("cat", "dog")[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(256, size=(6, 8, 3), dtype=np.uint8))
        coarse.resize((80, 60), Image.Resampling.BICUBIC).save(path)
    return str(tmp_path / "photographs")
