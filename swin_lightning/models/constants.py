"""Tensors that depend on sizes alone, such as attention masks, kept from one forward pass to the next."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from swin_lightning.models.precision import is_tracing

MAX_ENTRIES = 32  # the oldest is dropped: images of many sizes do not fill the memory

T = TypeVar("T", bound=Tensor | None)
_cache: dict[Hashable, Any] = {}


def constant(function: Callable[..., T], *args: Hashable, like: Tensor) -> T:
    """`function(*args, device)` on the device of `like`, computed once and never changed.

    Parameters must not enter: training, weight averaging and loading change them. While a compiler, an exporter, a
    tracer or a CUDA graph records the operations, or `like` has no data (meta and fake tensors), nothing is kept.

    Args:
        function: Deterministic function of its arguments.
        *args: Sizes.
        like: Input of the model.
    """
    device = like.device
    plain = type(like) is Tensor and device.type in ("cpu", "cuda") and not torch.compiler.is_compiling()
    if not plain or is_tracing() or (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        return function(*args, device)
    key = (function, args, device)
    if key not in _cache:
        with torch.inference_mode(False):  # training cannot save inference tensors
            value = function(*args, device)
        if value is not None and type(value) is not Tensor:  # of a mode, such as fake tensors
            return value
        while len(_cache) >= MAX_ENTRIES:
            _cache.pop(next(iter(_cache)), None)
        _cache[key] = value
        return value
    found: T = _cache[key]
    return found
