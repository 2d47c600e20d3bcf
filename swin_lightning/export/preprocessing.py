"""Preprocessing as tensor operations: resize as Pillow does it, crop and normalise, for exported programs.

Pillow resizes uint8 images with integer weights of 22 fractional bits, columns first, and rounds to uint8 after each
of the two passes. The same integers in float64 give the same pixels for images of any size. Each pass is a
multiplication with a banded matrix, which is computed from the image size inside the program.

Source: python-pillow/Pillow, src/libImaging/Resample.c.
"""

from typing import Final

import torch
from torch import Tensor, nn


class ResizeCropNormalize(nn.Module):
    """One uint8 RGB image `H, W, 3` of any size to the normalised network input `1, 3, S, S`.

    Args:
        image_size: Side length S of the result in pixels.
        shorter_side: Length of the shorter side before the center crop; None resizes to a square.
        mean: Per-channel mean (RGB) in [0, 1].
        std: Per-channel standard deviation (RGB).
    """

    support: Final = 2.0  # of the bicubic filter, in output pixels when downscaling, in input pixels otherwise
    fraction: Final = float(1 << 22)  # weights are integers in units of 1 / fraction
    mean: Tensor
    std: Tensor

    def __init__(
        self, image_size: int, shorter_side: int | None, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.image_size, self.shorter_side = image_size, shorter_side
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[0], image.shape[1]
        shorter = torch.minimum(_scalar(height), _scalar(width))
        pixels = image.permute(2, 0, 1).double()  # 3, H, W
        pixels = self.round_to_uint8(pixels @ self.weights(width, shorter).T)  # 3, H, S
        pixels = self.round_to_uint8(self.weights(height, shorter) @ pixels)  # 3, S, S
        return ((pixels.float() / 255 - self.mean) / self.std).unsqueeze(0)

    def weights(self, length: int, shorter: Tensor) -> Tensor:
        """Resampling matrix of one axis, `S, length`, in units of 1 / fraction; only the rows inside the crop.

        Args:
            length: Length of the axis in pixels.
            shorter: Length of the shorter side, as a float64 scalar: it may differ between calls of one program.
        """
        size, shorter_side = self.image_size, self.shorter_side
        if shorter_side is None:
            resized, offset = _scalar(size), _scalar(0)
        else:
            resized = torch.floor(shorter_side * _scalar(length) / shorter)
            offset = torch.round((resized - size) / 2)  # half to even, as Python rounds
        scale = _scalar(length) / resized
        filter_scale = scale.clamp(min=1.0)
        support = self.support * filter_scale
        center = (torch.arange(size, dtype=torch.float64) + offset + 0.5).unsqueeze(1) * scale  # S, 1
        source = torch.arange(length, dtype=torch.float64).unsqueeze(0)  # 1, length
        inside = (source >= torch.floor(center - support + 0.5)) & (source < torch.floor(center + support + 0.5))
        weights = torch.where(inside, bicubic((source - center + 0.5) / filter_scale), 0.0)
        weights = weights / weights.sum(dim=1, keepdim=True) * self.fraction
        return torch.where(weights < 0, torch.ceil(weights - 0.5), torch.floor(weights + 0.5))

    def round_to_uint8(self, x: Tensor) -> Tensor:
        """Values in units of 1 / fraction to integers in [0, 255], half up."""
        return torch.floor(x / self.fraction + 0.5).clamp(0, 255)


def bicubic(x: Tensor) -> Tensor:
    """The cubic convolution kernel with a = -0.5."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _scalar(value: int) -> Tensor:
    return torch.scalar_tensor(value, dtype=torch.float64)
