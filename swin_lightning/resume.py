"""What a run states in its checkpoints, and demands of the one that it is resumed from, in all of its ranks."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from swin_lightning.checkpoint_files import header
from swin_lightning.errors import UserError
from swin_lightning.runs import RunFolder, newest_checkpoint_time


class CheckpointTime(Callback):
    """Writes `saved_at` into checkpoints: a time that increases even if the clock is set back between two runs.

    It is the time of the clock, or if that has passed already, a little more than the latest `saved_at` of the
    checkpoints of the experiment.

    Args:
        run: The run folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._latest = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._latest = newest_checkpoint_time(self.run.path.parent)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._latest = max(time.time(), self._latest + 1e-3)
        checkpoint["saved_at"] = self._latest


class SameCheckpoint(Callback):
    """Stops a run whose ranks are about to resume from different checkpoints.

    Ranks that srun or torchrun has started look for the checkpoint each for itself. They disagree if the run folders
    are not on a shared file system, or if another run wrote a checkpoint in between.
    """

    def __init__(self, path: str | None) -> None:
        self.path = path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size == 1:
            return
        own = self._identity()
        first = trainer.strategy.broadcast(own)
        if not trainer.strategy.reduce_boolean_decision(own == first, all=True):
            raise UserError(
                f"rank {trainer.global_rank} on {socket.gethostname()} would resume from {_name(own)} and rank 0 from "
                f"{_name(first)}; the run folders must be on a file system that all machines share (see "
                "SWIN_LIGHTNING_RUNS), or give --ckpt_path a path"
            )

    def _identity(self) -> list[Any]:
        if self.path is None:
            return []
        content = header(Path(self.path)) if os.path.isfile(self.path) else {}
        return [os.path.join(*Path(self.path).parts[-3:]), content.get("saved_at"), content.get("global_step")]


def check_training_state(content: Mapping[str, Any], where: str) -> None:
    """Check that what a run resumes besides its weights has the types that Lightning and torch expect.

    Raises:
        UserError: If a part has another type.
    """
    optimizers, schedules = content.get("optimizer_states", []), content.get("lr_schedulers", [])
    counts = all(
        isinstance(content.get(name, 0), int) and content.get(name, 0) >= 0 for name in ("epoch", "global_step")
    )
    mappings = all(isinstance(content.get(name, {}), Mapping) for name in ("loops", "callbacks"))
    lists = isinstance(optimizers, list) and isinstance(schedules, list)
    states = lists and all(isinstance(part, Mapping) for part in (*optimizers, *schedules))
    whole = states and all(
        isinstance(part.get("state"), Mapping)
        and isinstance(groups := part.get("param_groups"), list)
        and groups
        and all(isinstance(group, Mapping) and isinstance(group.get("params"), list) for group in groups)
        for part in optimizers
    )
    if not (counts and mappings and whole):
        raise UserError(
            f"{where} cannot be resumed: the state of its loops, optimizers or schedules is damaged; "
            "use --model.weights to start from its parameters"
        )


def _name(identity: list[Any]) -> str:
    return f"{identity[0]} (step {identity[2]})" if identity else "no checkpoint"
