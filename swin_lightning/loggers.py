"""Loggers that live in the run folder, and everything that knows Weights & Biases.

wandb is imported inside functions: importing this file costs nothing.
"""

import csv
import json
import netrc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from torch import Tensor

from swin_lightning.errors import UserError
from swin_lightning.run_figures import Prediction


class CSVLogger(LightningCSVLogger):
    """Writes `metrics.csv` into the run folder; a resumed run goes on in the same file.

    Args:
        save_dir: Folder; the command line gives the run folder.
        flush_logs_every_n_steps: Steps between writes.
    """

    def __init__(self, save_dir: str | None = None, flush_logs_every_n_steps: int = 100) -> None:
        super().__init__(save_dir or ".", name="", version="", flush_logs_every_n_steps=flush_logs_every_n_steps)

    @property
    def log_dir(self) -> str:
        return self.save_dir

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _AppendingWriter(self.log_dir)
        return self._experiment

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder's config.yaml holds them."""


class _AppendingWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])


class WandbLogger(LightningWandbLogger):
    """Weights & Biases with or without account and network.

    The run's id is the end of the run folder's name, so that a resumed run is the same run there. Without an
    account, or where the server does not answer, it goes on offline and says how to send the run later.

    Args:
        project: W&B project.
        entity: W&B user or team; your default without it.
        mode: `auto` is online with an account and offline without; `WANDB_MODE` in the environment goes first.
        log_model: Upload the best checkpoint as an artifact at the end.
        name: Name of the run; `<experiment>/<run>` by default.
        group: Group of runs.
        tags: Tags.
        notes: A note.
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
        folder = Path(save_dir or ".")
        super().__init__(
            project=project,
            entity=entity,
            log_model=log_model,
            name=name or "/".join(folder.parts[-2:]) or None,
            id=folder.name.rsplit("-", 1)[-1] or None,
            group=group,
            tags=tags,
            notes=notes,
            save_dir=str(folder.resolve()),  # wandb writes in a process of its own, in another working directory
        )
        self.mode = mode

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            import wandb

            mode = os.environ.get("WANDB_MODE") or self.mode
            if mode == "auto":
                mode = "online" if has_account() else "offline"
            settings = wandb.Settings(silent=True, init_timeout=30, stop_fn=_end_of_sweeps_run)
            Path(self.save_dir or ".").mkdir(parents=True, exist_ok=True)
            self._wandb_init.update(mode=mode, settings=settings)
            self._wandb_init.pop("anonymous", None)  # wandb warns of it even where it is None
            try:
                super().experiment  # noqa: B018  creates and keeps it
            except (wandb.errors.CommError, wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
                print(
                    f"W&B: the server does not answer ({str(error).splitlines()[0]}); going on offline", file=sys.stderr
                )
                wandb.teardown()
                self._wandb_init.update(mode="offline")
                super().experiment  # noqa: B018
        return self._experiment

    def log_hyperparams(self, params: Any) -> None:
        """Send the configuration; what a sweep has set stands there already, and is the sweep's."""
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
        """Send a confusion matrix, `K, K` counts with a row a label."""
        import wandb

        labels, predictions = torch.nonzero(counts).repeat_interleave(counts[counts > 0], dim=0).T.tolist()
        plot = wandb.plot.confusion_matrix(y_true=labels, preds=predictions, class_names=class_names)
        self.experiment.log({"test/confusion_matrix": plot})


@dataclass(frozen=True)
class WandbRecord:
    """What W&B knows of a run: its name, its configuration, and the logged rows in W&B's own keys."""

    name: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]


def read_offline_run(folder: str | Path) -> WandbRecord:
    """Read `wandb/offline-run-*`, without account or network.

    wandb has no function for its files in Python; its command `leet inspect` prints them.

    Raises:
        ValueError: If wandb cannot read the folder.
    """
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    printed = []
    for options in (["--summary"], []):
        done = subprocess.run([*command, *options, str(folder)], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"W&B run {str(folder)!r} cannot be read: {done.stderr.strip().splitlines()[-1:]}")
        printed.append(done.stdout)
    summary = json.loads(printed[0])
    records = map(json.loads, printed[1].splitlines())
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    return WandbRecord(summary["name"], summary["config"], rows)


def read_project(project: str) -> list[WandbRecord]:
    """Read all runs of a project, `entity/project`, from the W&B server.

    Raises:
        ValueError: If there is no account, or no such project.
    """
    import wandb

    try:
        return [WandbRecord(run.name, dict(run.config), list(run.scan_history())) for run in wandb.Api().runs(project)]
    except (wandb.errors.CommError, wandb.errors.UsageError, wandb.errors.AuthenticationError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"W&B project {project!r}: {reason}; log in with `wandb login`, or read a folder") from error


def finish_wandb() -> None:
    """Close the W&B run of this process, if there is one. Offline, say how to send it."""
    run = sys.modules["wandb"].run if "wandb" in sys.modules else None
    if run is None:
        return
    mode, folder = run.settings.mode, run.settings.sync_dir
    url = run.url if mode == "online" else None
    run.finish()
    if mode == "offline":
        print(f"W&B: offline; to send this run later: wandb sync {os.path.relpath(folder)}", flush=True)
    elif url:
        print(f"W&B: {url}", flush=True)


STOPPED = threading.Event()  # W&B has ended this run: early termination of a sweep, or by hand on its page


def _end_of_sweeps_run() -> None:
    STOPPED.set()
    os.kill(os.getpid(), signal.SIGTERM)  # the Trainer ends after the batch and saves a checkpoint


def ended_by_sweep() -> bool:
    """After a SIGTERM: whether W&B's sweep has ended the run; one that was preempted instead goes back into its queue.

    The signal comes from W&B's agent in the one case and from the machine in the other; the client learns which it is
    within 15 seconds. An agent goes on with the run under the same id, and so from its last checkpoint.
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
    """Whether W&B finds a key in the environment, its settings or the netrc file."""
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
