"""Results of a sweep: a table of its trials, the best trial as a configuration overlay, and an HTML report."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from swin_lightning import html_page
from swin_lightning.csv_cells import escape_cell
from swin_lightning.errors import UserError
from swin_lightning.sweep import repeats, sweep_figures
from swin_lightning.sweep.progress_table import best_trial, format_value
from swin_lightning.sweep.sweep_file import Sweep
from swin_lightning.sweep.trial_log import Trial, TrialLog, run_of
from swin_lightning.yaml_files import read_yaml

if TYPE_CHECKING:
    from pandas import DataFrame

REPORTED = ("val/acc_best", "val/loss", "test/acc", "test/f1_macro", "test/loss")  # besides the metric of the sweep


def load_sweep(source: str | Path) -> "DataFrame":
    """The trials of a sweep as a table, for notebooks.

    Args:
        source: Folder of a local sweep, `runs/sweeps/<name>/<time>-<id>`, or `entity/project/sweep` on the W&B server.

    Returns:
        One row per trial: `number`, `id`, `state`, `seconds`, `run` (folder or URL), one column per parameter (dotted
        key) and one per metric (last value). `attrs` holds `metric`, `goal` and `parameters`, which `sweep_figures`
        uses.

    Raises:
        UserError: If there is neither such a folder nor such a sweep.
    """
    folder = Path(source)
    if (folder / "sweep.yaml").is_file():
        config = read_yaml(folder / "sweep.yaml")
        trials = TrialLog(folder).read()
        runs = {trial.id: run_of(folder, trial) for trial in trials}
        return trials_frame(trials, config, {trial_id: str(run.path) for trial_id, run in runs.items() if run})
    if len(folder.parts) != 3 or folder.exists():
        raise UserError(
            f"sweep {str(source)!r}: no sweep.yaml in this folder; give a sweep folder or entity/project/sweep"
        )
    from swin_lightning.sweep.wandb_backend import load_trials

    config, trials, urls = load_trials(str(source))
    return trials_frame(trials, config, urls)


def trials_frame(trials: list[Trial], config: dict[str, Any], runs: dict[str, str]) -> "DataFrame":
    """The table returned by `load_sweep`.

    Args:
        trials: The trials, one per row.
        config: Content of the sweep file.
        runs: Trial id -> folder or URL of its run.
    """
    import pandas as pd

    rows = [
        {
            "number": t.number, "id": t.id, "state": t.state, "seconds": t.seconds, "run": runs.get(t.id, ""),
            **{name: _to_cell(value) for name, value in t.parameters.items()}, **t.metrics,
        }
        for t in trials
    ]  # fmt: skip
    names = list(config["parameters"])
    frame = pd.DataFrame(rows, columns=None if rows else ["number", "id", "state", "seconds", "run", *names])
    frame.attrs = {"metric": config["metric"]["name"], "goal": config["metric"]["goal"], "parameters": names}
    return frame


def write_summary(sweep: Sweep, folder: Path) -> Path | None:
    """Write `trials.csv`, `best.yaml` and `report.html` to the sweep's folder.

    If trials repeat a configuration with other seeds or folds, configurations are ranked by their means instead, which
    are written as `configurations.csv`, and `best.yaml` has the best one, if there are several.

    Returns:
        The report. None if no trial has a metric value; only `trials.csv` is written then.
    """
    trials = TrialLog(folder).read()
    frame = load_sweep(folder)
    frame.rename(columns=escape_cell).map(escape_cell).to_csv(folder / "trials.csv", index=False)
    if sweep.metric in frame and repeats.repeated(frame):
        return _write_repeats(sweep, folder, trials, frame)
    best = best_trial(trials, sweep.metric, sweep.goal)
    if best is None:
        return None
    overlay = best_overlay(sweep, folder, best)
    (folder / "best.yaml").write_text(overlay, encoding="utf-8")
    metrics = [name for name in REPORTED if name in frame]
    columns = ["number", "state", *dict.fromkeys([sweep.metric, *metrics]), "seconds", *frame.attrs["parameters"]]
    ordered = frame.sort_values(sweep.metric, ascending=sweep.goal == "minimize", na_position="last")
    states = ", ".join(f"{count} {state}" for state, count in frame["state"].value_counts().items())
    return html_page.save_page(
        folder / "report.html",
        f"Sweep {sweep.config.get('name', sweep.path.stem)}",
        html_page.paragraph(
            f"{sweep.method} search, {sweep.goal} {sweep.metric}: {states}. "
            f"Best: trial {best.number} with {best.metrics[sweep.metric]:.4f}."
        ),
        html_page.section("Best trial (configuration overlay)", html_page.code(overlay)),
        html_page.section(
            "Trials",
            html_page.picture(sweep_figures.parallel_coordinates(frame), sweep_figures.PARALLEL_COORDINATES_CAPTION),
            html_page.picture(
                sweep_figures.metric_over_trials(frame), f"{sweep.metric} of each trial, and the best so far."
            ),
            html_page.picture(sweep_figures.importance(frame), sweep_figures.IMPORTANCE_CAPTION),
            html_page.table(columns, ordered[columns].itertuples(index=False)),
        ),
        html_page.section("Sweep file", html_page.code((folder / "sweep.yaml").read_text(encoding="utf-8"))),
    )


def _write_repeats(sweep: Sweep, folder: Path, trials: list[Trial], frame: "DataFrame") -> Path | None:
    """`write_summary` of a sweep whose trials repeat configurations."""
    metric = sweep.metric
    metrics = list(dict.fromkeys([metric, *(name for name in REPORTED if name in frame)]))
    table = repeats.configurations(frame, metrics)
    if table.empty:
        return None
    table.to_csv(folder / "configurations.csv", index=False)
    records, names = table.to_dict("records"), table.attrs["parameters"]
    best = records[0]
    parts, word = [], "Mean over the trials"
    if len(table) > 1:
        first = next(trial for trial in trials if trial.number == best["first"])
        first = Trial(first.number, first.id, repeats.without_repeats(first), metrics=first.metrics)
        overlay = best_overlay(sweep, folder, first, f"Best mean of {len(table)} configurations: "
                               f"{repeats.describe(best, metric)}.")  # fmt: skip
        (folder / "best.yaml").write_text(overlay, encoding="utf-8")
        parts.append(html_page.section("Best configuration (overlay)", html_page.code(overlay)))
        word = "Best configuration"
    else:
        (folder / "best.yaml").unlink(missing_ok=True)
    columns = [*names, "trials"]
    rows = [
        [*(row[name] for name in columns), *(_mean_cell(row, name, name == metric) for name in metrics)]
        for row in records
    ]
    trial_columns = ["number", "state", *metrics, "seconds", *frame.attrs["parameters"]]
    states = ", ".join(f"{count} {state}" for state, count in frame["state"].value_counts().items())
    return html_page.save_page(
        folder / "report.html",
        f"Sweep {sweep.config.get('name', sweep.path.stem)}",
        html_page.paragraph(
            f"{sweep.method} search, {sweep.goal} {metric}: {states}; repeated over "
            f"{', '.join(repeats.repeated(frame))}. {word}: {repeats.describe(best, metric)}."
        ),
        html_page.section(
            "Configurations",
            html_page.paragraph("Mean ± standard deviation of the trials, and the 95 % interval of the mean."),
            html_page.table([*columns, *metrics], rows),
            html_page.picture(repeats.repeats_figure(frame, table), repeats.CAPTION),
        ),
        *parts,
        html_page.section("Trials", html_page.table(trial_columns, frame[trial_columns].itertuples(index=False))),
        html_page.section("Sweep file", html_page.code((folder / "sweep.yaml").read_text(encoding="utf-8"))),
    )


def _mean_cell(row: dict[Any, Any], metric: str, interval: bool) -> str:
    if row["trials"] < 2:
        return f"{row[metric]:.4f}"
    bounds = f" [{row[f'{metric} low']:.4f}, {row[f'{metric} high']:.4f}]" if interval else ""
    return f"{row[metric]:.4f} ± {row[f'{metric} deviation']:.4f}{bounds}"


def best_overlay(sweep: Sweep, folder: Path, best: Trial, title: str | None = None) -> str:
    """The parameters of the best trial as a configuration overlay for `-c`.

    Class arguments are nested under `init_args`, as in the `config.yaml` of the trial; an overlay needs no
    `class_path`.
    """
    run = run_of(folder, best)
    config = run.read_config() if run else {}
    overlay: dict[str, Any] = {}
    for name, value in best.parameters.items():
        _set_nested(overlay, config, name.split("."), value)
    title = title or (
        f"Best of {len(TrialLog(folder).read())} trials of {sweep.path.name}: trial {best.number}, "
        f"{sweep.metric} {best.metrics[sweep.metric]:.4f}."
    )
    return (
        f"# {title}\n"
        f"# Command:  swin-lightning {' '.join(sweep.arguments)} -c {folder / 'best.yaml'}\n"
        + yaml.safe_dump(overlay, sort_keys=False)
    )


def _set_nested(overlay: dict[str, Any], config: Any, keys: list[str], value: Any) -> None:
    """Copy the option with these keys from a configuration to an overlay; `value` if the configuration lacks it."""
    key, *rest = keys
    config = config if isinstance(config, dict) else {}
    if key not in config and "init_args" in config:
        overlay, config = overlay.setdefault("init_args", {}), config["init_args"]
    if rest:
        _set_nested(overlay.setdefault(key, {}), config.get(key), rest, value)
    else:
        overlay[key] = config.get(key, value)


def _to_cell(value: Any) -> Any:
    """Numbers as they are, everything else as short text."""
    return value if isinstance(value, int | float | bool) else format_value(value)
