"""CIFAR from parquet files in the Hub's layout."""

import datasets
import numpy as np
import pytest

from swin_lightning.data import CIFAR10, CIFAR100
from swin_lightning.errors import UserError
from tests.support.images import write_parquet


@pytest.fixture
def write(tmp_path, hf_cache):
    """Write a data set; image i of a split has grey value i."""

    def write(label, names, **splits):
        features = {"img": datasets.Image(), label: datasets.ClassLabel(names=names)}
        shards = [(split, 0, range(len(labels)), labels) for split, labels in splits.items()]
        return str(write_parquet(tmp_path / "hub", features, shards))

    return write


def test_validation_images_are_held_out_of_the_training_images(write):
    labels = [i % 10 for i in range(20)]
    path = write("label", CIFAR10.class_names, train=labels, test=labels[:7])
    data = CIFAR10(path, val_size=6)
    data.prepare_data()
    readers = [data.load(split) for split in ("train", "val", "test")]
    assert [len(reader) for reader in readers] == [14, 6, 7]
    values = [[int(reader[i][0][0, 0, 0]) for i in range(len(reader))] for reader in readers]
    assert sorted(values[0] + values[1]) == list(range(20))  # none twice
    assert values[2] == list(range(7))
    assert values[1] == sorted(np.random.default_rng(0).permutation(20)[:6])  # the draw of the recorded results
    for reader, expected in zip(readers, values, strict=True):
        assert reader[0][0].shape == (32, 32, 3)
        assert reader.labels.tolist() == [value % 10 for value in expected]
    again = CIFAR10(path, val_size=6, seed=1).load("val")
    assert [int(again[i][0][0, 0, 0]) for i in range(6)] == values[1]  # the same for every seed


def test_val_size_0_validates_on_the_test_split(write):
    data = CIFAR10(write("label", CIFAR10.class_names, train=[0, 1, 2], test=[3, 4]), val_size=0)
    assert [data.load(split).labels.tolist() for split in ("train", "val", "test")] == [[0, 1, 2], [3, 4], [3, 4]]


def test_cifar100_reads_fine_labels_and_cifar10_rejects_them(write):
    assert len(set(CIFAR100.class_names)) == 100
    path = write("fine_label", CIFAR100.class_names, train=[99, 0], test=[50])
    assert CIFAR100(path, val_size=0).load("train").labels.tolist() == [99, 0]
    with pytest.raises(UserError, match=f"data.path: '{path}' has 100 classes; CIFAR10 expects 10"):
        CIFAR10(path, val_size=0).load("train")


def test_missing_split_is_an_error(write):
    path = write("label", CIFAR10.class_names, train=[0, 1, 2])
    with pytest.raises(UserError, match=rf"data\.path: no split 'test' in '{path}', only \['train'\]"):
        CIFAR10(path).load("test")
