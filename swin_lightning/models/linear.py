"""`nn.Linear` via oneDNN for float32 on AMD CPUs with AVX-512.

PyTorch multiplies float32 matrices with Intel MKL, which does not use the full AVX-512 width on AMD CPUs. Convolutions
go to oneDNN, which does on any CPU, and a linear layer is a 1x1 convolution. On an AMD EPYC (Zen 5, torch 2.13) this
doubles the speed of Swin-T's linear layers: 645 -> 320 ms for the forward pass and 1984 -> 1092 ms for forward and
backward, with 8 images on one thread. On other CPUs MKL uses the full vector width as well, and `F.linear` is used.
"""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear` with the same parameters and outputs, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


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
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    return is_amd_with_avx512() and not torch.is_autocast_enabled("cpu")


@functools.cache
def is_amd_with_avx512() -> bool:
    """Whether this machine has an AMD CPU with AVX-512 (Linux only)."""
    cpuinfo = Path("/proc/cpuinfo")
    amd = cpuinfo.is_file() and "AuthenticAMD" in cpuinfo.read_text()
    return amd and torch.backends.cpu.get_cpu_capability() == "AVX512"


@functools.lru_cache
def _conv_batch_size(tokens: int) -> int:
    """Batch size of the convolution that the tokens are split into, 0 if there is no suitable one.

    On a single thread PyTorch uses oneDNN only for batches of 16 or more, and oneDNN is slow for rows shorter than 7.
    """
    return next((batch for batch in range(16, min(tokens // 7, 128) + 1) if tokens % batch == 0), 0)
