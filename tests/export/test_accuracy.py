"""Accuracy before and after, and the images of a run."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from swin_lightning.data.readers import ArrayReader
from swin_lightning.errors import UserError
from swin_lightning.export.accuracy import accuracy_table, calibration_images, run_data, split_images
from swin_lightning.export.programs import write_program
from swin_lightning.inference import Predictor
from swin_lightning.program_files import ProgramInfo
from tests.support.checkpoint import CLASSES, PREPROCESSING, write_checkpoint

IMAGES = np.random.default_rng(0).integers(256, size=(8, 24, 24, 3), dtype=np.uint8)


def test_table(tmp_path):
    classifier = write_checkpoint(tmp_path / "a.ckpt")
    labels = np.array([p.probabilities.argmax().item() for p in Predictor(tmp_path / "a.ckpt", "cpu")(IMAGES)])
    labels[0] = (labels[0] + 1) % 3  # 7 of 8 are right
    labels[1] = -1  # without label
    with torch.no_grad():
        classifier.head.bias += 100 * torch.eye(3)[labels[0]]  # the program predicts one class always
    write_program(classifier, tmp_path / "a.pt", ProgramInfo(CLASSES, (24, 24), PREPROCESSING))
    data = SimpleNamespace(load=lambda split: ArrayReader(IMAGES, labels))
    table = accuracy_table(tmp_path / "a.ckpt", tmp_path / "a.pt", "int8", data).splitlines()
    share = np.mean(labels[labels >= 0] == labels[0])
    assert table[0].split() == ["checkpoint", "int8"]
    assert table[1].split() == ["top-1", "accuracy,", "val", "85.71", "%", f"{100 * share:.2f}", "%"]
    assert table[-1] == "(8 images)"
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(IMAGES[0]).save(folder / "a.png")
    table = accuracy_table(tmp_path / "a.ckpt", tmp_path / "a.ckpt", "x", None, str(folder))
    assert "same top-1                      100.00 %" in table and "accuracy" not in table
    assert accuracy_table(tmp_path / "a.ckpt", tmp_path / "a.ckpt", "x", None).startswith("accuracy: not measured")


def test_calibration_images(tmp_path):
    data = SimpleNamespace(load=lambda split: ArrayReader(np.repeat(IMAGES, 40, axis=0), np.zeros(320)))
    images = calibration_images(None, data)
    assert len(images) == 128 and (images[0] == IMAGES[0]).all() and (images[-1] == IMAGES[-1]).all()
    for name in ("a.png", "b.png"):
        Image.fromarray(IMAGES[0]).save(tmp_path / name)
    assert calibration_images(str(tmp_path), None) == [tmp_path / "a.png", tmp_path / "b.png"]
    assert calibration_images(str(tmp_path / "a.png"), None) == [tmp_path / "a.png"]
    with pytest.raises(UserError, match="give images with --calibration PATH"):
        calibration_images(None, None)
    with pytest.raises(UserError, match="the val split is a stream"):
        next(split_images(SimpleNamespace(load=lambda split: iter(())), "val", 3))


def test_checkpoint_outside_of_a_run(tmp_path):
    assert run_data(tmp_path / "a.ckpt") is None
