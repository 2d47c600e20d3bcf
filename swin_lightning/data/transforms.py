"""From an image to the network's pixels. The only file that knows albumentations.

Pixels are `H, W, 3` uint8 RGB on both sides; normalisation happens on the device. Training resizes by torch, whose
antialiased bicubic of bytes takes a sixth of PIL's time and gives photographs that differ by 0.02 grey levels in the
mean; evaluation by PIL itself, to the last bit the official protocol's pixels.
"""

import math
import os
import random
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from swin_lightning.errors import UserError

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or the import asks the network for a newer version
import albumentations as A
import cv2

from swin_lightning.data.decoding import Box, Encoded
from swin_lightning.data.rand_augment import OPERATIONS, Fill

cv2.setNumThreads(0)  # the DataLoader's workers are the parallelism; OpenCV's threads would fight with torch's

Crop = Literal["random_resized", "pad", "none"]
EvalCrop = Literal["center", "squash"]
Array = np.ndarray


class Transform:
    """Crop, flip and an albumentations pipeline, whose randomness is a function of a seed given with each image.

    albumentations' own generators are copied into every DataLoader worker and restored every epoch, so that
    each worker and each epoch would draw the same augmentations.

    Args:
        steps: What follows crop and flip.
        crop: Comes first, since only what it keeps needs decoding; without one the whole image is decoded.
        hflip: Probability of a horizontal flip.
    """

    def __init__(
        self, steps: Sequence[A.BasicTransform], crop: "RandomResizedCrop | None" = None, hflip: float = 0.0
    ) -> None:
        self.compose = A.Compose(list(steps))
        self.crop, self.hflip = crop, hflip

    def __call__(self, image: Array | Encoded, seed: Sequence[int]) -> Array:
        state = np.random.SeedSequence(seed).generate_state(2)
        rng = random.Random(int(state[1]))
        pixels: Array = np.asarray(image) if self.crop is None else self.crop(image, rng)
        if self.hflip and rng.random() < self.hflip:
            pixels = cv2.flip(pixels, 1)
        if self.compose.transforms:
            self.compose.set_random_state(np.random.default_rng(state[0]), rng)
            pixels = self.compose(image=pixels)["image"]
        return pixels


