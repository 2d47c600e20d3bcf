"""Linear layers via oneDNN on the CPUs where that was measured to be faster.

PyTorch multiplies float32 matrices with Intel MKL and bfloat16 ones with oneDNN. Convolutions always go to oneDNN, and
a linear layer is a 1x1 convolution, so that the library can be chosen:

- AMD with AVX-512: MKL does not use the full vector width of some of these CPUs. On Zen 5 (torch 2.13) a convolution
  doubles the speed of Swin-T's linear layers, 645 -> 320 ms for the forward pass and 1984 -> 1092 ms for forward and
  backward, with 8 images on one thread. On Zen 4 it is 1.1 times as fast.
- Intel with AMX: MKL is slow for many tokens of few channels. With 25088 tokens a convolution is 1.56 times as fast
  from 96 to 288 channels in the forward pass, and 1.21 times with the backward pass. From 192 channels on it is not
  faster with the backward pass, and with 392 tokens of 768 channels 0.7 times as fast: `convolution_is_faster`.

In evaluation the GELU of an MLP is computed by oneDNN together with the linear layer before it, which saves a pass over
the largest activation: on Intel with AMX, 5.7 instead of 10.4 ms for 25088 tokens of 384 channels in bfloat16. For few
tokens the call costs more than it saves: `MIN_GELU_TOKENS`.

The layers stay plain modules: `use_onednn` replaces the `forward` of instances only.
"""

import functools
import sys
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from swin_lightning.models.layers import Mlp
from swin_lightning.models.precision import autocast_dtype, is_tracing
from swin_lightning.models.processor import is_amd_with_avx512, is_intel_with_amx, multiplies_bfloat16

PLAIN = (nn.Parameter, Tensor)  # types of a weight that is neither quantized, sharded nor of another subclass
MIN_ROW = 7  # tokens in a row of the image that a convolution is given
MIN_AMX_TOKENS = 4096  # of a convolution on Intel with AMX
MIN_GELU_TOKENS = 4096  # on Intel with AMX, 64 tokens of 32 channels take 18 instead of 12 us


def use_onednn(model: nn.Module, enable: bool = True) -> None:
    """Compute linear layers and MLPs of a model with oneDNN where that is faster, or undo it.

    Does nothing on CPUs that were not measured. Layers whose class or `forward` was changed (quantization,
    parametrization, hooks of accelerate) are left alone. A layer that is changed later, or whose weight becomes a
    tensor subclass, uses `F.linear` from then on, and so do other devices, compilation, export and tracing. Copies keep
    the setting; a pickled model loses it.

    Args:
        model: Any module; its parameters and the types of its modules do not change.
        enable: False restores the `forward` of the classes.
    """
    for module in model.modules():
        replaced = getattr(vars(module).get("forward"), "__func__", None) is forward
        if replaced and not enable:
            del vars(module)["forward"]
        elif enable and "forward" not in vars(module) and _may_be_faster(module):
            # a bound method of this name is copied with its module, and pickled as `getattr(module, "forward")`
            vars(module)["forward"] = MethodType(forward, module)


def forward(self: nn.Linear | Mlp, x: Tensor) -> Tensor:
    """The forward of the class by `linear` or `mlp`; one name, since a module is pickled with it."""
    if isinstance(self, Mlp):
        return mlp(self, x)
    weight, bias = self.weight, self.bias
    # first, with few calls: all the conditions of `linear` made a small model 3 % slower
    small = not (torch.compiler.is_compiling() or is_tracing()) and x.numel() < _min_tokens() * self.in_features
    if small or type(self) is not nn.Linear or type(weight) not in PLAIN:
        return F.linear(x, weight, bias)
    return linear(x, weight, bias)


