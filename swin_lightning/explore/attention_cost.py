"""What attention costs, measured on this machine: inside windows, and between all tokens of the image."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from swin_lightning.models.swin import WindowAttention
from swin_lightning.models.windows import window_partition


def attention_costs(
    sides: Sequence[int], dim: int = 96, num_heads: int = 3, window: int = 7, patch_size: int = 4, repeats: int = 3
) -> pd.DataFrame:
    """Time and memory of one attention layer over the image size, in windows and globally.

    Memory is what the layer keeps for the backward pass with its attention written out as a matrix, as in the paper;
    time is that of the fused forward pass, which never holds the matrix. Larger global maps than 2**31 bytes of
    attention weights are left out.

    Args:
        sides: Sides of square images in pixels; multiples of `patch_size * window`.
        dim: Channels.
        num_heads: Heads.
        window: Side of a window in tokens.
        patch_size: Side of a patch in pixels.
        repeats: Timed runs; the median counts.

    Returns:
        One row an image size and kind: `side`, `tokens`, `kind` (`window` or `global`), `megabytes`, `milliseconds`.
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
                kept_bytes(partial(attention.forward_eager, windows, (size, size)), attention.parameters()) / 1e6
            )
            seconds = median_seconds(partial(attention, windows, (size, size)), repeats)
            rows.append((side, tokens**2, kind, megabytes, 1e3 * seconds))
    return pd.DataFrame(rows, columns=["side", "tokens", "kind", "megabytes", "milliseconds"])


def kept_bytes(function: Callable[[], Any], beside: Iterable[Tensor] = ()) -> int:
    """Bytes of the tensors that a call keeps for its backward pass beside those there are, each memory counted once."""
    there = {tensor.untyped_storage().data_ptr() for tensor in beside}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = function()  # alive until here, or its memory would be given to another tensor
    del result
    return sum(kept.values())


def median_seconds(function: Callable[[], Any], repeats: int) -> float:
    """Median time of a call without gradients, after one that does not count."""
    times = []
    with torch.no_grad():
        function()
        for _ in range(repeats):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return statistics.median(times)
