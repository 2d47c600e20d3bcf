"""Time and memory of window attention and global attention, measured on this machine."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from swin_lightning.models.attention import WindowAttention
from swin_lightning.models.windows import window_partition


def attention_costs(
    sides: Sequence[int], dim: int = 96, num_heads: int = 3, window: int = 7, patch_size: int = 4, repeats: int = 3
) -> pd.DataFrame:
    """Time and memory of one attention layer by image size, for window attention and for global attention.

    Memory is what the layer saves for the backward pass when the attention matrix is materialised, as counted in the
    paper. Time is that of the fused forward pass, which never stores the matrix. Global attention is skipped where its
    matrix would exceed 2**31 bytes.

    Args:
        sides: Sides of square images in pixels; multiples of `patch_size * window`.
        dim: Number of channels.
        num_heads: Number of heads.
        window: Side of a window in tokens.
        patch_size: Side of a patch in pixels.
        repeats: Number of timed runs; the median is reported.

    Returns:
        One row per image size and kind: `side`, `tokens`, `kind` (`window` or `global`), `megabytes`, `milliseconds`.
    """
    rows = []
    for side in sides:
        tokens = side // patch_size
        x = torch.randn(1, tokens, tokens, dim, generator=torch.Generator().manual_seed(0))
        for kind, size in {"window": window, "global": tokens}.items():
            if 4 * num_heads * size**2 * tokens**2 > 2**31:
                continue
            attention = WindowAttention(dim, size, num_heads)
            windows = window_partition(x, (size, size))
            megabytes = (
                saved_bytes(partial(attention.forward_eager, windows, (size, size)), attention.parameters()) / 1e6
            )
            seconds = median_seconds(partial(attention, windows, (size, size)), repeats)
            rows.append((side, tokens**2, kind, megabytes, 1e3 * seconds))
    return pd.DataFrame(rows, columns=["side", "tokens", "kind", "megabytes", "milliseconds"])


def saved_bytes(function: Callable[[], Any], exclude: Iterable[Tensor] = ()) -> int:
    """Bytes of the tensors that a call saves for its backward pass; each storage is counted once.

    Args:
        function: The call.
        exclude: Tensors that exist anyway, such as parameters; their storages are not counted.
    """
    excluded = {tensor.untyped_storage().data_ptr() for tensor in exclude}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in excluded:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()  # keep a reference: freed memory would be reused, and addresses counted twice
    del result
    return sum(saved.values())


def median_seconds(function: Callable[[], Any], repeats: int) -> float:
    """Median time of a call without gradients, after one warm-up call."""
    times = []
    with torch.no_grad():
        function()
        for _ in range(repeats):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return statistics.median(times)
