"""Logged metrics of run folders, offline W&B runs and W&B projects as pandas tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from swin_lightning.config import flatten
from swin_lightning.errors import UserError, summarize
from swin_lightning.runs import find_runs
from swin_lightning.wandb_runs import WandbRecord, read_offline_run, read_project

BATCH_SIZE, SPEED = "data.batch_size", "train/images_per_s"


@dataclass(frozen=True)
class RunLog:
    """Configuration and logged metrics of one run.

    Attributes:
        name: `<experiment>/<run>`.
        config: The configuration under dotted keys as on the command line, such as `model.lr`.
        metrics: One row per logged step: `step`, `epoch` and one column per metric; NaN where it was not logged.
    """

    name: str
    config: dict[str, Any]
    metrics: pd.DataFrame

    def last(self, metric: str) -> float | None:
        """The last value of a metric, None if it was never logged."""
        values = self._values(metric)
        return None if values.empty else float(values.iloc[-1])

    def best(self, metric: str) -> float | None:
        """The largest value of a metric, None if it was never logged."""
        values = self._values(metric)
        return None if values.empty else float(values.max())

    def images_per_second(self) -> float | None:
        """Mean training throughput, None if it was not logged."""
        images, seconds = self._timed_images()
        return images / seconds if seconds else None

    def training_seconds(self) -> float | None:
        """Time of all training steps at the mean throughput, without validation; None if it was not logged."""
        images, seconds = self._timed_images()
        steps = self.metrics["step"].max() + 1
        return seconds * steps * self.config[BATCH_SIZE] / images if seconds else None

    def _values(self, metric: str) -> pd.Series:
        return self.metrics[metric].dropna() if metric in self.metrics else pd.Series(dtype=float)

    def _timed_images(self) -> tuple[float, float]:
        """Images and seconds of the steps with a logged throughput; it covers the steps since the previous row.

        Validation rows count as rows, because the throughput is measured from the last validation on.
        """
        if SPEED not in self.metrics or BATCH_SIZE not in self.config:
            return 0.0, 0.0
        rows = self.metrics[self.metrics[[SPEED, *({"val/loss"} & set(self.metrics))]].notna().any(axis=1)]
        images = rows["step"].diff().fillna(rows["step"] + 1) * self.config[BATCH_SIZE]
        return float(images[rows[SPEED].notna()].sum()), float((images / rows[SPEED]).sum())


def read_runs(*folders: str | Path) -> list[RunLog]:
    """All runs below the given folders, sorted by name. A run without `metrics.csv` is read from its offline W&B files.

    Raises:
        UserError: If there is none.
    """
    logs: dict[Path, RunLog] = {}
    for root in map(Path, folders):
        for run in find_runs(root):
            config = run.read_config()
            try:
                metrics = _tidy(pd.read_csv(run.metrics))
            except (ValueError, KeyError, TypeError) as error:  # of pandas, for files that are no table
                raise UserError(f"{run.metrics} is not a file of metrics ({summarize(error)[:200]})") from error
            logs[run.path] = RunLog(run.name, flatten(config) if config else {}, metrics)
        for file in sorted(root.rglob("offline-run-*/run-*.wandb")):  # <run>/wandb/offline-run-*/run-*.wandb
            folder = file.parents[2]
            if folder not in logs:
                logs[folder] = _from_wandb(read_offline_run(file.parent))
    if not logs:
        raise UserError(f"no run below {', '.join(map(str, folders))}: found neither metrics.csv nor offline W&B files")
    return sorted(logs.values(), key=lambda log: log.name)


def read_wandb(project: str) -> list[RunLog]:
    """The runs of a project, `entity/project`, from the W&B server."""
    return [_from_wandb(record) for record in read_project(project)]


def all_metrics(logs: Sequence[RunLog]) -> pd.DataFrame:
    """The logged rows of all runs in one table, with the name of the run in the column `run`."""
    return pd.concat([log.metrics.assign(run=log.name).set_index("run") for log in logs]).reset_index()


def results(logs: Sequence[RunLog], metric: str = "val/acc") -> pd.DataFrame:
    """One row per run: options that differ, best and last value of a metric, test accuracy, training time, speed."""
    rows = []
    for log, changed in zip(logs, config_differences(logs), strict=True):
        row = {
            f"best {metric}": log.best(metric),
            f"last {metric}": log.last(metric),
            "test/acc": log.last("test/acc"),
            "training (s)": log.training_seconds(),
            "images/s": log.images_per_second(),
        }
        rows.append({"run": log.name, **changed, **row})
    return pd.DataFrame(rows).set_index("run")


def config_differences(logs: Sequence[RunLog]) -> list[dict[str, Any]]:
    """For each run, the options whose values are not the same in all runs."""
    keys = sorted({key for log in logs for key in log.config})
    unequal = [key for key in keys if len({repr(log.config.get(key)) for log in logs}) > 1]
    return [{key: log.config.get(key) for key in unequal} for log in logs]


# helpers


def _from_wandb(record: WandbRecord) -> RunLog:
    metrics = pd.DataFrame(record.rows).rename(columns={"trainer/global_step": "step"})
    scalars = metrics[[name for name in metrics if not name.startswith("_") and "." not in name]]  # no parts of tables
    return RunLog(record.name, record.config, _tidy(scalars.select_dtypes("number")))


def _tidy(metrics: pd.DataFrame) -> pd.DataFrame:
    """Columns `step` and `epoch`, then the metrics by name; rows without any metric are dropped."""
    names = sorted(set(metrics) - {"step", "epoch"})
    rows = metrics.reindex(columns=["step", "epoch", *names]).dropna(subset=names, how="all")
    return rows.dropna(subset=["step"]).astype({"step": int}).reset_index(drop=True)
