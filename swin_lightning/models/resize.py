"""Resizing of relative position bias tables and absolute position embeddings to another window or image size."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from swin_lightning.models.windows import Size, to_pair

BiasResize = Literal["bicubic", "geometric"]


def resize_bias_table(table: Tensor, window_size: Size, mode: BiasResize = "bicubic") -> Tensor:
    """Interpolate a relative position bias table to another window size.

    Args:
        table: Bias table of windows of m x m tokens, `(2m-1)^2, nH`.
        window_size: Side M of the new window, or its height and width.
        mode: `bicubic` interpolates the table like an image, as the official code does: offsets scale with the
            window. `geometric` keeps the bias of small offsets and stretches larger offsets progressively, as
            fine-tuning in SimMIM does (microsoft/SimMIM, utils.py).

    Returns:
        `(2M-1)^2, nH`.
    """
    (M_h, M_w), old = to_pair(window_size, "window_size"), math.isqrt(len(table))
    grid = table.float().T.reshape(1, -1, old, old)  # 1, nH, 2m-1, 2m-1
    if mode == "bicubic":
        grid = F.interpolate(grid, size=(2 * M_h - 1, 2 * M_w - 1), mode="bicubic", align_corners=False)
    else:  # 2M-1, 2m-1 per axis
        rows, columns = (_geometric_weights(old // 2, M - 1).float() for M in (M_h, M_w))
        grid = rows @ grid @ columns.T
    return grid.flatten(2).squeeze(0).T.to(table.dtype)


def centre_bias_table(table: Tensor, old_window: Size, window_size: Size) -> Tensor:
    """Crop a bias table to a smaller window, or extend it by replication to a larger one; no offset moves.

    Args:
        table: Bias table of the old window of m x m tokens, `(2m-1)^2, nH`.
        old_window: Side m of the old window, or its height and width.
        window_size: Side M of the new window, or its height and width.

    Returns:
        `(2M-1)^2, nH`.
    """
    (m_h, m_w), (M_h, M_w) = to_pair(old_window, "old_window"), to_pair(window_size, "window_size")
    grid = table.T.reshape(1, -1, 2 * m_h - 1, 2 * m_w - 1)
    grow, shrink = (max(M_w - m_w, 0), max(M_h - m_h, 0)), (min(M_w - m_w, 0), min(M_h - m_h, 0))
    grid = F.pad(grid, (shrink[0], shrink[0], shrink[1], shrink[1]))
    grid = F.pad(grid, (grow[0], grow[0], grow[1], grow[1]), mode="replicate")
    return grid.reshape(table.shape[1], -1).T


def resize_position_embedding(embedding: Tensor, size: Size) -> Tensor:
    """Interpolate an absolute position embedding (bicubic) of a square map: `1, n*n, C` -> `1, H*W, C`."""
    old = math.isqrt(embedding.shape[1])
    grid = embedding.float().transpose(1, 2).reshape(1, -1, old, old)  # 1, C, n, n
    grid = F.interpolate(grid, size=to_pair(size, "size"), mode="bicubic", align_corners=False)
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
