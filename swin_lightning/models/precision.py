"""What must stay in float32 while autocast lowers the precision of everything around it."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def to_float32(x: Tensor) -> Tensor:
    """float32 where it was less."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def disable_autocast(x: Tensor) -> AbstractContextManager[None]:
    """A context in which autocast keeps its hands off; the meta device, which holds shapes only, knows no autocast."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
