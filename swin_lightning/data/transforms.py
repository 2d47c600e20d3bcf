"""From a decoded image to the network's pixels. The only file that knows albumentations.

Images are `H, W, 3` uint8 RGB arrays on both sides; normalisation happens on the device.
"""

import os
import random
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or the import asks the network for a newer version
import albumentations as A
import cv2

cv2.setNumThreads(0)  # the DataLoader's workers are the parallelism; OpenCV's threads would fight with torch's

Crop = Literal["random_resized", "pad", "none"]
EvalCrop = Literal["center", "squash"]
Array = np.ndarray


class Transform:
    """An albumentations pipeline whose randomness is a function of a seed given with each image.

    albumentations' own generators are copied into every DataLoader worker and restored every epoch, so that
    each worker and each epoch would draw the same augmentations.
    """

    def __init__(self, steps: Sequence[A.BasicTransform]) -> None:
        self.compose = A.Compose(list(steps))

    def __call__(self, image: Array, seed: Sequence[int]) -> Array:
        state = np.random.SeedSequence(seed).generate_state(2)
        self.compose.set_random_state(np.random.default_rng(state[0]), random.Random(int(state[1])))
        return self.compose(image=image)["image"]


def train_transform(
    image_size: int,
    crop: Crop = "random_resized",
    crop_scale: tuple[float, float] = (0.08, 1.0),
    hflip: float = 0.5,
    rotate: float = 0.0,
    rand_augment: str | None = None,
    fill: tuple[int, int, int] = (124, 116, 104),
) -> Transform:
    """Training pixels: crop to `image_size`, flip, rotate, RandAugment. Arguments as in `ImageDataModule`."""
    size = (image_size, image_size)
    steps: list[A.BasicTransform] = []
    if crop == "random_resized":
        steps.append(RandomResizedCrop(size, scale=crop_scale))
    else:
        steps.append(Resize(image_size))
        if crop == "pad":
            steps += [A.Pad(image_size // 8, border_mode=cv2.BORDER_CONSTANT), A.RandomCrop(*size)]
    if hflip:
        steps.append(A.HorizontalFlip(p=hflip))
    if rotate:
        steps.append(A.Affine(rotate=(-rotate, rotate), border_mode=cv2.BORDER_REPLICATE, p=1.0))
    if rand_augment:
        steps.append(RandAugment.from_name(rand_augment, fill))
    return Transform(steps)


def eval_transform(image_size: int, crop: EvalCrop = "center", crop_ratio: float = 224 / 256) -> Transform:
    """Evaluation pixels: the shorter side to `image_size / crop_ratio`, then the centre; or squashed to the square.

    Bicubic and antialiased by PIL, to the last bit the pixels of the official protocol.

    Raises:
        ValueError: For a crop ratio outside of (0, 1].
    """
    if not 0 < crop_ratio <= 1:
        raise ValueError(f"data.eval_crop_ratio {crop_ratio} must be above 0 and at most 1")
    squash = crop == "squash" or crop_ratio == 1.0
    return Transform([Resize(image_size, None if squash else int(image_size / crop_ratio))])


def bicubic(image: Array, height: int, width: int) -> Array:
    """The image in another size by PIL: bicubic, and where it shrinks, antialiased, which OpenCV's bicubic is not."""
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


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


class RandomResizedCrop(A.RandomResizedCrop):
    """Albumentations' choice of the box, resized by PIL as in evaluation."""

    def apply(self, img: Array, crop_coords: tuple[int, int, int, int], **_: Any) -> Array:
        left, top, right, bottom = crop_coords
        return bicubic(img[top:bottom, left:right], *self.size)


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
        fill: tuple[int, int, int] = (124, 116, 104),
    ) -> None:
        super().__init__(p=1.0)
        self.magnitude = magnitude
        self.magnitude_std = magnitude_std
        self.num_layers = num_layers
        self.op_probability = op_probability
        self.fill = fill

    @classmethod
    def from_name(cls, name: str, fill: tuple[int, int, int] = (124, 116, 104)) -> "RandAugment":
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
            raise ValueError(
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
        if not drawn:
            return img
        image = Image.fromarray(img)
        for name, sign, level in drawn:
            image = OPERATIONS[name](image, sign, level, self.fill)
        return np.asarray(image)


def _affine(image: Image.Image, matrix: Sequence[float], fill: tuple[int, int, int]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill)


def _enhance(kind: Callable[[Image.Image], Any]) -> "Operation":
    return lambda image, sign, level, fill: kind(image).enhance(max(0.1, 1 + 0.9 * sign * level))


def _solarize_add(image: Image.Image, add: int) -> Image.Image:
    return image.point([min(255, i + add) if i < 128 else i for i in range(256)] * 3)


# image, sign of the magnitude, magnitude from 0 to 1, fill -> image
Operation = Callable[[Image.Image, int, float, tuple[int, int, int]], Image.Image]
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda image, sign, level, fill: ImageOps.autocontrast(image),
    "Equalize": lambda image, sign, level, fill: ImageOps.equalize(image),
    "Invert": lambda image, sign, level, fill: ImageOps.invert(image),
    "Rotate": lambda image, sign, level, fill: image.rotate(
        30 * sign * level, resample=Image.Resampling.BICUBIC, fillcolor=fill
    ),
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


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    # zero bits are a black image in timm; PIL's posterize takes one bit at least
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)
