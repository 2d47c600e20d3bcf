"""Swin Transformer V2: Scaling Up Capacity and Resolution (Liu et al., 2022, arXiv:2111.09883).

What the paper changes in Swin stands here, in the order of its section 3; all else is `swin.py`.
Parameter names are those of the official repository (microsoft/Swin-Transformer), so that its checkpoints fit.

Shapes: B batch, H W height and width of the map, C channels, N tokens of a window, M side of a full window,
nW windows of an image, nH heads, D channels of a head.
"""

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swin_lightning.errors import UserError
from swin_lightning.models.layers import PatchMerging
from swin_lightning.models.linear import linear
from swin_lightning.models.precision import disable_autocast, to_float32
from swin_lightning.models.swin import BasicLayer, SwinTransformer, SwinTransformerBlock, WindowAttention

MAX_SCALE = 100.0  # of the cosine: the temperature of the paper, tau, stays above 0.01
MAX_BIAS = 16.0


def log_spaced_coords(window_size: int, trained_window: int) -> Tensor:
    """The offsets of two tokens in a window on a logarithmic scale (paper section 3.3, equation 4).

    Coordinates are relative to the window that the weights were trained with, so that a larger one extrapolates by
    little: going from 8 to 16 reaches 0.33 times further on the log scale, 1.14 times on the linear one.

    Args:
        window_size: Side M of the window.
        trained_window: Side of the window the coordinates are normalised by: its largest offset is 1.

    Returns:
        `(2M-1)^2, 2`: dy, dx in the order of `windows.relative_position_index`. All zero for a window of one token.
    """
    offsets = torch.arange(1 - window_size, window_size, dtype=torch.float32)
    offsets = offsets * 8 / max(trained_window - 1, 1)
    offsets = offsets.sign() * torch.log2(offsets.abs() + 1) / math.log2(8)
    return torch.cartesian_prod(offsets, offsets)


class WindowAttentionV2(WindowAttention):
    """Scaled cosine attention (section 3.2, equation 2) with log-spaced continuous position bias (section 3.3).

    Products of normalised queries and keys do not grow with the width of the network, and the bias is a function of
    the offset, given by a small network, so that it exists for windows of any size. Both, and the softmax, stay in
    float32 under autocast: bfloat16 would keep two digits of a cosine that is scaled by up to 100.

    Args: those of `swin.WindowAttention`; `qkv_bias` gives queries and values a bias, keys never have one.
    """

    relative_coords_table: Tensor

    def __init__(
        self,
        dim: int,
        window_size: int,
        num_heads: int,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, window_size, num_heads, qkv_bias=False, attn_drop=attn_drop, proj_drop=proj_drop)
        self.scale = 1.0  # in place of it each head has its own, learned on a log scale
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10)))
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None

    def make_position_bias(self) -> None:
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, self.num_heads, bias=False))
        self.set_trained_window(self.window_size)

    def set_trained_window(self, trained_window: int) -> None:
        """Normalise the coordinates by the window that the weights were trained with."""
        table = log_spaced_coords(self.window_size, trained_window)
        self.register_buffer("relative_coords_table", table, persistent=False)

    def bias_table(self) -> Tensor:
        """The bias of every offset in a full window, `(2M-1)^2, nH`, between 0 and 16.

        A clamped window reads its centre, as in V1: it sees the offsets it has, in the coordinates of the full window.
        """
        with disable_autocast(self.logit_scale):
            return MAX_BIAS * to_float32(self.cpb_mlp(self.relative_coords_table)).sigmoid()

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of length `scale`, keys of length 1, and values, each `B*nW, nH, N, D` and at least float32."""
        bias = None
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = to_float32(linear(x, self.qkv.weight, bias))
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # 3, B*nW, nH, N, D
        scale = to_float32(self.logit_scale).clamp(max=math.log(MAX_SCALE)).exp()
        return F.normalize(q, dim=-1) * scale, F.normalize(k, dim=-1), v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, term: Tensor) -> Tensor:
        with disable_autocast(q):
            return super().attend(q, k, v, term).to(self.proj.weight.dtype)


class SwinTransformerBlockV2(SwinTransformerBlock):
    """Residual post-norm (section 3.2): a norm at the end of each branch, before it joins the residual.

    What a branch adds has unit size whatever the depth, so that activations do not grow towards the deep layers.
    """

    attention = WindowAttentionV2

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Args: x: map, `B, H, W, C`; mask: of `windows.shifted_window_mask` for this map and shift. Returns: `B, H, W, C`."""
        x = self.drop_path(x, lambda x: self.norm1(self.window_attention(x, mask)))
        return self.drop_path(x, lambda x: self.norm2(self.mlp(x)))


