"""Checkpoints and exact resume (bitwise on a CPU).

The result of a step depends on the weights, the optimizer, the averaged weights and the position in the epoch, which a
checkpoint stores, and on random numbers, which it need not store: those of the data are functions of (seed, epoch,
index) or (seed, epoch, step), and `PerStepSeed` seeds torch by (seed, epoch, step, accumulated batch, rank). This holds
for any number of ranks and devices, whereas a stored generator state would be that of one process.
"""

import logging
import os
from typing import Annotated, Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint

from swin_lightning.checkpoint_io import use_atomic_io
from swin_lightning.errors import UserError
from swin_lightning.last_checkpoint import LastCheckpoint
from swin_lightning.monitors import DEFAULT_MONITOR, Mode, find_mode, is_written, not_logged, resolve_mode
from swin_lightning.ranges import NonNegative, NonNegativeInt, PositiveInt, Range, check_arguments

log = logging.getLogger(__name__)


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
