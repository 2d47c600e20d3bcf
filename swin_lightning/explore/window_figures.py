"""Figures of the Swin architecture: windows, cyclic shift, masks, relative positions, attention cost, receptive field.

Shapes: H W token map, M window size, N tokens per window, nW windows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from swin_lightning.explore.figures import COLORS, SEQUENTIAL, distinct_colors, image_axes, subplots
from swin_lightning.explore.receptive_field import ReceptiveField


def windows_figure(image: np.ndarray, patch_size: int, window: int, shift: int) -> Figure:
    """Regular and shifted windows on an image, with a pair of neighbours that share a window only when shifted.

    Args:
        image: `S, S, 3` uint8.
        patch_size: Side of a token in pixels.
        window: Side of a window in tokens.
        shift: Shift in tokens.
    """
    figure, (axes,) = subplots(1, 2, 4.2, 4.4)
    pixels = window * patch_size
    for ax, offset, title in zip(axes, (0, shift), ("W-MSA: regular windows", "SW-MSA: shifted windows"), strict=True):
        ax.imshow(image)
        _draw_window_borders(ax, image.shape[0], pixels, offset * patch_size)
        ax.set(xlabel="pixels", ylabel="pixels")
        # two neighbours on either side of a regular window border
        border = pixels - 0.5
        for position in (border - patch_size / 2, border + patch_size / 2):
            ax.plot(position, position, "o", color=COLORS[5], markeredgecolor="white", markersize=8)
        ax.set_title(f"{title}\nmarked tokens: {'same window' if offset else 'different windows'}", fontsize=11)
    return figure


def shift_figure(image: np.ndarray, patch_size: int, window: int, shift: int) -> Figure:
    """Shifted window attention in four steps: partition, cyclic shift, mask, reverse shift.

    Arguments as in `windows_figure`.
    """
    S, s, pixels = image.shape[0], shift * patch_size, window * patch_size
    rolled = np.roll(image, (-s, -s), (0, 1))
    tint = np.roll(_region_colors(S, pixels, s), (-s, -s), (0, 1))
    masked = (0.5 * rolled + 0.5 * 255 * tint).astype(np.uint8)
    count = (S // pixels + 1) ** 2
    titles = (
        f"1. shifted windows:\n{count} of different sizes",
        f"2. cyclic shift by {shift} tokens:\n{(S // pixels) ** 2} of equal size",
        "3. attention mask:\nonly within a colour",
        "4. reverse shift:\noriginal positions",
    )
    figure, axes = image_axes(4, 4, 2.7, 3.1)
    images = (image, rolled, masked, np.roll(rolled, (s, s), (0, 1)))
    for ax, picture, title in zip(axes, images, titles, strict=True):
        ax.imshow(picture)
        ax.set_title(title, fontsize=10)
    _draw_window_borders(axes[0], S, pixels, s)
    seam = S - s - 0.5
    for ax in axes[1:3]:
        _draw_window_borders(ax, S, pixels, 0)
        ax.axvline(seam, color="black", linestyle=":", linewidth=2)
        ax.axhline(seam, color="black", linestyle=":", linewidth=2)
    return figure


def mask_figure(mask: torch.Tensor, names: Sequence[str]) -> Figure:
    """The shifted window mask, `nW, N, N` bool, one matrix per window: yellow pairs may attend to each other."""
    figure, axes = image_axes(len(mask), 4, 2.7, 3.0)
    for ax, allowed, name in zip(axes, mask.numpy(), names, strict=True):
        ax.set_axis_on()
        ax.imshow(allowed, cmap=SEQUENTIAL, vmin=0, vmax=1, interpolation="nearest")
        ax.set_title(f"{name}\n{100 * allowed.mean():.0f} % of pairs allowed", fontsize=10)
        ax.set(xlabel="key (token in window)", xticks=[0, len(allowed) - 1], yticks=[0, len(allowed) - 1])
    axes[0].set_ylabel("query (token in window)")
    return figure


def annotated_matrix(ax: Axes, matrix: Any, title: str, marked: Sequence[tuple[int, int]] = ()) -> None:
    """Draw a small matrix of integers as coloured cells with their values; marked cells get a frame."""
    matrix = np.asarray(matrix)
    ax.imshow(matrix, cmap=SEQUENTIAL)
    middle = (matrix.min() + matrix.max()) / 2
    for (row, column), value in np.ndenumerate(matrix):
        color = "black" if value > middle else "white"
        ax.text(column, row, str(value), ha="center", va="center", fontsize=8, color=color)
    for row, column in marked:
        ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=COLORS[5], linewidth=3))
    ax.set_title(title, fontsize=10)


def relative_index_figure(M: int, index: torch.Tensor) -> Figure:
    """Relative position index: sum of offsets (collides), offsets in base 2M-1 (unique), and the full index matrix.

    Args:
        M: Window size, small enough to be readable.
        index: `M*M, M*M`, from `windows.relative_position_index`.
    """
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.5))
    offsets = np.arange(2 * M - 1)
    rows, columns = offsets[:, None], offsets[None, :]
    marked = [(M + 1, M), (M, M + 1)]  # offsets (2, 1) and (1, 2)
    annotated_matrix(left, rows + columns, "dy + dx: (2, 1) and (1, 2) collide", marked)
    annotated_matrix(middle, rows * (2 * M - 1) + columns, f"dy * {2 * M - 1} + dx: unique for every offset", marked)
    for ax in (left, middle):
        ax.set(xticks=offsets, xticklabels=offsets - M + 1, yticks=offsets, yticklabels=offsets - M + 1)
        ax.set_xlabel("dx (query minus key)")
    left.set_ylabel("dy (query minus key)")
    annotated_matrix(right, index, f"index of all {M**2} x {M**2} pairs in a {M} x {M} window")
    right.set(xlabel="key (token in window)", ylabel="query (token in window)")
    return figure


def cost_figure(costs: pd.DataFrame) -> Figure:
    """Memory and time from `attention_cost.attention_costs` over the image size, as two log-log charts."""
    figure, (axes,) = subplots(1, 2, 4.6, 3.6)
    labels = {"megabytes": "saved for the backward pass (MB)", "milliseconds": "forward pass (ms)"}
    for ax, (column, label) in zip(axes, labels.items(), strict=True):
        for (kind, rows), color, marker in zip(costs.groupby("kind"), COLORS, "os", strict=False):
            ax.loglog(rows["side"], rows[column], marker=marker, color=color, label=f"{kind} attention")
        sides = sorted(costs["side"].unique())
        ax.set(xlabel="image size (pixels)", ylabel=label, xticks=sides, xticklabels=sides)
        ax.minorticks_off()
        ax.grid(alpha=0.3)
        ax.legend()
    return figure


def receptive_field_figure(fields: Sequence[ReceptiveField], image: np.ndarray, columns: int = 4) -> Figure:
    """Receptive field of the centre token after each module: pixels with a non-zero gradient at full brightness."""
    figure, axes = image_axes(len(fields), columns, 2.2, 2.6)
    for ax, field in zip(axes, fields, strict=True):
        visible = (field.influence > 0).numpy()[..., None]
        ax.imshow(np.where(visible, image, image // 5))
        height, width = field.extent
        ax.set_title(f"{_module_title(field.name)}\n{height} x {width} px", fontsize=9)
    return figure


# helpers


def _draw_window_borders(ax: Axes, side: int, pixels: int, offset: int) -> None:
    """Draw the borders of windows of `pixels` that start at `offset`."""
    for position in range(offset % pixels, side + 1, pixels):
        for line in (ax.axhline, ax.axvline):
            effects = [withStroke(linewidth=3, foreground="black")]
            line(position - 0.5, color="white", linewidth=1.5, path_effects=effects)
    ax.set(xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5))


def _region_colors(side: int, pixels: int, shift: int) -> np.ndarray:
    """RGB colour of each pixel by its shifted window, before the shift, `side, side, 3`: white for the central one."""
    strip = (np.arange(side) + pixels - shift) // pixels
    region = strip[:, None] * (strip[-1] + 1) + strip[None, :]
    middle = int(region.max()) // 2
    palette = distinct_colors(int(region.max()))
    colors: np.ndarray = np.array([*palette[:middle], (1.0, 1.0, 1.0), *palette[middle:]])[region]
    return colors


def _module_title(name: str) -> str:
    part = name.split(".")
    if part[0] == "patch_embed":
        return "patch embedding"
    if part[-1] == "downsample":
        return f"merging after stage {int(part[1]) + 1}"
    return f"stage {int(part[1]) + 1}, block {int(part[3]) + 1}"
