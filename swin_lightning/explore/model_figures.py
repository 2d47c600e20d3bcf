"""Pictures of what a model looks at: attention, rollout, Grad-CAM, relative position bias, features.

Shapes: H W map, C channels, nH heads, M side of a window.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from swin_lightning.explore.attention_maps import BlockAttention, position_bias
from swin_lightning.explore.figures import COLOURS, DIVERGING, canvas, colours, grid, map_on_image
from swin_lightning.explore.saliency import principal_colours
from swin_lightning.models.swin import SwinTransformerBlock


def query_figure(
    image: np.ndarray, blocks: Sequence[BlockAttention], at: tuple[float, float], sample: int = 0
) -> Figure:
    """Where one place of the image looks: a row a block, a column a head; the query is marked, grey is out of reach.

    Args:
        image: `S, S, 3` uint8.
        blocks: Recorded blocks.
        at: The place as shares of height and width, such as (0.5, 0.5) for the middle.
        sample: Which image of the recorded batch.
    """
    heads = max(block.weights.shape[2] for block in blocks)
    figure, axes = canvas(len(blocks), heads, 2.1, 2.2)
    for row, block in zip(axes, blocks, strict=True):
        H, W = block.size
        y, x = min(int(at[0] * H), H - 1), min(int(at[1] * W), W - 1)
        seen = block.of_query(y, x)[sample].numpy()
        for place in row:
            place.set_axis_off()
        for head, (place, weights) in enumerate(zip(row, seen, strict=False)):
            values = np.where(weights > 0, weights, np.nan)
            shown = map_on_image(place, image // 2, values, vmin=0, vmax=seen.max())
            scale = image.shape[0] / H
            place.plot((x + 0.5) * scale - 0.5, (y + 0.5) * scale - 0.5, "o", color=COLOURS[5], markeredgecolor="white")
            place.set_title(f"{_short(block.name)}\nhead {head + 1}", fontsize=9)
        figure.colorbar(shown, ax=row[: len(seen)].tolist(), label="attention", shrink=0.8)
    return figure


def overlay_figure(images: Sequence[np.ndarray], rows: Mapping[str, Any], titles: Sequence[str]) -> Figure:
    """Images above maps of them, each map on its own scale from 0 to its largest value.

    Args:
        images: `S, S, 3` uint8 each.
        rows: Name of a row -> its maps, `n, H, W`.
        titles: Of the columns.
    """
    figure, axes = canvas(1 + len(rows), len(images), 1.5, 1.6)
    for column, (image, title) in enumerate(zip(images, titles, strict=True)):
        axes[0, column].imshow(image)
        axes[0, column].set_title(title, fontsize=9)
        for row, maps in enumerate(rows.values(), start=1):
            values = np.asarray(maps[column])
            map_on_image(axes[row, column], image // 2, values, vmin=0, vmax=max(float(values.max()), 1e-12))
    for place, name in zip(axes[:, 0], ("image", *rows), strict=True):
        place.set_ylabel(name, fontsize=9)
    for place in axes.flat:
        place.set(xticks=[], yticks=[])
    figure.supxlabel("each map from 0 (dark violet) to its largest value (yellow)", fontsize=9)
    return figure


def bias_figure(block: SwinTransformerBlock, name: str) -> Figure:
    """The relative position bias of every head, with the query in the middle."""
    bias = position_bias(block.attn)
    reach = block.attn.window_size - 1
    limit = float(bias.abs().max())
    low = -limit if float(bias.min()) < 0 else 0.0  # that of Swin V2 lies between 0 and 16
    figure, places = grid(len(bias), 8, 2.0, 2.5)
    for head, (axes, values) in enumerate(zip(places, bias, strict=True)):
        axes.set_axis_on()
        edge = reach + 0.5
        cmap = DIVERGING if low else "viridis"
        shown = axes.imshow(values, cmap=cmap, vmin=low, vmax=limit, extent=(-edge, edge, edge, -edge))
        axes.set(xticks=[-reach, 0, reach], yticks=[-reach, 0, reach], xlabel="dx in tokens")
        axes.set_title(f"head {head + 1}", fontsize=9)
    places[0].set_ylabel("dy in tokens")
    figure.suptitle(f"relative position bias, {_short(name)}", fontsize=10)
    figure.colorbar(shown, ax=places, label="added to the score", shrink=0.8)
    return figure


def distance_figure(record: Mapping[str, BlockAttention], patch_size: int) -> Figure:
    """How far the heads of every block look on average, in pixels of the image."""
    figure, ((axes,),) = canvas(1, 1, 6.0, 3.4)
    first = next(iter(record.values()))
    stages = [round(first.size[0] / block.size[0]) for block in record.values()]
    palette = dict(zip(sorted(set(stages)), colours(len(set(stages))), strict=True))
    for i, (block, stride) in enumerate(zip(record.values(), stages, strict=True)):
        distances = block.distances().numpy() * stride * patch_size
        label = f"stage {_numbers(block.name)[0] + 1}" if stages.index(stride) == i else None
        axes.plot(np.full(len(distances), i), distances, "o", color=palette[stride], label=label, alpha=0.8)
    ticks = [f"{s + 1}.{b + 1}" for s, b in (_numbers(name) for name in record)]
    axes.set_xticks(range(len(record)), ticks, fontsize=8)
    axes.set(xlabel="block (stage.block); a dot is a head", ylabel="mean distance in pixels", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def features_figure(image: np.ndarray, maps: Sequence[Tensor]) -> Figure:
    """The three principal components of every stage's map as colours, `C, H, W` each, beside the image."""
    figure, places = grid(1 + len(maps), 5, 2.2, 2.6)
    places[0].imshow(image)
    places[0].set_title("image", fontsize=9)
    for i, (axes, features) in enumerate(zip(places[1:], maps, strict=True), start=1):
        axes.imshow(principal_colours(features).numpy())
        axes.set_title(
            f"stage {i}: {features.shape[1]} x {features.shape[2]}\n{features.shape[0]} channels", fontsize=9
        )
    return figure


# helpers


def _numbers(name: str) -> tuple[int, int]:
    """Stage and block of `...layers.0.blocks.1`."""
    part = name.split(".")
    return int(part[-3]), int(part[-1])


def _short(name: str) -> str:
    stage, block = _numbers(name)
    return f"stage {stage + 1}, block {block + 1}"
