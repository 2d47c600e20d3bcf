"""Swin Transformer: Hierarchical Vision Transformer using Shifted Windows (Liu et al., 2021, arXiv:2103.14030).

Read from top to bottom, the file follows an image through the network: patches, windows, blocks, stages.
Parameter names are those of the official repository (microsoft/Swin-Transformer), so that its checkpoints fit.

Shapes: B batch, H W height and width of the map, C channels, N tokens of a window, nW windows of an image,
nH heads, D channels of a head. Between the parts, maps travel as `B, H, W, C`.
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
    """Multi-head self-attention inside windows, with relative position bias (paper section 3.2).

    The matrix of a window is N x N whatever the image, so that memory grows with H*W and not with (H*W)^2.

    Args:
        dim: Channels of a token.
        window_size: Side M of a full window; the bias table holds (2M-1)^2 offsets a head.
        num_heads: Heads.
        qkv_bias: Give queries, keys and values a bias.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of the output.
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
        """The parameters of the bias: one number for each offset and head."""
        table = torch.empty((2 * self.window_size - 1) ** 2, self.num_heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))

    def bias_table(self) -> Tensor:
        """The bias of every offset in a full window, `(2M-1)^2, nH`."""
        return self.relative_position_bias_table

    def relative_position_bias(self, window: tuple[int, int]) -> Tensor:
        """The bias of every pair of tokens in a window, `nH, N, N`.

        The index depends on offsets alone, so that the upper left corner of the full window serves every
        smaller one: a clamped window reads the centre of the table.
        """
        M, (h, w) = self.window_size, window
        index = self.relative_position_index.view(M, M, M, M)[:h, :w, :h, :w].reshape(h * w, h * w)
        return self.bias_table()[index].permute(2, 0, 1)

    def attention_bias(self, window: tuple[int, int], mask: Tensor | None) -> Tensor:
        """Bias and mask as the one term that is added to the scaled products, `1 or nW, nH, N, N`."""
        bias = self.relative_position_bias(window).unsqueeze(0)
        return bias if mask is None else bias.masked_fill(~mask.unsqueeze(1), float("-inf"))

    def forward(self, x: Tensor, window: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        """Attend inside every window.

        Args:
            x: Windows, `B*nW, N, C`.
            window: Their height and width, `h * w == N`.
            mask: Allowed pairs, `nW, N, N` bool (`windows.shifted_window_mask`), or None for all.

        Returns:
            `B*nW, N, C`.
        """
        q, k, v = self.heads(x)
        return self._merge(self.attend(q, k, v, repeat_for_batch(self.attention_bias(window, mask), x.shape[0])))

    def attention_weights(self, x: Tensor, window: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        """The softmax that `forward` applies, written out: `B*nW, nH, N, N`, rows sum to 1. For looking and testing."""
        q, k, _ = self.heads(x)
        with disable_autocast(x):
            scores = to_float32(q * self.scale) @ to_float32(k).transpose(-2, -1)
            return (scores + repeat_for_batch(self.attention_bias(window, mask), x.shape[0])).softmax(dim=-1)

    def forward_eager(self, x: Tensor, window: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        """`forward` through `attention_weights`: the reference for tests."""
        v = self.heads(x)[2]
        return self._merge((self.attention_weights(x, window, mask).to(v.dtype) @ v).to(x.dtype))

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of every head, each `B*nW, nH, N, D`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # 3, B*nW, nH, N, D
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, term: Tensor) -> Tensor:
        """`softmax(q k^T * scale + term) v`, `B*nW, nH, N, D`."""
        drop = self.attn_drop if self.training else 0.0
        if term.requires_grad and q.device.type == "cpu":  # fused attention has no gradient for the term there
            weights = torch.add(term.to(q.dtype), q @ k.transpose(-2, -1), alpha=self.scale).softmax(dim=-1)
            return F.dropout(weights, drop) @ v
        return F.scaled_dot_product_attention(q, k, v, attn_mask=term.to(q.dtype), dropout_p=drop, scale=self.scale)

    def _merge(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2).flatten(2)  # B*nW, N, C
        return self.proj_drop(self.proj(x))


class SwinTransformerBlock(nn.Module):
    """W-MSA or SW-MSA, then an MLP, each with a norm before and a residual around (paper figure 3b).

    Args:
        dim: Channels of a token.
        num_heads: Heads.
        window_size: Side of a window in tokens.
        shift_size: Cyclic shift: 0 makes it W-MSA, half the window SW-MSA.
        mlp_ratio: Hidden channels of the MLP by channels.
        qkv_bias: Give queries, keys and values a bias.
        drop: Dropout of the two linear outputs.
        attn_drop: Dropout of the attention weights.
        drop_path: Probability of dropping each of the two branches of a sample.
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
        """Args: x: map, `B, H, W, C`; mask: of `windows.shifted_window_mask` for this map and shift. Returns: `B, H, W, C`."""
        x = self.drop_path(x, lambda x: self.window_attention(self.norm1(x), mask))
        return self.drop_path(x, lambda x: self.mlp(self.norm2(x)))

    def window_attention(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Pad, roll, attend inside windows, and undo both."""
        H, W = x.shape[1:3]
        window, (sy, sx) = fit_window((H, W), self.window_size, self.shift_size)
        padded = padded_size((H, W), window)
        if padded != (H, W):
            x = F.pad(x, (0, 0, 0, padded[1] - W, 0, padded[0] - H))
        if sy or sx:  # after the padding: rolled first, the two ends of the map would meet in one region
            x = x.roll((-sy, -sx), (1, 2))
        x = self.attn(window_partition(x, window), window, mask)
        x = window_reverse(x, window, padded)
        if sy or sx:
            x = x.roll((sy, sx), (1, 2))
        return x[:, :H, :W]


class BasicLayer(nn.Module):
    """A stage: blocks that take turns in W-MSA and SW-MSA, then patch merging unless it is the last.

    Args:
        dim: Channels of a token.
        depth: Blocks.
        num_heads: Heads.
        window_size: Side of a window in tokens.
        drop_path: Drop-path probability of each block.
        downsample: End with patch merging.
        **block_args: Other arguments of the blocks.
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
        """Args: x: map, `B, H, W, C`. Returns: the stage's output, and the same merged for the next stage."""
        size = (x.shape[1], x.shape[2])
        masks = {}  # all blocks of a stage share two: without and with the shift
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
    """Swin Transformer, a backbone for images of any height and width.

    Args:
        img_size: Image that `ape` is made for; apart from that the network adapts to each input.
        patch_size: Side of a patch in pixels.
        in_chans: Channels of the image.
        num_classes: Classes of the head; 0 leaves it out, and the backbone returns the pooled features.
        embed_dim: Channels of the first stage; each following stage doubles them.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        window_size: Side of a window in tokens. A larger window than the map is clamped to it.
        mlp_ratio: Hidden channels of the MLPs by channels.
        qkv_bias: Give queries, keys and values a bias.
        drop_rate: Dropout of tokens and linear outputs.
        attn_drop_rate: Dropout of the attention weights.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 at the first.
        ape: Add a learned absolute position embedding; fixes the image to `img_size`.
        patch_norm: Normalise after the patch embedding.
        use_checkpoint: Recompute the blocks in the backward pass instead of keeping their activations.
        init_std: Standard deviation of the initial matrices; narrow networks learn sooner from `embed_dim ** -0.5`.

    Raises:
        ValueError: Where depths and num_heads differ in length, or a stage's channels cannot be split into heads.
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
            raise UserError(f"depths {list(depths)} and num_heads {list(num_heads)} must name the same stages")
        dims = [embed_dim * 2**stage for stage in range(len(depths))]
        for dim, heads in zip(dims, num_heads, strict=True):
            if dim % heads:
                raise UserError(f"{dim} channels cannot be split into num_heads={heads}; change embed_dim or num_heads")
        self.num_features = dims[-1]
        self.img_size, self.patch_size = img_size, patch_size
        self.num_classes = num_classes

        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim, patch_norm)
        grid = self.stage_size(0)
        self.absolute_pos_embed = nn.Parameter(torch.zeros(1, grid * grid, embed_dim)) if ape else None
        self.pos_drop = nn.Dropout(drop_rate)
        drop_path = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").split(list(depths))
        self.layers = nn.ModuleList(
            self.layer(
                dims[stage],
                depths[stage],
                num_heads[stage],
                window_size,
                drop_path=drop_path[stage].tolist(),
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
        """Side of a stage's map for an image of `img_size`."""
        return -(-self.img_size // (self.patch_size * 2**stage))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass: less memory, about a third more time."""
        for module in self.modules():
            if isinstance(module, BasicLayer):
                module.use_checkpoint = enable
            elif isinstance(module, Mlp):
                module.recompute = not enable

    def layer_id(self, name: str) -> int:
        """
        Depth of a parameter for layer-wise learning rates: stem 0, each block one more, head and last norm at the end.

        A stage's patch merging goes with its last block. Source: microsoft/Swin-Transformer, optimizer.py.
        """
        depths = [len(cast(BasicLayer, layer).blocks) for layer in self.layers]
        part = name.split(".")
        if part[0] == "patch_embed":
            return 0
        if part[0] == "layers":
            block = int(part[3]) if part[2] == "blocks" else depths[int(part[1])] - 1
            return sum(depths[: int(part[1])]) + block + 1
        return sum(depths) + 1

    def stages(self, images: Tensor) -> list[Tensor]:
        """The output of each stage before patch merging, `B, H, W, C` at strides 1, 2, 4, ... patches."""
        x = self.patch_embed(images)
        if self.absolute_pos_embed is not None:
            x = x + self.absolute_pos_embed.view(1, *x.shape[1:])
        x = self.pos_drop(x)
        maps = []
        for layer in self.layers:
            stage, x = layer(x)
            maps.append(stage)
        return maps

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """The stages' outputs for dense tasks.

        Args:
            images: `B, in_chans, height, width`, normalised.

        Returns:
            One un-normalised map a stage, `B, C, H, W`; for patch size 4 at strides 4, 8, 16, 32.
        """
        return [x.permute(0, 3, 1, 2).contiguous() for x in self.stages(images)]

    def forward_features(self, images: Tensor) -> Tensor:
        """The last stage normalised and averaged over the map, `B, num_features`."""
        return self.norm(self.stages(images)[-1]).mean(dim=(1, 2))

    def forward(self, images: Tensor) -> Tensor:
        """Images, `B, in_chans, height, width` -> logits, or pooled features where the head is left out."""
        return self.head(self.forward_features(images))
