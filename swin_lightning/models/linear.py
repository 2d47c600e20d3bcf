"""Linear layers via oneDNN on the CPUs where that was measured to be faster.

PyTorch multiplies float32 matrices with Intel MKL and bfloat16 ones with oneDNN. Convolutions always go to oneDNN, and
a linear layer is a 1x1 convolution, so that the library can be chosen:

- AMD with AVX-512: MKL does not use the full vector width of some of these CPUs. On Zen 5 (torch 2.13) a convolution
  doubles the speed of Swin-T's linear layers, 645 -> 320 ms for the forward pass and 1984 -> 1092 ms for forward and
  backward, with 8 images on one thread. On Zen 4 it is 1.1 times as fast.
- Intel with AMX: MKL is slow for many tokens of few channels. With 25088 tokens a convolution is 1.56 times as fast
  from 96 to 288 channels in the forward pass, and 1.21 times with the backward pass. From 192 channels on it is not
  faster with the backward pass, and with 392 tokens of 768 channels 0.7 times as fast: `convolution_is_faster`.

Without gradients oneDNN also adds the bias and computes the GELU of an MLP while it writes the product:

- PyTorch writes the bias of a bfloat16 layer to the output first, and adds the product to it. In one call the output is
  bit for bit the same, and the linear layers of Swin-T take 136 instead of 158 ms on Intel with AMX (8 images, one
  thread). With gradients, computed in Python, a training step was 1.5 % faster: not done.
- The GELU is a pass over the largest activation: on Intel with AMX, 5.7 instead of 10.4 ms for 25088 tokens of 384
  channels in bfloat16. In float32 it is 1.79 times as fast for 25088 tokens of 96 channels, and 0.96 for 1568 of 384.

In small layers the calls from Python cost what they save: `MIN_OUTPUT`.

The layers stay plain modules: `use_onednn` replaces the `forward` of instances only.
"""

import functools
import sys
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.utils.flop_counter import register_flop_formula

from swin_lightning.models.layers import Mlp
from swin_lightning.models.precision import autocast_dtype, is_tracing
from swin_lightning.models.processor import is_amd_with_avx512, is_intel_with_amx, multiplies_bfloat16

PLAIN = (nn.Parameter, Tensor)  # types of a weight that is neither quantized, sharded nor of another subclass
MIN_ROW = 7  # tokens in a row of the image that a convolution is given
MIN_AMX_TOKENS = 4096  # of a convolution, or of a GELU in the same kernel, in float32 on Intel with AMX
MIN_OUTPUT = 1 << 19  # elements of the output of a layer whose bias or GELU is computed in the same call


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
    small = not (torch.compiler.is_compiling() or is_tracing()) and _is_small(x.numel(), self)
    if small or type(self) is not nn.Linear or type(weight) not in PLAIN:
        return F.linear(x, weight, bias)
    return linear(x, weight, bias)


def mlp(layer: Mlp, x: Tensor) -> Tensor:
    """`Mlp.forward`, in evaluation with the GELU in the same kernel as the linear layer before it."""
    if layer.training or not _is_eager(x) or not _is_untouched(layer.fc1):
        return type(layer).forward(layer, x)
    weight, bias = layer.fc1.weight, layer.fc1.bias
    if not _takes_one_call(x, weight, bias) or not (_is_bfloat16(x) or _is_faster_in_float32(x)):
        return type(layer).forward(layer, x)
    return layer.fc2(_linear(x, weight, bias, "gelu"))  # type: ignore[no-any-return]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, computed by oneDNN where that is faster."""
    if not _is_eager(x):
        return F.linear(x, weight, bias)
    if x.dtype == torch.float32 and autocast_dtype(x) is None:
        return _linear_float32(x, weight, bias)
    if bias is not None and _is_bfloat16(x) and _takes_one_call(x, weight, bias):
        return _linear(x, weight, bias)
    return F.linear(x, weight, bias)


def _linear_float32(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out_features, in_features = weight.shape
    tokens, batch_size = x.numel() // in_features, 0
    gradients = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if convolution_is_faster(tokens, in_features, out_features, gradients):
        batch_size = _conv_batch_size(tokens)
    if not batch_size:
        return F.linear(x, weight, bias)
    image = x.reshape(batch_size, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # channels last: a view, no copy
    y = F.conv2d(image, weight[:, :, None, None], bias).permute(0, 2, 3, 1)
    return y.reshape(*x.shape[:-1], -1)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    dtype = autocast_dtype(x) or x.dtype
    bias = None if bias is None else bias.to(dtype)
    return torch.ops.mkldnn._linear_pointwise(x.to(dtype), weight.to(dtype), bias, activation, [], "none")  # type: ignore[no-any-return]


def _takes_one_call(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `_linear` is worth its call, and neither loses a derivative nor accepts what `F.linear` refuses."""
    out_features, in_features = weight.shape
    if torch.is_grad_enabled() or x.numel() * out_features < MIN_OUTPUT * in_features:
        return False
    accepted = {x.dtype} if autocast_dtype(x) is None else {torch.bfloat16, torch.float32}
    tensors = [tensor for tensor in (x, weight, bias) if tensor is not None]
    if x.ndim == 1 or x.shape[-1] != in_features or any(tensor.dtype not in accepted for tensor in tensors):
        return False
    unpack: Any = unpack_dual  # a tangent: forward-mode differentiation, also without gradients
    return type(bias) in (*PLAIN, type(None)) and all(unpack(tensor).tangent is None for tensor in tensors)


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


def _is_small(size: int, layer: nn.Linear) -> bool:
    """Whether an input with this number of elements has so few tokens that `linear` is `F.linear`."""
    min_tokens = 16 * MIN_ROW if is_amd_with_avx512() else MIN_AMX_TOKENS
    in_features = layer.in_features
    return size < min_tokens * in_features and size * layer.out_features < MIN_OUTPUT * in_features


def _may_be_faster(module: nn.Module) -> bool:
    """Whether this CPU has a faster kernel for the module, at least for very many tokens."""
    if type(module) is not nn.Linear or not module.in_features:
        return type(module) is Mlp and multiplies_bfloat16()
    return (module.bias is not None and multiplies_bfloat16()) or convolution_is_faster(
        sys.maxsize, module.in_features, module.out_features, gradients=False
    )


def _is_untouched(layer: nn.Linear) -> bool:
    """Whether nobody would notice that the layer is not called: it is plain, with its forward or ours and no hooks."""
    own = getattr(vars(layer).get("forward", forward), "__func__", forward) is forward
    plain = own and type(layer) is nn.Linear and type(layer.weight) in PLAIN
    return plain and not layer._forward_hooks and not layer._forward_pre_hooks


def _is_bfloat16(x: Tensor) -> bool:
    """Whether `x` is multiplied in bfloat16, for which this CPU has instructions."""
    return (autocast_dtype(x) or x.dtype) == torch.bfloat16 and multiplies_bfloat16()


def _is_faster_in_float32(x: Tensor) -> bool:
    """Whether oneDNN is faster than MKL and a GELU: for many tokens on Intel with AMX."""
    float32 = x.dtype == torch.float32 and autocast_dtype(x) is None
    return float32 and is_intel_with_amx() and x.numel() >= MIN_AMX_TOKENS * x.shape[-1]


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
