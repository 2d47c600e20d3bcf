"""Swin Transformer V2: Scaling Up Capacity and Resolution (Liu et al., 2022, arXiv:2111.09883).

This file contains what changes from V1 (`swin.py`): scaled cosine attention, log-spaced continuous position bias and
residual post-norm, section 3 of the paper.
Parameter names are those of the official repository (microsoft/Swin-Transformer), so that its checkpoints load.

Shapes: B batch size, H and W height and width of the feature map, C channels, N tokens per window, M side of a full
window, nW windows per image, nH heads, D channels per head.
"""

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swin_lightning.errors import UserError
from swin_lightning.models.attention import WindowAttention
from swin_lightning.models.constants import constant
from swin_lightning.models.layers import PatchMerging
from swin_lightning.models.precision import disable_autocast, to_float32
from swin_lightning.models.swin import (
    BasicLayer,
    InitStd,
    PerStage,
    Ratio,
    SwinTransformer,
    SwinTransformerBlock,
    Width,
)
from swin_lightning.models.windows import Side, Size, fit_window, to_pair
from swin_lightning.ranges import NonNegativeInt, Rate, check_arguments

MAX_SCALE = 100.0  # of the cosine similarity; the paper clamps its inverse, tau, at 0.01
MAX_BIAS = 16.0
EPS = 1e-12  # of the norm of a query, as in F.normalize for the keys


def log_spaced_coords(window_size: Size, trained_window: Size, device: torch.device | None = None) -> Tensor:
    """Log-spaced relative coordinates of all offsets in a window (paper section 3.3, equation 4).

    Coordinates are normalised by the window size used in pre-training. Transferring to a larger window then needs
    little extrapolation: from 8 to 16, 0.33 times the original range in log-spaced and 1.14 times in linear-spaced
    coordinates.

    Args:
        window_size: Side M of the window, or its height and width.
        trained_window: Side of the window used in pre-training, or its height and width; its largest offset has the
            coordinate 1.
        device: Device of the coordinates.

    Returns:
        `(2M-1)^2, 2`: (dy, dx) in the order of `windows.relative_position_index`. All zeros for a 1 x 1 window.
    """
    axes = []
    for M, trained in zip(to_pair(window_size, "window_size"), to_pair(trained_window, "trained_window"), strict=True):
        offsets = torch.arange(1 - M, M, dtype=torch.float32, device=device)
        distance = torch.log1p(offsets.abs() * (8 / max(trained - 1, 1))) / math.log(8)  # log2(1 + d) / log2(8)
        axes.append(offsets.sign() * distance)
    return torch.cartesian_prod(*axes)


