"""The index arithmetic of windows: who sits in which window, and who may talk to whom.

Pure functions without parameters or state. Shapes: B batch, H W map, C channels,
(h, w) window, N = h*w tokens of a window, nW windows of one image.
"""

import torch
from torch import Tensor


def window_partition(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Cut a map into windows that do not overlap.

    Args:
        x: Map, `B, H, W, C`; H and W are multiples of the window.
        window: Height and width of a window in tokens.

    Returns:
        Windows in row-major order, `B*nW, N, C`.
    """
    (B, H, W, C), (h, w) = x.shape, window
    x = x.view(B, H // h, h, W // w, w, C).transpose(2, 3)  # B, H/h, W/w, h, w, C
    return x.reshape(-1, h * w, C)  # B*nW, N, C


def window_reverse(windows: Tensor, window: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Put windows back where `window_partition` took them: `B*nW, N, C` -> `B, H, W, C`."""
    (h, w), (H, W) = window, size
    x = windows.view(-1, H // h, W // w, h, w, windows.shape[-1]).transpose(2, 3)  # B, H/h, h, W/w, w, C
    return x.reshape(-1, H, W, windows.shape[-1])  # B, H, W, C


def relative_position_index(window_size: int) -> Tensor:
    """For each pair of tokens in an M x M window, the row of the bias table that belongs to their offset.

    The offsets dy and dx of two tokens each lie in [-(M-1), M-1], which is 2M-1 values. Moved to
    start at zero they become the digits of one number in base 2M-1, so that (2, 1) and (1, 2) differ.

    Returns:
        `M*M, M*M` int64 with values in [0, (2M-1)^2). Source: paper section 3.2, "Relative position bias".
    """
    M = window_size
    axis = torch.arange(M)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy = y[:, None] - y[None, :] + M - 1  # M*M, M*M
    dx = x[:, None] - x[None, :] + M - 1
    return dy * (2 * M - 1) + dx


def fit_window(size: tuple[int, int], window_size: int, shift: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Fit window and shift to a map, each axis by itself.

    An axis not longer than the window is one window: it is clamped, and there is nothing to shift.

    Returns:
        The window `(h, w)` and the shift `(sy, sx)`.
    """
    window = (min(window_size, size[0]), min(window_size, size[1]))
    shifts = (shift if size[0] > window_size else 0, shift if size[1] > window_size else 0)
    return window, shifts


def padded_size(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """The smallest multiple of the window that holds the map."""
    return -(-size[0] // window[0]) * window[0], -(-size[1] // window[1]) * window[1]


def shifted_window_mask(
    size: tuple[int, int],
    window: tuple[int, int],
    shift: tuple[int, int],
    device: torch.device | None = None,
) -> Tensor | None:
    """Which tokens may attend to each other after the cyclic shift.

    The shift joins rows from opposite ends of the map in one window, and likewise columns. Every token gets
    the number of the region it comes from; pairs from one region may talk. Pads are a region of their own:
    real tokens never see them, and pads see each other, so that no row of the softmax is empty.

    Args:
        size: The map before padding, `(H, W)`.
        window: Window `(h, w)` that fits the map.
        shift: How far the padded map is rolled up and left, `(sy, sx)`.
        device: Where to build the mask.

    Returns:
        `nW, N, N` bool, True where attention is allowed; None where everything is.
        Source: paper section 3.2, "Efficient batch computation for shifted configuration".
    """
    padded = padded_size(size, window)
    if padded == size and shift == (0, 0):
        return None
    rows, columns = (
        _axis_regions(n, n_padded, w, s, device) for n, n_padded, w, s in zip(size, padded, window, shift, strict=True)
    )
    regions = torch.where((rows[:, None] == PAD) | (columns[None, :] == PAD), PAD, 2 * rows[:, None] + columns[None, :])
    tokens = window_partition(regions[None, :, :, None], window).squeeze(-1)  # nW, N
    return tokens[:, :, None] == tokens[:, None, :]


def repeat_for_batch(term: Tensor, n_windows: int) -> Tensor:
    """Repeat the additive term of one image's windows for all images: `1 or nW, ...` -> `1 or B*nW, ...`."""
    return term if len(term) in (1, n_windows) else term.repeat(n_windows // len(term), 1, 1, 1)


PAD = -1  # the region of padding tokens


def _axis_regions(n: int, n_padded: int, window: int, shift: int, device: torch.device | None) -> Tensor:
    """Region of every position on one axis of the rolled map: 0, 1 for what came round from the front, PAD.

    Two windows never compare their regions, so 0 serves all windows but the last.
    """
    position = torch.arange(n_padded, device=device)
    regions = torch.where(position < n, (position < shift).long(), PAD)
    return regions.roll(-shift)
