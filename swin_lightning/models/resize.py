"""Bias tables and position embeddings for another window or image than they were trained with."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

BiasResize = Literal["bicubic", "geometric"]


def resize_bias_table(table: Tensor, window_size: int, mode: BiasResize = "bicubic") -> Tensor:
    """A relative position bias table for windows of another size.

    Args:
        table: `(2m-1)^2, nH`, of windows of m x m tokens.
        window_size: Side M of the new window.
        mode: `bicubic` stretches the table like a picture, as the official code does: an offset keeps its place
            relative to the window. `geometric` keeps the bias of small offsets where it is and stretches the more the
            larger they are, as SimMIM's fine-tuning does.

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
    """A table of another window with every offset in its place: the border is cut off, or repeated outwards."""
    old = math.isqrt(len(table))
    border = window_size - (old + 1) // 2
    grid = table.T.reshape(1, -1, old, old)
    grid = F.pad(grid, (border,) * 4, mode="replicate") if border > 0 else F.pad(grid, (border,) * 4)
    return grid.reshape(table.shape[1], -1).T


def resize_position_embedding(embedding: Tensor, num_tokens: int) -> Tensor:
    """An absolute position embedding, `1, n*n, C`, bicubic for another map: `1, num_tokens, C`, both square."""
    old, new = math.isqrt(embedding.shape[1]), math.isqrt(num_tokens)
    grid = embedding.float().transpose(1, 2).reshape(1, -1, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2).to(embedding.dtype)


def _geometric_weights(old: int, new: int) -> Tensor:
    """Cubic spline interpolation from offsets -old..old to -new..new as a matrix, `2*new+1, 2*old+1`.

    The old entries are laid at distances 1, 1+q, 1+q+q^2, ... with the q >= 1 that lets the outermost reach `new`;
    where `new` is smaller nothing is stretched, and the middle is cut out.
    """
    q = _growth(old, new)
    distances = torch.tensor([sum(q**i for i in range(n)) for n in range(1, old + 1)], dtype=torch.float64)
    source = torch.cat([-distances.flip(0), torch.zeros(1, dtype=torch.float64), distances])
    target = torch.arange(-new, new + 1, dtype=torch.float64)
    # not-a-knot splines: the outer two intervals share a cubic, so that the second offset from each end is no knot
    scale = max(float(source[-1]), 1.0)
    knots = source[2:-2] / scale

    def basis(x: Tensor) -> Tensor:
        powers = torch.stack([(x / scale) ** i for i in range(min(4, len(source)))], dim=1)
        return torch.cat([powers, (x[:, None] / scale - knots).clamp(min=0) ** 3], dim=1)

    return torch.linalg.solve(basis(source).T, basis(target).T).T


def _growth(old: int, new: int) -> float:
    """The ratio q >= 1 with 1 + q + ... + q^(old-1) = new, by halving an interval."""
    low, high = 1.0, max(1.0, float(new))
    for _ in range(60):
        middle = (low + high) / 2
        if sum(middle**i for i in range(old)) > new:
            high = middle
        else:
            low = middle
    return low if old < new else 1.0
