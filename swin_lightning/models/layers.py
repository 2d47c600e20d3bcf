"""The parts that both Swin papers take as given: patch embedding and merging, MLP, stochastic depth, initialisation.

Shapes: B batch, H W height and width of the map, C channels.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from swin_lightning.models.linear import Linear


class PatchEmbed(nn.Module):
    """Patch partition and linear embedding in one: a convolution whose stride is its kernel size.

    Args:
        patch_size: Side of a patch in pixels.
        in_chans: Channels of the image.
        embed_dim: Channels of a token.
        patch_norm: Normalise the tokens.
    """

    def __init__(self, patch_size: int = 4, in_chans: int = 3, embed_dim: int = 96, patch_norm: bool = True) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim) if patch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # B, in_chans, height, width
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.patch_size, 0, -height % self.patch_size))
        x = self.proj(x).permute(0, 2, 3, 1)  # B, H, W, C
        return self.norm(x)


class PatchMerging(nn.Module):
    """Join 2 x 2 neighbours into one token of twice the channels: half the map, a larger receptive field."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # B, H, W, C -> B, H/2, W/2, 2*C
        return self.reduction(self.norm(self.join(x)))

    @staticmethod
    def join(x: Tensor) -> Tensor:
        """Four neighbours behind each other; odd maps are padded below and on the right: `B, H/2, W/2, 4*C`."""
        H, W = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
        # the official order: down the first column, then down the second
        return torch.cat([x[:, dy::2, dx::2] for dx in (0, 1) for dy in (0, 1)], dim=-1)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them.

    The result of the GELU is a fifth of what a block keeps for the backward pass, and cheap: it is computed anew there.
    """

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0) -> None:
        super().__init__()
        self.recompute = True  # a block that is recomputed as a whole keeps nothing anyway
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        hidden = self.drop(F.gelu(x))
        anew = self.recompute and self.training and not self.drop.p and not torch.compiler.is_compiling()
        with keeping(x, F.gelu, hidden) if anew else nullcontext():
            return self.drop(self.fc2(hidden))


def keeping(x: Tensor, function: Callable[[Tensor], Tensor], y: Tensor) -> saved_tensors_hooks:
    """A context in which autograd keeps x in place of `y = function(x)`, or of views of y, and computes it anew."""
    storage = y.untyped_storage().data_ptr()

    def pack(saved: Tensor) -> Tensor | tuple[torch.Size, tuple[int, ...]]:
        return saved if saved.untyped_storage().data_ptr() != storage else (saved.size(), saved.stride())

    def unpack(packed: Tensor | tuple[torch.Size, tuple[int, ...]]) -> Tensor:
        return packed if isinstance(packed, Tensor) else function(x).as_strided(*packed)

    return saved_tensors_hooks(pack, unpack)


class DropPath(nn.Module):
    """Stochastic depth by sample: a residual branch is dropped with probability `p`, and the kept ones are scaled.

    Every sample is dropped or kept by itself, as in the official code; but what is dropped is not computed either.
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """`x + branch(x)` for any branch that treats samples independently; x has them first."""
        if not self.training or self.p == 0.0:
            return x + branch(x)
        scale = 1 / (1 - self.p) if self.p < 1 else 1.0
        if torch.compiler.is_compiling():  # a graph has one size of batch
            keep = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(1 - self.p)
            return x + branch(x) * (keep * scale)
        # How many are kept is drawn on the CPU, so that no GPU is waited for, and which ones where they are: a binomial
        # number and a random choice of as many make every sample's draw independent.
        number = int((torch.rand(len(x), device="cpu") >= self.p).sum())
        if number == len(x):
            return torch.add(x, branch(x), alpha=scale)
        kept = torch.randperm(len(x), device=x.device)[:number]
        samples = x[kept]  # index_add would be shorter, and keep the branch's output for the backward pass
        return x.index_put((kept,), torch.add(samples, branch(samples), alpha=scale).to(x.dtype))

    def extra_repr(self) -> str:
        return f"p={self.p:.3f}"


def init_weights(module: nn.Module, std: float) -> None:
    """Truncated normal weights and zero biases in linear layers. Source: microsoft/Swin-Transformer, std 0.02."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
