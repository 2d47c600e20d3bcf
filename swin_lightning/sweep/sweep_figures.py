"""Figures of a sweep, drawn from the table of `results.load_sweep`."""

from typing import TYPE_CHECKING, Any

import numpy as np

from swin_lightning.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame, Series

PARALLEL_COORDINATES_CAPTION = (
    "Parallel coordinates: one line per trial, from its parameters to its metric; brighter lines rank higher."
)
IMPORTANCE_CAPTION = (
    "Permutation importance of each parameter for a random forest that predicts the metric (decrease in R²), and "
    "Spearman's rank correlation with the metric. Both are unreliable with few trials."
)


def parallel_coordinates(frame: "DataFrame") -> "Figure":
    """Parallel coordinates: one line per trial, from its parameters to its metric; brighter lines rank higher.

    An axis is logarithmic if its values are positive and span a factor of 20 or more.
    """
    import matplotlib.pyplot as plt

    frame = _with_metric(frame)
    metric, varied = frame.attrs["metric"], _varied(frame)
    names = [*varied, metric]
    axes_values = [_axis(frame[name]) for name in names]
    rank = frame[metric].rank(method="average", ascending=frame.attrs["goal"] == "maximize", pct=True).to_numpy()
    figure, axes = plt.subplots(figsize=(max(5.0, 1.9 * len(names)), 4.2), layout="constrained")
    lines = np.stack([values for values, _ in axes_values], axis=1)
    for row in np.argsort(rank, kind="stable"):  # the best is drawn last, on top
        axes.plot(range(len(names)), lines[row], color=plt.cm.viridis(0.95 * rank[row]), linewidth=1.8, alpha=0.85)
    for x, (_, ticks) in enumerate(axes_values):
        axes.axvline(x, color="black", linewidth=0.8)
        for y, text in ticks:
            axes.annotate(
                text, (x, y), xytext=(4, 0), textcoords="offset points", fontsize=8, va="center", parse_math=False,
                bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
            )  # fmt: skip
    axes.set_xticks(range(len(names)), [_short(name) for name in names], parse_math=False)
    axes.set(yticks=[], ylim=(-0.05, 1.05), xlim=(-0.1, len(names) - 0.6))
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def metric_over_trials(frame: "DataFrame") -> "Figure":
    """The metric of each trial in order of creation, and the best so far."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    frame = _with_metric(frame)
    metric, values = frame.attrs["metric"], frame[frame.attrs["metric"]]
    best = values.cummax() if frame.attrs["goal"] == "maximize" else values.cummin()
    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    axes.step(frame["number"], best, where="post", color="#2a6f97", label="best so far")
    for state, marker in (("finished", "o"), ("stopped", "x")):
        chosen = frame["state"] == state
        if chosen.any():
            axes.plot(frame["number"][chosen], values[chosen], marker, color="#c1272d", label=state)
    axes.set(xlabel="trial")
    axes.set_ylabel(metric, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def importance(frame: "DataFrame") -> "Figure":
    """Permutation importance of each varied parameter, and rank correlation with the metric for numeric ones.

    The importance is the decrease in R² of a random forest that predicts the metric (scikit-learn) when the values of
    one parameter are shuffled.
    """
    import matplotlib.pyplot as plt

    names, importances, correlations = permutation_importances(frame)
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.42 * len(names)), layout="constrained")
    positions = np.arange(len(names))[::-1]
    axes.barh(positions, importances, color="#2a6f97")
    for y, value, correlation in zip(positions, importances, correlations, strict=True):
        text = "" if np.isnan(correlation) else f"  rank correlation {correlation:+.2f}"
        axes.text(max(value, 0), y, text, va="center", fontsize=8)
    axes.set_yticks(positions, names, parse_math=False)
    axes.set(xlabel="permutation importance", xlim=(min([*importances, 0.0]), 1.5 * max([*importances, 1e-9])))
    return figure


def permutation_importances(frame: "DataFrame") -> tuple[list[str], list[float], list[float]]:
    """The values drawn by `importance`, most important first.

    Returns:
        Parameter names, permutation importances, and Spearman's correlations (NaN for categorical parameters).
    """
    from scipy.stats import spearmanr
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    frame = _with_metric(frame)
    names = _varied(frame)
    inputs = np.stack([_axis(frame[name])[0] for name in names], axis=1)
    target = frame[frame.attrs["metric"]].to_numpy(float)
    importances = np.zeros(len(names))
    if len(target) > 1:  # R² of a single value is undefined
        forest = RandomForestRegressor(200, random_state=0).fit(inputs, target)
        importances = permutation_importance(forest, inputs, target, n_repeats=20, random_state=0).importances_mean
    correlations = [
        float(spearmanr(values, target).statistic)
        if _is_number(frame[name]) and len(set(values)) > 1 and len(set(target)) > 1
        else float("nan")
        for name, values in zip(names, inputs.T, strict=True)
    ]
    order = np.argsort(-importances)
    return [names[i] for i in order], [float(importances[i]) for i in order], [correlations[i] for i in order]


# helpers


def _with_metric(frame: "DataFrame") -> "DataFrame":
    """The trials with a metric value."""
    metric = frame.attrs["metric"]
    kept = frame[frame["state"].isin(["finished", "stopped"])].dropna(subset=[metric]) if metric in frame else frame[:0]
    if kept.empty:
        raise UserError(f"no trial of this sweep has a value of metric {metric!r}")
    return kept


def _varied(frame: "DataFrame") -> list[str]:
    """Parameters that differ between trials; all parameters if none does."""
    names = [name for name in frame.attrs["parameters"] if name in frame]
    return [name for name in names if frame[name].astype(str).nunique() > 1] or names


def _is_number(column: "Series[Any]") -> bool:
    return column.dtype.kind in "if"


def _axis(column: "Series[Any]") -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Scale a column to [0, 1]. Categories are sorted and equidistant.

    Returns:
        Scaled values, and the ticks as pairs of position and label.
    """
    if not _is_number(column):
        categories = sorted(column.astype(str).unique())
        positions = np.linspace(0, 1, len(categories)) if len(categories) > 1 else np.array([0.5])
        return positions[[categories.index(str(v)) for v in column]], list(zip(positions, categories, strict=True))
    values = column.to_numpy(float)
    low, high = values.min(), values.max()
    if low == high:
        return np.full(len(values), 0.5), [(0.5, f"{low:.4g}")]
    log = low > 0 and high / low >= 20
    scale = np.log if log else np.asarray
    positions = (scale(values) - scale(low)) / (scale(high) - scale(low))
    middle = float(np.sqrt(low * high)) if log else (low + high) / 2
    return positions, [(0.0, f"{low:.3g}"), (0.5, f"{middle:.3g}"), (1.0, f"{high:.3g}")]


def _short(name: str) -> str:
    """A dotted key on two lines, to fit between two axes."""
    head, _, last = name.rpartition(".")
    return f"{head}.\n{last}" if head else name
