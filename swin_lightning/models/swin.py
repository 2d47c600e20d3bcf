"""Swin Transformer: Hierarchical Vision Transformer using Shifted Windows (Liu et al., 2021, arXiv:2103.14030).

The modules are ordered from the inside out: block, stage, network; window attention is in `attention.py`.
Parameter names are those of the official repository (microsoft/Swin-Transformer), so that its checkpoints load.

Shapes: B batch size, H and W height and width of the feature map, C channels, N tokens per window, nW windows per
image. Feature maps are `B, H, W, C` between modules.
"""

import os
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Annotated, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from swin_lightning.errors import UserError
from swin_lightning.models.attention import WindowAttention
from swin_lightning.models.constants import constant
from swin_lightning.models.layers import DropPath, Mlp, PatchEmbed, PatchMerging, init_weights
from swin_lightning.models.precision import autocast_dtype
from swin_lightning.models.windows import (
    Size,
    fit_window,
    padded_size,
    shifted_window_mask,
    to_pair,
    window_partition,
    window_reverse,
)
from swin_lightning.ranges import NonNegativeInt, Range, Rate, check_arguments

Width = Annotated[int, Range(ge=1, le=16384)]  # channels
PerStage = Sequence[Annotated[int, Range(ge=1, le=1024)]]
MAX_STAGES = 8
Ratio = Annotated[float, Range(gt=0, le=64)]
InitStd = Annotated[float, Range(gt=0, le=10)]


def check_memory(parameters: float) -> None:
    """Refuse a network on the CPU that this machine cannot hold, before its memory is filled.

    Raises:
        UserError: If so many float32 numbers need more than the memory of the machine.
    """
    if torch.get_default_device().type != "cpu" or not hasattr(os, "sysconf"):
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * parameters > memory:
        raise UserError(
            f"model.backbone: {parameters / 1e9:.1f} billion parameters need {4 * parameters / 2**30:.0f} GiB and this "
            f"machine has {memory / 2**30:.0f}; lower embed_dim, depths or mlp_ratio"
        )


