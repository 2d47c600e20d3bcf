"""Results of a model comparison: rows, terminal table, JSON file and bar chart."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.timing import BenchmarkCase, paired_ratio

Row = dict[str, Any]


def build_rows(
    cases: list[BenchmarkCase], peak: BenchmarkCase, batch_size: int, own: str, differences: Mapping[str, float]
) -> list[Row]:
    """One row per case, in the order of the cases.

    Args:
        cases: Timed cases.
        peak: The matrix product, timed in the same rounds.
        batch_size: Images per step.
        own: Name of the case that the others are compared with.
        differences: Largest difference of the logits from those of `own`, by name.

    Returns:
        Rows with the keys `name`, `ms`, `images_per_s`, `share` (of the matrix product's speed in the same rounds),
        `ratio` (time relative to `own`: median and quartiles of paired rounds), `memory` in bytes, `first` (seconds of
        the first step) and `difference` (None for another architecture).
    """
    (reference,) = [case for case in cases if case.name == own]
    rows = []
    for case in cases:
        share = [case.flop / s / (peak.flop / p) for s, p in zip(case.seconds, peak.seconds, strict=True)]
        rows.append(
            {
                "name": case.name,
                "ms": 1e3 * median(case.seconds),
                "images_per_s": batch_size / median(case.seconds),
                "share": median(share),
                "ratio": paired_ratio(case.seconds, reference.seconds),
                "memory": case.memory,
                "first": case.first,
                "difference": differences.get(case.name),
            }
        )
    return rows


def format_table(title: str, rows: list[Row]) -> list[str]:
    """Lines for the terminal."""
    lines = [title, f"{'':22} {'ms':>8} {'images/s':>9} {'of peak':>8} {'relative time':>20} {'MB':>6} {'1st step':>8}"]
    for row in rows:
        ratio = "{:.2f} ({:.2f}-{:.2f})".format(*row["ratio"])
        memory = f"{row['memory'] / 1e6:6.0f}" if row["memory"] else " " * 6
        lines.append(
            f"{row['name']:22} {row['ms']:8.1f} {row['images_per_s']:9.1f} {100 * row['share']:6.0f} % {ratio:>20} "
            f"{memory} {row['first']:6.1f} s"
        )
    differences = [row["difference"] for row in rows if row["difference"] is not None]
    lines.append(
        "relative time: median (quartiles) of paired rounds; peak: a large matrix product in the same rounds; "
        f"logits equal within {max(differences):.0e}"
    )
    return lines


def save_results(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write `model-<time>.json` and `model-<time>.png`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / time.strftime("model-%Y%m%d-%H%M%S.json")
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return [path, _bar_chart(result, path.with_suffix(".png"))]


def _bar_chart(result: dict[str, Any], path: Path) -> Path:
    from matplotlib.figure import Figure

    modes = [mode for mode in ("eval", "train") if mode in result]
    figure = Figure(figsize=(4.6 * len(modes), 3.2))
    for mode, axes in zip(modes, figure.subplots(1, len(modes), squeeze=False)[0], strict=True):
        rows = result[mode][::-1]
        own = result[mode][0]
        colors = ["tab:orange" if row is own else "tab:gray" for row in rows]
        bars = axes.barh([row["name"] for row in rows], [row["images_per_s"] for row in rows], color=colors)
        labels = [f"{row['images_per_s']:.3g}" + f" (x {1 / row['ratio'][0]:.2f})" * (row is not own) for row in rows]
        axes.bar_label(bars, labels, padding=3, fontsize=8)
        axes.set(title={"eval": "evaluation", "train": "training step"}[mode], xlabel="images/s")
        axes.set_xlim(right=1.25 * max(row["images_per_s"] for row in rows))
        axes.spines[["top", "right"]].set_visible(False)
    name, _, machine = result["title"].partition("; ")
    figure.suptitle(f"{name}\n{machine}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    return path
