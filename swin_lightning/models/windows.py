"""Window partitioning, shift regions and attention masks.

Pure functions without parameters or state.

Shapes: B batch size, H and W height and width of the feature map, C channels, (h, w) window size,
N = h*w tokens per window, nW windows per image.
"""

from typing import Annotated

import torch
from torch import Tensor

from swin_lightning.errors import UserError
from swin_lightning.ranges import Range

Side = Annotated[int, Range(ge=1, le=16384)]
PAD = -1  # region of padding tokens

Size = Side | tuple[Side, Side]  # of a square, or height and width


def to_pair(size: int | tuple[int, ...], name: str) -> tuple[int, int]:
    """Height and width of a size that may be given as one number.

    Raises:
        UserError: If it is neither a positive integer nor two of them; `name` is that of the argument.
    """
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise UserError(f"{name} {size!r} must be a positive integer, or height and width as two of them")
    return pair


def window_partition(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Split a feature map into non-overlapping windows.

    Args:
        x: Feature map, `B, H, W, C`; H and W are multiples of the window size.
        window: Height and width of a window in tokens.

    Returns:
        Windows in row-major order, `B*nW, N, C`.
    """
    (B, H, W, C), (h, w) = x.shape, window
    x = x.view(B, H // h, h, W // w, w, C).transpose(2, 3)  # B, H/h, W/w, h, w, C
    return x.reshape(-1, h * w, C)  # B*nW, N, C


def window_reverse(windows: Tensor, window: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Inverse of `window_partition`: `B*nW, N, C` -> `B, H, W, C`."""
    (h, w), (H, W) = window, size
    x = windows.view(-1, H // h, W // w, h, w, windows.shape[-1]).transpose(2, 3)  # B, H/h, h, W/w, w, C
    return x.reshape(-1, H, W, windows.shape[-1])  # B, H, W, C


def relative_position_index(window_size: Size) -> Tensor:
    """Row of the relative position bias table for each pair of tokens in an M x M window.

    The offsets dy and dx between two tokens each lie in [-(M-1), M-1]. Shifted to start at zero, they are the two
    digits of a number in base 2M-1, so that the offsets (2, 1) and (1, 2) get different rows.

    Args:
        window_size: Side M of the window, or its height and width.

    Returns:
        `N, N` int64 with values in [0, (2M-1)^2). Source: paper section 3.2, "Relative position bias".
    """
    h, w = to_pair(window_size, "window_size")
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy = y[:, None] - y[None, :] + h - 1  # N, N
    dx = x[:, None] - x[None, :] + w - 1
    return dy * (2 * w - 1) + dx


def gather_position_bias(table: Tensor, window_size: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """Relative position bias of each pair of tokens in a window: `table[relative_position_index(window_size)]`.

    Computed as a sliding window over the table, which needs no index: for a query at (y, x), the offsets to all keys
    are a rectangle of the table. A clamped window uses the offsets in the centre of the table.

    Args:
        table: Bias of every offset in a full window, `(2M-1)^2, nH`.
        window_size: Height and width of a full window in tokens.
        window: Height and width `(h, w)` of the window, not larger than a full window.

    Returns:
        `nH, N, N` with N = h*w.
    """
    (M_h, M_w), (h, w) = window_size, window
    grid = table.T.reshape(-1, 2 * M_h - 1, 2 * M_w - 1)[:, M_h - h : M_h + h - 1, M_w - w : M_w + w - 1]
    bias = grid.unfold(1, h, 1).unfold(2, w, 1)  # nH, h, w, h, w: query, and key in reverse order
    return bias.reshape(-1, h * w, h * w).flip(2)


def fit_window(size: tuple[int, int], window_size: Size, shift: Size) -> tuple[tuple[int, int], tuple[int, int]]:
    """Clamp window size and shift to a feature map, independently per axis.

    Along an axis that is not longer than the window there is a single window, clamped to the map, and no shift.

    Args:
        size: Feature map size `(H, W)`.
        window_size: Side of a full window in tokens, or its height and width.
        shift: Shift of a full window in tokens, or one per axis.

    Returns:
        The window `(h, w)` and the shift `(sy, sx)`.
    """
    (H, W), (M_h, M_w) = size, to_pair(window_size, "window_size")
    sy, sx = (shift, shift) if isinstance(shift, int) else shift
    return (min(M_h, H), min(M_w, W)), (sy if M_h < H else 0, sx if M_w < W else 0)


def padded_size(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """Feature map size rounded up to a multiple of the window size."""
    return -(-size[0] // window[0]) * window[0], -(-size[1] // window[1]) * window[1]


def shifted_window_mask(
    size: tuple[int, int],
    window: tuple[int, int],
    shift: tuple[int, int],
    device: torch.device | None = None,
) -> Tensor | None:
    """Attention mask of windows after padding and cyclic shift.

    The cyclic shift places rows and columns from opposite edges of the map in the same window. Each token is labelled
    with the region it comes from, and attention is allowed within a region only. Padding is a region of its own: real
    tokens never attend to padding; padding tokens attend to each other, so that no softmax row is empty.

    Args:
        size: Feature map size before padding, `(H, W)`.
        window: Window `(h, w)` as returned by `fit_window`.
        shift: Cyclic shift of the padded map, up and to the left, `(sy, sx)`.
        device: Device of the mask.

    Returns:
        `nW, N, N` bool, True where attention is allowed; None if all pairs are allowed.
        Source: paper section 3.2, "Efficient batch computation for shifted configuration".
    """
    padded = padded_size(size, window)
    if padded == size and shift == (0, 0):
        return None
    rows, columns = (_axis_regions(n, n_padded, s, device) for n, n_padded, s in zip(size, padded, shift, strict=True))
    regions = torch.where((rows[:, None] == PAD) | (columns[None, :] == PAD), PAD, 2 * rows[:, None] + columns[None, :])
    tokens = window_partition(regions[None, :, :, None], window).squeeze(-1)  # nW, N
    return tokens[:, :, None] == tokens[:, None, :]


def repeat_for_batch(attn_bias: Tensor, num_windows: int) -> Tensor:
    """Repeat the attention bias of one image for the whole batch: `1 or nW, ...` -> `1 or B*nW, ...`.

    The same operations for every batch size, so that a trace of one image is valid for others.
    """
    if attn_bias.shape[0] == 1:
        return attn_bias
    batch = num_windows // attn_bias.shape[0]
    return attn_bias.expand(batch, *attn_bias.shape).flatten(0, 1)  # a view if batch is 1


def _axis_regions(n: int, n_padded: int, shift: int, device: torch.device | None) -> Tensor:
    """Region of every position along one axis of the shifted map: 1 for wrapped-around positions, PAD, or else 0.

    Regions are only compared within a window, and only the last window contains wrapped-around positions: a single
    label serves all the others.
    """
    position = torch.arange(n_padded, device=device)
    regions = torch.where(position < n, (position < shift).long(), PAD)
    return regions.roll(-shift)
