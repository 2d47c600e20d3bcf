"""Shared by all figures: axes, a palette that is safe for colour-blind readers, heatmaps, sample photographs.

Figures are created without pyplot: they are freed when no longer referenced, a notebook displays them once, and no
display is needed. Text that comes from data (class names, run names) is set with `parse_math=False`, since matplotlib
would otherwise interpret `$...$` as a formula.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design", 2008
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")
SEQUENTIAL, DIVERGING = "viridis", "PuOr"
GREY = "#777777"


def subplots(rows: int, columns: int, width: float = 3.0, height: float = 3.0) -> tuple[Figure, np.ndarray]:
    """An empty figure and its axes, `rows, columns`; width and height of one axes in inches."""
    figure = Figure(figsize=(width * columns, height * rows), layout="compressed")
    axes: np.ndarray = figure.subplots(rows, columns, squeeze=False)
    return figure, axes


def image_axes(count: int, columns: int, width: float = 2.0, height: float = 2.2) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes without ticks, filled row by row; unused cells stay empty."""
    columns = min(columns, count)
    figure, axes = subplots(-(-count // columns), columns, width, height)
    for ax in axes.flat:
        ax.set_axis_off()
    return figure, list(axes.flat)[:count]


def detach_from_pyplot(figure: Figure) -> Figure:
    """Close a figure that was created with pyplot, so that a notebook displays it only once."""
    import matplotlib.pyplot as plt

    plt.close(figure)
    return figure


def image_grid(images: Iterable[Any], titles: Iterable[str], columns: int = 8, size: float = 1.3) -> Figure:
    """Images `H, W, 3` with a short title each; the row height adapts to titles with several lines."""
    images, titles = list(images), list(titles)
    lines = max((title.count("\n") + 1 for title in titles), default=1)
    figure, axes = image_axes(len(images), columns, size, size + 0.17 * lines)
    for ax, image, title in zip(axes, images, titles, strict=True):
        ax.imshow(image)
        ax.set_title(title, fontsize=8, parse_math=False)
    return figure


def draw_heatmap(ax: Any, image: np.ndarray, values: Any, **options: Any) -> Any:
    """Draw a token map over a greyscale image, stretched to its size; returns the artist for a colour bar."""
    height, width = image.shape[:2]
    ax.imshow(np.asarray(image).mean(axis=-1), cmap="gray", vmin=0, vmax=255)
    options = {"cmap": SEQUENTIAL, "alpha": 0.65, "interpolation": "nearest", **options}
    return ax.imshow(np.asarray(values), extent=(-0.5, width - 0.5, height - 0.5, -0.5), **options)


def distinct_colors(count: int) -> list[tuple[float, float, float]]:
    """`count` RGB colours: the Okabe-Ito palette if it has enough, otherwise evenly spaced colours of viridis."""
    if count <= len(COLORS):
        return [matplotlib.colors.to_rgb(color) for color in COLORS[:count]]
    steps = matplotlib.colormaps[SEQUENTIAL](np.linspace(0, 1, count))
    return [tuple(step[:3]) for step in steps]


def sample_photo(name: str = "china", size: int = 224) -> np.ndarray:
    """Centre crop of a photograph included in scikit-learn (CC BY 2.0), `china` or `flower`: `size, size, 3` uint8."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image(f"{name}.jpg"))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.array(square.resize((size, size), Image.Resampling.BICUBIC))


def write_photo_dataset(root: str | Path, side: int = 64, stride: int = 32) -> Path:
    """Write a small image folder data set: crops of the two photographs in scikit-learn, one class per photograph.

    `root/train/<class>/*.jpg` are crops of the left two thirds of a photograph and `root/val/<class>/*.jpg` of the
    right third, so that the splits share no pixels.

    Args:
        root: Folder of the data set.
        side: Side of a crop in pixels.
        stride: Distance between crops in pixels.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_image

    for name in ("china", "flower"):
        photo = load_sample_image(f"{name}.jpg")
        border = photo.shape[1] * 2 // 3
        for split, left, right in (("train", 0, border), ("val", border, photo.shape[1])):
            folder = Path(root) / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for y in range(0, photo.shape[0] - side + 1, stride):
                for x in range(left, right - side + 1, stride):
                    Image.fromarray(photo[y : y + side, x : x + side]).save(folder / f"{y:03}_{x:03}.jpg", quality=90)
    return Path(root)
