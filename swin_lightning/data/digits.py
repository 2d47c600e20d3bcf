"""Scanned digits that come inside scikit-learn: the data set of the quickstart, no download."""

from typing import Any

import numpy as np
from PIL import Image

from swin_lightning.data.image_datamodule import ImageDataModule
from swin_lightning.data.readers import ArrayImages, Source


class Digits(ImageDataModule):
    """1,797 scanned digits of 8 x 8 grey pixels, enlarged; 1,257 to train, 180 to validate, 360 to test.

    Args:
        image_size: Side of the enlarged digits in pixels.
        mean: Mean of the channels in [0, 1].
        std: Standard deviation of the channels.
        eval_crop_ratio: Share of the image that evaluation keeps.
        **base: Arguments of `ImageDataModule`.

    Source: E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, doi:10.24432/C50P49.
    """

    class_names = [str(digit) for digit in range(10)]

    def __init__(
        self,
        image_size: int = 32,
        mean: tuple[float, float, float] = (0.31, 0.31, 0.31),
        std: tuple[float, float, float] = (0.35, 0.35, 0.35),
        eval_crop_ratio: float = 1.0,
        **base: Any,
    ) -> None:
        super().__init__(image_size=image_size, mean=mean, std=std, eval_crop_ratio=eval_crop_ratio, **base)

    def load(self, split: str) -> Source:
        from sklearn.datasets import load_digits

        grey, labels = load_digits(return_X_y=True)  # 0 to 16
        size = (self.image_size, self.image_size)
        images = [
            np.asarray(Image.fromarray(digit).resize(size, Image.Resampling.BICUBIC).convert("RGB"))
            for digit in (grey.reshape(-1, 8, 8) * 255 / 16).round().astype(np.uint8)
        ]
        order = np.random.default_rng(0).permutation(len(labels))  # one split for all seeds: results stay comparable
        place = {"test": order[:360], "val": order[360:540], "train": order[540:]}[split]
        return ArrayImages(np.stack(images)[place], labels[place])
