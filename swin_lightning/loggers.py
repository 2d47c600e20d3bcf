"""Loggers that write into the run folder, and the use of Weights & Biases.

wandb is imported inside functions, so that importing this file is cheap. The command line gives every logger of the
configuration, also one of Lightning or the user's own, the run folder as `save_dir` unless it is set.
"""

import csv
import json
import netrc
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from swin_lightning.errors import UserError
from swin_lightning.run_figures import Prediction
from swin_lightning.runs import RunFolder


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
        self._rows.append({**values, "step": step})
        if (step + 1) % self.flush_logs_every_n_steps == 0:
            self.save()

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
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.part")
            with part.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns, extrasaction="ignore")
                writer.writeheader()
                writer.writerows([*earlier, *self._rows])
            os.replace(part, path)
        self._columns, self._rows = columns, []


class WandbLogger(LightningWandbLogger):
    """Weights & Biases, with or without account and network.

    The W&B run has the id of the run folder, so that a resumed run continues the same W&B run. Without an account, or
    if the server does not respond, the run is logged offline and can be uploaded later.

    Args:
        project: W&B project.
        entity: W&B user or team; your default entity by default.
        mode: `auto` is online with an account and offline without; the environment variable `WANDB_MODE` has priority.
        log_model: Upload the best checkpoint as an artifact at the end.
        name: Name of the run; `<experiment>/<run>` by default.
        group: Group of runs.
        tags: Tags.
        notes: Notes.
        save_dir: Folder of the local files; the command line gives the run folder.
    """

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
        self._started = False
        self._options: dict[str, Any] = {"project": project, "entity": entity, "name": name, "id": run_id}
        self._options |= {"group": group, "tags": tags, "notes": notes, "dir": folder, "resume": "allow"}

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, which is started at the first access."""
        if not self._started:
            self._started = True
            self._start()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="There is a wandb run already in progress")
                super().experiment  # noqa: B018  takes the run in progress
        return super().experiment

    def _start(self) -> None:
        import wandb

        if wandb.run is not None:  # started by the caller
            return
        mode: Any = os.environ.get("WANDB_MODE") or self.mode
        if mode == "auto":
            mode = "online" if has_account() else "offline"
        Path(str(self.save_dir)).mkdir(parents=True, exist_ok=True)
        options = {**self._options, "settings": wandb.Settings(silent=True, init_timeout=30, stop_fn=_stop_run)}
        try:
            run = wandb.init(mode=mode, **options)
        except (wandb.errors.CommError, wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
            reason = str(error).splitlines()[0]
            print(f"W&B: the server does not respond ({reason}); logging offline", file=sys.stderr)
            wandb.teardown()
            run = wandb.init(mode="offline", **options)
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)

    def log_hyperparams(self, params: Any) -> None:
        """Send the configuration. Options that a W&B sweep has set keep the sweep's values."""
        run = self.experiment
        set_by_sweep = set(run.config.keys()) if getattr(run, "sweep_id", None) else set()
        super().log_hyperparams({key: value for key, value in params.items() if key not in set_by_sweep})

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


@dataclass(frozen=True)
class WandbRecord:
    """A run as stored by W&B: its name, its configuration, and the logged rows with W&B's keys."""

    name: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]


def read_offline_run(folder: str | Path) -> WandbRecord:
    """Read `wandb/offline-run-*`, without account or network.

    wandb has no Python function for these files; its command `leet inspect` prints them.

    Raises:
        UserError: If wandb cannot read the folder.
    """
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    printed = []
    for options in (["--summary"], []):
        done = subprocess.run([*command, *options, str(folder)], capture_output=True, text=True, encoding="utf-8")
        if done.returncode:
            reason = " ".join(done.stderr.strip().splitlines()[-1:])
            raise UserError(f"W&B run {str(folder)!r} cannot be read: {reason}")
        printed.append(done.stdout)
    summary = json.loads(printed[0])
    records = map(json.loads, printed[1].splitlines())
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    return WandbRecord(summary["name"], summary["config"], rows)


def read_project(project: str) -> list[WandbRecord]:
    """Read all runs of a project, `entity/project`, from the W&B server.

    Raises:
        UserError: If there is no account or no such project.
    """
    import wandb

    try:
        return [WandbRecord(run.name, dict(run.config), list(run.scan_history())) for run in wandb.Api().runs(project)]
    except (wandb.errors.CommError, wandb.errors.UsageError, wandb.errors.AuthenticationError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"W&B project {project!r}: {reason}; log in with `wandb login`, or give a folder") from error


def finish_wandb() -> None:
    """Finish the W&B run of this process, if there is one, and print its address or how to upload it."""
    run = sys.modules["wandb"].run if "wandb" in sys.modules else None
    if run is None:
        return
    mode, folder = run.settings.mode, run.settings.sync_dir
    url = run.url if mode == "online" else None
    run.finish()
    if mode == "offline":
        print(f"W&B: offline; to upload this run: wandb sync {os.path.relpath(folder)}", flush=True)
    elif url:
        print(f"W&B: {url}", flush=True)


STOPPED = threading.Event()  # W&B has stopped this run: early termination in a sweep, or the stop button on its page


def _stop_run() -> None:
    STOPPED.set()
    os.kill(os.getpid(), signal.SIGTERM)  # the Trainer stops after the current batch and saves a checkpoint


def ended_by_sweep() -> bool:
    """After a SIGTERM: whether a W&B sweep has stopped the run. A preempted run is marked for requeueing instead.

    The signal comes from W&B's agent in the first case and from the machine in the second; the client learns which it
    is within 15 seconds. An agent restarts a requeued run under the same id, so that its last checkpoint is resumed.
    """
    run = sys.modules["wandb"].run if "wandb" in sys.modules else None
    if run is None or not run.settings.sweep_id or run.settings.mode != "online":
        return False
    if STOPPED.wait(20):
        return True
    run.mark_preempting()
    run.finish(exit_code=128 + signal.SIGTERM)
    return False


def has_account() -> bool:
    """Whether W&B finds an API key in the environment, its settings or the netrc file."""
    import wandb

    settings = wandb.setup().settings
    if os.environ.get("WANDB_API_KEY") or settings.api_key or settings.identity_token_file:
        return True
    try:
        path = os.environ.get("NETRC") or next(
            (str(p) for p in (Path.home() / ".netrc", Path.home() / "_netrc") if p.is_file()), None
        )
        return (
            path is not None
            and netrc.netrc(path).authenticators(urlparse(settings.base_url).hostname or "") is not None
        )
    except (OSError, netrc.NetrcParseError):
        return False
