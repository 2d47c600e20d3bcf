"""Checkpoints and exact resume (bitwise on a CPU).

The result of a step depends on the weights, the optimizer, the averaged weights and the position in the epoch, which a
checkpoint stores, and on random numbers, which it need not store: those of the data are functions of (seed, epoch,
index) or (seed, epoch, step), and `PerStepSeed` seeds torch by (seed, epoch, step, accumulated batch, rank). This holds
for any number of ranks and devices, whereas a stored generator state would be that of one process.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint as CheckpointCallback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from swin_lightning.checkpoint_files import verify
from swin_lightning.errors import UserError
from swin_lightning.monitors import DEFAULT_MONITOR, Mode, find_mode, is_written, not_logged, resolve_mode
from swin_lightning.ranges import NonNegative, NonNegativeInt, PositiveInt, Range, check_arguments

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file, flushes it to the disk, then renames it to the target.

    If the process is killed, the disk is full or a mount is lost during the write, the previous checkpoint stays, and
    at no moment is there none. An unfinished file (`.NAME.part`) is overwritten by the next write.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: If it cannot be written; the message says whether the previous one is kept.
        """
        if "://" in str(path):  # object stores show a file only when it is complete
            return super().save_checkpoint(checkpoint, path, storage_options)
        target = Path(path)
        part = target.with_name(f".{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        except (OSError, RuntimeError) as error:  # torch raises a RuntimeError for a failed write
            part.unlink(missing_ok=True)
            reason: BaseException | None = error
            while reason is not None and not isinstance(reason, OSError):
                reason = reason.__context__
            kept = "the previous one is kept" if target.exists() else "there is no earlier one"
            raise UserError(f"checkpoint {target} cannot be written ({reason or error}); {kept}") from error
        if hasattr(os, "O_DIRECTORY"):  # flush the rename as well, for a power failure
            folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        if "://" not in str(path) and os.path.isfile(path):
            verify(path)
        return super().load_checkpoint(path, map_location, weights_only)


class PerStepSeed(Callback):
    """Seeds torch before every training batch, for stochastic depth and dropout.

    The key is (seed, epoch, optimizer step of the epoch, accumulated batch, rank), so that a run that is resumed with
    another number of accumulated batches has the same keys for the same steps.
    The seed is that of the data module, or `seed_everything` if it has none.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed = getattr(getattr(trainer, "datamodule", None), "seed", None)
        if not isinstance(seed, int):
            seed = int(os.environ.get("PL_GLOBAL_SEED", 0))  # set by Lightning's seed_everything
        step, batch = divmod(batch_idx, trainer.accumulate_grad_batches)
        key = (seed, trainer.current_epoch, step, batch, trainer.global_rank, 1)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


class Checkpoint(ModelCheckpoint):
    """Writes `best.ckpt` by a validation metric; `last` is the callback that writes `last.ckpt`.

    Both files are replaced atomically. If the default metric is not logged, only `last.ckpt` is written.

    Args:
        monitor: Metric that decides which checkpoint is best.
        mode: Whether a larger (`max`) or a smaller (`min`) value is better; by default as the metric says: losses and
            errors are minimised, accuracies maximised, metrics of torchmetrics by their `higher_is_better`.
        save_top_k: Number of best checkpoints to keep.
        every_n_epochs: Epochs between checkpoints.
        every_n_train_steps: Optimizer steps between writes of `last.ckpt` within an epoch; 0 is off.
        every_n_minutes: Minutes between writes of `last.ckpt` within an epoch; 0 is off.
        dirpath: Folder; `checkpoints/` of the run by default.

    Attributes:
        last: The callback for `last.ckpt`, to be added to the Trainer after all other checkpoint callbacks.

    Raises:
        UserError: If `mode` contradicts the metric or is needed, if a monitor other than the default is never logged,
            or if a ModelCheckpoint of the user would write the same file.
    """

    section = "checkpoint"

    def __init__(
        self,
        monitor: str = DEFAULT_MONITOR,
        mode: Mode | None = None,
        save_top_k: Annotated[int, Range(ge=-1)] = 1,
        every_n_epochs: PositiveInt = 1,
        every_n_train_steps: NonNegativeInt = 0,
        every_n_minutes: NonNegative = 0.0,
        dirpath: str | None = None,
    ) -> None:
        check_arguments(Checkpoint.__init__, locals(), "checkpoint.")
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode=mode or find_mode(monitor) or "max",  # see resolve_mode
            save_top_k=save_top_k,
            every_n_epochs=every_n_epochs,
            enable_version_counter=save_top_k != 1,
        )
        self.last = LastCheckpoint(every_n_epochs, every_n_train_steps, every_n_minutes)
        self._given_mode = mode
        self._first_step = 0  # global step at the start of this process
        self._validated = False
        self._warned = False

    def resolve_mode(self, module: LightningModule) -> None:
        """Take the mode from the metric, which may be one of the module's, unless it was given."""
        mode = resolve_mode("checkpoint.mode", str(self.monitor), self._given_mode, module)
        if mode != self.mode:
            self.mode, self.kth_value = mode, -self.kth_value  # infinite, with the sign of the worst value

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.resolve_mode(pl_module)
        use_atomic_io(trainer)
        self.last.dirpath = str(self.dirpath)
        for other in trainer.checkpoint_callbacks:
            if isinstance(other, ModelCheckpoint) and other is not self:
                self._keep_apart(other)

    def _keep_apart(self, other: ModelCheckpoint) -> None:
        """Let a ModelCheckpoint of the user write into the same folder, but neither best.ckpt nor last.ckpt."""
        other.dirpath = other.dirpath or self.dirpath
        if os.path.realpath(str(other.dirpath)) != os.path.realpath(str(self.dirpath)):
            return
        if other.filename in ("best", "last"):
            name = type(other).__name__
            raise UserError(
                f"trainer.callbacks: {name}.filename {other.filename} is written by checkpoint; set another"
            )
        other.save_last = None  # there is a last.ckpt

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._first_step = trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated |= trainer.state.fn == "fit" and not trainer.sanity_checking
        try:
            super().on_validation_end(trainer, pl_module)
        except MisconfigurationException:
            if self.monitor in trainer.callback_metrics:
                raise
            self._warn(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor in {*trainer.callback_metrics, "epoch", "step"}:
            super().on_train_epoch_end(trainer, pl_module)
        elif trainer.global_step > self._first_step and self._is_due(trainer):
            self._warn(trainer, pl_module)

    def _is_due(self, trainer: Trainer) -> bool:
        """Whether the metrics of a validation must be there at the end of this epoch."""
        every = trainer.check_val_every_n_epoch
        whole = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch  # not ended by max_steps or max_time
        due = every is not None and (trainer.current_epoch + 1) % every == 0 and whole
        return self._validated or due or not trainer.enable_validation

    def _warn(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A default that does not apply is said once; a metric that the user has named must be logged."""
        option, metric, logged = "checkpoint.monitor", str(self.monitor), trainer.callback_metrics
        if is_written(self):
            raise UserError(not_logged(option, metric, pl_module, logged))
        if not self._warned and trainer.is_global_zero:
            log.warning(not_logged(option, metric, pl_module, logged, "best.ckpt is not written"))
        self._warned = True


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
        UserError: For a negative interval.
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


def use_atomic_io(trainer: Trainer) -> None:
    """Let the Trainer write checkpoints atomically, unless it was given a `CheckpointIO`."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()


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
