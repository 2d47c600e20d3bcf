"""`nn.Linear` by the faster of the two libraries that torch brings for float32 on a CPU.

torch multiplies float32 matrices by Intel's MKL, which leaves half of the width of AVX-512 unused on processors of
AMD. Its convolutions go to oneDNN, which uses all of it on any processor; and a convolution of one pixel is a linear
layer. On an AMD EPYC (Zen 5, torch 2.13) that doubles the speed of Swin-T's layers: 645 -> 320 ms forward and 1984 ->
1092 ms forward and backward, for 8 images on one thread. Elsewhere both libraries use what there is, and the layer
stays what it is.
"""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear`, with its parameters and its answers."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, as a convolution where that is faster."""
    rows = _rows(x.numel() // x.shape[-1]) if _convolves(x) else 0
    if not rows:
        return F.linear(x, weight, bias)
    image = x.reshape(rows, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # channels last: nothing is copied
    y = F.conv2d(image, weight[:, :, None, None], bias).permute(0, 2, 3, 1)
    return y.reshape(*x.shape[:-1], -1)


def _convolves(x: Tensor) -> bool:
    """Float32 on a CPU of the kind above. A compiler or exporter is given the plain layer, and lower precision too."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    return is_amd_with_avx512() and not torch.is_autocast_enabled("cpu")


@functools.cache
def is_amd_with_avx512() -> bool:
    processor = Path("/proc/cpuinfo")
    amd = processor.is_file() and "AuthenticAMD" in processor.read_text()
    return amd and torch.backends.cpu.get_cpu_capability() == "AVX512"


@functools.lru_cache
def _rows(tokens: int) -> int:
    """Into how many images of one row the tokens are cut: 0 where that does not work out.

    On one thread torch hands only batches of 16 and more to oneDNN, which is slow for rows shorter than 7.
    """
    return next((rows for rows in range(16, min(tokens // 7, 128) + 1) if tokens % rows == 0), 0)
