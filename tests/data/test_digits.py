"""The digits data set."""

import numpy as np
import pytest

from swin_lightning.data import Digits


@pytest.fixture(scope="module")
def digits():
    data = Digits()
    data.setup("fit")
    data.setup("test")
    return data


def test_splits_are_disjoint_and_complete(digits):
    readers = [digits.sources[split] for split in ("train", "val", "test")]
    assert [len(reader) for reader in readers] == [1257, 180, 360]
    # all scans differ, so equal pixels would mean the same sample
    assert len({image.tobytes() for reader in readers for image in reader.images}) == 1797
    assert digits.num_classes == 10
    labels = np.concatenate([reader.labels for reader in readers])
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_mean_and_std_are_those_of_the_training_split(digits):
    pixels = digits.sources["train"].images / 255
    assert digits.mean == pytest.approx(pixels.mean((0, 1, 2)), abs=0.01)
    assert digits.std == pytest.approx(pixels.std((0, 1, 2)), abs=0.01)
