"""Trials that repeat a configuration with another seed or fold: mean, deviation and interval per configuration.

The values of a configuration are summarised before configurations are ranked, so that none is preferred for a lucky
seed.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from swin_lightning.sweep.trial_log import Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

REPEATS = ("seed_everything", "data.fold", "data.split_seed")  # parameters that do not change the configuration
MAX_SHOWN = 30  # configurations in the figure
CAPTION = (
    "Trials of each configuration (dots), their mean and its 95 % interval (bar), best configuration on top. The "
    "interval is Student's, for independent trials; folds share training images, so that theirs is rather too narrow."
)


def repeats(parameters: dict[str, dict[str, Any]]) -> bool:
    """Whether the parameters of a sweep file repeat configurations."""
    given = [entry for name, entry in parameters.items() if name in REPEATS and "value" not in entry]
    return any("values" not in entry or len(entry["values"]) > 1 for entry in given)


def repeated(frame: "DataFrame") -> list[str]:
    """The parameters of a sweep that only repeat a configuration; none if each of them has one value."""
    return [name for name in REPEATS if name in frame.attrs["parameters"] and frame[name].nunique() > 1]


def configurations(frame: "DataFrame", metrics: list[str]) -> "DataFrame":
    """One row per configuration, best mean first; those of which trials are missing come last.

    Only finished trials count: a trial that was stopped early has a value of another epoch.

    Args:
        frame: Trials, from `results.load_sweep`.
        metrics: Metrics to summarise, that of the sweep among them.

    Returns:
        The other parameters, `trials` and `first` (number of the first trial), and for each metric its mean as
        `<metric>`, the standard deviation of the trials as `<metric> deviation`, and the 95 % interval of the mean as
        `<metric> low` and `<metric> high`; NaN with a single trial.
    """
    import pandas as pd
    from scipy.stats import t

    metric = frame.attrs["metric"]
    names = [name for name in frame.attrs["parameters"] if name not in REPEATS]
    finished = frame[frame["state"] == "finished"].dropna(subset=[metric])
    rows: list[dict[str, Any]] = []
    for _, trials in finished.groupby(finished[names].astype(str).agg("|".join, axis=1) if names else lambda _: ""):
        row = {name: trials[name].iloc[0] for name in names}
        row |= {"trials": len(trials), "first": int(trials["number"].min())}
        for name in metrics:
            values = trials[name].dropna().to_numpy(float)
            n, mean = len(values), values.mean() if len(values) else np.nan
            deviation = values.std(ddof=1) if n > 1 else np.nan
            half = t.ppf(0.975, n - 1) * deviation / np.sqrt(n) if n > 1 else np.nan
            row |= {name: mean, f"{name} deviation": deviation, f"{name} low": mean - half, f"{name} high": mean + half}
        rows.append(row)
    table = pd.DataFrame(rows)
    table.attrs = {**frame.attrs, "parameters": names}
    if rows:
        table["complete"] = table["trials"] == table["trials"].max()
        order = ["complete", metric, "first"]
        table = table.sort_values(order, ascending=[False, frame.attrs["goal"] == "minimize", True])
    return table.drop(columns="complete", errors="ignore").reset_index(drop=True)


def describe(row: dict[Any, Any], metric: str) -> str:
    """Mean, deviation, interval and number of trials of a configuration, in words."""
    text = f"{metric} {row[metric]:.4f}"
    if row["trials"] > 1:
        text += f" ± {row[f'{metric} deviation']:.4f}, 95 % interval {row[f'{metric} low']:.4f} to "
        text += f"{row[f'{metric} high']:.4f}"
    return f"{text} ({row['trials']} {'trials' if row['trials'] > 1 else 'trial'})"


def trials_of(frame: "DataFrame", row: dict[Any, Any], names: list[str]) -> "DataFrame":
    """The finished trials of a configuration."""
    same = frame["state"] == "finished"
    for name in names:
        same &= frame[name].astype(str) == str(row[name])
    return frame[same]


def without_repeats(trial: Trial) -> dict[str, Any]:
    """The parameters of a trial that are its configuration; without the number of folds as well."""
    return {name: value for name, value in trial.parameters.items() if name not in (*REPEATS, "data.folds")}


def repeats_figure(frame: "DataFrame", table: "DataFrame") -> "Figure":
    """The trials, means and intervals of the best configurations.

    Args:
        frame: Trials, from `results.load_sweep`.
        table: Configurations, from `configurations`.
    """
    import matplotlib.pyplot as plt

    metric, names = frame.attrs["metric"], table.attrs["parameters"]
    varied = [name for name in names if frame[name].astype(str).nunique() > 1]
    shown = table.head(MAX_SHOWN).to_dict("records")  # rows of mixed types
    figure, axes = plt.subplots(figsize=(7, 1.3 + 0.45 * len(shown)), layout="constrained")
    labels = []
    for y, row in zip(range(len(shown))[::-1], shown, strict=True):
        values = trials_of(frame, row, names)[metric]
        axes.plot(values, [y] * len(values), "o", color="#c1272d", alpha=0.6, markersize=5)
        axes.plot([row[metric]] * 2, [y - 0.25, y + 0.25], color="#2a6f97", linewidth=2)
        if row["trials"] > 1:
            axes.plot([row[f"{metric} low"], row[f"{metric} high"]], [y, y], color="#2a6f97", linewidth=2)
        setting = ", ".join(f"{name.rsplit('.', 1)[-1]} {row[name]}" for name in varied) or "all trials"
        labels.append(f"{setting} ({row['trials']})")
    axes.set_yticks(range(len(shown))[::-1], labels, fontsize=8)
    axes.set(xlabel=metric, ylim=(-0.6, len(shown) - 0.4))
    axes.grid(axis="x", alpha=0.3)
    return figure