class WindowAttentionV2(WindowAttention):
    """Scaled cosine attention (section 3.2, equation 2) with log-spaced continuous position bias (section 3.3).

    Cosine similarities do not grow with the width of the network. The position bias is predicted from the offset by a
    small MLP, and so is defined for any window size. Both, and the softmax, are computed in float32 under autocast:
    bfloat16 has two significant digits, too few for a cosine multiplied by up to 100. The values keep their precision
    where the attention weights are computed explicitly; scaled_dot_product_attention takes a single dtype.

    The arguments are those of `swin.WindowAttention`, except that `qkv_bias` adds no bias to the keys.
    """

    def __init__(
        self,
        dim: int,
        window_size: Size,
        num_heads: int,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, window_size, num_heads, qkv_bias=False, attn_drop=attn_drop, proj_drop=proj_drop)
        self.scale = 1.0  # replaced by a learned scale per head
        self.logit_scale = nn.Parameter(torch.empty(num_heads, 1, 1))
        self.q_bias = nn.Parameter(torch.empty(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.empty(dim)) if qkv_bias else None
        self.reset_parameters()

    def make_position_bias(self) -> None:
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, self.num_heads, bias=False))
        self.trained_window = self.window_size  # that of the pre-training, if it differs

    def reset_parameters(self) -> None:
        """Initialise scale and biases; the linear layers have a `reset_parameters` of their own."""
        nn.init.constant_(self.logit_scale, math.log(10))
        for bias in (self.q_bias, self.v_bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def bias_table(self) -> Tensor:
        """Bias of every offset in a full window, `(2M-1)^2, nH`, between 0 and 16.

        A clamped window uses the centre of the table as in V1, that is, the coordinates of the full window.
        """
        # computed and not a buffer, which would be uninitialised after `to_empty` and keep its own dtype
        coords = constant(log_spaced_coords, self.window_size, self.trained_window, like=self.logit_scale.data)
        with disable_autocast(self.logit_scale):
            return MAX_BIAS * to_float32(self.cpb_mlp(coords.to(self.logit_scale.dtype))).sigmoid()

    def project_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised query times scale and normalised key in at least float32, and value; `B*nW, nH, N, D`."""
        q, k, v = self.packed_qkv(x).permute(2, 0, 3, 1, 4)  # B*nW, nH, N, D
        q, k = to_float32(q), to_float32(k)
        q = q * (self.head_scale().view(-1, 1, 1) / q.norm(dim=-1, keepdim=True).clamp(min=EPS))
        return q, F.normalize(k, dim=-1), v

    def packed_qkv(self, x: Tensor) -> Tensor:
        qkv = super().packed_qkv(x)  # B*nW, N, 3, nH, D
        if self.q_bias is None or self.v_bias is None:
            return qkv
        bias = torch.stack([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])  # keys have none
        return qkv + bias.view(3, self.num_heads, -1).to(qkv.dtype)

    def head_scale(self) -> Tensor:
        """Scale of the cosine similarity per head, `nH`, in at least float32."""
        return to_float32(self.logit_scale).clamp(max=math.log(MAX_SCALE)).exp().flatten()

    def scaled_dot_product_attention(self, q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor) -> Tensor:
        with disable_autocast(q):
            return super().scaled_dot_product_attention(q, k, v, attn_bias).to(self.logit_scale.dtype)


class SwinTransformerBlockV2(SwinTransformerBlock):
    """Block with residual post-norm (section 3.2): the output of each branch is normalised before it is added.

    Each branch adds a contribution of the same magnitude, so that activations grow less with depth.
    """

    attention = WindowAttentionV2

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Apply the block: `B, H, W, C` -> `B, H, W, C`; see `SwinTransformerBlock.forward`."""
        x = self.drop_path(x, lambda x: self.norm1(self.window_attention(x, mask)))
        x = self.drop_path(x, lambda x: self.norm2(self.mlp(x)))
        return x


class PatchMergingV2(PatchMerging):
    """Patch merging with the norm after the linear layer, as in the blocks."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:  # B, H, W, C -> B, H/2, W/2, 2*C
        x = self.reduction(self.concat_neighbours(x))
        x = self.norm(x)
        return x


class BasicLayerV2(BasicLayer):
    """A stage of Swin V2; see `swin.BasicLayer`."""

    block = SwinTransformerBlockV2
    merging = PatchMergingV2


class SwinTransformerV2(SwinTransformer):
    """Swin Transformer V2 backbone for images of any height and width.

    Args:
        img_size: Side of the image used in pre-training, or its height and width: in a stage with a feature map smaller
            than the window, coordinates are normalised by the size of that map. The network adapts to each input.
        patch_size: Side of a patch in pixels, or its height and width.
        in_chans: Number of image channels.
        num_classes: Number of classes of the head; 0 for no head: the model then returns pooled features.
        embed_dim: Number of channels in the first stage, doubled in each following stage.
        depths: Number of blocks in each stage.
        num_heads: Number of attention heads in each stage.
        window_size: Side of a window in tokens, or its height and width; clamped to the feature map if it is larger.
        mlp_ratio: Ratio of hidden to input channels of the MLPs.
        qkv_bias: Add a learnable bias to query and value.
        drop_rate: Dropout rate of patch embedding, attention outputs and MLPs.
        attn_drop_rate: Dropout rate of the attention weights.
        drop_path_rate: Stochastic depth rate of the last block; increases linearly from 0 in the first.
        ape: Add a learned absolute position embedding; images must then have size `img_size`.
        patch_norm: Apply a LayerNorm after the patch embedding.
        use_checkpoint: Gradient checkpointing: recompute the blocks in the backward pass to save memory.
        init_std: Standard deviation of the initial linear weights. Narrow networks train faster from about
            `embed_dim ** -0.5`.
        pretrained_window_sizes: Window size of each stage in pre-training, if it differs from `window_size`; 0 for
            the current one. For example 8, 8, 8, 8 for weights of window 8 at 256 pixels used with window 16, and
            12, 12, 12, 6 for weights of window 12 at 192 pixels (whose last feature map is 6 x 6). Checkpoints do not
            contain these values, and wrong ones lower the accuracy silently.

    Raises:
        UserError: If depths and num_heads differ in length, pretrained_window_sizes is shorter than depths, or
            num_heads does not divide the channels of a stage.
    """

    layer = BasicLayerV2

    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 4,
        in_chans: Width = 3,
        num_classes: NonNegativeInt = 0,
        embed_dim: Width = 96,
        depths: PerStage = (2, 2, 6, 2),
        num_heads: PerStage = (3, 6, 12, 24),
        window_size: Size = 7,
        mlp_ratio: Ratio = 4.0,
        qkv_bias: bool = True,
        drop_rate: Rate = 0.0,
        attn_drop_rate: Rate = 0.0,
        drop_path_rate: Rate = 0.1,
        ape: bool = False,
        patch_norm: bool = True,
        use_checkpoint: bool = False,
        init_std: InitStd = 0.02,
        pretrained_window_sizes: Sequence[NonNegativeInt | tuple[Side, Side]] | None = None,
    ) -> None:
        check_arguments(SwinTransformerV2.__init__, locals(), "model.backbone.")
        trained = tuple(pretrained_window_sizes or [0] * len(depths))
        if len(trained) < len(depths):
            raise UserError(
                f"pretrained_window_sizes {list(trained)} must have one value per stage of depths {list(depths)}"
            )
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
        for stage, layer in enumerate(cast(Iterable[BasicLayerV2], self.layers)):
            window = trained[stage] or fit_window(self.stage_size(stage), layer.window_size, 0)[0]
            for block in cast(Iterable[SwinTransformerBlockV2], layer.blocks):
                cast(WindowAttentionV2, block.attn).trained_window = to_pair(window, "pretrained_window_sizes")

    def init_weights(self) -> None:
        super().init_weights()
        for module in self.modules():
            if isinstance(module, SwinTransformerBlockV2):  # initialised as the identity
                for parameter in (*module.norm1.parameters(), *module.norm2.parameters()):
                    nn.init.zeros_(parameter)
