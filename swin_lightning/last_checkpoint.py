"""`last.ckpt`: when it is written, and that it always holds the state between two optimizer steps."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as CheckpointCallback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from swin_lightning.checkpoint_io import use_atomic_io
from swin_lightning.ranges import NonNegative, NonNegativeInt, PositiveInt, check_arguments


class LastCheckpoint(CheckpointCallback):
    """Writes `last.ckpt` by epochs, steps and minutes, at the end of training, and on interruption.

    `last.ckpt` always holds the state between two optimizer steps. After an error in forward or backward passes it is
    the state before the step; an error while the weights are updated leaves the file of an earlier step. After an error
    rank 0 writes it without the other ranks, which may have ended or wait for one that has.

    Args:
        every_n_epochs: Epochs between writes.
        every_n_train_steps: Optimizer steps between writes within an epoch; 0 is off.
        every_n_minutes: Minutes between writes within an epoch; 0 is off.
        dirpath: Folder; `checkpoints/` in the Trainer's `default_root_dir` by default.

    Raises:
        UserError: For an interval out of range.
    """

    def __init__(
        self,
        every_n_epochs: PositiveInt = 1,
        every_n_train_steps: NonNegativeInt = 0,
        every_n_minutes: NonNegative = 0.0,
        dirpath: str | None = None,
    ) -> None:
        check_arguments(LastCheckpoint.__init__, locals(), "checkpoint.")
        self.every_n_epochs, self.dirpath = every_n_epochs, dirpath
        self.every_n_train_steps, self.every_n_minutes = every_n_train_steps, every_n_minutes
        self._saved_at, self._saved_step = 0.0, -1  # time and optimizer step of the last write
        self._step_before = 0  # optimizer steps before the current batch
        self._between_epochs = False
        self._batches = 0  # of the epoch, before the current optimizer step
        self._has_gradients = False
        self._updating = False  # weights, averages and counters do not belong to the same step
        self._consistent: Any = None  # lock, held in an update and while another thread saves; see setup

    @property
    def between_steps(self) -> bool:
        """Whether weights, averages and counters belong to the same optimizer step, and there are no gradients."""
        return not self._has_gradients

    @property
    def path(self) -> Path:
        """Path of `last.ckpt`."""
        return Path(str(self.dirpath)) / "last.ckpt"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        use_atomic_io(trainer)
        self._consistent, self._updating = threading.Lock(), False  # not in __init__: ddp_spawn pickles callbacks
        self.dirpath = self.dirpath or os.path.join(trainer.default_root_dir, "checkpoints")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish_update()
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step  # there is nothing new to save yet

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._step_before = trainer.global_step
        self._between_epochs = False
        if self.between_steps:
            self._batches = int(trainer.fit_loop.epoch_loop.batch_progress.current.processed)  # type: ignore[attr-defined]

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._has_gradients = True

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if not self._updating:
            self._consistent.acquire()
            self._updating = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write `last.ckpt` if it is due. Lightning calls checkpoint callbacks last: the averages are up to date."""
        step, every = trainer.global_step, self.every_n_train_steps
        if step == self._step_before:  # gradients are being accumulated
            return
        self._finish_update()
        due = every > 0 and step // every > self._step_before // every
        if self.every_n_minutes > 0:
            late = time.monotonic() - self._saved_at >= 60 * self.every_n_minutes
            due = trainer.strategy.broadcast(late) or due  # clocks differ, and all ranks must agree
        if due and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:  # see on_train_epoch_end
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `last.ckpt` after a validation within an epoch.

        After a validation at the end of an epoch `on_train_epoch_end` writes it, when best checkpoint and early
        stopping have seen the metrics. Resumed from here, they would never see them.
        """
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fitting and self.between_steps and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save_epoch(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_epoch(trainer)
        self._between_epochs = True

    def _save_epoch(self, trainer: Trainer) -> None:
        epochs, steps, every = trainer.current_epoch + 1, trainer.global_step, self.every_n_epochs
        ends = trainer.should_stop or epochs == trainer.max_epochs or 0 <= trainer.max_steps <= steps
        if (ends or (every > 0 and epochs % every == 0)) and self._saved_step != steps:
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the current state, so that `--ckpt_path last` continues after a signal or an error, and say how."""
        if trainer.state.fn != "fit" or not trainer.global_step:
            return
        try:
            agreed = isinstance(exception, SystemExit)  # all ranks raise it before the same step, see shutdown.py
            if not self._updating and (agreed or is_replicated(trainer)):
                with self._consistent:
                    self._save_interrupted(trainer)
        finally:
            self._say_how_to_resume(trainer)

    def save_from_thread(self, trainer: Trainer) -> None:
        """Save the current state from another thread than the main thread, which is stuck; the process then ends.

        Nothing is saved if the main thread is updating the weights.
        """
        if trainer.state.fn == "fit" and trainer.global_step and self._consistent.acquire(timeout=1.0):
            try:
                self._save_interrupted(trainer)
            finally:
                self._say_how_to_resume(trainer)

    def _save_interrupted(self, trainer: Trainer) -> None:
        """Save the state before the current step, without a collective operation if each rank holds the whole model."""
        if trainer.sanity_checking or self._saved_step == trainer.global_step:
            return
        loop = trainer.fit_loop
        batches: Any = loop.epoch_loop.batch_progress
        if batches.current.ready > batches.current.processed or not self.between_steps:  # within a step
            batches.is_last_batch = False
            forgotten = 0 if self.between_steps else batches.current.processed - self._batches  # with their gradients
            for count in (batches.current, batches.total):
                count.ready = count.started = count.processed = count.completed = count.processed - forgotten
        epochs: Any = loop.epoch_progress.current
        if self._between_epochs and epochs.ready > epochs.processed:
            loop.epoch_loop.batch_progress.reset_on_run()  # or the epoch that has begun would count as trained
        if trainer.validating:  # a resumed run repeats the whole validation: its metrics are not in the checkpoint
            validation = loop.epoch_loop.val_loop.batch_progress
            validation.reset()
            validation.increment_ready()
            validation.increment_started()
        if not is_replicated(trainer):
            self._save(trainer)
        elif trainer.is_global_zero:
            with without_barriers(trainer):
                self._save(trainer)

    def _say_how_to_resume(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        where = "no checkpoint was written"
        if self._saved_step > 0 and self.path.is_file():
            path = os.path.relpath(self.path)
            where = f"{path} has step {self._saved_step}; resume with --ckpt_path {path}"
        print(f"stopped in epoch {trainer.current_epoch + 1}, step {trainer.global_step}; {where}", file=sys.stderr)

    def _finish_update(self) -> None:
        self._has_gradients = False
        if self._updating:
            self._updating = False
            self._consistent.release()

    def _save(self, trainer: Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(str(self.path), weights_only=False)
            self._saved_at, self._saved_step = time.monotonic(), trainer.global_step


# helpers


def is_replicated(trainer: Trainer) -> bool:
    """Whether every rank holds the whole model, so that rank 0 alone can write a checkpoint."""
    return isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)


@contextmanager
def without_barriers(trainer: Trainer) -> Iterator[None]:
    """Let rank 0 alone call `trainer.save_checkpoint`, which ends with a barrier of all ranks."""
    strategy: Any = trainer.strategy
    strategy.barrier = lambda *_, **__: None
    try:
        yield
    finally:
        del strategy.barrier
