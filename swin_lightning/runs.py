"""The folder of a run: what lies where, and how runs and their checkpoints are found.

    runs/<experiment>/<time>-<id>/
      config.yaml       configuration of the run; config-2.yaml, ... of each time it was resumed
      checkpoints/      best.ckpt, last.ckpt
      metrics.csv       one row per logged step
      splits.csv        path, label and split of all images, where splits were drawn
      classes.csv       precision, recall, F1 and test images of each class
      curves.png  predictions.png  predictions.csv  report.html
      wandb/            files of Weights & Biases
      .lock  .writer    lock of the process that trains, and its name

`SWIN_LIGHTNING_RUNS` names another root than `runs/`.
"""

import csv
import errno
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from swin_lightning.checkpoint_files import saved_at
from swin_lightning.errors import UserError
from swin_lightning.yaml_files import read_yaml

RUNS_ENV = "SWIN_LIGHTNING_RUNS"
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP}  # of a file system without locks

log = logging.getLogger(__name__)


def runs_root() -> Path:
    """The folder of all runs."""
    return Path(os.environ.get(RUNS_ENV, "runs"))


@dataclass(frozen=True)
class RunFolder:
    """The files of one run. Nothing is created by naming them.

    Args:
        path: The folder, `runs/<experiment>/<time>-<id>`.
    """

    path: Path

    @classmethod
    def new(cls, experiment: str, run_id: str) -> "RunFolder":
        """The folder of a run that starts now.

        Raises:
            UserError: If the experiment or the id is not the name of a folder.
        """
        for option, name in (("--experiment", experiment), ("WANDB_RUN_ID", run_id)):
            check_name(option, name)
        return cls(runs_root() / experiment / f"{time.strftime('%Y%m%d-%H%M%S')}-{run_id}")

    @classmethod
    def with_id(cls, run_id: str, root: Path | None = None, experiment: str = "*") -> "RunFolder | None":
        """The newest run with this id below a root of runs, None if there is none.

        Raises:
            UserError: If the id is not a part of a folder's name.
        """
        check_name("run id", run_id)
        found = sorted((root or runs_root()).glob(f"{experiment}/*-{run_id}"))
        return cls(found[-1]) if found else None

    @classmethod
    def of_checkpoint(cls, checkpoint: str | Path) -> "RunFolder | None":
        """The run that wrote a checkpoint, None for a checkpoint outside of a run folder."""
        folder = Path(checkpoint).resolve().parent
        run = cls(Path(os.path.relpath(folder.parent)))
        return run if folder.name == "checkpoints" and run.config.is_file() else None

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """An existing run.

        Raises:
            UserError: If the folder holds no `config.yaml`.
        """
        run = cls(Path(path))
        if not run.config.is_file():
            raise UserError(f"{str(path)!r} is not a run folder: it has no config.yaml; give runs/<experiment>/<run>")
        return run

    @property
    def name(self) -> str:
        """`<experiment>/<time>-<id>`."""
        return "/".join(self.path.resolve().parts[-2:])

    @property
    def id(self) -> str:
        """Id of the run, here and in W&B: the end of the folder's name."""
        return self.path.name.rsplit("-", 1)[-1]

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    def next_config(self) -> Path:
        """Where a start of the run keeps its configuration: a resumed run does not overwrite the first one."""
        earlier = len(list(self.path.glob("config*.yaml")))
        return self.path / f"config-{earlier + 1}.yaml" if earlier else self.config

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        return self.checkpoints / "best.ckpt"

    @property
    def last(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def splits(self) -> Path:
        return self.path / "splits.csv"

    @property
    def class_table(self) -> Path:
        return self.path / "classes.csv"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @property
    def prediction_sheet(self) -> Path:
        return self.path / "predictions.png"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.csv"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def read_config(self) -> dict[str, Any]:
        """The configuration as nested dicts; empty if the run kept none.

        Raises:
            UserError: If the file is not YAML of a mapping.
        """
        if not self.config.is_file():
            return {}
        content = read_yaml(self.config)
        if not isinstance(content, dict):
            raise UserError(f"{self.config} is not a configuration, but a {type(content).__name__}")
        return content

    def read_metrics(self) -> list[dict[str, str]]:
        """The rows of `metrics.csv` as text, one per logged step; empty cells are empty strings."""
        if not self.metrics.is_file():
            return []
        try:
            with self.metrics.open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file))
        except (csv.Error, ValueError) as error:
            raise UserError(f"{self.metrics} is not a file of metrics ({error})") from error

    @contextmanager
    def lock(self, wait: float = 0.0) -> Iterator[None]:
        """Be the one writer of the run in this block; the folder is created.

        The lock is one of the operating system and ends with its process, also if that is killed. On NFS it works
        between machines, unless the file system is mounted with `nolock` or `local_lock`.

        Args:
            wait: Seconds to wait for another writer, such as the one that this process replaces.

        Raises:
            UserError: If another process writes the run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock, writer = FileLock(self.path / ".lock"), self.path / ".writer"
        try:
            lock.acquire(timeout=wait)
        except Timeout:
            name = writer.read_text(encoding="utf-8") if writer.is_file() else "another process"
            raise UserError(f"run {self.name} is in use by {name}; wait until it has ended, or stop it") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            log.warning(f"no lock for run {self.name} ({error.strerror}): do not start it twice")
        try:
            writer.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
            yield
        finally:
            writer.unlink(missing_ok=True)
            lock.release()

    def checkpoint(self) -> Path:
        """`best.ckpt`, or `last.ckpt` if there is no best one.

        Raises:
            UserError: If there is neither.
        """
        for path in (self.best, self.last):
            if path.is_file():
                return path
        raise UserError(f"run {str(self.path)!r} has no checkpoints/best.ckpt and no checkpoints/last.ckpt")


def check_name(option: str, name: str) -> None:
    """Refuse a name that would leave the folder of all runs.

    Raises:
        UserError: If the name has separators, begins with a dot, or is longer than a file name.
    """
    if not re.fullmatch(r"[^\W.][\w.,=+@ -]{0,199}", name):
        raise UserError(
            f"{option} {name[:80]!r} is not a name of a folder; use letters, digits and any of _-.,=+@ (at most 200)"
        )


def find_checkpoint(experiment: str, name: str) -> Path:
    """The checkpoint `best` or `last` of an experiment that was written last, see `saved_at`.

    Raises:
        UserError: If no run has one.
    """
    check_name("--experiment", experiment)
    folder = runs_root() / experiment
    found = sorted(folder.glob(f"*/checkpoints/{name}.ckpt"))
    if not found:
        raise UserError(f"--ckpt_path {name}: no run under {folder} has a checkpoints/{name}.ckpt; give a path")
    return max(found, key=saved_at)


def newest_checkpoint_time(experiment_folder: Path) -> float:
    """The latest `saved_at` of the checkpoints of an experiment; 0 if there is none."""
    return max(map(saved_at, experiment_folder.glob("*/checkpoints/*.ckpt")), default=0.0)


def find_runs(root: str | Path) -> list[RunFolder]:
    """The runs in and below a folder that have logged metrics, sorted by path."""
    return [RunFolder(file.parent) for file in sorted(Path(root).rglob("metrics.csv"))]
