"""Random block-wise masks of images, drawn on the device as a function of (seed, epoch, index)."""

import math
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T", int, Tensor)

MULTIPLIER, BITS = 0x45D9F3B, 0xFFFFFFFF  # of the 32-bit integer hash by Thomas Mueller, stackoverflow.com/a/12996028


def block_masks(indices: Tensor, seed: int, epoch: int, rows: int, columns: int, ratio: float) -> Tensor:
    """Mask `ceil(ratio * rows * columns)` random blocks of each image.

    The mask of an image depends on neither the batch, the rank nor the device: blocks are ranked by a hash. No host
    waits for a GPU.

    Args:
        indices: Indices of the images in the data set, `B` integers.
        seed: Seed of the run.
        epoch: Epoch; masks of other epochs are independent.
        rows: Number of blocks along the height.
        columns: Number of blocks along the width.
        ratio: Share of the blocks that are masked, as in microsoft/SimMIM rounded up.

    Returns:
        `B, rows, columns` bool, True where masked.
    """
    blocks = torch.arange(rows * columns, device=indices.device)
    keys = _hash(_hash(indices + _hash(_hash(seed) + epoch))[:, None] + blocks)  # B, rows * columns
    rank = keys.argsort(dim=1, stable=True).argsort(dim=1)
    return (rank < math.ceil(ratio * len(blocks))).view(-1, rows, columns)


def _hash(x: T) -> T:
    """A 32-bit hash of an int or of int64 values; products stay below 2^63."""
    x = x & BITS
    for _ in range(2):
        x = ((x >> 16) ^ x) * MULTIPLIER & BITS
    return (x >> 16) ^ x
