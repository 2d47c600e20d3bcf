"""Non-finite losses, gradients and weights: stop the run, or skip the step."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm

from swin_lightning.errors import UserError
from swin_lightning.ranges import check_arguments
from swin_lightning.strategies import full_tensor, local_tensor

REMEDY = "lower model.lr, raise model.warmup_epochs, set trainer.gradient_clip_val, or check the data"
SHOWN = 20  # sample indices in a message


class NonFinite(Callback):
    """Checks every optimizer step for a loss or a gradient that is NaN or infinite, before the weights change.

    No checkpoint is written while a weight is not finite. On a GPU the host reads the result of a step during the next
    one, so as not to wait for it, where the optimizer can be told on the device to leave the weights as they are
    (fused AdamW and Adam); with other optimizers, or to skip, it waits. With 16-bit mixed precision the gradient scaler
    deals with gradients, and the loss is checked.

    Args:
        action: `stop` the run with an error, or `skip` the step: the weights stay as they are, and the number of
            skipped steps is logged as `train/skipped_steps`.

    Raises:
        UserError: With step, epoch and sample indices, if the run stops.
    """

    def __init__(self, action: Literal["stop", "skip"] = "stop") -> None:
        check_arguments(NonFinite.__init__, locals(), "non_finite.")
        self.action = action
        self.skipped = 0
        self._indices: list[Tensor] = []  # of the samples of the current step, one entry per accumulated batch
        self._finite: Tensor | None = None  # whether the losses of the current step are
        self._pending: tuple[Tensor, Any, Step] | None = None  # the step before: flag on the host, its event

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._indices, self._finite, self._pending = [], None, None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if isinstance(batch, dict) and isinstance(batch.get("index"), Tensor):
            self._indices.append(batch["index"])

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        finite = torch.isfinite(loss.detach()).all()
        self._finite = finite if self._finite is None else self._finite & finite

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Check losses and gradients of the step, and raise or drop the gradients."""
        self._raise_pending()
        loss_finite = torch.tensor(True) if self._finite is None else self._finite
        step = Step(trainer.global_step + 1, trainer.current_epoch + 1, self._indices)
        self._indices, self._finite = [], None
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            if self.action == "stop" and not loss_finite:
                raise step.error()
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = full_tensor(get_total_norm([p.grad for p in parameters if not p.grad.is_sparse]))
        finite = torch.isfinite(norm)  # the same on all ranks, which the loss is not
        fused = all(group.get("fused") for group in optimizer.param_groups)
        if self.action == "skip":
            if not finite:
                for parameter in parameters:
                    parameter.grad = None  # optimizers pass over parameters without a gradient
                self.skipped += 1
            pl_module.log("train/skipped_steps", float(self.skipped))
        elif norm.device.type == "cuda" and fused:
            optimizer.found_inf = (~finite).float()  # the fused kernel then changes nothing
            flag = torch.empty((), dtype=torch.bool, pin_memory=True)
            flag.copy_(finite & loss_finite.to(norm.device), non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._pending = (flag, event, step)
        elif not (finite & loss_finite.to(norm.device)):
            raise step.error()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit" or (weights := non_finite_parameter(pl_module)) is None:
            return
        where = f"at step {trainer.global_step}, epoch {trainer.current_epoch + 1}"
        raise UserError(f"{weights} is not finite {where}; the previous checkpoint is kept. {REMEDY}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._raise_pending()

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def _raise_pending(self) -> None:
        if self._pending is None:
            return
        (flag, event, step), self._pending = self._pending, None
        event.synchronize()
        if not flag:
            raise step.error()


@dataclass(frozen=True)
class Step:
    """An optimizer step and epoch, counted from 1, and the indices of its samples on this rank."""

    step: int
    epoch: int
    indices: list[Tensor]

    def error(self) -> UserError:
        numbers = torch.cat(self.indices).tolist() if self.indices else []
        more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
        samples = f" with the samples {', '.join(map(str, numbers[:SHOWN]))}{more}" if numbers else ""
        return UserError(
            f"the loss or a gradient is not finite in step {self.step}, epoch {self.epoch}{samples}; {REMEDY}, "
            "or skip such steps with --non_finite.action skip"
        )


def non_finite_parameter(module: torch.nn.Module) -> str | None:
    """Name of the first parameter with a NaN or an infinity, None if there is none. Waits for a GPU once."""
    named = [(name, p.detach()) for name, p in module.named_parameters() if p.is_floating_point() and p.numel()]
    if not named:
        return None
    shards = [local_tensor(p) for _, p in named]
    largest = [torch.linalg.vector_norm(p, float("inf")) if p.numel() else p.new_zeros(()) for p in shards]
    bad = (~torch.isfinite(torch.stack(largest))).nonzero().flatten().tolist()
    return named[bad[0]][0] if bad else None
