"""Random erasing of a batch on its device. Boxes and noise of an image are functions of (seed, epoch, sample index).

The boxes are drawn on the host, where the indices are, so that the host need not wait for a GPU. The noise comes from
a counter-based hash: one pass over the erased pixels of all images, and no generator state that the other images of
the batch could change.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

AREA = (0.02, 1 / 3)  # range of a box's share of the image
ASPECT = (0.3, 1 / 0.3)  # range of height / width, log-uniform
LEVELS = 2**16  # different values of the noise


class Boxes(NamedTuple):
    """The boxes to erase in a batch.

    Attributes:
        values: Position in the batch, y, x, height, width and key of the noise: `N, 6` int64.
        rows: Rows of all boxes together.
        pixels: Pixels of all boxes together. The device need not be asked for these numbers.
    """

    values: Tensor
    rows: int
    pixels: int


def random_boxes(index: Tensor, size: Sequence[int], probability: float, seed: int, epoch: int) -> Boxes:
    """Draw which images of a batch are erased, and where.

    Args:
        index: Indices of the samples, `B`, on the CPU.
        size: Height and width of the images.
        probability: Probability of erasing, per image. A box has 2 % to 1/3 of the area, aspect ratio 0.3 to 1 / 0.3.
        seed: Seed, together with epoch and index.
        epoch: Epoch.

    Source: arXiv:1708.04896; limits of the official Swin configuration.
    """
    H, W = size
    draws = uniform(index.numpy(), 6, seed, epoch)
    chosen = np.flatnonzero(draws[:, 0] < probability)
    _, area, aspect, y, x, key = draws[chosen].T
    area = (AREA[0] + (AREA[1] - AREA[0]) * area) * H * W
    aspect = np.exp(math.log(ASPECT[0]) + (math.log(ASPECT[1]) - math.log(ASPECT[0])) * aspect)
    h, w = np.minimum(np.rint(np.sqrt(area * aspect)), H), np.minimum(np.rint(np.sqrt(area / aspect)), W)
    y, x = np.floor(y * (H - h + 1)), np.floor(x * (W - w + 1))
    values = np.stack([chosen, y, x, h, w, np.floor(key * 2**32)], axis=1).astype(np.int64)
    return Boxes(torch.from_numpy(values), int(h.sum()), int((h * w).sum()))


def erase(images: Tensor, boxes: Boxes) -> Tensor:
    """Replace the boxes by Gaussian noise, a value of its own for every pixel and channel.

    Args:
        images: Normalised images, `B, C, H, W`.
        boxes: Boxes in these images, on their device.

    Source: arXiv:1708.04896, mode `pixel` of the official Swin configuration.
    """
    _, C, H, W = images.shape
    device = images.device
    sample, y, x, h, w, key = boxes.values.T  # N
    box = torch.repeat_interleave(torch.arange(len(h), device=device), h, output_size=boxes.rows)  # R rows of boxes
    row = y[box] + torch.arange(boxes.rows, device=device) - (h.cumsum(0) - h)[box]
    width = w[box]
    begin = row * W + x[box] - (width.cumsum(0) - width)  # of a row in its image, less the pixels of the rows before it
    of_row = torch.repeat_interleave(torch.arange(boxes.rows, device=device), width, output_size=boxes.pixels)  # P
    pixel = torch.arange(boxes.pixels, device=device) + begin[of_row]
    pixel = pixel + torch.arange(C, device=device)[:, None] * (H * W)  # C, P
    noise = gaussian(pixel, key[box][of_row]).to(images.dtype)
    place = pixel + (sample[box] * (C * H * W))[of_row]
    return images.flatten().index_put((place,), noise).view(images.shape)


def uniform(index: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """Uniform numbers in [0, 1), `B, count`, as a function of (seed, epoch, index): SplitMix64 with a counter.

    Source: Steele et al., Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
    """
    state = np.random.SeedSequence((seed, epoch, 2)).generate_state(1, np.uint64)
    counter = index.astype(np.uint64)[:, None] * np.uint64(count) + np.arange(count, dtype=np.uint64)
    z: np.ndarray = state + counter * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return np.asarray((z >> np.uint64(11)) * 2.0**-53)


def gaussian(counter: Tensor, key: Tensor) -> Tensor:
    """Standard normal numbers as a function of (key, counter), bit-equal in any tensor and on any device.

    Args:
        counter: Below 2**31, int64 of any shape.
        key: Below 2**32, int64 of a shape that is broadcast.

    Source of the hash: C. Wellons, hash-prospector (constants 21f0aaad, 735a2d97; the products stay below 2**63).
    """
    mask = 2**32 - 1
    x = (counter * 0x9E3779B1 + key).bitwise_and_(mask)
    x.bitwise_xor_(x >> 16).mul_(0x21F0AAAD).bitwise_and_(mask)
    x.bitwise_xor_(x >> 15).mul_(0x735A2D97).bitwise_and_(mask)
    x.bitwise_xor_(x >> 15).bitwise_right_shift_(16)  # the upper half
    table = _quantiles(counter.device)  # since the last bit of log and cos may depend on the place in the tensor
    return table[x]


@functools.cache
def _quantiles(device: torch.device) -> Tensor:
    """Quantiles of the standard normal distribution in the middle of equal intervals of probability, `LEVELS`."""
    with torch.inference_mode(False):  # cached for training as well
        middle = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
        quantiles: Tensor = torch.special.ndtri(middle)
        return quantiles.float().to(device, non_blocking=True)
