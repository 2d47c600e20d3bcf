"""What a data module yields and a task takes. Data and tasks import this file, never each other."""

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from swin_lightning.errors import UserError

IGNORE_INDEX = -1  # target of a sample without a label, and of padding samples: it counts in no loss and no metric
MAX_SIDE = 4096  # of an image, in pixels, that a checkpoint may ask for


class Batch(TypedDict):
    """A batch of classified images, as `ImageDataModule` yields it.

    Attributes:
        image: Normalised images, `B, 3, H, W` float.
        target: Class indices, `B`, or class probabilities, `B, K` (mixup, CutMix).
        index: Indices in the data set, `B`; -1 for images that could not be read and for padding samples.
    """

    image: Tensor
    target: Tensor
    index: Tensor


@dataclass(frozen=True)
class Preprocessing:
    """How evaluation turns an image into the input of the network. Checkpoints store it, see `find_preprocessing`.

    Attributes:
        image_size: Side length S of the input in pixels.
        crop: `center` resizes the shorter side to `S / crop_ratio` and takes the center crop; `squash` resizes to a
            square.
        crop_ratio: Side length of the crop, relative to the shorter side of the resized image.
        mean: Per-channel mean (RGB) in [0, 1].
        std: Per-channel standard deviation (RGB).
        interpolation: Of the resizing; antialiased.
    """

    image_size: int
    crop: Literal["center", "squash"]
    crop_ratio: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic"] = "bicubic"

    @property
    def shorter_side(self) -> int | None:
        """Length in pixels to which the shorter side is resized before the center crop; None resizes to a square."""
        squash = self.crop == "squash" or self.crop_ratio == 1.0
        return None if squash else int(self.image_size / self.crop_ratio)

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 pixels `B, 3, H, W` to float with mean and standard deviation removed."""
        mean, std = _per_channel(self.mean, images.device), _per_channel(self.std, images.device)
        return (images / 255 - mean) / std

    def denormalize(self, images: Tensor) -> Tensor:
        """The inverse of `normalize`: float to uint8 pixels."""
        mean, std = _per_channel(self.mean, images.device), _per_channel(self.std, images.device)
        return ((images * std + mean) * 255).round().clamp(0, 255).byte()

    def protocol(self) -> str:
        """The resize and crop in words, such as `resize 256, crop 224`."""
        size = self.image_size
        return f"resize {size} x {size}" if self.shorter_side is None else f"resize {self.shorter_side}, crop {size}"

    def state(self) -> dict[str, Any]:
        """Plain values, as a checkpoint stores them."""
        return asdict(self)


def find_preprocessing(checkpoint: Mapping[str, Any]) -> Preprocessing | None:
    """The preprocessing in the content of a checkpoint, None if it has none.

    It is a part of the state of the data module, which Lightning stores under the name of its class.

    Raises:
        UserError: If its values are out of range.
    """
    names = {field.name for field in fields(Preprocessing)}
    for state in checkpoint.values():
        stored = state.get("preprocessing") if isinstance(state, Mapping) else None
        if isinstance(stored, Mapping) and stored.keys() == names:
            found = Preprocessing(**stored)
            _check(found)
            return found
    return None


def _check(stored: Preprocessing) -> None:
    """Compare values from a file with their types and ranges."""
    side, ratio = stored.image_size, stored.crop_ratio
    numbers = isinstance(side, int) and isinstance(ratio, float | int)
    in_range = numbers and 1 <= side <= MAX_SIDE and 0 < ratio <= 1 and side / ratio <= 2 * MAX_SIDE
    for values, lowest in ((stored.mean, 0.0), (stored.std, 1e-4)):
        channels = isinstance(values, list | tuple) and len(values) == 3
        in_range = in_range and channels and all(isinstance(v, float | int) and lowest <= v <= 1 for v in values)
    if not in_range or stored.crop not in ("center", "squash") or stored.interpolation != "bicubic":
        raise UserError(f"the preprocessing in the checkpoint is out of range: {str(asdict(stored))[:300]}")


@functools.cache
def _per_channel(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """Tensor `3, 1, 1` on the device, cached: a copy from the host in every step would synchronise with the GPU."""
    with torch.inference_mode(False):  # evaluation may create it first, and training needs it for gradients
        return torch.tensor(values, device=device).view(3, 1, 1)
