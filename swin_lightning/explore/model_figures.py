"""Figures of a model: attention maps, saliency maps, relative position bias, attention distance, features.

Shapes: H W token map, C channels, nH heads, M window size.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from swin_lightning.explore.attention_maps import BlockAttention, relative_position_bias
from swin_lightning.explore.figures import (
    COLORS,
    DIVERGING,
    SEQUENTIAL,
    distinct_colors,
    draw_heatmap,
    image_axes,
    subplots,
)
from swin_lightning.explore.saliency import principal_components_rgb
from swin_lightning.models.swin import SwinTransformerBlock
from swin_lightning.models.windows import Size, to_pair


def query_figure(
    image: np.ndarray, blocks: Sequence[BlockAttention], query: tuple[float, float], sample: int = 0
) -> Figure:
    """Attention of one query token per block (rows) and head (columns); tokens outside its window are grey.

    Args:
        image: `S, S, 3` uint8.
        blocks: Recorded blocks.
        query: Position of the query as fractions of height and width, such as (0.5, 0.5) for the centre.
        sample: Index of the image in the recorded batch.
    """
    heads = max(block.weights.shape[2] for block in blocks)
    figure, axes = subplots(len(blocks), heads, 2.1, 2.2)
    for row, block in zip(axes, blocks, strict=True):
        H, W = block.size
        y, x = min(int(query[0] * H), H - 1), min(int(query[1] * W), W - 1)
        attention = block.attention_from(y, x)[sample].numpy()  # nH, H, W
        for ax in row:
            ax.set_axis_off()
        for head, (ax, weights) in enumerate(zip(row, attention, strict=False)):
            values = np.where(weights > 0, weights, np.nan)
            heatmap = draw_heatmap(ax, image // 2, values, vmin=0, vmax=attention.max())
            scale = image.shape[0] / H
            ax.plot((x + 0.5) * scale - 0.5, (y + 0.5) * scale - 0.5, "o", color=COLORS[5], markeredgecolor="white")
            ax.set_title(f"{_block_title(block.name)}\nhead {head + 1}", fontsize=9)
        figure.colorbar(heatmap, ax=row[: len(attention)].tolist(), label="attention", shrink=0.8)
    return figure


def saliency_figure(images: Sequence[np.ndarray], rows: Mapping[str, Any], titles: Sequence[str]) -> Figure:
    """Images with rows of saliency maps below; the colour scale of each map goes from 0 to its maximum.

    Args:
        images: `S, S, 3` uint8 each.
        rows: Name of a row -> its maps, `n, H, W`.
        titles: Column titles.
    """
    figure, axes = subplots(1 + len(rows), len(images), 1.5, 1.6)
    for column, (image, title) in enumerate(zip(images, titles, strict=True)):
        axes[0, column].imshow(image)
        axes[0, column].set_title(title, fontsize=9, parse_math=False)
        for row, maps in enumerate(rows.values(), start=1):
            values = np.asarray(maps[column])
            draw_heatmap(axes[row, column], image // 2, values, vmin=0, vmax=max(float(values.max()), 1e-12))
    for ax, name in zip(axes[:, 0], ("image", *rows), strict=True):
        ax.set_ylabel(name, fontsize=9)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    figure.supxlabel("colour scale of each map: 0 (dark violet) to its maximum (yellow)", fontsize=9)
    return figure


def bias_figure(block: SwinTransformerBlock, name: str) -> Figure:
    """Relative position bias of each head by offset from query to key.

    Args:
        block: The block.
        name: Name of the block in the model.
    """
    bias = relative_position_bias(block.attn).numpy()  # nH, 2M-1, 2M-1
    reach_y, reach_x = (M - 1 for M in block.attn.window_size)
    limit = float(np.abs(bias).max())
    low = -limit if float(bias.min()) < 0 else 0.0  # the bias of Swin V2 is between 0 and 16
    figure, axes = image_axes(len(bias), 8, 2.0, 2.5)
    for head, (ax, values) in enumerate(zip(axes, bias, strict=True)):
        ax.set_axis_on()
        cmap, edges = DIVERGING if low else SEQUENTIAL, (-reach_x - 0.5, reach_x + 0.5, reach_y + 0.5, -reach_y - 0.5)
        heatmap = ax.imshow(values, cmap=cmap, vmin=low, vmax=limit, extent=edges)
        ax.set(xticks=[-reach_x, 0, reach_x], yticks=[-reach_y, 0, reach_y], xlabel="dx (tokens)")
        ax.set_title(f"head {head + 1}", fontsize=9)
    axes[0].set_ylabel("dy (tokens)")
    figure.suptitle(f"relative position bias, {_block_title(name)}", fontsize=10)
    figure.colorbar(heatmap, ax=axes, label="bias (added to logits)", shrink=0.8)
    return figure


def distance_figure(record: Mapping[str, BlockAttention], patch_size: Size) -> Figure:
    """Mean attention distance of each head by block, in pixels."""
    p_h, p_w = to_pair(patch_size, "patch_size")
    figure, ((ax,),) = subplots(1, 1, 6.0, 3.4)
    first = next(iter(record.values()))
    strides = [round(first.size[0] / block.size[0]) for block in record.values()]
    palette = dict(zip(sorted(set(strides)), distinct_colors(len(set(strides))), strict=True))
    for i, (block, stride) in enumerate(zip(record.values(), strides, strict=True)):
        distance = block.mean_distance((stride * p_h, stride * p_w)).numpy()
        label = f"stage {_stage_and_block(block.name)[0] + 1}" if strides.index(stride) == i else None
        ax.plot(np.full(len(distance), i), distance, "o", color=palette[stride], label=label, alpha=0.8)
    ticks = [f"{s + 1}.{b + 1}" for s, b in (_stage_and_block(name) for name in record)]
    ax.set_xticks(range(len(record)), ticks, fontsize=8)
    ax.set(xlabel="block (stage.block); one dot per head", ylabel="mean distance (pixels)", ylim=(0, None))
    ax.grid(alpha=0.3)
    ax.legend()
    return figure


def features_figure(image: np.ndarray, maps: Sequence[Tensor]) -> Figure:
    """The first three principal components of each stage's features as RGB, `C, H, W` each, next to the image."""
    figure, axes = image_axes(1 + len(maps), 5, 2.2, 2.6)
    axes[0].imshow(image)
    axes[0].set_title("image", fontsize=9)
    for i, (ax, features) in enumerate(zip(axes[1:], maps, strict=True), start=1):
        C, H, W = features.shape
        ax.imshow(principal_components_rgb(features).numpy())
        ax.set_title(f"stage {i}: {H} x {W}\n{C} channels", fontsize=9)
    return figure


# helpers


def _stage_and_block(name: str) -> tuple[int, int]:
    """Indices of `...layers.0.blocks.1`."""
    part = name.split(".")
    return int(part[-3]), int(part[-1])


def _block_title(name: str) -> str:
    stage, block = _stage_and_block(name)
    return f"stage {stage + 1}, block {block + 1}"
