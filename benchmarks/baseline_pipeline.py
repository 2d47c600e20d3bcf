"""The usual ImageNet training pipeline of torchvision and timm, with PIL only: the baseline for our data pipeline.

PIL decodes the whole image and does RandomResizedCrop (bicubic, antialiased), the flip and RandAugment; ToTensor and
Normalize follow, so that loader processes send float32. Source: torchvision's training references; timm,
data/auto_augment.py.
"""

import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch.utils.data import Dataset

from swin_lightning.data.image_datamodule import ImageDataModule
from swin_lightning.data.readers import Reader
from swin_lightning.data.transforms import RandAugment, RandomResizedCrop

Color = tuple[int, int, int]
Operation = Callable[[Image.Image, int, float, Color], Image.Image]  # image, sign, level in [0, 1], fill color
BICUBIC = Image.Resampling.BICUBIC


class BaselineDataset(Dataset[dict[str, Any]]):
    """The training set of an experiment as the PIL pipeline yields it, by (epoch, index).

    Args:
        data: Data module after `setup("fit")`, with the crop `random_resized` and images from files.
    """

    def __init__(self, data: ImageDataModule) -> None:
        self.reader: Reader = data.sources["train"]
        self.size, self.hflip = data.image_size, data.hflip
        self.mean = torch.tensor(data.mean).view(3, 1, 1)
        self.std = torch.tensor(data.std).view(3, 1, 1)
        self.crop = RandomResizedCrop(data.image_size, data.crop_scale)
        self.rand_augment = RandAugment.from_name(data.rand_augment) if data.rand_augment else None

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        encoded: Any
        encoded, target = self.reader[key[1]]
        file = encoded.data if not isinstance(encoded.data, bytes) else io.BytesIO(encoded.data)
        rng = random.Random(key[0] * 2**32 + key[1])
        image: Image.Image = Image.open(file).convert("RGB")
        box = self.crop.box(image.height, image.width, rng)
        image = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        image = image.resize((self.size, self.size), BICUBIC)
        if rng.random() < self.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.rand_augment is not None:
            self.rand_augment.set_random_state(np.random.default_rng(0), rng)
            for name, sign, level in self.rand_augment.get_params()["drawn"]:
                image = OPERATIONS[name](image, sign, level, self.rand_augment.fill)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)  # 3, S, S
        return {"image": pixels.sub_(self.mean).div_(self.std), "target": target, "index": key[1]}


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: Color) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, BICUBIC, fillcolor=fill)


def _enhance(kind: Callable[[Image.Image], Any]) -> Operation:
    return lambda image, sign, level, fill: kind(image).enhance(max(0.1, 1 + 0.9 * sign * level))


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)


def _solarize_add(image: Image.Image, add: int) -> Image.Image:
    return image.point([min(255, i + add) if i < 128 else i for i in range(256)] * 3)


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda image, sign, level, fill: ImageOps.autocontrast(image),
    "Equalize": lambda image, sign, level, fill: ImageOps.equalize(image),
    "Invert": lambda image, sign, level, fill: ImageOps.invert(image),
    "Rotate": lambda image, sign, level, fill: image.rotate(30 * sign * level, resample=BICUBIC, fillcolor=fill),
    "Posterize": lambda image, sign, level, fill: _posterize(image, 4 - int(4 * level)),
    "Solarize": lambda image, sign, level, fill: ImageOps.solarize(image, 256 - int(256 * level)),
    "SolarizeAdd": lambda image, sign, level, fill: _solarize_add(image, min(128, int(110 * level))),
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "ShearX": lambda image, sign, level, fill: _affine(image, (1, 0.3 * sign * level, 0, 0, 1, 0), fill),
    "ShearY": lambda image, sign, level, fill: _affine(image, (1, 0, 0, 0.3 * sign * level, 1, 0), fill),
    "TranslateX": lambda image, sign, level, fill: _affine(
        image, (1, 0, 0.45 * sign * level * image.width, 0, 1, 0), fill
    ),
    "TranslateY": lambda image, sign, level, fill: _affine(
        image, (1, 0, 0, 0, 1, 0.45 * sign * level * image.height), fill
    ),
}