def train_transform(
    image_size: int,
    crop: Crop = "random_resized",
    crop_scale: tuple[float, float] = (0.08, 1.0),
    hflip: float = 0.5,
    rotate: float = 0.0,
    rand_augment: str | None = None,
    fill: Fill = (124, 116, 104),
) -> Transform:
    """Training pixels: crop to `image_size`, flip, rotate, RandAugment. Arguments as in `ImageDataModule`."""
    size = (image_size, image_size)
    steps: list[A.BasicTransform] = []
    random_crop = RandomResizedCrop(image_size, crop_scale) if crop == "random_resized" else None
    if random_crop is None:
        steps.append(Resize(image_size))
        if crop == "pad":
            steps += [A.Pad(image_size // 8, border_mode=cv2.BORDER_CONSTANT), A.RandomCrop(*size)]
    if rotate:
        steps.append(A.Affine(rotate=(-rotate, rotate), border_mode=cv2.BORDER_REPLICATE, p=1.0))
    if rand_augment:
        steps.append(RandAugment.from_name(rand_augment, fill))
    return Transform(steps, random_crop, hflip)


def eval_transform(image_size: int, crop: EvalCrop = "center", crop_ratio: float = 224 / 256) -> Transform:
    """Evaluation pixels: the shorter side to `image_size / crop_ratio`, then the centre; or squashed to the square.

    Bicubic and antialiased by PIL, to the last bit the pixels of the official protocol.

    Raises:
        ValueError: For a crop ratio outside of (0, 1].
    """
    if not 0 < crop_ratio <= 1:
        raise UserError(f"data.eval_crop_ratio {crop_ratio} must be above 0 and at most 1")
    squash = crop == "squash" or crop_ratio == 1.0
    return Transform([Resize(image_size, None if squash else int(image_size / crop_ratio))])


def bicubic(image: Array, height: int, width: int) -> Array:
    """The image in another size by PIL: bicubic, and where it shrinks, antialiased, which OpenCV's bicubic is not."""
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def bicubic_by_torch(image: Array, size: int) -> Array:
    """The image as a square of this side: PIL's antialiased bicubic, but for rounding."""
    if image.shape[:2] == (size, size):
        return np.ascontiguousarray(image)
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
    out: Array = F.interpolate(batch, (size, size), mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
    return out


class RandomResizedCrop:
    """A box of random area and aspect ratio, resized to a square; only what lies in it is decoded.

    Args:
        image_size: Side of the result.
        scale: Share of the area, from and to.
        ratio: Width by height, from and to.

    Source: Szegedy et al., arXiv:1409.4842; the choice of the box as in torchvision.
    """

    def __init__(
        self, image_size: int, scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)
    ) -> None:
        self.image_size, self.scale, self.ratio = image_size, scale, ratio

    def __call__(self, image: Array | Encoded, rng: random.Random) -> Array:
        height, width = image.size() if isinstance(image, Encoded) else image.shape[:2]
        box = self.box(height, width, rng)
        pixels = image.crop(box, self.image_size) if isinstance(image, Encoded) else box.of(image)
        return bicubic_by_torch(pixels, self.image_size)

    def box(self, height: int, width: int, rng: random.Random) -> Box:
        """The box: ten tries to place one of the drawn shape, then the largest one in the middle."""
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            h, w = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
            if 0 < h <= height and 0 < w <= width:
                return Box(rng.randint(0, height - h), rng.randint(0, width - w), h, w)
        h, w = min(height, round(width / self.ratio[0])), min(width, round(height * self.ratio[1]))
        return Box((height - h) // 2, (width - w) // 2, h, w)


class Resize(A.ImageOnlyTransform):
    """The whole image squeezed to a square; or, with `side`, the centre of the image whose shorter side is that long.

    Args:
        image_size: Side of the result.
        side: Shorter side before the centre is cut; None squeezes.
    """

    def __init__(self, image_size: int, side: int | None = None) -> None:
        super().__init__(p=1.0)
        self.image_size = image_size
        self.side = side

    def apply(self, img: Array, **_: Any) -> Array:
        size = self.image_size
        if self.side is None:
            return bicubic(img, size, size)
        height, width = img.shape[:2]
        shorter = min(height, width)
        img = bicubic(img, self.side * height // shorter, self.side * width // shorter)
        top, left = (round((length - size) / 2) for length in img.shape[:2])  # odd margins: as torchvision does
        return img[top : top + size, left : left + size]


class RandAugment(A.ImageOnlyTransform):
    """RandAugment with the operations and magnitudes of timm's `rand-m9-mstd0.5-inc1`, which Swin was trained with.

    Args:
        magnitude: Mean magnitude of an operation, from 0 to 10.
        magnitude_std: Standard deviation of the magnitude.
        num_layers: Operations drawn for an image, with replacement.
        op_probability: Probability that a drawn operation is applied.
        fill: RGB of the pixels that come into view.

    Source: Cubuk et al., arXiv:1909.13719; huggingface/pytorch-image-models, timm/data/auto_augment.py.
    """

    def __init__(
        self,
        magnitude: float = 9.0,
        magnitude_std: float = 0.5,
        num_layers: int = 2,
        op_probability: float = 0.5,
        fill: Fill = (124, 116, 104),
    ) -> None:
        super().__init__(p=1.0)
        self.magnitude = magnitude
        self.magnitude_std = magnitude_std
        self.num_layers = num_layers
        self.op_probability = op_probability
        self.fill = fill

    @classmethod
    def from_name(cls, name: str, fill: Fill = (124, 116, 104)) -> "RandAugment":
        """Read timm's notation: `rand-m9-mstd0.5-inc1`; as there, `m10`, `mstd0`, `n2` and `p0.5` where not written.

        Raises:
            ValueError: For another policy, an unknown part, or without `inc1`.
        """
        policy, *parts = name.split("-")
        keys = {"mstd": "magnitude_std", "m": "magnitude", "n": "num_layers", "p": "op_probability"}
        known: dict[str, Any] = {"magnitude": 10.0, "magnitude_std": 0.0}
        try:
            if policy != "rand" or "inc1" not in parts:
                raise ValueError
            for part in parts:
                if part != "inc1":
                    prefix = part.rstrip("0123456789.")
                    known[keys[prefix]] = (int if prefix == "n" else float)(part[len(prefix) :])
        except (KeyError, ValueError):
            raise UserError(
                f"rand_augment {name!r} is not known; write it like 'rand-m9-mstd0.5-inc1' "
                "(m magnitude, mstd its deviation, n layers, p probability, inc1 always)"
            ) from None
        return cls(**known, fill=fill)

    def get_params(self) -> dict[str, Any]:
        drawn = []
        for name in self.py_random.choices(list(OPERATIONS), k=self.num_layers):
            if self.py_random.random() <= self.op_probability:
                level = min(max(self.py_random.gauss(self.magnitude, self.magnitude_std), 0.0), 10.0)
                sign = self.py_random.choice((-1, 1))
                drawn.append((name, sign, level / 10))
        return {"drawn": drawn}

    def apply(self, img: Array, drawn: list[tuple[str, int, float]], **_: Any) -> Array:
        for name, sign, level in drawn:
            img = OPERATIONS[name](img, sign, level, self.fill)
        return img
