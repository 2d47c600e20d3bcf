"""Whether window attention runs as the Triton operator of `window_attention_triton.py`.

It does on a CUDA device of compute capability 8 or newer, in float16 or bfloat16, for windows of up to 64 tokens and
without attention dropout. Everything else takes the general path of `attention.py`. The environment variable
`SWIN_LIGHTNING_TRITON=off`, or `use_fused_attention(model, enable=False)`, turns the operator off.
"""

import functools
import importlib.util
import os
import threading
import warnings

import torch
from torch import Tensor, nn

from swin_lightning.models.precision import autocast_dtype, is_tracing

ENV_VAR = "SWIN_LIGHTNING_TRITON"
# new in PyTorch 2.7; before, compiled models take the general path too
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
TOLERANCE = 2e-2  # of the self-check: relative error of an output or gradient in half precision


def use_fused_attention(model: nn.Module, enable: bool = True) -> None:
    """Let the window attention of a model run as the Triton operator where that is possible, or never."""
    for module in model.modules():
        if hasattr(module, "allow_fused"):
            setattr(module, "allow_fused", enable)  # noqa: B010


def fused_attention_serves(x: Tensor, window: tuple[int, int], head_dim: int, cosine: bool) -> bool:
    """Whether the operator can compute attention of a feature map `x`.

    Args:
        x: Input of the qkv layer; its dtype, or that of autocast, is the dtype of query, key and value.
        window: Height and width of a window.
        head_dim: Channels per head.
        cosine: Cosine attention (Swin V2).
    """
    if x.device.type != "cuda" or is_tracing() or is_exporting():  # exported programs need torch alone
        return False
    return bool(kernel_works(x.device.index or 0, autocast_dtype(x) or x.dtype, window, head_dim, cosine))


# not on the cached function itself, whose mark torch.compile does not see
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def kernel_works(device: int, dtype: torch.dtype, window: tuple[int, int], head_dim: int, cosine: bool) -> bool:
    """`check_kernel`, called and not traced by torch.compile."""
    return check_kernel(device, dtype, window, head_dim, cosine)


@functools.cache
def check_kernel(device: int, dtype: torch.dtype, window: tuple[int, int], head_dim: int, cosine: bool) -> bool:
    """Whether the kernel exists for these values, and computes attention correctly on this GPU.

    The first call compiles the kernel and compares it with the definition on a small map. If it fails or differs, a
    warning says so, and the general path is used.
    """
    if os.environ.get(ENV_VAR) == "off" or importlib.util.find_spec("triton") is None:
        return False
    result: list[bool | Exception] = []

    def check() -> None:
        try:
            from swin_lightning.models import window_attention_triton as kernels

            capability = torch.cuda.get_device_capability(device)[0]
            if not kernels.is_supported(dtype, window, head_dim, cosine, capability):
                result.append(False)
                return
            error = kernels.self_check(torch.device("cuda", device), dtype, window, head_dim, cosine)
            result.append(error < TOLERANCE or ValueError(f"relative error {error:.1e}"))
        except Exception as error:  # compilers and drivers raise many kinds
            result.append(error)

    # in a thread of its own, where no mode of the caller (inference, autocast, fake tensors) is active
    thread = threading.Thread(target=check)
    thread.start()
    thread.join()
    (found,) = result
    if isinstance(found, Exception):
        reason = (str(found).strip().splitlines() or [""])[0][:200]
        warnings.warn(
            f"Triton window attention of {dtype} windows {window} is not used, since its check failed: "
            f"{type(found).__name__}: {reason}; set {ENV_VAR}=off to skip the check",
            stacklevel=2,
        )
        return False
    return found
