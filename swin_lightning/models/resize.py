"""Resizing of relative position bias tables and absolute position embeddings to another window or image size."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

BiasResize = Literal["bicubic", "geometric"]


def resize_bias_table(table: Tensor, window_size: int, mode: BiasResize = "bicubic") -> Tensor:
    """Interpolate a relative position bias table to another window size.

    Args:
        table: Bias table of windows of m x m tokens, `(2m-1)^2, nH`.
        window_size: Side M of the new window.
        mode: `bicubic` interpolates the table like an image, as the official code does: offsets scale with the
            window. `geometric` keeps the bias of small offsets and stretches larger offsets progressively, as
            fine-tuning in SimMIM does (microsoft/SimMIM, utils.py).

    Returns:
        `(2M-1)^2, nH`.
    """
    old, new = math.isqrt(len(table)), 2 * window_size - 1
    grid = table.float().T.reshape(1, -1, old, old)  # 1, nH, 2m-1, 2m-1
    if mode == "bicubic":
        grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    else:
        W = _geometric_weights(old // 2, new // 2).float()  # 2M-1, 2m-1
        grid = W @ grid @ W.T
    return grid.reshape(-1, new * new).T.to(table.dtype)


def centre_bias_table(table: Tensor, window_size: int) -> Tensor:
    """Crop a bias table to a smaller window, or extend it by replication to a larger one; no offset moves.

    Args:
        table: Bias table of windows of m x m tokens, `(2m-1)^2, nH`.
        window_size: Side M of the new window.

    Returns:
        `(2M-1)^2, nH`.
    """
    old = math.isqrt(len(table))
    border = window_size - (old + 1) // 2
    grid = table.T.reshape(1, -1, old, old)
    grid = F.pad(grid, (border,) * 4, mode="replicate") if border > 0 else F.pad(grid, (border,) * 4)
    return grid.reshape(table.shape[1], -1).T


def resize_position_embedding(embedding: Tensor, num_tokens: int) -> Tensor:
    """Interpolate an absolute position embedding (bicubic): `1, n*n, C` -> `1, num_tokens, C`, both square maps."""
    old, new = math.isqrt(embedding.shape[1]), math.isqrt(num_tokens)
    grid = embedding.float().transpose(1, 2).reshape(1, -1, old, old)  # 1, C, n, n
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2).to(embedding.dtype)


def _geometric_weights(old: int, new: int) -> Tensor:
    """Cubic spline interpolation from offsets -old..old to -new..new as a matrix, `2*new+1, 2*old+1`.

    The old offsets are placed at distances 1, 1+q, 1+q+q^2, ... with the ratio q >= 1 for which the outermost one
    is `new`. If `new` is smaller than `old`, q is 1 and the centre is cropped.
    """
    q = _geometric_ratio(old, new)
    distances = torch.tensor([sum(q**i for i in range(n)) for n in range(1, old + 1)], dtype=torch.float64)
    source = torch.cat([-distances.flip(0), torch.zeros(1, dtype=torch.float64), distances])
    target = torch.arange(-new, new + 1, dtype=torch.float64)
    # not-a-knot spline: the two outer intervals share a cubic, so the second offset from each end is not a knot
    scale = max(float(source[-1]), 1.0)
    knots = source[2:-2] / scale

    def basis(x: Tensor) -> Tensor:
        powers = torch.stack([(x / scale) ** i for i in range(min(4, len(source)))], dim=1)
        return torch.cat([powers, (x[:, None] / scale - knots).clamp(min=0) ** 3], dim=1)

    weights: Tensor = torch.linalg.solve(basis(source).T, basis(target).T)
    return weights.T


def _geometric_ratio(old: int, new: int) -> float:
    """The ratio q >= 1 with 1 + q + ... + q^(old-1) = new, by bisection."""
    low, high = 1.0, max(1.0, float(new))
    for _ in range(60):
        middle = (low + high) / 2
        if sum(middle**i for i in range(old)) > new:
            high = middle
        else:
            low = middle
    return low if old < new else 1.0
