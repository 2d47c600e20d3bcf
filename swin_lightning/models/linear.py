"""`nn.Linear` via oneDNN for float32 on AMD CPUs with AVX-512.

PyTorch multiplies float32 matrices with Intel MKL, which does not use the full AVX-512 width on AMD CPUs. Convolutions
go to oneDNN, which does on any CPU, and a linear layer is a 1x1 convolution. On an AMD EPYC (Zen 5, torch 2.13) this
doubles the speed of Swin-T's linear layers: 645 -> 320 ms for the forward pass and 1984 -> 1092 ms for forward and
backward, with 8 images on one thread. On other CPUs MKL uses the full vector width as well, and `F.linear` is used.

The layers stay plain `nn.Linear` modules: `use_onednn` replaces the `forward` of the instances only.
"""

import functools
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swin_lightning.models.precision import is_tracing
from swin_lightning.models.processor import is_amd_with_avx512


def use_onednn(model: nn.Module, enable: bool = True) -> None:
    """Compute the linear layers of a model with oneDNN where that is faster, or undo it.

    Does nothing on other CPUs than AMD with AVX-512. Layers whose class or `forward` was changed (quantization,
    parametrization, hooks of accelerate) are left alone. A layer that is changed later, or whose weight becomes a
    tensor subclass, uses `F.linear` from then on, and so do other dtypes and devices, autocast, compilation, export
    and tracing. Copies keep the setting; a pickled model loses it.

    Args:
        model: Any module; its parameters and the types of its modules do not change.
        enable: False restores the `forward` of `nn.Linear`.
    """
    for module in model.modules():
        replaced = getattr(vars(module).get("forward"), "__func__", None) is forward
        if replaced and not enable:
            del vars(module)["forward"]
        elif enable and type(module) is nn.Linear and "forward" not in vars(module) and is_amd_with_avx512():
            # a bound method of this name is copied with its module, and pickled as `getattr(module, "forward")`
            vars(module)["forward"] = MethodType(forward, module)


def forward(self: nn.Linear, x: Tensor) -> Tensor:
    """`nn.Linear.forward` by `linear`."""
    plain = type(self) is nn.Linear and type(self.weight) in (nn.Parameter, Tensor)
    return linear(x, self.weight, self.bias) if plain else F.linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, computed as a 1x1 convolution where that is faster."""
    batch_size = _conv_batch_size(x.numel() // x.shape[-1]) if _use_convolution(x) else 0
    if not batch_size:
        return F.linear(x, weight, bias)
    image = x.reshape(batch_size, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # channels last: a view, no copy
    y = F.conv2d(image, weight[:, :, None, None], bias).permute(0, 2, 3, 1)
    return y.reshape(*x.shape[:-1], -1)


def _use_convolution(x: Tensor) -> bool:
    """True for eager float32 on an AMD CPU with AVX-512; compilers, exporters and autocast get `F.linear`."""
    if type(x) is not Tensor or x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    if torch.compiler.is_compiling() or is_tracing():
        return False
    return is_amd_with_avx512() and not torch.is_autocast_enabled("cpu")


@functools.lru_cache
def _conv_batch_size(tokens: int) -> int:
    """Batch size of the convolution that the tokens are split into, 0 if there is no suitable one.

    On a single thread PyTorch uses oneDNN only for batches of 16 or more, and oneDNN is slow for rows shorter than 7.
    """
    return next((batch for batch in range(16, min(tokens // 7, 128) + 1) if tokens % batch == 0), 0)
