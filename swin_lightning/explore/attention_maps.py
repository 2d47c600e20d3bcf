"""Attention weights recorded during a forward pass, and mapped from shifted windows back to image coordinates.

Shapes: B batch, H W token map, N tokens per window, nW windows per image, nH heads, M window size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swin_lightning.errors import UserError
from swin_lightning.models.attention import WindowAttention
from swin_lightning.models.swin import SwinTransformerBlock
from swin_lightning.models.windows import (
    PAD,
    fit_window,
    padded_size,
    window_partition,
)

Pair = tuple[int, int]


def window_token_index(size: Pair, window: Pair, shift: Pair) -> Tensor:
    """Index in the token map of every token of every window, after padding and the cyclic shift.

    Args:
        size: Token map `(H, W)`.
        window: Window `(h, w)`.
        shift: Cyclic shift `(sy, sx)`.

    Returns:
        `nW, N` int64: row * W + column, or PAD for padding.
    """
    (H, W), (padded_h, padded_w) = size, padded_size(size, window)
    index = F.pad(torch.arange(H * W).view(H, W), (0, padded_w - W, 0, padded_h - H), value=PAD)
    index = index.roll((-shift[0], -shift[1]), (0, 1))
    return window_partition(index[None, :, :, None], window).squeeze(-1)


@dataclass(frozen=True)
class BlockAttention:
    """Attention weights of one block in one forward pass.

    Attributes:
        name: Name of the block in the model, such as `backbone.layers.0.blocks.1`.
        weights: `B, nW, nH, N, N` on the CPU; rows belong to queries and sum to 1.
        size: Token map `(H, W)` of the block.
        window: Window `(h, w)`, clamped to the map.
        shift: Cyclic shift `(sy, sx)`.
    """

    name: str
    weights: Tensor
    size: Pair
    window: Pair
    shift: Pair

    @property
    def token_index(self) -> Tensor:
        """`nW, N`, see `window_token_index`."""
        return window_token_index(self.size, self.window, self.shift)

    def attention_from(self, row: int, column: int) -> Tensor:
        """Attention of one query token to all tokens of the map; 0 outside its window.

        Returns:
            `B, nH, H, W`; every map sums to 1.

        Raises:
            UserError: If the token is outside the map.
        """
        H, W = self.size
        if not (0 <= row < H and 0 <= column < W):
            raise UserError(f"token ({row}, {column}) is outside the {H} x {W} map of {self.name}")
        index = self.token_index
        w, n = (index == row * W + column).nonzero()[0].tolist()
        return self._to_map(self.weights[:, w, :, n], index[w])

    def attention_received(self) -> Tensor:
        """Sum of the attention that each token receives as a key, `B, nH, H, W`; the mean over the map is 1."""
        sums = self.weights.sum(dim=-2)  # B, nW, nH, N; padding attends to padding only
        return self._to_map(sums.transpose(1, 2).flatten(2), self.token_index.flatten())

    def propagate(self, relevance: Tensor) -> Tensor:
        """Distribute the relevance of each query to its keys by attention, heads averaged: `B, H, W` -> `B, H, W`."""
        index = self.token_index
        # B, nW, N; padding has an arbitrary value here, which reaches padding only
        queries = relevance.flatten(1)[:, index.clamp(min=0)]
        keys = (queries.unsqueeze(-2) @ self.weights.mean(dim=2)).squeeze(-2)
        return self._to_map(keys.flatten(1), index.flatten())

    def mean_distance(self, stride: tuple[int, int] = (1, 1)) -> Tensor:
        """Attention distance of each head: mean distance from query to key, weighted by attention, `nH`.

        In tokens, or in pixels with the height and width of a token as `stride`.
        """
        h, w = self.window
        position = torch.cartesian_prod(torch.arange(h) * stride[0], torch.arange(w) * stride[1]).to(self.weights)
        by_query = (self.weights * torch.cdist(position, position)).sum(dim=-1)  # B, nW, nH, N
        return by_query.transpose(1, 2)[..., self.token_index != PAD].mean(dim=(0, 2))

    def _to_map(self, values: Tensor, index: Tensor) -> Tensor:
        """Scatter values `..., K` with token index `K` into a map of zeros `..., H, W`; drop padding."""
        real = index != PAD
        flat = values.new_zeros(*values.shape[:-1], self.size[0] * self.size[1])
        flat[..., index[real]] = values[..., real]
        return flat.view(*values.shape[:-1], *self.size)


@contextmanager
def record_attention(model: nn.Module, blocks: Sequence[int] | None = None) -> Iterator[dict[str, BlockAttention]]:
    """Record the attention weights of blocks in the forward passes inside this context.

    Outputs, gradients and the random state do not change: forward pre-hooks recompute the weights from the input of
    each attention layer, and the model itself keeps using fused kernels. On a GPU, recorded blocks use
    scaled_dot_product_attention in place of the Triton operator, which takes whole maps. A compiled model runs eagerly
    in this context, since hooks need separate calls of its blocks.

    Args:
        model: A Swin Transformer, or a module that contains one.
        blocks: Indices of the blocks to record, counted over all stages, negative from the end; all by default.

    Yields:
        Block name -> attention in the latest forward pass, in network order.

    Raises:
        UserError: If the model has no such block.
    """
    record: dict[str, BlockAttention] = {}
    handles, fused = [], []
    try:
        for name, block in _select(model, blocks):
            if block.attn.allow_fused:
                fused.append(block.attn)
                block.attn.allow_fused = False
            handles += _add_hooks(name, block, record)
        with torch.compiler.set_stance("force_eager"):
            yield record
    finally:
        for handle in handles:
            handle.remove()
        for attention in fused:
            attention.allow_fused = True


def swin_blocks(model: nn.Module) -> list[tuple[str, SwinTransformerBlock]]:
    """Name and module of all Swin Transformer blocks, in network order.

    Raises:
        UserError: If there is none.
    """
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, SwinTransformerBlock)]
    if not found:
        raise UserError(f"{type(model).__name__} has no Swin Transformer block; use a model of swin_lightning.models")
    return found


def relative_position_bias(attention: WindowAttention) -> Tensor:
    """Relative position bias by offset from query to key, `nH, 2M-1, 2M-1`, with offset zero in the centre.

    Row `M-1 + dy`, column `M-1 + dx` belongs to a key dy rows below and dx columns to the right of its query.
    """
    M_h, M_w = attention.window_size
    with torch.no_grad():
        table = attention.bias_table().detach().float().cpu()  # (2M-1)^2, nH
    return table.T.reshape(-1, 2 * M_h - 1, 2 * M_w - 1).flip(1, 2)  # the table is that of query minus key


# helpers


def _select(model: nn.Module, indices: Sequence[int] | None) -> list[tuple[str, SwinTransformerBlock]]:
    found = swin_blocks(model)
    if indices is None:
        return found
    for i in indices:
        if not -len(found) <= i < len(found):
            raise UserError(f"block {i}: the model has {len(found)} blocks, 0 to {len(found) - 1}")
    return [found[i] for i in sorted(i % len(found) for i in indices)]


def _add_hooks(name: str, block: SwinTransformerBlock, record: dict[str, BlockAttention]) -> list[Any]:
    size = (0, 0)

    def store_size(_: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal size
        size = (args[0].shape[1], args[0].shape[2])

    def store_attention(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        window, shift = fit_window(size, block.window_size, block.shift_size)
        H, W = padded_size(size, window)
        with torch.no_grad():
            weights = attention.attention_weights(*args, **kwargs)  # type: ignore[operator]
        weights = weights.float().cpu().unflatten(0, (-1, H * W // (window[0] * window[1])))
        record[name] = BlockAttention(name, weights, size, window, shift)

    return [
        block.register_forward_pre_hook(store_size),
        block.attn.register_forward_pre_hook(store_attention, with_kwargs=True),
    ]
