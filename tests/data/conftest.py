"""Data sets on disk, written once for all tests, which must not modify them."""

import pytest

from tests.support.images import write_parquet


@pytest.fixture
def hf_cache(tmp_path, monkeypatch):
    """An empty cache for `datasets`."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="session")
def parquet(tmp_path_factory):
    """32 training images in four files, values 0 to 31, and 7 validation images, values 100 to 106; class value % 2."""
    import datasets

    shards = [("train", s, range(8 * s, 8 * s + 8), [0, 1] * 4) for s in range(4)]
    shards.append(("validation", 0, range(100, 107), [0, 1, 0, 1, 0, 1, 0]))
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])}
    return write_parquet(tmp_path_factory.mktemp("parquet") / "hub", features, shards)
