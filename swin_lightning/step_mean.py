"""Values that are logged once per optimizer step, for the whole global batch."""

from lightning import Trainer
from torch import Tensor


class StepMean:
    """Mean of a value over an optimizer step: over its accumulated batches, and over the devices when it is logged."""

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._count = 0

    def update(self, trainer: Trainer, value: Tensor) -> Tensor:
        """The mean over the batches of this step so far.

        It is a mean over the devices, a collective operation, where the Trainer logs it: at the last batch of a logged
        step, and of an epoch. Nothing here makes the host wait for a GPU.

        Args:
            trainer: The Trainer, within `training_step`.
            value: Scalar of this batch on this device.
        """
        batch, accumulate = trainer.fit_loop.epoch_loop.batch_idx, trainer.accumulate_grad_batches
        if batch % accumulate == 0:
            self._sum, self._count = 0.0, 0
        self._sum, self._count = self._sum + value.detach(), self._count + 1
        mean = self._sum / self._count
        if trainer.is_last_batch or ((batch + 1) % accumulate == 0 and should_log(trainer)):
            mean = trainer.strategy.reduce(mean, reduce_op="mean")
        return mean


def should_log(trainer: Trainer) -> bool:
    """Whether the Trainer logs the step of the current batch; valid until its optimizer step.

    The Trainer counts optimizer steps, and with manual optimization batches.
    """
    automatic = trainer.lightning_module.automatic_optimization
    count = trainer.global_step if automatic else trainer.fit_loop.total_batch_idx
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and (count + 1) % every == 0
