"""The usual ImageNet training pipeline, from PIL alone, as torchvision and timm build it: what ours is measured by.

PIL decodes the whole image; RandomResizedCrop (bicubic, antialiased), flip and RandAugment are PIL's; then come
ToTensor and Normalize, so that float32 travels. Source: torchvision's references; timm, data/auto_augment.py.
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

Fill = tuple[int, int, int]
Picture = Image.Image
BICUBIC = Image.Resampling.BICUBIC


class UsualDataset(Dataset[dict[str, Any]]):
    """The items of an experiment's training set as the usual pipeline makes them, by (epoch, index)."""

    def __init__(self, data: ImageDataModule) -> None:
        self.source: Reader = data.sources["train"]
        self.size, self.hflip = data.image_size, data.hflip
        self.mean = torch.tensor(data.mean).view(3, 1, 1)
        self.std = torch.tensor(data.std).view(3, 1, 1)
        self.crop = RandomResizedCrop(data.image_size, data.crop_scale)
        self.augment = RandAugment.from_name(data.rand_augment) if data.rand_augment else None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        encoded: Any
        encoded, target = self.source[key[1]]
        file = encoded.data if not isinstance(encoded.data, bytes) else io.BytesIO(encoded.data)
        rng = random.Random(key[0] * 2**32 + key[1])
        image: Picture = Image.open(file).convert("RGB")
        box = self.crop.box(image.height, image.width, rng)
        image = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        image = image.resize((self.size, self.size), BICUBIC)
        if rng.random() < self.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.augment is not None:
            self.augment.set_random_state(np.random.default_rng(0), rng)
            for name, sign, level in self.augment.get_params()["drawn"]:
                image = OPERATIONS[name](image, sign, level, self.augment.fill)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return {"image": pixels.sub_(self.mean).div_(self.std), "target": target, "index": key[1]}


def _affine(image: Picture, matrix: tuple[float, ...], fill: Fill) -> Picture:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, BICUBIC, fillcolor=fill)


def _enhance(kind: Callable[[Picture], Any]) -> Callable[[Picture, int, float, Fill], Picture]:
    return lambda image, sign, level, fill: kind(image).enhance(max(0.1, 1 + 0.9 * sign * level))


def _posterize(image: Picture, bits: int) -> Picture:
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)


def _solarize_add(image: Picture, add: int) -> Picture:
    return image.point([min(255, i + add) if i < 128 else i for i in range(256)] * 3)


OPERATIONS: dict[str, Callable[[Picture, int, float, Fill], Picture]] = {
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
