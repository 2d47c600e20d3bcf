"""A sweep's trials as a table, the best of them as an overlay, and both on one page."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from swin_lightning import html_page as pages
from swin_lightning.errors import UserError
from swin_lightning.sweep import sweep_figures as plots
from swin_lightning.sweep.progress_table import best_trial, shown
from swin_lightning.sweep.sweep_file import Sweep
from swin_lightning.sweep.trial_log import Journal, Trial, run_folder

if TYPE_CHECKING:
    from pandas import DataFrame


def load_sweep(source: str | Path) -> "DataFrame":
    """The trials of a sweep, of this machine or of W&B, for notebooks.

    Args:
        source: A sweep's folder, `runs/sweeps/<name>/<time>-<id>`, or W&B's `entity/project/sweep`.

    Returns:
        A row a trial: `number`, `id`, `state`, `seconds`, `run`, a column a parameter under its dotted key, and a
        column a metric. `attrs` holds `metric`, `goal` and `parameters`, which the functions of `plots` read.

    Raises:
        ValueError: If there is neither such a folder nor such a sweep.
    """
    folder = Path(source)
    if (folder / "sweep.yaml").is_file():
        config = yaml.safe_load((folder / "sweep.yaml").read_text())
        trials = Journal(folder).read()
        return trials_frame(trials, config, {t.id: str(run_folder(folder, t) or "") for t in trials})
    if len(folder.parts) != 3 or folder.exists():
        raise UserError(f"sweep {str(source)!r}: no sweep.yaml in that folder, and no entity/project/sweep of W&B")
    from swin_lightning.sweep.wandb_backend import load_trials

    config, trials, urls = load_trials(str(source))
    return trials_frame(trials, config, urls)


def trials_frame(trials: list[Trial], config: dict[str, Any], runs: dict[str, str]) -> "DataFrame":
    """The table of `load_sweep`.

    Args:
        trials: Its rows.
        config: The sweep file's content.
        runs: Id of a trial -> its run's folder or address.
    """
    import pandas as pd

    rows = [
        {
            "number": t.number, "id": t.id, "state": t.state, "seconds": t.seconds, "run": runs.get(t.id, ""),
            **{name: _cell(value) for name, value in t.parameters.items()}, **t.metrics,
        }
        for t in trials
    ]  # fmt: skip
    names = list(config["parameters"])
    frame = pd.DataFrame(rows, columns=None if rows else ["number", "id", "state", "seconds", "run", *names])
    frame.attrs = {"metric": config["metric"]["name"], "goal": config["metric"]["goal"], "parameters": names}
    return frame


def write_summary(sweep: Sweep, folder: Path) -> Path | None:
    """Write `trials.csv`, `best.yaml` and `report.html` into the sweep's folder; returns the page's path.

    None, and no page, where no trial has come to a value.
    """
    trials = Journal(folder).read()
    frame = load_sweep(folder)
    frame.to_csv(folder / "trials.csv", index=False)
    best = best_trial(trials, sweep.metric, sweep.goal)
    if best is None:
        return None
    overlay = best_overlay(sweep, folder, best)
    (folder / "best.yaml").write_text(overlay)
    metrics = [name for name in ("val/acc_best", "val/loss", "test/acc", "test/loss") if name in frame]
    columns = ["number", "state", *dict.fromkeys([sweep.metric, *metrics]), "seconds", *frame.attrs["parameters"]]
    ordered = frame.sort_values(sweep.metric, ascending=sweep.goal == "minimize", na_position="last")
    counts = frame["state"].value_counts()
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    return pages.save_page(
        folder / "report.html",
        f"Sweep {sweep.config.get('name', sweep.path.stem)}",
        pages.paragraph(
            f"{sweep.config['method']} search, {sweep.goal} {sweep.metric}: {states}. "
            f"Best is trial {best.number} with {best.metrics[sweep.metric]:.4f}."
        ),
        pages.section(
            "The best trial as an overlay",
            pages.code(overlay),
        ),
        pages.section(
            "Trials",
            pages.picture(
                plots.parallel_coordinates(frame),
                "A line a trial, from its options to its result; the brighter, the better its rank.",
            ),
            pages.picture(plots.metric_over_trials(frame), f"{sweep.metric} of every trial, and the best so far."),
            pages.picture(plots.importance(frame), plots.IMPORTANCE),
            pages.table(columns, ordered[columns].itertuples(index=False)),
        ),
        pages.section("The sweep file", pages.code((folder / "sweep.yaml").read_text())),
    )


def best_overlay(sweep: Sweep, folder: Path, best: Trial) -> str:
    """The best trial's options as an overlay for `-c`, in the nesting of the trial's own config.yaml."""
    run = run_folder(folder, best)
    config = yaml.safe_load((run / "config.yaml").read_text()) if run else {}
    overlay: dict[str, Any] = {}
    for name in best.parameters:
        source, target = config, overlay
        *path, last = name.split(".")
        for part in path:
            source, target = source.get(part, {}), target.setdefault(part, {})
            if last not in source and "init_args" in source:  # a class, whose arguments stand one level below its name
                source, target = source["init_args"], target.setdefault("init_args", {})
        target[last] = source.get(last, best.parameters[name])
    arguments = " ".join(sweep.arguments)
    return (
        f"# Overlay: the best of {len(Journal(folder).read())} trials of {sweep.path.name}, trial {best.number}: "
        f"{sweep.metric} {best.metrics[sweep.metric]:.4f}.\n"
        f"# Command:  swin-lightning {arguments} -c {folder / 'best.yaml'}\n" + yaml.safe_dump(overlay, sort_keys=False)
    )


def _cell(value: Any) -> Any:
    """Lists and class paths as text: columns hold plain values."""
    return value if isinstance(value, int | float | bool) else shown(value)
