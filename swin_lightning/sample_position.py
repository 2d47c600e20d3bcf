"""The position of a checkpoint within the epoch, counted in samples.

Lightning counts the batches of one rank. Their size changes with the number of ranks and of accumulated batches, and so
would the position if a run were resumed with others.
"""

import logging
from typing import Any

from lightning import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)

KEY = "sample_position"  # in the checkpoint


class SamplePosition(Callback):
    """Lets a run be resumed with another number of ranks or accumulated batches, or another global batch size.

    It needs a data module with a method `micro_batch_size()`, as `ImageDataModule`; with any other, and for a
    checkpoint without the position, Lightning's count of batches stays as it is.
    """

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if samples := samples_per_batch(trainer):
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            checkpoint[KEY] = {
                "samples": progress["current"]["ready"] * samples,
                "per_batch": samples,
                "per_step": samples * trainer.accumulate_grad_batches,
            }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Convert Lightning's counts of batches, before the Trainer restores them, to batches of this run."""
        saved, per_batch = checkpoint.get(KEY), samples_per_batch(trainer)
        if trainer.state.fn != "fit" or not saved or not per_batch:
            return
        per_step = per_batch * trainer.accumulate_grad_batches
        if (saved["per_batch"], saved["per_step"]) == (per_batch, per_step):
            return
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        samples = saved["samples"]
        if progress["is_last_batch"]:
            batches = -(-samples // per_batch)
        else:
            begin = samples // per_step * per_step
            batches = begin // per_batch
            if begin != samples and trainer.is_global_zero:
                log.warning(
                    f"resuming at image {begin} of the epoch instead of {samples}, where a batch of {per_step} images "
                    f"begins: {samples - begin} images are seen twice"
                )
        epochs_before = progress["total"]["ready"] - progress["current"]["ready"]  # in batches
        shifts = {
            "current": batches - progress["current"]["ready"],
            "total": batches + round(epochs_before * saved["per_batch"] / per_batch) - progress["total"]["ready"],
        }
        for count, shift in shifts.items():  # of ready, started, processed and completed batches
            progress[count] = {name: value + shift for name, value in progress[count].items()}


def samples_per_batch(trainer: Trainer) -> int:
    """Training samples of one batch on all ranks together; 0 if the data module does not tell."""
    micro_batch_size = getattr(getattr(trainer, "datamodule", None), "micro_batch_size", None)
    return micro_batch_size() * trainer.world_size if callable(micro_batch_size) else 0