class PatchMergingV2(PatchMerging):
    """Patch merging with the norm behind the linear layer, like the blocks."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:  # B, H, W, C -> B, H/2, W/2, 2*C
        return self.norm(self.reduction(self.join(x)))


class BasicLayerV2(BasicLayer):
    """A stage of V2: see `swin.BasicLayer`."""

    block = SwinTransformerBlockV2
    merging = PatchMergingV2


class SwinTransformerV2(SwinTransformer):
    """Swin Transformer V2, a backbone for images of any height and width.

    Args:
        img_size: Image the weights are trained on: a stage whose map is then smaller than the window is trained with
            a window of that size. The network adapts to each input.
        patch_size: Side of a patch in pixels.
        in_chans: Channels of the image.
        num_classes: Classes of the head; 0 leaves it out, and the backbone returns the pooled features.
        embed_dim: Channels of the first stage; each following stage doubles them.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        window_size: Side of a window in tokens. A larger window than the map is clamped to it.
        mlp_ratio: Hidden channels of the MLPs by channels.
        qkv_bias: Give queries and values a bias.
        drop_rate: Dropout of tokens and linear outputs.
        attn_drop_rate: Dropout of the attention weights.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 at the first.
        ape: Add a learned absolute position embedding; fixes the image to `img_size`.
        patch_norm: Normalise after the patch embedding.
        use_checkpoint: Recompute the blocks in the backward pass instead of keeping their activations.
        init_std: Standard deviation of the initial matrices. Narrow networks learn sooner from about
            `embed_dim ** -0.5`.
        pretrained_window_sizes: Window that the weights of each stage were trained with, where another is used now;
            0 stands for the present one. Weights of window 8 at 256 pixels go to window 16 with 8, 8, 8, 8, weights
            of window 12 at 192 pixels (whose last map is 6 x 6) with 12, 12, 12, 6. No file tells it, and a wrong
            value costs accuracy without an error.

    Raises:
        ValueError: Where depths and num_heads differ in length, pretrained_window_sizes leaves out a stage, or a
            stage's channels cannot be split into heads.
    """

    layer = BasicLayerV2

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 0,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        ape: bool = False,
        patch_norm: bool = True,
        use_checkpoint: bool = False,
        init_std: float = 0.02,
        pretrained_window_sizes: Sequence[int] | None = None,
    ) -> None:
        trained = tuple(pretrained_window_sizes or [0] * len(depths))
        if len(trained) < len(depths):
            raise UserError(f"pretrained_window_sizes {list(trained)} must name the stages of depths {list(depths)}")
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=num_classes,
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            window_size=window_size,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
            ape=ape,
            patch_norm=patch_norm,
            use_checkpoint=use_checkpoint,
            init_std=init_std,
        )
        for stage, layer in enumerate(self.layers):
            window = trained[stage] or min(window_size, self.stage_size(stage))
            for block in cast(Iterable[SwinTransformerBlockV2], layer.blocks):
                cast(WindowAttentionV2, block.attn).set_trained_window(window)
                for norm in (block.norm1, block.norm2):  # every block starts as the identity
                    nn.init.zeros_(norm.weight)
                    nn.init.zeros_(norm.bias)
