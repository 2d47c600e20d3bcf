"""Pictures of how Swin cuts an image: windows, the cyclic shift, regions and masks, relative positions, costs.

Shapes: H W map, M side of a window, N tokens of a window, nW windows.
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

from swin_lightning.explore.figures import COLOURS, SEQUENTIAL, canvas, colours, grid
from swin_lightning.explore.receptive_field import ReceptiveField


def windows_figure(image: np.ndarray, patch_size: int, window: int, shift: int) -> Figure:
    """The windows of a block without and with the shift on the image, and one pair of tokens that only meets shifted.

    Args:
        image: `S, S, 3` uint8.
        patch_size: Pixels of a token's side.
        window: Tokens of a window's side.
        shift: Shift in tokens.
    """
    figure, (axes,) = canvas(1, 2, 4.2, 4.4)
    pixels = window * patch_size
    for place, offset, title in zip(axes, (0, shift), ("W-MSA: plain windows", "SW-MSA: shifted windows"), strict=True):
        place.imshow(image)
        _cuts(place, image.shape[0], pixels, offset * patch_size)
        place.set(xlabel="pixels", ylabel="pixels")
        # two neighbours on either side of a plain border
        border = pixels - 0.5
        for at in (border - patch_size / 2, border + patch_size / 2):
            place.plot(at, at, "o", color=COLOURS[5], markeredgecolor="white", markersize=8)
        place.set_title(f"{title}\nthe marked neighbours {'share a window' if offset else 'do not meet'}", fontsize=11)
    return figure


def shift_figure(image: np.ndarray, patch_size: int, window: int, shift: int) -> Figure:
    """The cyclic shift in four steps: cut, roll, attend within regions, roll back. Arguments as in `windows_figure`."""
    S, s, pixels = image.shape[0], shift * patch_size, window * patch_size
    rolled = np.roll(image, (-s, -s), (0, 1))
    tint = np.roll(_region_colours(S, pixels, s), (-s, -s), (0, 1))
    masked = (0.5 * rolled + 0.5 * 255 * tint).astype(np.uint8)
    count = (S // pixels + 1) ** 2
    titles = (
        f"1. shifted windows:\n{count} of unequal size",
        f"2. rolled by {shift} tokens up and left:\n{(S // pixels) ** 2} equal windows",
        "3. attention only\nwithin one colour",
        "4. rolled back:\nthe image as it was",
    )
    figure, places = grid(4, 4, 2.7, 3.1)
    for axes, picture, title in zip(
        places, (image, rolled, masked, np.roll(rolled, (s, s), (0, 1))), titles, strict=True
    ):
        axes.imshow(picture)
        axes.set_title(title, fontsize=10)
    _cuts(places[0], S, pixels, s)
    for axes in places[1:3]:
        _cuts(axes, S, pixels, 0)
    seam = S - s - 0.5
    for axes in places[1:3]:
        axes.axvline(seam, color="black", linestyle=":", linewidth=2)
        axes.axhline(seam, color="black", linestyle=":", linewidth=2)
    return figure


def mask_figure(mask: torch.Tensor, names: Sequence[str]) -> Figure:
    """The region mask, `nW, N, N` bool, as one matrix a window: yellow may attend, purple may not."""
    figure, places = grid(len(mask), 4, 2.7, 3.0)
    for axes, allowed, name in zip(places, mask.numpy(), names, strict=True):
        axes.set_axis_on()
        axes.imshow(allowed, cmap=SEQUENTIAL, vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(f"{name}\n{allowed.mean():.0%} of pairs allowed", fontsize=10)
        axes.set(xlabel="key (token of the window)", xticks=[0, len(allowed) - 1], yticks=[0, len(allowed) - 1])
    places[0].set_ylabel("query (token of the window)")
    return figure


def number_matrix(axes: Axes, matrix: Any, title: str, marked: Sequence[tuple[int, int]] = ()) -> None:
    """A small matrix of integers as coloured cells with their numbers; some with a frame."""
    matrix = np.asarray(matrix)
    axes.imshow(matrix, cmap=SEQUENTIAL)
    middle = (matrix.min() + matrix.max()) / 2
    for (row, column), value in np.ndenumerate(matrix):
        colour = "black" if value > middle else "white"
        axes.text(column, row, str(value), ha="center", va="center", fontsize=8, color=colour)
    for row, column in marked:
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=COLOURS[5], linewidth=3))
    axes.set_title(title, fontsize=10)


def relative_index_figure(M: int, index: torch.Tensor) -> Figure:
    """Why the index needs the factor 2M-1: the plain sum of offsets, the number in base 2M-1, and the full matrix.

    Args:
        M: Side of the window, small enough to read.
        index: `M*M, M*M` of `windows.relative_position_index`.
    """
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.5))
    offsets = np.arange(2 * M - 1)
    rows, columns = offsets[:, None], offsets[None, :]
    marked = [(M + 1, M), (M, M + 1)]  # offsets (2, 1) and (1, 2)
    number_matrix(left, rows + columns, "dy + dx: (2, 1) and (1, 2) collide", marked)
    number_matrix(middle, rows * (2 * M - 1) + columns, f"dy * {2 * M - 1} + dx: every offset its own", marked)
    for axes in (left, middle):
        axes.set(xticks=offsets, xticklabels=offsets - M + 1, yticks=offsets, yticklabels=offsets - M + 1)
        axes.set_xlabel("dx of query minus key")
    left.set_ylabel("dy of query minus key")
    number_matrix(right, index, f"the index of all {M**2} x {M**2} pairs of a {M} x {M} window")
    right.set(xlabel="key (token of the window)", ylabel="query (token of the window)")
    return figure


def cost_figure(costs: pd.DataFrame) -> Figure:
    """`costs.attention_costs` as two log-log charts over the image's side."""
    figure, (axes,) = canvas(1, 2, 4.6, 3.6)
    for place, column, label in zip(
        axes, ("megabytes", "milliseconds"), ("kept for the backward pass in MB", "forward pass in ms"), strict=True
    ):
        for (kind, rows), colour, marker in zip(costs.groupby("kind"), COLOURS, "os", strict=False):
            place.loglog(rows["side"], rows[column], marker=marker, color=colour, label=f"{kind} attention")
        sides = sorted(costs["side"].unique())
        place.set(xlabel="side of the image in pixels", ylabel=label, xticks=sides, xticklabels=sides)
        place.minorticks_off()
        place.grid(alpha=0.3)
        place.legend()
    return figure


