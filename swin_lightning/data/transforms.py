"""Transforms from an image to input pixels for training and evaluation. The only file that imports albumentations.

Input and output are `H, W, 3` uint8 RGB; normalisation happens on the device. Training resizes with torch, whose
antialiased bicubic interpolation of uint8 takes a sixth of PIL's time and differs by 0.02 grey levels on average for
photographs. Evaluation resizes with PIL, bit-identical to the official evaluation protocol.
"""

import math
import os
import random
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from swin_lightning.errors import UserError
from swin_lightning.ranges import Ascending, NonNegative, Probability, Range, Share, check_arguments

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise the import checks for updates over the network
import albumentations as A
import cv2

from swin_lightning.data.decoding import Box, LazyImage
from swin_lightning.data.rand_augment import RAND_AUGMENT_OPS, Fill

cv2.setNumThreads(0)  # DataLoader workers run in parallel; OpenCV's threads would compete with torch's

Crop = Literal["random_resized", "pad", "none"]
EvalCrop = Literal["center", "squash"]
AreaRange = Annotated[tuple[Share, Share], Ascending()]  # fractions of the area
Degrees = Annotated[float, Range(ge=0, le=360)]
Array = np.ndarray


class Transform:
    """Crop, flip and an albumentations pipeline, with random numbers from a seed that is passed with each image.

    The random generators of albumentations would be copied into every DataLoader worker and restored in every epoch:
    each worker and each epoch would draw the same augmentations.

    Args:
        steps: Transforms after crop and flip.
        crop: Applied first, so that only the crop is decoded; None decodes the full image.
        hflip: Probability of a horizontal flip.
    """

    def __init__(
        self, steps: Sequence[A.BasicTransform], crop: "RandomResizedCrop | None" = None, hflip: float = 0.0
    ) -> None:
        self.compose = A.Compose(list(steps))
        self.crop, self.hflip = crop, hflip

    def __call__(self, image: Array | LazyImage, seed: Sequence[int]) -> Array:
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
    crop_scale: AreaRange = (0.08, 1.0),
    hflip: Probability = 0.5,
    rotate: Degrees = 0.0,
    rand_augment: str | None = None,
    fill: Fill = (124, 116, 104),
) -> Transform:
    """Transform for training: crop to `image_size`, flip, rotate, RandAugment.

    Args:
        image_size: Side length of the result in pixels.
        crop: Kind of crop.
        crop_scale: Range of the area fraction of the random resized crop.
        hflip: Probability of a horizontal flip.
        rotate: Maximum rotation in degrees.
        rand_augment: Policy in timm's notation.
        fill: RGB colour of the pixels that RandAugment uncovers.

    Raises:
        UserError: If the policy is unknown.
    """
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


def eval_transform(image_size: int, crop: EvalCrop = "center", crop_ratio: Share = 224 / 256) -> Transform:
    """Transform for evaluation, bit-identical to the official protocol (bicubic, antialiased, by PIL).

    Args:
        image_size: Side length of the result in pixels.
        crop: `center` resizes the shorter side to `image_size / crop_ratio` and takes the center crop; `squash` resizes
            to a square.
        crop_ratio: Side length of the crop, relative to the shorter side of the resized image.

    Raises:
        UserError: If the crop ratio is not in (0, 1].
    """
    check_arguments(eval_transform, locals(), "data.eval_")
    squash = crop == "squash" or crop_ratio == 1.0
    return Transform([Resize(image_size, None if squash else int(image_size / crop_ratio))])


def resize_pil(image: Array, height: int, width: int) -> Array:
    """Resize with PIL: bicubic, and antialiased when downscaling, which OpenCV's bicubic interpolation is not."""
    if image.shape[:2] == (height, width):
        return image
    bicubic = Image.Resampling.BICUBIC
    # columns first, as every Pillow before 13, which begins with the rows of tall images and rounds differently
    return np.array(Image.fromarray(image).resize((width, image.shape[0]), bicubic).resize((width, height), bicubic))


