"""How operations are computed: in float32 under autocast, or recorded by a tracer."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def to_float32(x: Tensor) -> Tensor:
    """Convert lower precision to float32; float64 is kept."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def disable_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Disable autocast on the device of `x`; a no-op for device types without autocast, such as meta."""
    device_type = x.device.type
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype of autocast on the device of `x`; None if it is not enabled there."""
    device_type = x.device.type
    if not torch.amp.is_autocast_available(device_type) or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def is_tracing() -> bool:
    """Whether `torch.jit.trace` records the operations."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]
