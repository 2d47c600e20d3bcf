"""CIFAR in the folders of torchvision: pixels, labels, coarse labels; pickles cannot run code."""

import os
import pickle

import numpy as np
import pytest

from swin_lightning.data import CIFAR10, CIFAR100
from swin_lightning.data.cifar_batches import find_batches
from swin_lightning.errors import UserError


def dump(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def pixels(count):
    return np.random.default_rng(count).integers(256, size=(count, 3072), dtype=np.uint8)


def test_cifar10_of_torchvision(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    for i in range(1, 6):
        dump(folder / f"data_batch_{i}", {b"data": pixels(i + 3), b"labels": list(range(i + 3))})
    dump(folder / "test_batch", {b"data": pixels(2), b"labels": [9, 8]})
    data = CIFAR10(str(tmp_path), val_size=5)
    data.prepare_data()
    assert [len(data.load(split)) for split in ("train", "val", "test")] == [25, 5, 2]
    image, label = data.load("test")[1]
    assert label == 8 and image.shape == (32, 32, 3)
    assert image[1, 2].tolist() == pixels(2)[1].reshape(3, 32, 32)[:, 1, 2].tolist()
    assert find_batches(str(folder)) == folder and find_batches(str(tmp_path / "x")) is None


def test_cifar100_with_fine_and_coarse_labels(tmp_path):
    for name, count in (("train", 6), ("test", 2)):
        labels = {b"fine_labels": list(range(90, 90 + count)), b"coarse_labels": list(range(count))}
        dump(tmp_path / "cifar-100-python" / name, {b"data": pixels(count), **labels})
    fine, coarse = CIFAR100(str(tmp_path)), CIFAR100(str(tmp_path), label_column="coarse_label")
    assert fine.load("test").labels.tolist() == [90, 91] and fine.num_classes == 100
    assert coarse.load("test").labels.tolist() == [0, 1]
    assert coarse.num_classes == 20 and coarse.class_names[14] == "people"
    with pytest.raises(UserError, match="has 92 classes; expected 10"):
        CIFAR10(str(tmp_path)).read("test")


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_pickles_run_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dump(tmp_path / "test_batch", Harmful())
    with pytest.raises(UserError, match=r"cannot read .*test_batch' \(holds an object of (posix|nt)\.mkdir\)"):
        CIFAR10(str(tmp_path)).read("test")
    assert not (tmp_path / "harm").exists()
    dump(tmp_path / "test_batch", {b"data": pixels(2)})
    with pytest.raises(UserError, match="is not a batch of CIFAR"):
        CIFAR10(str(tmp_path)).read("test")