class SwinTransformerBlock(nn.Module):
    """W-MSA or SW-MSA followed by an MLP, both pre-norm with a residual connection (paper figure 3b).

    Args:
        dim: Number of input channels.
        num_heads: Number of attention heads.
        window_size: Side of a window in tokens, or its height and width.
        shift_size: Cyclic shift in tokens, or one per axis: 0 for W-MSA, half the window size for SW-MSA.
        mlp_ratio: Ratio of hidden to input channels of the MLP.
        qkv_bias: Add a learnable bias to query, key and value.
        drop: Dropout rate of the attention output and the MLP.
        attn_drop: Dropout rate of the attention weights.
        drop_path: Stochastic depth rate of both branches.
    """

    attention: type[WindowAttention] = WindowAttention

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: Size = 7,
        shift_size: Size = 0,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.window_size = to_pair(window_size, "window_size")
        self.shift_size = (shift_size, shift_size) if isinstance(shift_size, int) else shift_size
        self.norm1 = nn.LayerNorm(dim)
        self.attn = self.attention(dim, window_size, num_heads, qkv_bias, attn_drop, drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`B, H, W, C` -> `B, H, W, C`, with the `windows.shifted_window_mask` of this map and shift."""
        x = self.drop_path(x, lambda x: self.window_attention(self.norm1(x), mask))
        x = self.drop_path(x, lambda x: self.mlp(self.norm2(x)))
        return x

    def window_attention(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Pad, shift, attend within windows, and revert shift and padding: `B, H, W, C` -> `B, H, W, C`."""
        H, W = x.shape[1:3]
        window, (sy, sx) = fit_window((H, W), self.window_size, self.shift_size)
        if self.attn.serves_map(x, window):
            return self.attn(x, window, shift=(sy, sx))  # type: ignore[no-any-return]
        padded = padded_size((H, W), window)
        if padded != (H, W):
            x = F.pad(x, (0, 0, 0, padded[1] - W, 0, padded[0] - H))
        if sy or sx:  # shift after padding, so that padding separates the opposite edges of the map
            x = x.roll((-sy, -sx), (1, 2))
        x = self.attn(window_partition(x, window), window, mask)  # B*nW, N, C
        x = window_reverse(x, window, padded)  # B, H, W, C
        if sy or sx:
            x = x.roll((sy, sx), (1, 2))
        return x[:, :H, :W]


class BasicLayer(nn.Module):
    """A stage: blocks with alternating W-MSA and SW-MSA, followed by patch merging except in the last stage.

    Args:
        dim: Number of input channels.
        depth: Number of blocks.
        num_heads: Number of attention heads.
        window_size: Side of a window in tokens, or its height and width.
        drop_path: Stochastic depth rate of each block.
        downsample: Apply patch merging after the blocks.
        **block_args: Further arguments of the blocks.
    """

    block: type[SwinTransformerBlock] = SwinTransformerBlock
    merging: type[PatchMerging] = PatchMerging

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        window_size: Size,
        drop_path: Sequence[float],
        downsample: bool,
        **block_args: Any,
    ) -> None:
        super().__init__()
        self.window_size = M_h, M_w = to_pair(window_size, "window_size")
        self.use_checkpoint = False
        self.blocks = nn.ModuleList(
            self.block(
                dim,
                num_heads,
                self.window_size,
                shift_size=(0, 0) if i % 2 == 0 else (M_h // 2, M_w // 2),
                drop_path=drop_path[i],
                **block_args,
            )
            for i in range(depth)
        )
        self.downsample = self.merging(dim) if downsample else None

    def forward(self, x: Tensor, merge: bool = True) -> tuple[Tensor, Tensor]:
        """`B, H, W, C` -> output of the blocks, `B, H, W, C`, and input of the next stage, `B, H/2, W/2, 2*C`.

        Without `merge` the second is not computed and is the output of the blocks too, as in the last stage.
        """
        size = (x.shape[1], x.shape[2])
        masks = {}  # shared by the blocks of the stage: one without and one with shift
        blocks = cast(Iterable[SwinTransformerBlock], self.blocks)
        for shift in sorted({block.shift_size for block in blocks}):
            masks[shift] = constant(shifted_window_mask, size, *fit_window(size, self.window_size, shift), like=x)
        for block in blocks:
            mask = masks[block.shift_size]
            if self.use_checkpoint and self.training:
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        return x, self.downsample(x) if self.downsample is not None and merge else x


class SwinTransformer(nn.Module):
    """Swin Transformer backbone for images of any height and width.

    Args:
        img_size: Side of the image, or height and width, of `ape` and `stage_size`; otherwise the network adapts to
            each input.
        patch_size: Side of a patch in pixels, or its height and width.
        in_chans: Number of image channels.
        num_classes: Number of classes of the head; 0 for no head: the model then returns pooled features.
        embed_dim: Number of channels in the first stage, doubled in each following stage.
        depths: Number of blocks in each stage.
        num_heads: Number of attention heads in each stage.
        window_size: Side of a window in tokens, or its height and width; clamped to the feature map if it is larger.
        mlp_ratio: Ratio of hidden to input channels of the MLPs.
        qkv_bias: Add a learnable bias to query, key and value.
        drop_rate: Dropout rate of patch embedding, attention outputs and MLPs.
        attn_drop_rate: Dropout rate of the attention weights.
        drop_path_rate: Stochastic depth rate of the last block; increases linearly from 0 in the first.
        ape: Add a learned absolute position embedding; images must then have size `img_size`.
        patch_norm: Apply a LayerNorm after the patch embedding.
        use_checkpoint: Gradient checkpointing: recompute the blocks in the backward pass to save memory.
        init_std: Standard deviation of initial linear weights; about `embed_dim ** -0.5` is better for narrow networks.
        half_residual: Under autocast keep the residual of the first stage in half precision, as that of the others is,
            and not in float32, to which a GPU's LayerNorm promotes it.

    Raises:
        UserError: If an argument is out of range, depths and num_heads differ in length, or num_heads does not divide
            the channels of a stage.
    """

    layer: type[BasicLayer] = BasicLayer

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
        half_residual: bool = False,
    ) -> None:
        check_arguments(SwinTransformer.__init__, locals(), "model.backbone.")
        super().__init__()
        if not 1 <= len(depths) <= MAX_STAGES:
            raise UserError(
                f"model.backbone.depths {list(depths)}: expected 1 to {MAX_STAGES} stages, such as [2, 2, 6, 2]"
            )
        if len(depths) != len(num_heads):
            raise UserError(
                f"model.backbone.depths {list(depths)} and num_heads {list(num_heads)} must have the same length: one "
                "number per stage"
            )
        dims = [embed_dim * 2**stage for stage in range(len(depths))]
        for dim, heads in zip(dims, num_heads, strict=True):
            if dim % heads:
                raise UserError(
                    f"model.backbone.num_heads {heads} does not divide {dim} channels; change embed_dim or num_heads"
                )
        self.num_features = dims[-1]
        self.img_size, self.patch_size = to_pair(img_size, "img_size"), to_pair(patch_size, "patch_size")
        self.num_classes, self.init_std, self.half_residual = num_classes, init_std, half_residual
        self.in_chans, self.window_size = in_chans, to_pair(window_size, "window_size")
        check_memory(sum(depth * (4 + 2 * mlp_ratio) * dim**2 for depth, dim in zip(depths, dims, strict=True)))

        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim, patch_norm)
        H, W = self.stage_size(0)
        self.absolute_pos_embed = nn.Parameter(torch.empty(1, H * W, embed_dim)) if ape else None
        self.pos_drop = nn.Dropout(drop_rate)
        drop_path = torch.linspace(0, drop_path_rate, sum(depths), device="cpu")
        self.layers = nn.ModuleList(
            self.layer(
                dims[stage],
                depths[stage],
                num_heads[stage],
                window_size,
                drop_path=drop_path[sum(depths[:stage]) : sum(depths[: stage + 1])].tolist(),
                downsample=stage < len(depths) - 1,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
            )
            for stage in range(len(depths))
        )
        self.norm = nn.LayerNorm(self.num_features)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.init_weights()
        self.set_grad_checkpointing(use_checkpoint)

    def init_weights(self) -> None:
        """Initialise what differs from PyTorch's defaults. Source: microsoft/Swin-Transformer."""
        self.apply(partial(init_weights, std=self.init_std))
        if self.absolute_pos_embed is not None:
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)

    def reset_parameters(self) -> None:
        """Initialise all parameters of the network as the constructor does, for example after `to_empty`."""
        for module in self.modules():
            if module is not self and callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        self.init_weights()

    def stage_size(self, stage: int) -> tuple[int, int]:
        """Height and width of the feature map of a stage for an image of size `img_size`."""
        (height, width), (p_h, p_w) = self.img_size, self.patch_size
        return -(-height // (p_h << stage)), -(-width // (p_w << stage))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass: less memory, about 30 % slower."""
        for module in self.modules():
            if isinstance(module, BasicLayer):
                module.use_checkpoint = enable
            elif isinstance(module, Mlp):
                module.recompute_gelu = not enable

    def layer_id(self, name: str) -> int:
        """Depth of a parameter for layer-wise learning rate decay, as in microsoft/Swin-Transformer, optimizer.py.

        0 for the patch embedding, then one more per block (patch merging: its stage's last block), then norm and head.
        """
        depths = [len(cast(BasicLayer, layer).blocks) for layer in self.layers]
        part = name.split(".")
        if part[0] in ("patch_embed", "mask_token"):
            return 0
        if part[0] == "layers":
            block = int(part[3]) if part[2] == "blocks" else depths[int(part[1])] - 1
            return sum(depths[: int(part[1])]) + block + 1
        return sum(depths) + 1

    def forward_intermediates(self, images: Tensor, num_stages: int | None = None) -> list[Tensor]:
        """Output of each stage before patch merging, `B, H, W, C` at strides 1, 2, 4, ... patches.

        Args:
            images: Normalised images, `B, in_chans, height, width`.
            num_stages: Number of stages to compute; all by default.
        """
        return self.forward_stages(self.patch_embed(images), num_stages)

    def forward_stages(self, x: Tensor, num_stages: int | None = None) -> list[Tensor]:
        """As `forward_intermediates`, from patch embeddings `B, H, W, C`, which masked image modelling replaces."""
        if self.absolute_pos_embed is not None:
            x = x + self.absolute_pos_embed.view(1, *x.shape[1:])
        x = self.pos_drop(x)
        if self.half_residual:
            x = x.to(autocast_dtype(x))
        layers = self.layers[:num_stages]
        intermediates = []
        for stage, layer in enumerate(layers):
            output, x = layer(x, merge=stage < len(layers) - 1)
            intermediates.append(output)
        return intermediates

    def feature_maps(self, images: Tensor, out_indices: Sequence[int] | None = None) -> list[Tensor]:
        """Feature pyramid for dense prediction tasks; `features.FeaturePyramid` makes a module of it.

        Args:
            images: Normalised images, `B, in_chans, height, width`.
            out_indices: Stages to return, counted from 0; all by default. Stages after the last one are not computed.

        Returns:
            Output of each stage without normalisation, `B, C, H, W`; at strides 4, 8, 16, 32 for patch size 4.
        """
        stages = range(len(self.layers)) if out_indices is None else out_indices
        maps = self.forward_intermediates(images, max(stages) + 1)
        return [maps[stage].permute(0, 3, 1, 2).contiguous() for stage in stages]

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalised and average-pooled output of the last stage, `B, num_features`."""
        x: Tensor = self.norm(self.forward_intermediates(images)[-1])  # B, H, W, C
        return x.mean(dim=(1, 2))  # B, C

    def forward(self, images: Tensor) -> Tensor:
        """Logits `B, num_classes`, or pooled features `B, num_features` without head."""
        x: Tensor = self.head(self.forward_features(images))
        return x
