"""Averaged weights: exponential moving average (EMA)."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class EMA(WeightAveraging):
    """Exponential moving average of the weights: validated, tested and saved in place of the raw weights.

    Lightning's callback updates by `AveragedModel.update_parameters`, which reads a counter from the device and thereby
    makes the host wait for a GPU at every step; the update here does not. Buffers, such as the statistics of a
    BatchNorm, are not averaged but copied from the model when the averages are used.

    Args:
        decay: Weight of the average at every optimizer step; 0 disables averaging.
    """

    def __init__(self, decay: float = 0.0) -> None:
        super().__init__(use_buffers=False)  # averaging would round the integers of relative_position_index
        self.enabled = decay > 0
        self._average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._last_step = 0  # optimizer step of the last update
        self._swapped = False

    @property
    def average_model(self) -> AveragedModel | None:
        """The averaged model, None outside of `fit`."""
        return self._average_model  # private: WeightAveraging has no public access to it

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step <= self._last_step:  # gradients are being accumulated
            return
        assert self.average_model is not None
        averages = [p.detach() for p in self.average_model.parameters()]
        weights = [p.detach() for p in pl_module.parameters()]
        if self._last_step:
            self._average(averages, weights, 0)
        else:
            for average, weight in zip(averages, weights, strict=True):
                average.copy_(weight)
        self.average_model.n_averaged += 1
        self._last_step = trainer.global_step

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._copy_buffers(pl_module)
            super().on_validation_epoch_start(trainer, pl_module)
            self._swapped = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._swapped:
            super().on_validation_epoch_end(trainer, pl_module)
            self._swapped = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_validation_epoch_end(trainer, pl_module)  # the checkpoint needs both sets of weights in their places

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._copy_buffers(pl_module)
        super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.average_model is not None:
            self._copy_buffers(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":  # a test after fit keeps the averaged weights that were loaded
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def state_dict(self) -> dict[str, Any]:
        return {"latest_update_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last_step = state_dict["latest_update_step"]

    def _copy_buffers(self, pl_module: LightningModule) -> None:
        assert self.average_model is not None
        for average, current in zip(self.average_model.module.buffers(), pl_module.buffers(), strict=True):
            average.copy_(current)
