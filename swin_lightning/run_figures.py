"""The pictures that a run leaves in its folder. matplotlib is imported inside functions."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class Prediction:
    """One tested image: `H, W, 3` uint8 pixels, the names of its class and of the predicted one."""

    image: np.ndarray
    label: str
    prediction: str
    probability: float


def learning_curves(run_dir: str | Path) -> Path | None:
    """Draw loss and accuracy over optimizer steps from a run's `metrics.csv` as `curves.png`.

    Returns:
        The picture's path, or None where the run has logged nothing yet.
    """
    with (Path(run_dir) / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    series = {
        name: [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        for name in ("train/loss", "val/loss", "val/acc", "test/acc")
    }
    if not any(series.values()):
        return None
    figure, (losses, accuracies) = _subplots(1, 2, figsize=(9, 3.4))
    for name, style in (("train/loss", {"alpha": 0.6}), ("val/loss", {"marker": "."})):
        if series[name]:
            losses.plot(*zip(*series[name], strict=True), label=name, **style)
    if series["val/acc"]:
        steps, values = zip(*series["val/acc"], strict=True)
        accuracies.plot(steps, [100 * value for value in values], marker=".", label="val/acc")
    if series["test/acc"]:
        value = 100 * series["test/acc"][-1][1]
        accuracies.axhline(value, color="black", linestyle="--", linewidth=1, label=f"test/acc {value:.2f} %")
    losses.set(xlabel="optimizer step", ylabel="cross-entropy", ylim=(0, None))
    accuracies.set(xlabel="optimizer step", ylabel="top-1 accuracy in %")
    for axes in (losses, accuracies):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    return _save(figure, Path(run_dir) / "curves.png")


def prediction_sheet(predictions: Sequence[Prediction], path: Path) -> Path:
    """Draw tested images with prediction and probability; where it is wrong, in red and with the true label."""
    columns = min(8, len(predictions))
    rows = -(-len(predictions) // columns)
    figure, grid = _subplots(rows, columns, figsize=(1.25 * columns, 1.6 * rows), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, p in zip(grid.flat, predictions, strict=False):
        axes.imshow(p.image)
        right = p.label == p.prediction
        title = f"{p.prediction} {100 * p.probability:.0f} %" + ("" if right else f"\nis {p.label}")
        axes.set_title(title, fontsize=8, color="black" if right else "#c1272d")
    return _save(figure, path)


def _subplots(rows: int, columns: int, **options: Any) -> Any:
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, layout="constrained", **options)


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
