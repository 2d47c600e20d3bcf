"""Checkpoints and exact resume (bitwise on a CPU).

The result of a step depends on the weights, the optimizer, the averaged weights and the position in the epoch, which a
checkpoint stores, and on random numbers, which it need not store: those of the data are functions of (seed, epoch,
index), and `PerStepSeed` seeds torch by (seed, epoch, batch, rank). This holds for any number of ranks and devices,
whereas a stored generator state would be that of one process.
"""

import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint as CheckpointCallback
from lightning.pytorch.callbacks import ModelCheckpoint

from swin_lightning.checkpoint_files import verify
from swin_lightning.errors import UserError

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file, flushes it to the disk, then renames it to the target.

    If the process is killed, the disk is full or a mount is lost during the write, the previous checkpoint stays, and
    at no moment is there none. An unfinished file (`.NAME.part`) is overwritten by the next write.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
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
    """Seeds torch before every training batch by (seed, epoch, batch, rank), for stochastic depth and dropout.

    The seed is that of the data module, or `seed_everything` if it has none.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed = getattr(getattr(trainer, "datamodule", None), "seed", None)
        if not isinstance(seed, int):
            seed = int(os.environ.get("PL_GLOBAL_SEED", 0))  # set by Lightning's seed_everything
        key = (seed, trainer.current_epoch, batch_idx, trainer.global_rank, 1)  # mixup has the key without the 1
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


class Checkpoint(ModelCheckpoint):
    """Writes `best.ckpt` by a validation metric; `last` is the callback that writes `last.ckpt`.

    Both files are replaced atomically. Without the metric only `last.ckpt` is written.

    Args:
        monitor: Metric that decides which checkpoint is best.
        mode: Whether a larger (`max`) or a smaller (`min`) value is better.
        save_top_k: Number of best checkpoints to keep.
        every_n_epochs: Epochs between checkpoints.
        every_n_train_steps: Optimizer steps between writes of `last.ckpt` within an epoch; 0 is off.
        every_n_minutes: Minutes between writes of `last.ckpt` within an epoch; 0 is off.
        dirpath: Folder; `checkpoints/` of the run by default.

    Attributes:
        last: The callback for `last.ckpt`, to be added to the Trainer after this one.
    """

    def __init__(
        self,
        monitor: str = "val/acc",
        mode: str = "max",
        save_top_k: int = 1,
        every_n_epochs: int = 1,
        every_n_train_steps: int = 0,
        every_n_minutes: float = 0.0,
        dirpath: str | None = None,
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            every_n_epochs=every_n_epochs,
            enable_version_counter=save_top_k != 1,
        )
        self.last = LastCheckpoint(every_n_epochs, every_n_train_steps, every_n_minutes)
        self._first_step = 0  # global step at the start of this process
        self._validated = False
        self._warned = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        use_atomic_io(trainer)
        self.last.dirpath = str(self.dirpath)

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
        elif trainer.global_step > self._first_step and (self._validated or not any(trainer.num_val_batches)):
            self._warn(trainer, pl_module)

    def _warn(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._warned and trainer.is_global_zero:
            consequence = "best.ckpt is not written"
            log.warning(metric_not_logged("checkpoint.monitor", str(self.monitor), consequence, trainer, pl_module))
        self._warned = True


class LastCheckpoint(CheckpointCallback):
    """Writes `last.ckpt` by epochs, steps and minutes, at the end of training, and on interruption.

    `last.ckpt` is always written between two optimizer steps: Ctrl-C waits for the end of the step (with gradient
    accumulation, of all of its batches; a second Ctrl-C does not wait), and an error within a step leaves the file of
    an earlier step.

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
        every_n_epochs: int = 1,
        every_n_train_steps: int = 0,
        every_n_minutes: float = 0.0,
        dirpath: str | None = None,
    ) -> None:
        for name, value in {"every_n_train_steps": every_n_train_steps, "every_n_minutes": every_n_minutes}.items():
            if value < 0:
                raise UserError(f"checkpoint.{name} {value} must be at least 0; 0 is off")
        self.every_n_epochs, self.dirpath = every_n_epochs, dirpath
        self.every_n_train_steps, self.every_n_minutes = every_n_train_steps, every_n_minutes
        self._saved_at, self._saved_step = 0.0, -1  # time and optimizer step of the last write
        self._step_before = 0  # optimizer steps before the current batch
        self._between_steps = True  # weights, averages and counters are consistent, and there are no gradients
        self._between_epochs = False
        self._interrupted = False
        self._handler: Any = None  # of SIGINT, before training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        use_atomic_io(trainer)
        self.dirpath = self.dirpath or os.path.join(trainer.default_root_dir, "checkpoints")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._between_steps, self._interrupted = True, False
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step  # there is nothing new to save yet
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, *_: Any) -> None:
        if self._between_steps or self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore_handler()

    def _restore_handler(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._step_before = trainer.global_step
        self._between_epochs = False

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._between_steps = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write `last.ckpt` if it is due. Lightning calls checkpoint callbacks last: the averages are up to date."""
        step, every = trainer.global_step, self.every_n_train_steps
        if step == self._step_before:  # gradients are being accumulated
            return
        self._between_steps = True
        due = every > 0 and step // every > self._step_before // every
        if self.every_n_minutes > 0:
            late = time.monotonic() - self._saved_at >= 60 * self.every_n_minutes
            due = trainer.strategy.broadcast(late) or due  # clocks differ, and all ranks must agree
        if due and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:  # see on_train_epoch_end
            self._save(trainer)
        if self._interrupted:
            raise KeyboardInterrupt

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `last.ckpt` after a validation within an epoch.

        After a validation at the end of an epoch `on_train_epoch_end` writes it, when best checkpoint and early
        stopping have seen the metrics. Resumed from here, they would never see them.
        """
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fitting and self._between_steps and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
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
        """Save the current state, so that `--ckpt_path last` continues after Ctrl-C, SIGTERM or an error."""
        self._restore_handler()
        ready = trainer.state.fn == "fit" and trainer.global_step > 0 and not trainer.sanity_checking
        if not ready or not self._between_steps or self._saved_step == trainer.global_step:
            return
        loop = trainer.fit_loop
        epochs: Any = loop.epoch_progress.current
        if self._between_epochs and epochs.ready > epochs.processed:
            loop.epoch_loop.batch_progress.reset_on_run()  # or the epoch that has begun would count as trained
        if trainer.validating:  # a resumed run repeats the whole validation: its metrics are not in the checkpoint
            validation = loop.epoch_loop.val_loop.batch_progress
            validation.reset()
            validation.increment_ready()
            validation.increment_started()
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(os.path.join(str(self.dirpath), "last.ckpt"), weights_only=False)
            self._saved_at, self._saved_step = time.monotonic(), trainer.global_step


# helpers


def metric_not_logged(option: str, metric: str, consequence: str, trainer: Trainer, pl_module: LightningModule) -> str:
    """The message for an option that names a metric which the module does not log."""
    logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
    return f"{option} {metric} is not logged by {type(pl_module).__name__}; {consequence}. Logged: {logged}"


def use_atomic_io(trainer: Trainer) -> None:
    """Let the Trainer write checkpoints atomically, unless it was given a `CheckpointIO`."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
