"""Figures in the run folder: training curves and a sample of test predictions. matplotlib is imported lazily."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swin_lightning.runs import RunFolder


@dataclass
class Prediction:
    """Prediction for one test image.

    Attributes:
        image: Pixels, `H, W, 3` uint8.
        label: Name of the true class.
        prediction: Name of the predicted class.
        probability: Probability of the predicted class.
    """

    image: np.ndarray
    label: str
    prediction: str
    probability: float


def learning_curves(run_dir: str | Path) -> Path | None:
    """Plot loss and accuracy over optimizer steps from the `metrics.csv` of a run as its `curves.png`.

    Returns:
        Path of the figure, None if the run has logged no loss and no accuracy.
    """
    run = RunFolder(Path(run_dir))
    rows = run.read_metrics()
    series = {
        name: [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        for name in ("train/loss", "val/loss", "val/acc", "test/acc")
    }
    if not any(series.values()):
        return None
    figure, (loss, accuracy) = _subplots(1, 2, figsize=(9, 3.4))
    for name, style in (("train/loss", {"alpha": 0.6}), ("val/loss", {"marker": "."})):
        if series[name]:
            loss.plot(*zip(*series[name], strict=True), label=name, **style)
    if series["val/acc"]:
        steps, values = zip(*series["val/acc"], strict=True)
        accuracy.plot(steps, [100 * value for value in values], marker=".", label="val/acc")
    if series["test/acc"]:
        value = 100 * series["test/acc"][-1][1]
        accuracy.axhline(value, color="black", linestyle="--", linewidth=1, label=f"test/acc {value:.2f} %")
    loss.set(xlabel="optimizer step", ylabel="loss", ylim=(0, None))
    accuracy.set(xlabel="optimizer step", ylabel="top-1 accuracy (%)")
    for ax in (loss, accuracy):
        ax.grid(alpha=0.3)
        if ax.get_legend_handles_labels()[0]:
            ax.legend()
    return _save(figure, run.curves)


def prediction_sheet(predictions: Sequence[Prediction], path: Path) -> Path | None:
    """Plot images with prediction and probability; wrong predictions are red and followed by the true label.

    Returns:
        Path of the figure, None if there are no predictions.
    """
    if not predictions:
        return None
    columns = min(8, len(predictions))
    rows = -(-len(predictions) // columns)
    # fixed margins: a constrained layout of so many axes takes longer than everything else
    figure, axes = _subplots(rows, columns, figsize=(1.25 * columns, 1.6 * rows), squeeze=False, layout="none")
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=1 - 0.4 / (1.6 * rows), wspace=0.08, hspace=0.45)
    for ax in axes.flat:
        ax.axis("off")
    for ax, p in zip(axes.flat, predictions, strict=False):
        ax.imshow(p.image)
        correct = p.label == p.prediction
        title = f"{p.prediction} ({100 * p.probability:.0f} %)" + ("" if correct else f"\nlabel {p.label}")
        # a "$" in a class name does not start a formula
        ax.set_title(title, fontsize=8, color="black" if correct else "#c1272d", parse_math=False)
    return _save(figure, path)


def _subplots(rows: int, columns: int, layout: str = "constrained", **options: Any) -> Any:
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, layout=layout, **options)


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
