"""Loggers that write into the run folder, and the use of Weights & Biases.

wandb is imported inside functions, so that importing this file is cheap. The command line gives every logger of the
configuration, also one of Lightning or the user's own, the run folder as `save_dir` unless it is set.
"""

import contextlib
import csv
import functools
import inspect
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from swin_lightning.checkpointing import Checkpoint
from swin_lightning.run_figures import Prediction
from swin_lightning.runs import RunFolder
from swin_lightning.wandb_runs import describe, finish_timeout, has_account, logged_before, shut_down, stop_run, warn


class CSVLogger(Logger):
    """Writes `metrics.csv` into the run folder; a resumed run appends to it.

    Lightning's CSVLogger deletes the file of an earlier run in the same folder.

    Args:
        save_dir: Folder; the command line gives the run folder.
        flush_logs_every_n_steps: Steps between writes; the Trainer also writes after every row.
    """

    name = version = ""  # no folders below save_dir

    def __init__(self, save_dir: str | None = None, flush_logs_every_n_steps: int = 100) -> None:
        super().__init__()
        self.run = RunFolder(Path(save_dir or "."))
        self.flush_logs_every_n_steps = flush_logs_every_n_steps
        self._columns: list[str] = []
        self._rows: list[dict[str, Any]] = []  # not written yet
        self._logged: set[tuple[int, str]] = set()  # step and name of what a resumed run may repeat

    @property
    def save_dir(self) -> str:
        return str(self.run.path)

    @property
    def log_dir(self) -> str:
        return self.save_dir

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: `config.yaml` in the run folder has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        step = len(self._rows) if step is None else step
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        values = without_logged(values, step, self._logged)
        if not values:
            return
        self._rows.append({**values, "step": step})
        if (step + 1) % self.flush_logs_every_n_steps == 0:
            self.save()

    @rank_zero_only
    def continue_from(self, step: int) -> None:
        """Continue a run from a checkpoint: remove the rows behind it, which the run will log again.

        Args:
            step: Optimizer steps at the checkpoint.
        """
        rows = self.run.read_metrics()
        kept = [row for row in rows if (row.get("step") or "").isdecimal() and int(row["step"]) < step]
        if len(kept) < len(rows):
            self._write(sorted(name for name in rows[0] if name), kept)
        # a validation that was interrupted is repeated
        last = (row for row in kept if int(row["step"]) == step - 1)
        self._logged = {(step - 1, name) for row in last for name, value in row.items() if value}

    def save(self) -> None:
        if not self._rows:
            return
        path = self.run.metrics
        columns = sorted({*self._columns, *(name for row in self._rows for name in row)})
        if columns == self._columns:
            with path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, columns).writerows(self._rows)
        else:  # new columns: write the whole file again
            earlier = self.run.read_metrics()
            columns = sorted({*columns, *(name for name in (earlier or [{}])[0] if name)})
            self._write(columns, [*earlier, *self._rows])
        self._columns, self._rows = columns, []

    def _write(self, columns: list[str], rows: list[Any]) -> None:
        path = self.run.metrics
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(part, path)


