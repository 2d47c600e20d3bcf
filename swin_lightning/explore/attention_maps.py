"""Attention of a running model: recorded without touching it, and put back from windows and shifts onto the image.

Shapes: B batch, H W map, N tokens of a window, nW windows of an image, nH heads, M side of a full window.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swin_lightning.errors import UserError
from swin_lightning.models.swin import SwinTransformerBlock, WindowAttention
from swin_lightning.models.windows import (
    PAD,
    fit_window,
    padded_size,
    relative_position_index,
    window_partition,
)

Pair = tuple[int, int]


def token_places(size: Pair, window: Pair, shift: Pair) -> Tensor:
    """Where in the map the tokens of every window come from, after padding and the cyclic shift.

    Returns:
        `nW, N` int64: row * W + column, or PAD.
    """
    (H, W), (padded_h, padded_w) = size, padded_size(size, window)
    places = F.pad(torch.arange(H * W).view(H, W), (0, padded_w - W, 0, padded_h - H), value=PAD)
    places = places.roll((-shift[0], -shift[1]), (0, 1))
    return window_partition(places[None, :, :, None], window).squeeze(-1)


@dataclass(frozen=True)
class BlockAttention:
    """What one block attended to in one forward pass.

    Attributes:
        name: Of the block in the model, such as `backbone.layers.0.blocks.1`.
        weights: `B, nW, nH, N, N` on the CPU; a row belongs to a query and sums to 1.
        size: The block's map `(H, W)`.
        window: Its window `(h, w)`, clamped to the map.
        shift: Its cyclic shift `(sy, sx)`.
    """

    name: str
    weights: Tensor
    size: Pair
    window: Pair
    shift: Pair

    @property
    def places(self) -> Tensor:
        """`nW, N`, see `token_places`."""
        return token_places(self.size, self.window, self.shift)

    def of_query(self, row: int, column: int) -> Tensor:
        """Where a token looks: its attention at the keys' places in the image, 0 outside of its window.

        Returns:
            `B, nH, H, W`; every map sums to 1.

        Raises:
            ValueError: If the token lies outside of the map.
        """
        H, W = self.size
        if not (0 <= row < H and 0 <= column < W):
            raise UserError(f"token ({row}, {column}) lies outside of the {H} x {W} map of {self.name}")
        places = self.places
        w, n = (places == row * W + column).nonzero()[0].tolist()
        return self._on_map(self.weights[:, w, :, n], places[w])

    def received(self) -> Tensor:
        """How much attention every token receives, `B, nH, H, W`: 1 is the mean, since every token gives 1."""
        sums = self.weights.sum(dim=-2)  # B, nW, nH, N; pads give to pads alone
        return self._on_map(sums.transpose(1, 2).flatten(2), self.places.flatten())

    def trace_back(self, relevance: Tensor) -> Tensor:
        """Hand the relevance of every query on to the keys it attends to, heads averaged: `B, H, W` -> `B, H, W`."""
        places = self.places
        of_queries = relevance.flatten(1)[:, places.clamp(min=0)]  # B, nW, N; a pad's, which is any, goes to pads alone
        of_keys = (of_queries.unsqueeze(-2) @ self.weights.mean(dim=2)).squeeze(-2)
        return self._on_map(of_keys.flatten(1), places.flatten())

    def distances(self) -> Tensor:
        """Mean distance from query to key weighted by attention, in tokens: `nH`."""
        h, w = self.window
        at = torch.cartesian_prod(torch.arange(h), torch.arange(w)).to(self.weights)
        by_query = (self.weights * torch.cdist(at, at)).sum(dim=-1)  # B, nW, nH, N
        return by_query.transpose(1, 2)[..., self.places != PAD].mean(dim=(0, 2))

    def _on_map(self, values: Tensor, places: Tensor) -> Tensor:
        """Values `..., K` at their places `K` in a map of zeros, `..., H, W`; those of pads are dropped."""
        real = places != PAD
        flat = values.new_zeros(*values.shape[:-1], self.size[0] * self.size[1])
        flat[..., places[real]] = values[..., real]
        return flat.unflatten(-1, self.size)


@contextmanager
def record_attention(model: nn.Module, blocks: Sequence[int] | None = None) -> Iterator[dict[str, BlockAttention]]:
    """Record the attention of blocks while the model runs; outputs, gradients and random numbers stay as they are.

    Hooks compute the attention a second time from each block's own input, which leaves the fused operation in place.
    A compiled model runs eagerly meanwhile, since its blocks are not called one by one.

    Args:
        model: A Swin Transformer, or a module that holds one.
        blocks: Which blocks, counted through all stages, negative from the end; all by default.

    Yields:
        Block name -> attention of the latest forward pass, in the order of the network.

    Raises:
        ValueError: If the model has no such block.
    """
    record: dict[str, BlockAttention] = {}
    handles = []
    try:
        for name, block in _chosen(model, blocks):
            handles += _watch(name, block, record)
        with torch.compiler.set_stance("force_eager"):
            yield record
    finally:
        for handle in handles:
            handle.remove()


def swin_blocks(model: nn.Module) -> list[tuple[str, SwinTransformerBlock]]:
    """All blocks of a model by name, in the order of the network.

    Raises:
        ValueError: If it has none.
    """
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, SwinTransformerBlock)]
    if not found:
        raise UserError(f"{type(model).__name__} has no Swin Transformer block; this needs a model from models/")
    return found


def position_bias(attention: WindowAttention) -> Tensor:
    """The relative position bias as one picture a head, `nH, 2M-1, 2M-1`: the query in the middle, a pixel an offset.

    Row `M-1 + dy`, column `M-1 + dx` belongs to a key dy rows below and dx columns to the right of its query.
    """
    M = attention.window_size
    with torch.no_grad():
        pairs = attention.attention_bias((M, M), None)[0].detach().float().cpu()  # nH, N, N
    table = pairs.new_empty(len(pairs), (2 * M - 1) ** 2)
    table[:, relative_position_index(M).flatten()] = pairs.flatten(1)
    return table.unflatten(1, (2 * M - 1, 2 * M - 1)).flip(1, 2)  # the index counts query minus key


# helpers


def _chosen(model: nn.Module, indices: Sequence[int] | None) -> list[tuple[str, SwinTransformerBlock]]:
    found = swin_blocks(model)
    if indices is None:
        return found
    for i in indices:
        if not -len(found) <= i < len(found):
            raise UserError(f"block {i}: the model has {len(found)} blocks, 0 to {len(found) - 1}")
    return [found[i] for i in sorted(i % len(found) for i in indices)]


def _watch(name: str, block: SwinTransformerBlock, record: dict[str, BlockAttention]) -> list[Any]:
    size = (0, 0)

    def see_map(_: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal size
        size = (args[0].shape[1], args[0].shape[2])

    def see_windows(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        window, shift = fit_window(size, block.window_size, block.shift_size)
        H, W = padded_size(size, window)
        with torch.no_grad():
            weights = attention.attention_weights(*args, **kwargs)  # type: ignore[operator]
        weights = weights.float().cpu().unflatten(0, (-1, H * W // (window[0] * window[1])))
        record[name] = BlockAttention(name, weights, size, window, shift)

    return [
        block.register_forward_pre_hook(see_map),
        block.attn.register_forward_pre_hook(see_windows, with_kwargs=True),
    ]