def mlp(layer: Mlp, x: Tensor) -> Tensor:
    """`Mlp.forward`, in evaluation with the GELU in the same kernel as the linear layer before it."""
    if layer.training or torch.is_grad_enabled() or not _is_eager(x):
        return type(layer).forward(layer, x)
    if x.numel() < MIN_GELU_TOKENS * x.shape[-1] or not _is_untouched(layer.fc1):
        return type(layer).forward(layer, x)
    dtype = autocast_dtype(x) or x.dtype
    if dtype != torch.bfloat16 and not (dtype == torch.float32 and is_intel_with_amx()):
        return type(layer).forward(layer, x)
    weight, bias = layer.fc1.weight.to(dtype), None if layer.fc1.bias is None else layer.fc1.bias.to(dtype)
    hidden = torch.ops.mkldnn._linear_pointwise(x.to(dtype), weight, bias, "gelu", [], "none")
    return layer.fc2(hidden)  # type: ignore[no-any-return]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, computed as a 1x1 convolution where that is faster."""
    batch_size = 0
    if x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu") and _is_eager(x):
        out_features, in_features = weight.shape
        tokens = x.numel() // in_features
        gradients = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        if convolution_is_faster(tokens, in_features, out_features, gradients):
            batch_size = _conv_batch_size(tokens)
    if not batch_size:
        return F.linear(x, weight, bias)
    image = x.reshape(batch_size, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # channels last: a view, no copy
    y = F.conv2d(image, weight[:, :, None, None], bias).permute(0, 2, 3, 1)
    return y.reshape(*x.shape[:-1], -1)


def convolution_is_faster(tokens: int, in_features: int, out_features: int, gradients: bool) -> bool:
    """Whether a convolution was faster than `F.linear` in float32 on a CPU like this one.

    Args:
        tokens: Rows that are multiplied with the weight.
        in_features: Channels of a row.
        out_features: Channels of the output.
        gradients: Whether a backward pass follows.
    """
    if is_amd_with_avx512():
        return True
    if not is_intel_with_amx() or min(in_features, out_features) > 128:
        return False
    expands = out_features >= 2 * in_features
    return tokens >= MIN_AMX_TOKENS if expands else tokens >= 16384 and not gradients


# helpers


@register_flop_formula(torch.ops.mkldnn._linear_pointwise)
def _linear_pointwise_flop(x_shape: torch.Size, w_shape: torch.Size, *args: Any, **kwargs: Any) -> int:
    return 2 * x_shape.numel() * w_shape[0]


def _min_tokens() -> int:
    """A number of tokens below which `linear` is `F.linear`."""
    return 16 * MIN_ROW if is_amd_with_avx512() else MIN_AMX_TOKENS


def _may_be_faster(module: nn.Module) -> bool:
    """Whether this CPU has a faster kernel for the module, at least for very many tokens."""
    if type(module) is Mlp:
        return multiplies_bfloat16()
    return type(module) is nn.Linear and convolution_is_faster(
        sys.maxsize, module.in_features, module.out_features, gradients=False
    )


def _is_untouched(layer: nn.Linear) -> bool:
    """Whether nobody would notice that the layer is not called: it is plain, with its forward or ours and no hooks."""
    own = getattr(vars(layer).get("forward", forward), "__func__", forward) is forward
    plain = own and type(layer) is nn.Linear and type(layer.weight) in PLAIN
    return plain and not layer._forward_hooks and not layer._forward_pre_hooks


def _is_eager(x: Tensor) -> bool:
    """Whether `x` is a plain CPU tensor outside of compilers, exporters and tracers."""
    eager = not (torch.compiler.is_compiling() or is_tracing())
    return type(x) is Tensor and x.device.type == "cpu" and eager


@functools.lru_cache
def _conv_batch_size(tokens: int) -> int:
    """Batch size of the convolution that the tokens are split into, 0 if there is no suitable one.

    On a single thread PyTorch uses oneDNN only for batches of 16 or more, and oneDNN is slow for rows shorter than
    `MIN_ROW`.
    """
    return next((batch for batch in range(16, min(tokens // MIN_ROW, 128) + 1) if tokens % batch == 0), 0)
