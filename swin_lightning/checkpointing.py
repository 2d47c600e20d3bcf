"""Checkpoints from which a run goes on as if it had never stopped, to the last bit on a CPU.

What a step does follows from the weights, the optimizer's and the averages' state and the place in the epoch, which a
checkpoint holds, and from random numbers, of which it needs to hold none: the data's are functions of (seed, epoch,
index), and `PerStepSeed` makes torch's a function of (seed, epoch, step, rank). That serves all ranks and devices, where
a stored state would be that of one process.
"""

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
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from swin_lightning.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the old file, waits until the disk has it, then takes the old one's place.

    A kill, a full disk or a lost mount while writing leaves the previous checkpoint as it was, and there is no moment
    without one. The unfinished file (`.NAME.part`) is overwritten by the next attempt.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if "://" in str(path):  # object stores show a file when it is complete
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
        except (OSError, RuntimeError) as error:  # torch turns a failed write into a RuntimeError
            part.unlink(missing_ok=True)
            reason: BaseException | None = error
            while reason is not None and not isinstance(reason, OSError):
                reason = reason.__context__
            kept = "the previous one is kept" if target.exists() else "there is no earlier one"
            raise UserError(f"checkpoint {target} cannot be written ({reason or error}); {kept}") from error
        if hasattr(os, "O_DIRECTORY"):  # the new name, too, must survive a power cut
            folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


class PerStepSeed(Callback):
    """Seeds torch before every training batch by (seed, epoch, batch, rank): stochastic depth, dropout.

    The seed is that of the data.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed = getattr(trainer.datamodule, "seed", 0)  # type: ignore[attr-defined]
        key = (seed, trainer.current_epoch, batch_idx, trainer.global_rank, 1)  # the mixing has the one without the 1
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


class Checkpoint(ModelCheckpoint):
    """`best.ckpt` by validation accuracy, and `last.ckpt` by epochs, steps, minutes, and at an interruption.

    Both are replaced atomically. `last.ckpt` always lies between two optimizer steps: Ctrl-C waits for the end of one
    (and of the batches that it accumulates; a second Ctrl-C does not), and after an error in its midst the file of an
    earlier step stays.

    Args:
        monitor: Metric that decides which checkpoint is best.
        mode: Whether a larger (`max`) or a smaller (`min`) value is better.
        save_top_k: How many best checkpoints are kept.
        every_n_epochs: Epochs between checkpoints.
        every_n_train_steps: Optimizer steps between writings of `last.ckpt` within an epoch; 0 is off.
        every_n_minutes: Minutes between writings of `last.ckpt` within an epoch; 0 is off.
        dirpath: Folder; `checkpoints/` of the run by default.
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
            save_last=True,
            every_n_epochs=every_n_epochs,
            enable_version_counter=save_top_k != 1,
        )
        for name, value in {"every_n_train_steps": every_n_train_steps, "every_n_minutes": every_n_minutes}.items():
            if value < 0:
                raise UserError(f"checkpoint.{name} {value} must be at least 0; 0 is off")
        self.last_every_n_steps, self.last_every_n_minutes = every_n_train_steps, every_n_minutes
        self._written_at, self._written_step = 0.0, -1  # last.ckpt
        self._whole = True  # weights, averages and counters tell of the same step, and no gradient is waiting
        self._between_epochs = False
        self._interrupted = False
        self._handler: Any = None  # of SIGINT, before training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._written_at, self._whole, self._interrupted = time.monotonic(), True, False
        self._written_step = trainer.global_step  # of a resumed run: nothing is new before the first step
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, *_: Any) -> None:
        if self._whole or self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._restore_handler()

    def _restore_handler(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._whole = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write `last.ckpt` if it is time. Lightning calls checkpoints last: the averages have followed."""
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        self._whole = True
        due = self.last_every_n_steps > 0 and trainer.global_step % self.last_every_n_steps == 0
        if self.last_every_n_minutes > 0:
            late = time.monotonic() - self._written_at >= 60 * self.last_every_n_minutes
            due = bool(trainer.strategy.broadcast(late)) or due  # clocks differ, and all ranks must agree
        if due and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:  # the epoch's end writes its own
            self._write_last(trainer)
        if self._interrupted:
            raise KeyboardInterrupt

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._end_epoch(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self._end_epoch(trainer)  # if there was no validation
        self._between_epochs = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._between_epochs = False

    def _end_epoch(self, trainer: Trainer) -> None:
        """Write `last.ckpt` whether or not the epoch was the best, which Lightning alone asks for."""
        fits = trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if (
            fits
            and self._written_step != trainer.global_step
            and (trainer.current_epoch + 1) % self._every_n_epochs == 0
        ):
            self._write_last(trainer)

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Any]) -> None:
        if (
            self._written_step != trainer.global_step
        ):  # else the averages, by now in the weights' place, would replace them
            self._write_last(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save where the run stands, so that `--ckpt_path last` continues after Ctrl-C, SIGTERM or an error."""
        self._restore_handler()
        ready = trainer.state.fn == "fit" and trainer.global_step > 0 and not trainer.sanity_checking
        if ready and self._whole and self._written_step != trainer.global_step:
            loop = trainer.fit_loop
            epochs: Any = loop.epoch_progress.current
            if self._between_epochs and epochs.ready > epochs.processed:
                loop.epoch_loop.batch_progress.reset_on_run()  # or the epoch that has begun would count as trained
            self._write_last(trainer)

    def _write_last(self, trainer: Trainer) -> None:
        if self.dirpath:
            self.last_model_path = str(Path(self.dirpath) / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}")
            trainer.save_checkpoint(self.last_model_path, weights_only=False)
            self._written_at, self._written_step = time.monotonic(), trainer.global_step


class EMA(WeightAveraging):
    """Exponential moving average of the weights: validated, tested and saved in place of the raw ones.

    Args:
        decay: Share that the average keeps at every optimizer step; 0 leaves the averaging out.
    """

    def __init__(self, decay: float = 0.0) -> None:
        # averaging would round the integers of relative_position_index, and with them move every bias
        super().__init__(use_buffers=False)
        self.enabled = decay > 0
        self._follow = get_ema_multi_avg_fn(decay)
        self._swapped = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """What `AveragedModel.update_parameters` does, without reading from the device how often it was called."""
        if trainer.global_step <= self._latest_update_step:  # of accumulated batches only the last one makes a step
            return
        assert self._average_model is not None
        averages = [p.detach() for p in self._average_model.parameters()]
        weights = [p.detach() for p in pl_module.parameters()]
        if self._latest_update_step:
            self._follow(averages, weights, 0)
        else:
            for average, weight in zip(averages, weights, strict=True):
                average.copy_(weight)
        self._average_model.n_averaged += 1
        self._latest_update_step = trainer.global_step

    def _swap_models(self, pl_module: LightningModule) -> None:
        super()._swap_models(pl_module)
        self._swapped = not self._swapped

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":  # a test after fit keeps the averaged weights that were loaded
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._swapped:  # interrupted in validation: the checkpoint must find both sets in their places
            self._swap_models(pl_module)
