"""Averaged weights: exponential moving average (EMA)."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from swin_lightning.ranges import Rate, check_arguments
from swin_lightning.strategies import full_tensor, load_full_state, local_tensor


class EMA(Callback):
    """Exponential moving average of the weights: validated, tested and saved in place of the raw weights.

    Buffers, such as the statistics of a BatchNorm, are not averaged: those of the model are used. A checkpoint has the
    averages in `state_dict` and the raw weights in `current_model_state`, as with Lightning's `WeightAveraging`. That
    callback copies the whole module, which cannot be sharded then, and makes the host wait for a GPU at every step.

    Args:
        decay: Weight of the average at every optimizer step; 0 disables averaging.

    Raises:
        UserError: If the decay is not in [0, 1).
    """

    def __init__(self, decay: Rate = 0.0) -> None:
        check_arguments(EMA.__init__, locals(), "ema.")
        self.decay = decay
        self.enabled = decay > 0
        self.averages: dict[str, Tensor] = {}  # by name of the parameter; empty before the first step
        self._last_step = self._updates = 0  # optimizer step of the last update; number of updates
        self._swapped = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.averages = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._last_step and not self.averages:  # a second fit
            self._start(pl_module)
        self.averages = {name: average.to(pl_module.device) for name, average in self.averages.items()}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step <= self._last_step:  # gradients are being accumulated
            return
        if self.averages:
            averages, weights = zip(*self._pairs(pl_module), strict=True)
            get_ema_multi_avg_fn(self.decay)([*averages], [*weights], 0)  # type: ignore[no-untyped-call]
        else:
            self._start(pl_module)
        self._last_step = trainer.global_step
        self._updates += 1

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and self.averages:
            self._swap(pl_module)
            self._swapped = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._swapped:
            self._swap(pl_module)
            self._swapped = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_validation_epoch_end(trainer, pl_module)  # the checkpoint needs both sets of weights in their places

    @torch.no_grad()
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for average, weight in self._pairs(pl_module):
            weight.copy_(average)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self.averages:
            return
        averaged = {}  # by parameter, which may have several names
        for name, parameter in pl_module.named_parameters():
            average = full_tensor(self.averages[name])
            if average is not self.averages[name]:
                average = average.cpu() if trainer.is_global_zero else average.new_empty(0)
            averaged[parameter] = average
        state = checkpoint["state_dict"]
        named = {n: averaged[p] for n, p in pl_module.named_parameters(remove_duplicate=False) if n in state}
        checkpoint["current_model_state"], checkpoint["state_dict"] = state, {**state, **named}
        checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self._updates)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":  # a test after fit keeps the averaged weights that were loaded
            return
        self.averages = {}
        if "current_model_state" in checkpoint:
            self._start(pl_module)  # Lightning has loaded `state_dict`
            self._updates = int(checkpoint["averaging_state"]["n_averaged"])
            load_full_state(pl_module, checkpoint["current_model_state"])

    def state_dict(self) -> dict[str, Any]:
        return {"latest_update_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last_step = state_dict["latest_update_step"]

    # helpers

    def _start(self, pl_module: LightningModule) -> None:
        self.averages = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def _pairs(self, pl_module: LightningModule) -> list[tuple[Tensor, Tensor]]:
        """Averages and weights, of sharded parameters this rank's part."""
        weights = {name: p.detach() for name, p in pl_module.named_parameters()}
        return [(local_tensor(average), local_tensor(weights[name])) for name, average in self.averages.items()]

    @torch.no_grad()
    def _swap(self, pl_module: LightningModule) -> None:
        for average, weight in self._pairs(pl_module):
            saved = average.clone()
            average.copy_(weight)
            weight.copy_(saved)
