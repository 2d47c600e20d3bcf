"""Runs as data: run folders, offline W&B runs and W&B projects in one table, and what is written from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from swin_lightning.errors import UserError
from swin_lightning.loggers import WandbRecord, read_offline_run, read_project

BATCH_SIZE, SPEED = "data.batch_size", "train/images_per_s"


@dataclass(frozen=True)
class RunLog:
    """What one run has logged.

    Attributes:
        name: `<experiment>/<run>`.
        config: The configuration under the command line's keys.
        metrics: One row a logged step: `step`, `epoch` and a column a metric, empty where it was not logged.
    """

    name: str
    config: dict[str, Any]
    metrics: pd.DataFrame

    def last(self, metric: str) -> float | None:
        """The latest value of a metric, None where it was never logged."""
        values = self._values(metric)
        return None if values.empty else float(values.iloc[-1])

    def best(self, metric: str) -> float | None:
        """The largest value of a metric, None where it was never logged."""
        values = self._values(metric)
        return None if values.empty else float(values.max())

    def images_per_second(self) -> float | None:
        """Training images over training time, None where the speed was not logged."""
        images, seconds = self._work()
        return images / seconds if seconds else None

    def training_seconds(self) -> float | None:
        """Time of all training steps at the mean logged speed, without validation; None where it was not logged."""
        images, seconds = self._work()
        steps = self.metrics["step"].max() + 1
        return seconds * steps * self.config[BATCH_SIZE] / images if seconds else None

    def _values(self, metric: str) -> pd.Series:
        return self.metrics[metric].dropna() if metric in self.metrics else pd.Series(dtype=float)

    def _work(self) -> tuple[float, float]:
        """Images and seconds of the steps whose speed was logged: those since the row before, or since validation."""
        if SPEED not in self.metrics or BATCH_SIZE not in self.config:
            return 0.0, 0.0
        rows = self.metrics[self.metrics[[SPEED, *({"val/loss"} & set(self.metrics))]].notna().any(axis=1)]
        images = rows["step"].diff().fillna(rows["step"] + 1) * self.config[BATCH_SIZE]
        return float(images[rows[SPEED].notna()].sum()), float((images / rows[SPEED]).sum())


def read_runs(*folders: str | Path) -> list[RunLog]:
    """All runs below folders, by name. A run without `metrics.csv` is read from its offline W&B files.

    Raises:
        ValueError: If there is none.
    """
    logs: dict[Path, RunLog] = {}
    for root in map(Path, folders):
        for file in sorted(root.rglob("metrics.csv")):
            logs[file.parent] = _read_folder(file.parent)
        for file in sorted(root.rglob("offline-run-*/run-*.wandb")):
            folder = file.parent.parent.parent  # RUN/wandb/offline-run-.../run-....wandb
            if folder not in logs:
                logs[folder] = _from_wandb(read_offline_run(file.parent))
    if not logs:
        raise UserError(f"no run below {', '.join(map(str, folders))}: there is no metrics.csv and no offline W&B run")
    return sorted(logs.values(), key=lambda log: log.name)


def read_wandb(project: str) -> list[RunLog]:
    """The runs of a W&B project, `entity/project`, from the server."""
    return [_from_wandb(record) for record in read_project(project)]


def all_metrics(logs: Sequence[RunLog]) -> pd.DataFrame:
    """All logged rows in one table, with the run's name in the column `run`. For CSV: `.to_csv(path, index=False)`."""
    return pd.concat([log.metrics.assign(run=log.name).set_index("run") for log in logs]).reset_index()


def results(logs: Sequence[RunLog], metric: str = "val/acc") -> pd.DataFrame:
    """One row a run: what differs in its configuration, best and last value of a metric, test accuracy, time, speed."""
    rows = []
    for log, changed in zip(logs, differences(logs), strict=True):
        row = {
            f"best {metric}": log.best(metric),
            f"last {metric}": log.last(metric),
            "test/acc": log.last("test/acc"),
            "training in s": log.training_seconds(),
            "images per s": log.images_per_second(),
        }
        rows.append({"run": log.name, **changed, **row})
    return pd.DataFrame(rows).set_index("run")


def differences(logs: Sequence[RunLog]) -> list[dict[str, Any]]:
    """Of each run the keys whose values are not the same in all of them."""
    keys = sorted({key for log in logs for key in log.config})
    unequal = [key for key in keys if len({repr(log.config.get(key)) for log in logs}) > 1]
    return [{key: log.config.get(key) for key in unequal} for log in logs]


def markdown_row(log: RunLog, hardware: str) -> str:
    """A run as a row of the table in `experiments/README.md`.

    Raises:
        ValueError: If the run was not tested.
    """
    accuracy, accuracy5, seconds = log.last("test/acc"), log.last("test/acc5"), log.training_seconds()
    if accuracy is None or accuracy5 is None:
        raise UserError(f"run {log.name} has no test/acc; run `swin-lightning test` or fit with test_after_fit")
    time = "" if seconds is None else f"{seconds:.0f} s" if seconds < 300 else f"{seconds / 60:.1f} min"
    experiment = log.name.split("/")[0]
    cells = [
        f"`{experiment}`",
        f"{100 * accuracy:.2f} %",
        f"{100 * accuracy5:.2f} %",
        str(log.config.get("seed_everything", "")),
        time,
        hardware,
        f"[csv](logs/{experiment}.csv)",
    ]
    return f"| {' | '.join(cells)} |"


# helpers


def _read_folder(folder: Path) -> RunLog:
    from swin_lightning.config import flatten

    config = folder / "config.yaml"
    flat = flatten(yaml.safe_load(config.read_text())) if config.is_file() else {}
    metrics = pd.read_csv(folder / "metrics.csv")
    return RunLog("/".join(folder.resolve().parts[-2:]), _short_keys(flat), _tidy(metrics))


def _from_wandb(record: WandbRecord) -> RunLog:
    metrics = pd.DataFrame(record.rows).rename(columns={"trainer/global_step": "step"})
    numbers = metrics[[name for name in metrics if not name.startswith("_") and "." not in name]]  # not those of tables
    return RunLog(record.name, _short_keys(record.config), _tidy(numbers.select_dtypes("number")))


def _short_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Keys as one types them: without the level of `init_args`."""
    return {key.replace(".init_args.", "."): value for key, value in config.items()}


def _tidy(metrics: pd.DataFrame) -> pd.DataFrame:
    """`step` and `epoch` first, the metrics by name; rows that hold none of them are left out."""
    names = sorted(set(metrics) - {"step", "epoch"})
    rows = metrics.reindex(columns=["step", "epoch", *names]).dropna(subset=names, how="all")
    return rows.dropna(subset=["step"]).astype({"step": int}).reset_index(drop=True)