def receptive_field_figure(fields: Sequence[ReceptiveField], image: np.ndarray, columns: int = 4) -> Figure:
    """What the middle token sees after each part, bright where its gradient is not zero, on the image."""
    figure, places = grid(len(fields), columns, 2.2, 2.6)
    for axes, field in zip(places, fields, strict=True):
        seen = (field.influence > 0).numpy()[..., None]
        axes.imshow(np.where(seen, image, image // 5))
        height, width = field.extent
        axes.set_title(f"{_in_words(field.name)}\n{height} x {width} px", fontsize=9)
    return figure


# helpers


def _cuts(axes: Axes, side: int, pixels: int, offset: int) -> None:
    """Borders of windows that start at `offset`."""
    for at in range(offset % pixels, side + 1, pixels):
        for line in (axes.axhline, axes.axvline):
            line(at - 0.5, color="white", linewidth=1.5, path_effects=[withStroke(linewidth=3, foreground="black")])
    axes.set(xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5))


def _region_colours(side: int, pixels: int, shift: int) -> np.ndarray:
    """The colour of every pixel's shifted window in the image before the roll, `side, side, 3`: white in the middle."""
    strip = (np.arange(side) + pixels - shift) // pixels
    number = strip[:, None] * (strip[-1] + 1) + strip[None, :]
    middle = int(number.max()) // 2
    palette = colours(int(number.max()))
    return np.array([*palette[:middle], (1.0, 1.0, 1.0), *palette[middle:]])[number]


def _in_words(name: str) -> str:
    part = name.split(".")
    if part[0] == "patch_embed":
        return "patch embedding"
    if part[-1] == "downsample":
        return f"merging after stage {int(part[1]) + 1}"
    return f"stage {int(part[1]) + 1}, block {int(part[3]) + 1}"
