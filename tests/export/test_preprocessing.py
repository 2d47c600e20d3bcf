"""Resize, crop and normalisation as tensor operations: the pixels of the evaluation transform, by Pillow."""

import numpy as np
import pytest
import torch

from swin_lightning.batch import Preprocessing
from swin_lightning.data.sampling import channels_first
from swin_lightning.data.transforms import eval_transform
from swin_lightning.export.preprocessing import ResizeCropNormalize

MEAN, STD = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)


def build(size, crop, ratio):
    preprocessing = Preprocessing(size, crop, ratio, MEAN, STD)
    return preprocessing, ResizeCropNormalize(size, preprocessing.shorter_side, MEAN, STD)


@pytest.mark.parametrize(
    ("size", "crop", "ratio"), [(224, "center", 0.875), (32, "center", 0.9), (65, "center", 0.7), (48, "squash", 0.9)]
)
def test_pixels_are_those_of_pillow(size, crop, ratio):
    preprocessing, program = build(size, crop, ratio)
    transform, rng = eval_transform(size, crop, ratio), np.random.default_rng(0)
    sizes = [(1, 1), (3, 200), (size, size), (256, 256), (500, 375), (31, 33), *rng.integers(1, 400, (6, 2)).tolist()]
    for i, (height, width) in enumerate(sizes):
        image = rng.integers(256, size=(height, width, 3), dtype=np.uint8)
        if i % 2:
            image = np.where(image > 127, 255, 0).astype(np.uint8)  # overshoots, and is clipped between the passes
        expected = preprocessing.normalize(channels_first(transform(image, (0, 0, 0)))[None])
        torch.testing.assert_close(program(torch.from_numpy(image)), expected, atol=1e-6, rtol=0)


def test_difference_of_one_grey_level_would_be_seen():
    _, program = build(24, "center", 0.75)
    image = torch.full((40, 50, 3), 100, dtype=torch.uint8)
    assert (program(image + 1) - program(image)).min() > 0.01