def resize_torch(image: Array, size: int) -> Array:
    """Resize to a square with torch: PIL's antialiased bicubic interpolation up to rounding."""
    if image.shape[:2] == (size, size):
        return np.ascontiguousarray(image)
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
    out: Array = F.interpolate(batch, (size, size), mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
    return out


class RandomResizedCrop:
    """A crop of random area and aspect ratio, resized to a square; only the crop is decoded.

    Args:
        image_size: Side length of the result in pixels.
        scale: Range of the area fraction.
        ratio: Range of the aspect ratio, width / height.

    Source: Szegedy et al., arXiv:1409.4842; the box is chosen as in torchvision.
    """

    def __init__(
        self, image_size: int, scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)
    ) -> None:
        self.image_size, self.scale, self.ratio = image_size, scale, ratio

    def __call__(self, image: Array | LazyImage, rng: random.Random) -> Array:
        height, width = image.size() if isinstance(image, LazyImage) else image.shape[:2]
        box = self.box(height, width, rng)
        pixels = image.crop(box, self.image_size) if isinstance(image, LazyImage) else box.crop(image)
        return resize_torch(pixels, self.image_size)

    def box(self, height: int, width: int, rng: random.Random) -> Box:
        """Draw a box: up to ten attempts that must fit into the image, then the largest possible box in the centre."""
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            h, w = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
            if 0 < h <= height and 0 < w <= width:
                return Box(rng.randint(0, height - h), rng.randint(0, width - w), h, w)
        h, w = min(height, round(width / self.ratio[0])), min(width, round(height * self.ratio[1]))
        return Box((height - h) // 2, (width - w) // 2, h, w)


class Resize(A.ImageOnlyTransform):  # type: ignore[misc,unused-ignore]
    """Resize to a square, or resize the shorter side and take the center crop.

    Args:
        image_size: Side length of the result in pixels.
        shorter_side: Length of the shorter side before the center crop; None resizes to a square.
    """

    def __init__(self, image_size: int, shorter_side: int | None = None) -> None:
        super().__init__(p=1.0)
        self.image_size = image_size
        self.shorter_side = shorter_side

    def apply(self, img: Array, **_: Any) -> Array:
        size = self.image_size
        if self.shorter_side is None:
            return resize_pil(img, size, size)
        height, width = img.shape[:2]
        shorter = min(height, width)
        img = resize_pil(img, self.shorter_side * height // shorter, self.shorter_side * width // shorter)
        top, left = (round((length - size) / 2) for length in img.shape[:2])  # rounded as in torchvision
        return img[top : top + size, left : left + size]


class RandAugment(A.ImageOnlyTransform):  # type: ignore[misc,unused-ignore]
    """RandAugment with the operations and magnitudes of timm's `rand-m9-mstd0.5-inc1`, the policy of Swin's training.

    Args:
        magnitude: Mean magnitude of an operation, from 0 to 10.
        magnitude_std: Standard deviation of the magnitude.
        num_layers: Number of operations per image, drawn with replacement.
        op_probability: Probability that a drawn operation is applied.
        fill: RGB colour of uncovered pixels.

    Source: Cubuk et al., arXiv:1909.13719; huggingface/pytorch-image-models, timm/data/auto_augment.py.
    """

    def __init__(
        self,
        magnitude: Annotated[float, Range(ge=0, le=10)] = 9.0,
        magnitude_std: NonNegative = 0.5,
        num_layers: Annotated[int, Range(ge=1, le=100)] = 2,
        op_probability: Probability = 0.5,
        fill: Fill = (124, 116, 104),
    ) -> None:
        check_arguments(RandAugment.__init__, locals(), "data.rand_augment: ")
        super().__init__(p=1.0)
        self.magnitude = magnitude
        self.magnitude_std = magnitude_std
        self.num_layers = num_layers
        self.op_probability = op_probability
        self.fill = fill

    @classmethod
    def from_name(cls, name: str, fill: Fill = (124, 116, 104)) -> "RandAugment":
        """Parse timm's notation, such as `rand-m9-mstd0.5-inc1`; timm's defaults are `m10`, `mstd0`, `n2` and `p0.5`.

        Raises:
            UserError: If the policy or a part of it is unknown, or `inc1` is missing.
        """
        policy, *parts = name.split("-")
        keys = {"mstd": "magnitude_std", "m": "magnitude", "n": "num_layers", "p": "op_probability"}
        arguments: dict[str, Any] = {"magnitude": 10.0, "magnitude_std": 0.0}
        try:
            if policy != "rand" or "inc1" not in parts:
                raise ValueError
            for part in parts:
                if part != "inc1":
                    prefix = part.rstrip("0123456789.")
                    arguments[keys[prefix]] = (int if prefix == "n" else float)(part[len(prefix) :])
        except (KeyError, ValueError):
            raise UserError(
                f"unknown data.rand_augment {name!r}; expected a policy such as 'rand-m9-mstd0.5-inc1' "
                "(m: magnitude, mstd: its standard deviation, n: layers, p: probability, inc1: required)"
            ) from None
        return cls(**arguments, fill=fill)

    def get_params(self) -> dict[str, Any]:
        drawn = []
        for name in self.py_random.choices(list(RAND_AUGMENT_OPS), k=self.num_layers):
            if self.py_random.random() <= self.op_probability:
                level = min(max(self.py_random.gauss(self.magnitude, self.magnitude_std), 0.0), 10.0)
                sign = self.py_random.choice((-1, 1))
                drawn.append((name, sign, level / 10))
        return {"drawn": drawn}

    def apply(self, img: Array, drawn: list[tuple[str, int, float]], **_: Any) -> Array:
        for name, sign, level in drawn:
            img = RAND_AUGMENT_OPS[name](img, sign, level, self.fill)
        return img