class WandbLogger(LightningWandbLogger):
    """Weights & Biases, with or without account and network.

    The W&B run has the id of the run folder, so that a resumed run continues the same W&B run. Without an account, or
    if the server does not respond, the run is logged offline and can be uploaded later. Any failure of W&B is reported
    in one line and ends logging to W&B, not the run.

    Args:
        project: W&B project.
        entity: W&B user or team; your default entity by default.
        mode: `auto` is online with an account and offline without; the environment variable `WANDB_MODE` has priority.
        log_model: Upload the best checkpoint of the run as an artifact at the end.
        name: Name of the run; `<experiment>/<run>` by default.
        group: Group of runs.
        tags: Tags.
        notes: Notes.
        save_dir: Folder of the local files; the command line gives the run folder.
    """

    data_dir: ClassVar[str | None] = None  # WANDB_DATA_DIR if it was set here

    def __init__(
        self,
        project: str = "swin_lightning",
        entity: str | None = None,
        mode: Literal["auto", "online", "offline", "disabled"] = "auto",
        log_model: bool = False,
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
        save_dir: str | None = None,
    ) -> None:
        run = RunFolder(Path(save_dir)) if save_dir else None
        folder = str(Path(save_dir or ".").resolve())  # wandb's own process has another working directory
        name, run_id = name or (run.name if run else None), run.id if run else None
        super().__init__(project=project, log_model=log_model, name=name, id=run_id, save_dir=folder)
        self.mode = mode
        self._started, self._failed = False, False
        self._folder: Path | None = None  # of W&B's files
        self._probed_at = -math.inf
        self._logged: set[tuple[int, str]] = set()  # step and name of what earlier processes of this run have logged
        self._options: dict[str, Any] = {"project": project, "entity": entity, "name": name, "id": run_id}
        self._options |= {"group": group, "tags": tags, "notes": notes, "dir": folder, "resume": "allow"}

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, which is started at the first access; after a failure, an object that ignores every call."""
        if not self._started:
            self._started = True
            with self._guard():
                self._start()
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="There is a wandb run already in progress")
                    super().experiment  # noqa: B018  takes the run in progress
        return Ignored() if self._failed else super().experiment

    def _start(self) -> None:
        import wandb

        if wandb.run is not None:  # started by the caller
            return
        mode: Any = os.environ.get("WANDB_MODE") or self.mode
        if mode == "auto":
            mode = "online" if has_account() else "offline"
        folder = Path(str(self.save_dir))
        if os.environ.get("WANDB_DATA_DIR") in (None, "", WandbLogger.data_dir):  # in the home folder by default
            os.environ["WANDB_DATA_DIR"] = WandbLogger.data_dir = str(folder / "wandb" / "data")
        if not os.access(os.environ.get("HOME", ""), os.W_OK):
            os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "wandb" / "cache"))
        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            silent=True,
            init_timeout=30,
            finish_timeout=finish_timeout(),
            finish_timeout_raises=True,
            stop_fn=stop_run,
        )
        options = {**self._options, "settings": settings}
        try:
            run = wandb.init(mode=mode, **options)
        except (wandb.errors.CommError, wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
            if mode != "online":
                raise
            wandb.teardown()
            run = wandb.init(mode="offline", **options)
            warn(f"the server does not respond ({str(error).splitlines()[0]}); logging offline")
        if run.disabled:
            return
        self._folder = Path(run.settings.sync_dir)
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        self._logged = logged_before(run, folder)
        for name, _ in inspect.getmembers(type(run), inspect.isfunction):  # for calls by the user's code
            if not name.startswith("_") and name != "finish":  # see finish_wandb
                setattr(run, name, self._guarded(getattr(run, name)))

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Whatever W&B raises ends logging to W&B, not the run."""
        try:
            yield
        except Exception as error:
            if not self._failed:
                self._failed = True
                rest = f"; to upload what was logged: {command}" if (command := shut_down()) else ""
                warn(f"logging to W&B has stopped ({describe(error)}); the run continues{rest}")

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._guard():
                return function(*args, **kwargs)
            return None

        return call

    def log_hyperparams(self, params: Any) -> None:
        """Send the configuration. Options that a W&B sweep has set keep the sweep's values."""
        run = self.experiment
        set_by_sweep = set(run.config.keys()) if getattr(run, "sweep_id", None) else set()
        super().log_hyperparams({key: value for key, value in params.items() if key not in set_by_sweep})

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send what has not been sent for this step before the run was resumed."""
        run = self.experiment  # started first: it reads what was logged before
        if step is not None and run is not None:
            metrics = without_logged(metrics, step, self._logged)
        if metrics:
            super().log_metrics(metrics, step)

    @rank_zero_only
    def save(self) -> None:
        """Find out whether W&B can write to its folder, since its background process fails silently."""
        if self._folder is None or time.monotonic() - self._probed_at < 30:
            return
        self._probed_at = time.monotonic()
        probe = self._folder / ".probe"
        try:
            probe.write_bytes(bytes(4096))
        finally:
            probe.unlink(missing_ok=True)

    def finalize(self, status: str) -> None:
        self._probed_at = -math.inf
        self.save()
        super().finalize(status)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Only our checkpoint callback writes the checkpoint of the run; the user may have added others."""
        if isinstance(checkpoint_callback, Checkpoint):
            super().after_save_checkpoint(checkpoint_callback)

    def log_predictions(self, samples: Sequence[Prediction]) -> None:
        """Send a table of images with label, prediction and its probability."""
        import wandb

        rows = [[wandb.Image(s.image), s.label, s.prediction, s.probability] for s in samples]
        table = wandb.Table(columns=["image", "label", "prediction", "probability"], data=rows)
        self.experiment.log({"test/predictions": table})

    def log_confusion(self, counts: Tensor, class_names: list[str]) -> None:
        """Send a confusion matrix of counts `K, K` (rows: labels, columns: predictions)."""
        import wandb

        labels, predictions = torch.nonzero(counts).repeat_interleave(counts[counts > 0], dim=0).T.tolist()
        plot = wandb.plot.confusion_matrix(y_true=labels, preds=predictions, class_names=class_names)
        self.experiment.log({"test/confusion_matrix": plot})

    def log_classes(self, rows: list[dict[str, Any]]) -> None:
        """Send the table by class, see `class_counts.class_rows`."""
        import wandb

        table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        self.experiment.log({"test/classes": table})


