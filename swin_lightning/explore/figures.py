"""What all figures share: canvases, colours that colour-blind readers can tell apart, photographs.

Figures are made without pyplot: nothing keeps them alive, a notebook shows them once, and no display is needed.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design", 2008
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")
SEQUENTIAL, DIVERGING = "viridis", "PuOr"
GREY = "#777777"


def canvas(rows: int, columns: int, width: float = 3.0, height: float = 3.0) -> tuple[Figure, np.ndarray]:
    """An empty figure and its axes, `rows, columns`; the size of one in inches."""
    figure = Figure(figsize=(width * columns, height * rows), layout="compressed")
    axes: np.ndarray = figure.subplots(rows, columns, squeeze=False)
    return figure, axes


def grid(count: int, columns: int, width: float = 2.0, height: float = 2.2) -> tuple[Figure, list[Axes]]:
    """Axes for a number of pictures, row by row, without ticks; places left over are empty."""
    columns = min(columns, count)
    figure, axes = canvas(-(-count // columns), columns, width, height)
    for place in axes.flat:
        place.set_axis_off()
    return figure, list(axes.flat)[:count]


def detached(figure: Figure) -> Figure:
    """A figure made with pyplot, taken away from it, so that a notebook shows it once."""
    import matplotlib.pyplot as plt

    plt.close(figure)
    return figure


def image_sheet(images: Iterable[Any], titles: Iterable[str], columns: int = 8, size: float = 1.3) -> Figure:
    """Images `H, W, 3` with a short title each; a title of several lines gets its room."""
    images, titles = list(images), list(titles)
    lines = max((title.count("\n") + 1 for title in titles), default=1)
    figure, places = grid(len(images), columns, size, size + 0.17 * lines)
    for axes, image, title in zip(places, images, titles, strict=True):
        axes.imshow(image)
        axes.set_title(title, fontsize=8)
    return figure


def map_on_image(axes: Any, image: np.ndarray, values: Any, **options: Any) -> Any:
    """Lay a map of tokens over a grey image, stretched to its size; returns the artist for a colour bar."""
    height, width = image.shape[:2]
    axes.imshow(np.asarray(image).mean(axis=-1), cmap="gray", vmin=0, vmax=255)
    options = {"cmap": SEQUENTIAL, "alpha": 0.65, "interpolation": "nearest", **options}
    return axes.imshow(np.asarray(values), extent=(-0.5, width - 0.5, height - 0.5, -0.5), **options)


def colours(count: int) -> list[tuple[float, float, float]]:
    """So many colours, as far apart as can be: those of Okabe and Ito while they last, else steps of viridis."""
    if count <= len(COLOURS):
        return [matplotlib.colors.to_rgb(colour) for colour in COLOURS[:count]]
    steps = matplotlib.colormaps[SEQUENTIAL](np.linspace(0, 1, count))
    return [tuple(step[:3]) for step in steps]


def photograph_folder(root: str | Path, side: int = 64, step: int = 32) -> Path:
    """A small set of real images in folders: crops of scikit-learn's two photographs, a class each.

    `root/train/<class>/*.jpg` come from the left two thirds of a photograph and `root/val/<class>/*.jpg` from the right
    third, so that no pixel is in both.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_image

    for name in ("china", "flower"):
        photo = load_sample_image(f"{name}.jpg")
        border = photo.shape[1] * 2 // 3
        for split, left, right in (("train", 0, border), ("val", border, photo.shape[1])):
            folder = Path(root) / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for y in range(0, photo.shape[0] - side + 1, step):
                for x in range(left, right - side + 1, step):
                    Image.fromarray(photo[y : y + side, x : x + side]).save(folder / f"{y:03}_{x:03}.jpg", quality=90)
    return Path(root)


def photograph(name: str = "china", size: int = 224) -> np.ndarray:
    """A photograph that scikit-learn ships (CC BY 2.0), `china` or `flower`: the centre, `size, size, 3` uint8."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image(f"{name}.jpg"))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.array(square.resize((size, size), Image.Resampling.BICUBIC))
