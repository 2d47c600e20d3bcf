"""Swin Transformer: Hierarchical Vision Transformer using Shifted Windows (Liu et al., 2021, arXiv:2103.14030).

The modules are ordered from the inside out: window attention, block, stage, network.
Parameter names are those of the official repository (microsoft/Swin-Transformer), so that its checkpoints load.

Shapes: B batch size, H and W height and width of the feature map, C channels, N tokens per window, M side of a full
window, nW windows per image, nH heads, D channels per head. Feature maps are `B, H, W, C` between modules.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from swin_lightning.errors import UserError
from swin_lightning.models.layers import DropPath, Mlp, PatchEmbed, PatchMerging, init_weights
from swin_lightning.models.linear import Linear
from swin_lightning.models.precision import disable_autocast, to_float32
from swin_lightning.models.windows import (
    fit_window,
    padded_size,
    relative_position_index,
    repeat_for_batch,
    shifted_window_mask,
    window_partition,
    window_reverse,
)


class WindowAttention(nn.Module):
    """Window-based multi-head self-attention (W-MSA) with relative position bias (paper section 3.2).

    The attention matrix of a window is N x N for any image size: memory is linear in H*W instead of quadratic.

    Args:
        dim: Number of input channels.
        window_size: Side M of a full window; the bias table has (2M-1)^2 rows.
        num_heads: Number of attention heads.
        qkv_bias: Add a learnable bias to query, key and value.
        attn_drop: Dropout rate of the attention weights.
        proj_drop: Dropout rate of the output.
    """

    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        window_size: int,
        num_heads: int,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.attn_drop = attn_drop
        self.make_position_bias()
        self.register_buffer("relative_position_index", relative_position_index(window_size), persistent=False)
        self.qkv = Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def make_position_bias(self) -> None:
        """Create the parameters of the relative position bias: one value per offset and head."""
        table = torch.empty((2 * self.window_size - 1) ** 2, self.num_heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))

    def bias_table(self) -> Tensor:
        """Bias of every offset in a full window, `(2M-1)^2, nH`."""
        return self.relative_position_bias_table

    def relative_position_bias(self, window: tuple[int, int]) -> Tensor:
        """Bias of every pair of tokens in a window `(h, w)`, `nH, N, N`; a clamped window uses the table's centre."""
        M, (h, w) = self.window_size, window
        # the index depends on offsets only: the top-left corner of the full window serves every smaller window
        index = self.relative_position_index.view(M, M, M, M)[:h, :w, :h, :w].reshape(h * w, h * w)  # N, N
        return self.bias_table()[index].permute(2, 0, 1)  # nH, N, N

    def attention_bias(self, window: tuple[int, int], mask: Tensor | None) -> Tensor:
        """Relative position bias, -inf where masked; added to the attention scores. `1 or nW, nH, N, N`."""
        bias = self.relative_position_bias(window).unsqueeze(0)
        return bias if mask is None else bias.masked_fill(~mask.unsqueeze(1), float("-inf"))

    def forward(self, x: Tensor, window: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        """Self-attention within each window.

        Args:
            x: Windows, `B*nW, N, C`.
            window: Height and width of the windows, `h * w == N`.
            mask: True where attention is allowed, `nW, N, N` bool (`windows.shifted_window_mask`); None for everywhere.

        Returns:
            `B*nW, N, C`.
        """
        q, k, v = self.project_qkv(x)
        attn_bias = repeat_for_batch(self.attention_bias(window, mask), x.shape[0])  # 1 or B*nW, nH, N, N
        return self._merge_heads(self.scaled_dot_product_attention(q, k, v, attn_bias))

    def attention_weights(self, x: Tensor, window: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        """The attention weights of `forward`, `B*nW, nH, N, N`, computed explicitly for visualisation and tests."""
        q, k, _ = self.project_qkv(x)
        with disable_autocast(x):
            scores = to_float32(q * self.scale) @ to_float32(k).transpose(-2, -1)  # B*nW, nH, N, N
            return (scores + repeat_for_batch(self.attention_bias(window, mask), x.shape[0])).softmax(dim=-1)

    def forward_eager(self, x: Tensor, window: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        """`forward` computed from `attention_weights`; the reference implementation for tests."""
        v = self.project_qkv(x)[2]
        return self._merge_heads((self.attention_weights(x, window, mask).to(v.dtype) @ v).to(x.dtype))

    def project_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of every head, each `B*nW, nH, N, D`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # 3, B*nW, nH, N, D
        return q, k, v

    def scaled_dot_product_attention(self, q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor) -> Tensor:
        """`softmax(q k^T * scale + attn_bias) v`, `B*nW, nH, N, D`."""
        dropout = self.attn_drop if self.training else 0.0
        if attn_bias.requires_grad and q.device.type == "cpu":  # SDPA on CPU has no fused kernel with a bias gradient
            weights = torch.add(attn_bias.to(q.dtype), q @ k.transpose(-2, -1), alpha=self.scale).softmax(dim=-1)
            return F.dropout(weights, dropout) @ v
        attn_bias = attn_bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_bias, dropout_p=dropout, scale=self.scale)

    def _merge_heads(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))  # B*nW, N, C
        return out


class SwinTransformerBlock(nn.Module):
    """W-MSA or SW-MSA followed by an MLP, both pre-norm with a residual connection (paper figure 3b).

    Args:
        dim: Number of input channels.
        num_heads: Number of attention heads.
        window_size: Side of a window in tokens.
        shift_size: Cyclic shift in tokens: 0 for W-MSA, half the window size for SW-MSA.
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
        window_size: int = 7,
        shift_size: int = 0,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift_size = shift_size
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
        window_size: Side of a window in tokens.
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
        window_size: int,
        drop_path: Sequence[float],
        downsample: bool,
        **block_args: Any,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.use_checkpoint = False
        self.blocks = nn.ModuleList(
            self.block(
                dim,
                num_heads,
                window_size,
                shift_size=0 if i % 2 == 0 else window_size // 2,
                drop_path=drop_path[i],
                **block_args,
            )
            for i in range(depth)
        )
        self.downsample = self.merging(dim) if downsample else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`B, H, W, C` -> output of the blocks, `B, H, W, C`, and input of the next stage, `B, H/2, W/2, 2*C`."""
        size = (x.shape[1], x.shape[2])
        masks = {}  # shared by the blocks of the stage: one without and one with shift
        blocks = cast(Iterable[SwinTransformerBlock], self.blocks)
        for shift in {block.shift_size for block in blocks}:
            masks[shift] = shifted_window_mask(size, *fit_window(size, self.window_size, shift), device=x.device)
        for block in blocks:
            mask = masks[block.shift_size]
            if self.use_checkpoint and self.training:
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        return x, x if self.downsample is None else self.downsample(x)


class SwinTransformer(nn.Module):
    """Swin Transformer backbone for images of any height and width.

    Args:
        img_size: Image size of `ape` and of `stage_size`; otherwise the network adapts to each input.
        patch_size: Side of a patch in pixels.
        in_chans: Number of image channels.
        num_classes: Number of classes of the head; 0 for no head: the model then returns pooled features.
        embed_dim: Number of channels in the first stage, doubled in each following stage.
        depths: Number of blocks in each stage.
        num_heads: Number of attention heads in each stage.
        window_size: Side of a window in tokens; clamped to the feature map if it is larger.
        mlp_ratio: Ratio of hidden to input channels of the MLPs.
        qkv_bias: Add a learnable bias to query, key and value.
        drop_rate: Dropout rate of patch embedding, attention outputs and MLPs.
        attn_drop_rate: Dropout rate of the attention weights.
        drop_path_rate: Stochastic depth rate of the last block; increases linearly from 0 in the first.
        ape: Add a learned absolute position embedding; images must then have size `img_size`.
        patch_norm: Apply a LayerNorm after the patch embedding.
        use_checkpoint: Gradient checkpointing: recompute the blocks in the backward pass to save memory.
        init_std: Standard deviation of initial linear weights; about `embed_dim ** -0.5` is better for narrow networks.

    Raises:
        UserError: If depths and num_heads differ in length, or num_heads does not divide the channels of a stage.
    """

    layer: type[BasicLayer] = BasicLayer

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
    ) -> None:
        super().__init__()
        if len(depths) != len(num_heads):
            raise UserError(f"depths {list(depths)} and num_heads {list(num_heads)} must have the same length")
        dims = [embed_dim * 2**stage for stage in range(len(depths))]
        for dim, heads in zip(dims, num_heads, strict=True):
            if dim % heads:
                raise UserError(f"num_heads={heads} does not divide {dim} channels; change embed_dim or num_heads")
        self.num_features = dims[-1]
        self.img_size, self.patch_size = img_size, patch_size
        self.num_classes = num_classes

        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim, patch_norm)
        grid = self.stage_size(0)
        self.absolute_pos_embed = nn.Parameter(torch.zeros(1, grid * grid, embed_dim)) if ape else None
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

        self.apply(partial(init_weights, std=init_std))
        if self.absolute_pos_embed is not None:
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.set_grad_checkpointing(use_checkpoint)

    def stage_size(self, stage: int) -> int:
        """Side of the feature map of a stage for an image of size `img_size`."""
        return -(-self.img_size // (self.patch_size << stage))

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
        if part[0] == "patch_embed":
            return 0
        if part[0] == "layers":
            block = int(part[3]) if part[2] == "blocks" else depths[int(part[1])] - 1
            return sum(depths[: int(part[1])]) + block + 1
        return sum(depths) + 1

    def forward_intermediates(self, images: Tensor) -> list[Tensor]:
        """Output of each stage before patch merging, `B, H, W, C` at strides 1, 2, 4, ... patches."""
        x = self.patch_embed(images)  # B, H, W, C
        if self.absolute_pos_embed is not None:
            x = x + self.absolute_pos_embed.view(1, *x.shape[1:])
        x = self.pos_drop(x)
        intermediates = []
        for layer in self.layers:
            output, x = layer(x)
            intermediates.append(output)
        return intermediates

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Feature pyramid for dense prediction tasks.

        Args:
            images: Normalised images, `B, in_chans, height, width`.

        Returns:
            Output of each stage without normalisation, `B, C, H, W`; at strides 4, 8, 16, 32 for patch size 4.
        """
        return [x.permute(0, 3, 1, 2).contiguous() for x in self.forward_intermediates(images)]

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalised and average-pooled output of the last stage, `B, num_features`."""
        x: Tensor = self.norm(self.forward_intermediates(images)[-1])  # B, H, W, C
        return x.mean(dim=(1, 2))  # B, C

    def forward(self, images: Tensor) -> Tensor:
        """Logits `B, num_classes`, or pooled features `B, num_features` without head."""
        x: Tensor = self.head(self.forward_features(images))
        return x
