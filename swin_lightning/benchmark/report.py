"""What was measured, as a table, a file and a picture."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from swin_lightning.benchmark.measure import Contestant, paired_ratio

Row = dict[str, Any]


def rows(
    contestants: list[Contestant], peak: Contestant, batch: int, ours: str, differences: Mapping[str, float]
) -> list[Row]:
    """One row a contestant, ours first.

    Returns:
        Of each: `name`, `ms`, `images_per_s`, `share` of the matrix product's speed in the same rounds, `ratio` (how
        many times longer than ours: median and quartiles of paired rounds), `memory` in bytes, seconds of the
        `first` step, `difference` of the logits, None where they are not comparable.
    """
    (own,) = [contestant for contestant in contestants if contestant.name == ours]
    found = []
    for contestant in contestants:
        speed = [contestant.flop / s / (peak.flop / p) for s, p in zip(contestant.seconds, peak.seconds, strict=True)]
        found.append(
            {
                "name": contestant.name,
                "ms": 1e3 * median(contestant.seconds),
                "images_per_s": batch / median(contestant.seconds),
                "share": median(speed),
                "ratio": paired_ratio(contestant.seconds, own.seconds),
                "memory": contestant.memory,
                "first": contestant.first,
                "difference": differences.get(contestant.name),
            }
        )
    return found


def table(title: str, rows: list[Row]) -> list[str]:
    """Lines for the terminal."""
    lines = [title, f"{'':22} {'ms':>8} {'images/s':>9} {'of peak':>8} {'ours faster by':>20} {'MB':>6} {'first':>7}"]
    for row in rows:
        ratio = "{:.2f} ({:.2f}-{:.2f})".format(*row["ratio"])
        memory = f"{row['memory'] / 1e6:6.0f}" if row["memory"] else " " * 6
        lines.append(
            f"{row['name']:22} {row['ms']:8.1f} {row['images_per_s']:9.1f} {100 * row['share']:6.0f} % {ratio:>20} "
            f"{memory} {row['first']:5.1f} s"
        )
    differences = [row["difference"] for row in rows if row["difference"] is not None]
    lines.append(
        "ratios: median (quartiles) of paired rounds; peak: a large matrix product in the same rounds; "
        f"logits within {max(differences):.0e}"
    )
    return lines


def write(result: dict[str, Any], folder: Path) -> list[Path]:
    """`<time>.json` and `<time>.png` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / time.strftime("model-%Y%m%d-%H%M%S.json")
    path.write_text(json.dumps(result, indent=1) + "\n")
    return [path, _picture(result, path.with_suffix(".png"))]


def _picture(result: dict[str, Any], path: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    modes = [mode for mode in ("eval", "train") if mode in result]
    figure, axes = pyplot.subplots(1, len(modes), figsize=(4.6 * len(modes), 3.2), squeeze=False)
    for mode, plot in zip(modes, axes[0], strict=True):
        rows = result[mode][::-1]
        bars = plot.barh(
            [row["name"] for row in rows],
            [row["images_per_s"] for row in rows],
            color=["tab:orange" if row is result[mode][0] else "tab:gray" for row in rows],
        )
        labels = [f"{row['images_per_s']:.3g}" + f" (x {1 / row['ratio'][0]:.2f})" * (row is not result[mode][0])
                  for row in rows]  # fmt: skip
        plot.bar_label(bars, labels, padding=3, fontsize=8)
        plot.set(title={"eval": "evaluation", "train": "training step"}[mode], xlabel="images/s")
        plot.set_xlim(right=1.25 * max(row["images_per_s"] for row in rows))
        plot.spines[["top", "right"]].set_visible(False)
    name, _, machine = result["title"].partition("; ")
    figure.suptitle(f"{name}\n{machine}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path
