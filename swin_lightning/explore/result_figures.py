"""Figures of results: training curves, confusion matrix, reliability diagram, errors."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from swin_lightning.explore.evaluation import Evaluation
from swin_lightning.explore.figures import COLORS, GREY, SEQUENTIAL, distinct_colors, image_grid, subplots
from swin_lightning.explore.runs import RunLog

LABELS = {
    "train/loss": "training loss",
    "val/loss": "validation loss",
    "val/acc": "validation top-1 (%)",
    "train/lr": "learning rate",
    "train/grad_norm": "gradient norm",
    "train/images_per_s": "images/s",
}


def curves_figure(
    logs: Sequence[RunLog],
    metrics: Sequence[str] = ("train/loss", "val/loss", "val/acc"),
    names: Sequence[str] | None = None,
) -> Figure:
    """Metrics over optimizer steps, one chart per metric and one line per run.

    Args:
        logs: The runs.
        metrics: Keys as in `metrics.csv`.
        names: Names for the legend; the names of the runs by default.
    """
    figure, (axes,) = subplots(1, len(metrics), 4.0, 3.3)
    names = names or [log.name for log in logs]
    for ax, metric in zip(axes, metrics, strict=True):
        scale = 100 if metric.split("/")[-1] in ("acc", "acc5", "acc_best") else 1
        for log, color in zip(logs, distinct_colors(len(logs)), strict=True):
            if metric in log.metrics:
                rows = log.metrics.dropna(subset=[metric])
                ax.plot(rows["step"] + 1, scale * rows[metric], marker=".", markersize=4, color=color)
        ax.set(xlabel="optimizer steps")
        ax.set_ylabel(LABELS.get(metric, metric), parse_math=False)
        ax.grid(alpha=0.3)
        if metric.endswith("loss"):
            ax.set_ylim(bottom=0)
    if len(logs) > 1:
        columns = 1 + 60 // max(map(len, names))
        legend = figure.legend(axes[0].get_lines(), names, loc="outside lower center", ncols=columns, fontsize=9)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def confusion_figure(evaluation: Evaluation) -> Figure:
    """The confusion matrix, rows in percent of their label; up to 20 classes with the number of images per cell."""
    counts = evaluation.confusion_matrix().numpy()
    K = len(counts)
    side = min(9.0, 2.2 + 0.42 * K)
    figure, ((ax,),) = subplots(1, 1, side + 1, side)
    shares = 100 * counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    heatmap = ax.imshow(shares, cmap=SEQUENTIAL, vmin=0, vmax=100)
    if K <= 20:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "black" if shares[row, column] > 50 else "white"
                ax.text(column, row, str(count), ha="center", va="center", fontsize=8, color=color)
    ticks = range(0, K, max(1, -(-K // 25)))
    names = [evaluation.class_names[k][:20] for k in ticks]
    rotation = 0 if max(map(len, names)) <= 2 else 90
    ax.set_xticks(ticks, names, fontsize=8, rotation=rotation, parse_math=False)
    ax.set_yticks(ticks, names, fontsize=8, parse_math=False)
    ax.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(heatmap, ax=ax, label="share of the true class (%)", shrink=0.8)
    return figure


def calibration_figure(evaluation: Evaluation) -> Figure:
    """Reliability diagram: accuracy by confidence, with the number of images per bin."""
    table = evaluation.calibration_bins()
    figure = Figure(figsize=(4.6, 4.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 100], [0, 100], color=GREY, linestyle="--", label="perfect calibration")
    confidence, accuracy = 100 * table["confidence"], 100 * table["accuracy"]
    upper.plot(confidence, accuracy, marker="o", color=COLORS[0], label="model")
    upper.set(ylabel="accuracy (%)", xlim=(0, 100), ylim=(0, 102))
    upper.set_title(f"expected calibration error {100 * evaluation.calibration_error():.1f} %", fontsize=10)
    upper.legend(loc="lower right")
    lower.bar(confidence, table["images"], width=6, color=COLORS[0])
    lower.set(xlabel="confidence (%)", ylabel="images")
    for ax in (upper, lower):
        ax.grid(alpha=0.3)
    return figure


def predictions_figure(evaluation: Evaluation, positions: Tensor, images: Sequence[np.ndarray]) -> Figure:
    """Images with prediction and label, and the probabilities of both classes.

    Args:
        evaluation: The evaluation.
        positions: Positions in the evaluation, such as `evaluation.errors()[:16]`.
        images: Their images, `S, S, 3` uint8 each.
    """
    titles = []
    for i in positions.tolist():
        prediction, label = int(evaluation.predictions[i]), int(evaluation.labels[i])
        names = [evaluation.class_names[k].split(",")[0][:14] for k in (prediction, label)]
        percent = [100 * float(evaluation.probabilities[i, k]) for k in (prediction, label)]
        titles.append(f"{names[0]} ({percent[0]:.0f} %)\nlabel {names[1]} ({percent[1]:.0f} %)")
    return image_grid(images, titles, columns=8)
