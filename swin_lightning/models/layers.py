"""Layers shared by Swin V1 and V2: patch embedding and merging, MLP, stochastic depth, weight initialisation.

Shapes: B batch size, H and W height and width of the feature map, C channels.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from swin_lightning.errors import UserError
from swin_lightning.models.windows import Size, to_pair


class PatchEmbed(nn.Module):
    """Patch partition and linear embedding (paper section 3.1) as one strided convolution.

    Images are zero-padded on the right and bottom to a multiple of the patch size.

    Args:
        patch_size: Side of a patch in pixels, or its height and width.
        in_chans: Number of image channels.
        embed_dim: Number of output channels.
        patch_norm: Apply a LayerNorm to the tokens.

    Raises:
        UserError: In `forward`, if the images are not a batch of the right number of channels and type.
    """

    def __init__(self, patch_size: Size = 4, in_chans: int = 3, embed_dim: int = 96, patch_norm: bool = True) -> None:
        super().__init__()
        self.patch_size = to_pair(patch_size, "patch_size")
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=self.patch_size, stride=self.patch_size)
        self.norm = nn.LayerNorm(embed_dim) if patch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # B, in_chans, height, width -> B, H, W, C
        check_images(x, self.proj)
        (height, width), (p_h, p_w) = x.shape[-2:], self.patch_size
        x = F.pad(x, (0, -width % p_w, 0, -height % p_h))
        x = self.proj(x).permute(0, 2, 3, 1)  # B, H, W, C
        x = self.norm(x)
        return x


def check_images(images: Tensor, proj: nn.Module) -> None:
    """Refuse what is not a batch of images for a convolution, in place of its message about a later operation.

    Raises:
        UserError: With what was expected.
    """
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]  # it warns of comparisons of sizes
        return
    in_chans, weight = getattr(proj, "in_channels", None), getattr(proj, "weight", None)
    expected = f"expected normalised images B, {in_chans or 'C'}, height, width"
    if not isinstance(images, Tensor):
        raise UserError(f"{expected} as a tensor, got a {type(images).__name__}")
    shape = images.shape
    if len(shape) != 4 or (in_chans is not None and shape[1] != in_chans):
        hint = "; permute images B, height, width, C" if len(shape) == 4 and shape[3] == in_chans else ""
        raise UserError(f"{expected}, got shape {tuple(shape)}{hint}")
    if any(size == 0 for size in shape):
        raise UserError(f"{expected} without an empty dimension, got shape {tuple(shape)}")
    if not images.is_floating_point() or images.layout != torch.strided:
        raise UserError(
            f"{expected} as a dense tensor of floating-point numbers, got {images.dtype}, {images.layout}; "
            "a data module normalises uint8 pixels by normalize()"
        )
    # sharded and quantized weights, which are of other types, are converted before they are used
    differs = type(weight) is nn.Parameter and images.dtype != weight.dtype
    if differs and (images.dtype == torch.float64 or not torch.is_autocast_enabled(images.device.type)):
        assert weight is not None
        raise UserError(f"{expected} of {weight.dtype} as the model, got {images.dtype}")


class PatchMerging(nn.Module):
    """Downsampling by 2: concatenate 2 x 2 neighbouring tokens and reduce 4C to 2C channels (paper section 3.1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # B, H, W, C -> B, H/2, W/2, 2*C
        x = self.norm(self.concat_neighbours(x))  # B, H/2, W/2, 4*C
        x = self.reduction(x)
        return x

    @staticmethod
    def concat_neighbours(x: Tensor) -> Tensor:
        """Stack 2 x 2 neighbours along the channels: `B, H, W, C` -> `B, H/2, W/2, 4*C`.

        Odd maps are zero-padded on the right and bottom. Channel order as in the official code: column by column.
        """
        H, W = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
        return torch.cat([x[:, dy::2, dx::2] for dx in (0, 1) for dy in (0, 1)], dim=-1)


class Mlp(nn.Module):
    """Two linear layers with a GELU in between.

    The output of the GELU is a fifth of the activations that a block saves for the backward pass, and cheap to
    compute: it is recomputed there instead of saved.

    Args:
        dim: Number of input and output channels.
        hidden_dim: Number of hidden channels.
        drop: Dropout rate after each linear layer.
    """

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0) -> None:
        super().__init__()
        self.recompute_gelu = True  # turned off under gradient checkpointing, which recomputes the whole block
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:  # ..., C
        x = self.fc1(x)
        hidden = self.drop(F.gelu(x))
        recompute = self.recompute_gelu and self.training and not self.drop.p and not torch.compiler.is_compiling()
        with recompute_in_backward(F.gelu, x, hidden) if recompute else nullcontext():
            x = self.drop(self.fc2(hidden))
        return x


def recompute_in_backward(function: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> saved_tensors_hooks:
    """Context in which autograd does not save `y = function(x)` or views of it, but recomputes it from `x`."""
    storage = y.untyped_storage().data_ptr()

    def pack(saved: Tensor) -> Tensor | tuple[torch.Size, tuple[int, ...]]:
        return saved if saved.untyped_storage().data_ptr() != storage else (saved.size(), saved.stride())

    def unpack(packed: Tensor | tuple[torch.Size, tuple[int, ...]]) -> Tensor:
        return packed if isinstance(packed, Tensor) else function(x).as_strided(*packed)

    return saved_tensors_hooks(pack, unpack)


class DropPath(nn.Module):
    """Stochastic depth per sample: drop a residual branch with probability `p` and rescale the kept ones.

    The branch is computed for the kept samples only. Their number in a batch is its expectation, rounded up or down at
    random: every sample is dropped with probability `p`, but the network is given few batch sizes, for each of which
    oneDNN builds and keeps kernels. Dense computation draws every sample independently, as the official code does.
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.p = p
        self.dense: bool | None = None  # compute dropped samples and mask them; None: on GPUs, where gathers cost more

    def forward(self, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """`x + branch(x)`, for `x` of shape `B, ...` and a branch that treats samples independently."""
        if not self.training or self.p == 0.0:
            return x + branch(x)
        scale = 1 / (1 - self.p) if self.p < 1 else 1.0
        dense = x.device.type != "cpu" if self.dense is None else self.dense
        if dense or torch.compiler.is_compiling():  # static shapes: compute all samples and mask
            keep = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(1 - self.p)
            return x + branch(x) * (keep * scale)
        # the number of kept samples is drawn on the CPU, which avoids a GPU sync; the samples are chosen on the device
        num_kept = int(len(x) * (1 - self.p) + torch.rand((), device="cpu").item())
        if num_kept == len(x):
            return torch.add(x, branch(x), alpha=scale)
        kept = torch.randperm(len(x), device=x.device)[:num_kept]
        samples = x.index_select(0, kept)  # index_add would be shorter, but saves the output of the branch
        return x.index_copy(0, kept, torch.add(samples, branch(samples), alpha=scale).to(x.dtype))

    def extra_repr(self) -> str:
        return f"p={self.p:.3f}"


def init_weights(module: nn.Module, std: float) -> None:
    """Truncated normal weights and zero biases for linear layers. Source: microsoft/Swin-Transformer, std 0.02."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
