"""Pictures of what runs have logged and answered: curves, confusion, calibration, mistakes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from swin_lightning.data import ImageDataModule
from swin_lightning.errors import UserError
from swin_lightning.explore.evaluation import Evaluation, pixels, samples
from swin_lightning.explore.figures import COLOURS, GREY, SEQUENTIAL, canvas, colours, image_sheet
from swin_lightning.explore.runs import RunLog

LABELS = {
    "train/loss": "training loss (cross-entropy)",
    "val/loss": "validation loss (cross-entropy)",
    "val/acc": "validation top-1 in %",
    "train/lr": "learning rate",
    "train/grad_norm": "norm of the gradient",
    "train/images_per_s": "images per second",
}


def curves_figure(
    logs: Sequence[RunLog],
    metrics: Sequence[str] = ("train/loss", "val/loss", "val/acc"),
    names: Sequence[str] | None = None,
) -> Figure:
    """Metrics over optimizer steps, a chart each, all runs in it.

    Args:
        logs: The runs.
        metrics: Keys as in `metrics.csv`.
        names: Short names for the legend; those of the runs by default.
    """
    figure, (axes,) = canvas(1, len(metrics), 4.0, 3.3)
    names = names or [log.name for log in logs]
    for place, metric in zip(axes, metrics, strict=True):
        percent = 100 if metric.split("/")[-1] in ("acc", "acc5", "acc_best") else 1
        for log, colour in zip(logs, colours(len(logs)), strict=True):
            if metric in log.metrics:
                rows = log.metrics.dropna(subset=[metric])
                place.plot(rows["step"] + 1, percent * rows[metric], marker=".", markersize=4, color=colour)
        place.set(xlabel="optimizer steps", ylabel=LABELS.get(metric, metric))
        place.grid(alpha=0.3)
        if metric.endswith("loss"):
            place.set_ylim(bottom=0)
    if len(logs) > 1:
        columns = 1 + 60 // max(map(len, names))
        figure.legend(axes[0].get_lines(), names, loc="outside lower center", ncols=columns, fontsize=9)
    return figure


def confusion_figure(evaluation: Evaluation) -> Figure:
    """The confusion matrix, rows in percent of their label; the numbers are images, written for up to 20 classes."""
    counts = evaluation.confusion().numpy()
    K = len(counts)
    side = min(9.0, 2.2 + 0.42 * K)
    figure, ((axes,),) = canvas(1, 1, side + 1, side)
    shares = 100 * counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    shown = axes.imshow(shares, cmap=SEQUENTIAL, vmin=0, vmax=100)
    if K <= 20:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "black" if shares[row, column] > 50 else "white"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)
    ticks = range(0, K, max(1, -(-K // 25)))
    names = [evaluation.class_names[k][:20] for k in ticks]
    turned = 0 if max(map(len, names)) <= 2 else 90
    axes.set_xticks(ticks, names, fontsize=8, rotation=turned)
    axes.set_yticks(ticks, names, fontsize=8)
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(shown, ax=axes, label="share of the true class in %", shrink=0.8)
    return figure


def calibration_figure(evaluation: Evaluation) -> Figure:
    """How often predictions of a given probability are right, and how many there are."""
    table = evaluation.calibration()
    figure = Figure(figsize=(4.6, 4.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 100], [0, 100], color=GREY, linestyle="--", label="perfectly calibrated")
    confidence, accuracy = 100 * table["confidence"], 100 * table["accuracy"]
    above.plot(confidence, accuracy, marker="o", color=COLOURS[0], label="this model")
    above.set(ylabel="right predictions in %", xlim=(0, 100), ylim=(0, 102))
    above.set_title(f"expected calibration error {100 * evaluation.calibration_error():.1f} %", fontsize=10)
    above.legend(loc="lower right")
    below.bar(confidence, table["images"], width=6, color=COLOURS[0])
    below.set(xlabel="probability of the predicted class in %", ylabel="images")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return figure


def mistakes_figure(evaluation: Evaluation, data: ImageDataModule, split: str = "test", count: int = 16) -> Figure:
    """The wrong predictions that the model was most sure of, with both classes' probabilities.

    Raises:
        ValueError: If there is no mistake to show.
    """
    worst = evaluation.mistakes()[:count]
    if not len(worst):
        raise UserError(f"no mistake among the {len(evaluation.labels)} images")
    images, _ = samples(data, split, evaluation.indices[worst])
    titles = []
    for i in worst.tolist():
        label, prediction = int(evaluation.labels[i]), int(evaluation.predictions[i])
        said, true = (100 * float(evaluation.probabilities[i, k]) for k in (prediction, label))
        names = [evaluation.class_names[k].split(",")[0][:14] for k in (prediction, label)]
        titles.append(f"{names[0]}: {said:.0f} %\nis {names[1]}: {true:.0f} %")
    return image_sheet(pixels(images), titles, columns=8)
