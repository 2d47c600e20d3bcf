"""Handwritten digits that ship with scikit-learn: the data set of the quickstart, without a download."""

from functools import lru_cache
from typing import Annotated, Any

import numpy as np
from PIL import Image

from swin_lightning.data.image_datamodule import Mean, Std
from swin_lightning.data.readers import ArrayReader, Reader
from swin_lightning.data.split_datamodule import SplitDataModule
from swin_lightning.ranges import Range, Share, check_arguments


class Digits(SplitDataModule):
    """1,797 scanned digits of 8 x 8 grey pixels, upscaled: 1,257 for training, 180 for validation, 360 for testing.

    With `folds` all 1,797 are divided.

    Args:
        image_size: Side length of the upscaled images in pixels.
        mean: Per-channel mean in [0, 1].
        std: Per-channel standard deviation.
        eval_crop_ratio: Center crop of evaluation, relative to the resized image.
        **base: Arguments of `SplitDataModule`.

    Source: E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, doi:10.24432/C50P49.
    """

    class_names = [str(digit) for digit in range(10)]

    def __init__(
        self,
        image_size: Annotated[int, Range(ge=1, le=512)] = 32,
        mean: Mean = (0.31, 0.31, 0.31),
        std: Std = (0.35, 0.35, 0.35),
        eval_crop_ratio: Share = 1.0,
        **base: Any,
    ) -> None:
        check_arguments(Digits.__init__, locals(), "data.")
        super().__init__(image_size=image_size, mean=mean, std=std, eval_crop_ratio=eval_crop_ratio, **base)

    def found_splits(self) -> set[str]:
        return {"train"} if self.folds else {"train", "val", "test"}

    def read(self, split: str) -> Reader:
        images, labels = read_digits(self.image_size)
        if self.folds:
            return ArrayReader(images, labels)
        order = np.random.default_rng(0).permutation(len(labels))  # the same split for every seed: comparable results
        indices = {"test": order[:360], "val": order[360:540], "train": order[540:]}[split]
        return ArrayReader(images[indices], labels[indices])


@lru_cache(maxsize=1)  # the splits share it
def read_digits(size: int) -> tuple[np.ndarray, np.ndarray]:
    """All digits and their labels: `1797, size, size, 3` uint8 and `1797`."""
    from sklearn.datasets import load_digits

    grey, labels = load_digits(return_X_y=True)  # values from 0 to 16
    images = [
        np.asarray(Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC).convert("RGB"))
        for digit in (grey.reshape(-1, 8, 8) * 255 / 16).round().astype(np.uint8)
    ]
    return np.stack(images), labels