class Ignored:
    """Ignores every call and assignment, in place of a W&B run that has failed."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def __getitem__(self, key: Any) -> Any:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __setattr__(self, name: str, value: Any) -> None:
        pass

    def __bool__(self) -> bool:
        return False

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def place_in_run_folder(logger: Any, run: RunFolder) -> None:
    """Let a logger of the configuration write into the run folder, unless it says another place.

    Args:
        logger: Its `class_path` and `init_args`, as parsed; changed in place.
        run: The run folder.
    """
    name, args = logger.class_path.rpartition(".")[2], logger.get("init_args") or {}
    if "save_dir" in args and args["save_dir"] is None:
        args["save_dir"] = str(run.path)
    if name == "TensorBoardLogger" and args.get("version", 0) is None:
        args["version"] = 0  # a resumed run adds to the same events
    if name == "MLFlowLogger" and args.get("tracking_uri") is None and not os.environ.get("MLFLOW_TRACKING_URI"):
        # MLflow no longer writes to plain folders
        args["tracking_uri"] = f"sqlite:///{(run.path / 'mlflow.db').resolve()}"
        args["artifact_location"] = args.get("artifact_location") or (run.path / "mlflow").resolve().as_uri()
        args["run_name"] = args.get("run_name") or run.name


# helpers


def _guard_method(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: WandbLogger, *args: Any, **kwargs: Any) -> Any:
        if self._failed:
            return None
        with self._guard():
            return method(self, *args, **kwargs)
        return None

    return call


# every method that uses W&B, also those of Lightning
for _name, _method in inspect.getmembers(WandbLogger, inspect.isfunction):
    if not _name.startswith("_") and _name != "download_artifact":
        setattr(WandbLogger, _name, _guard_method(_method))


def without_logged(metrics: Mapping[str, Any], step: int, logged: set[tuple[int, str]]) -> dict[str, Any]:
    """The metrics of a step that were not logged before the run was resumed; empty if nothing but the epoch is new."""
    new = {name: value for name, value in metrics.items() if name == "epoch" or (step, name) not in logged}
    return {} if new.keys() <= {"epoch"} and new.keys() != set(metrics) else new
