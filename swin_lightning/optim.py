"""Parameter groups and learning-rate schedules of the Swin recipes."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from swin_lightning.errors import UserError

# position bias tables, the networks that generate them, and mask tokens (official `no_weight_decay_keywords`)
NO_DECAY = ("relative_position_bias_table", "absolute_pos_embed", "cpb_mlp", "logit_scale", "mask_token")

ScheduleName = Literal["cosine", "linear", "constant", "step", "wsd"]


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    layer_id: Callable[[str], int] | None = None,
) -> list[dict[str, Any]]:
    """Group the trainable parameters by weight decay and depth.

    Vectors (norms, biases) and the names in `NO_DECAY` get no weight decay. With `layer_decay` below 1 the learning
    rate of layer i is `lr * layer_decay ** (last - i)`. It is written into the group, so it holds for any optimizer
    and any scheduler.

    Args:
        model: Module with the parameters; those without `requires_grad` are left out.
        lr: Learning rate of the last layer.
        weight_decay: Weight decay of matrices and convolutions.
        layer_decay: Factor from one layer to the one before it.
        layer_id: Maps a parameter name to its depth; required if `layer_decay` is not 1.

    Returns:
        Named groups for an optimizer. Source: microsoft/Swin-Transformer, optimizer.py.

    Raises:
        UserError: If `layer_decay` is not 1 and the depth is unknown, or no parameter is trainable.
    """
    if layer_decay != 1.0 and layer_id is None:
        raise UserError(
            f"model.layer_decay {layer_decay} needs a backbone with a method layer_id(name); "
            "add one to yours, or set layer_decay to 1"
        )
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not parameters:
        raise UserError("no parameter is trainable; check model.freeze")
    depth = {name: layer_id(name) if layer_id and layer_decay != 1.0 else 0 for name, _ in parameters}
    last = max(depth.values())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in parameters:
        decayed = parameter.ndim > 1 and not any(keyword in name for keyword in NO_DECAY)
        group = groups.setdefault(
            (depth[name], decayed),
            {
                "name": f"layer{depth[name]}_" * (layer_decay != 1.0) + ("decay" if decayed else "no_decay"),
                "params": [],
                "lr": lr * layer_decay ** (last - depth[name]),
                "weight_decay": weight_decay if decayed else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def lr_factor(
    schedule: ScheduleName,
    step: float,
    total: float,
    warmup: float,
    start: float,
    end: float,
    decay_every: float = math.inf,
    decay_rate: float = 0.1,
    decay_share: float = 0.2,
) -> float:
    """Factor on the learning rate at an optimizer step: linear warm-up from `start` to 1, then the schedule.

    Args:
        schedule: `cosine` or `linear` to `end`; `constant`; `step`: times `decay_rate` every `decay_every` steps;
            `wsd` (warm-up, stable, decay): constant, then linear to `end` over the last `decay_share` of all steps.
        step: Optimizer step, from 0.
        total: Steps of the run.
        warmup: Steps of the warm-up.
        start: Factor at step 0 if there is a warm-up.
        end: Factor at step `total`.
        decay_every: Steps between decays of `step`, counted from the start of the run as in the official code.
        decay_rate: Factor of each decay of `step`.
        decay_share: Share of the run in which `wsd` decays (Hu et al., 2024, arXiv:2404.06395).
    """
    if step < warmup:
        return start + (1 - start) * step / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return float(decay_rate ** (step // decay_every))
    begin = max(warmup, total * (1 - decay_share)) if schedule == "wsd" and total < math.inf else warmup
    progress = min(1.0, max(0.0, (step - begin) / max(1, total - begin)))
    if schedule == "cosine":
        return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress))
    return end + (1 - end) * (1 - progress)


class Muon(Optimizer):
    """Muon for matrices, AdamW for all other parameters, as one optimizer.

    Muon steps along the orthogonal matrix that is nearest to the momentum. The length of a step is that of AdamW, so
    that learning rates and weight decays of AdamW can be kept. A matrix is a parameter of two dimensions; those in a
    group whose name ends in `no_decay`, such as tables of position biases, are left to AdamW.

    Sources: Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/; Liu et al., 2025, arXiv:2502.16982,
    section 2.2, for the scale; the steps are those of `torch.optim.Muon` and `torch.optim.AdamW`.

    Args:
        params: Parameters, or groups such as those of `parameter_groups`.
        lr: Learning rate of both.
        weight_decay: Weight decay of both, for parameters that are not in groups.
        momentum: Momentum of Muon.
        betas: Averages of AdamW.

    Raises:
        UserError: If torch is older than 2.9.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise UserError(f"swin_lightning.optim.Muon needs torch 2.9 or later; this is torch {torch.__version__}")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add the matrices of a group as one group, and its other parameters as a second one."""
        group = {**self.defaults, **param_group}
        parameters = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        tables = str(group.get("name", "")).endswith("no_decay")
        for muon in (True, False):
            chosen = [p for p in parameters if (p.ndim == 2 and not tables) == muon]
            if chosen:
                name = {"name": group["name"] + "_muon" * muon} if "name" in group else {}
                fused = {} if muon else {"fused": None}  # chosen by the task, as for AdamW
                super().add_param_group({**group, "params": chosen, "muon": muon, **name, **fused})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; returns the result of `closure`, which computes loss and gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for muon in (True, False):
            groups = [group for group in self.param_groups if group["muon"] == muon]
            if groups:
                # built here: groups and state are new objects after load_state_dict
                kind = partial(torch.optim.Muon, adjust_lr_fn="match_rms_adamw") if muon else AdamW
                part: Optimizer = kind(groups)
                part.state = self.state
                part.step()
        return loss


class FactorLR(LRScheduler):
    """Multiply the initial learning rate of every group by `factor(step)`.

    Unlike `LambdaLR` it accepts groups that are added later, as Lightning's `BackboneFinetuning` does; their learning
    rates are left to the callback that added them.

    Args:
        optimizer: Optimizer.
        factor: Maps the number of scheduler steps to a factor.
        last_epoch: As in every scheduler of torch.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float], last_epoch: int = -1) -> None:
        self.factor = factor
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        factor = self.factor(self.last_epoch)
        groups = self.optimizer.param_groups
        return [group["initial_lr"] * factor if "initial_lr" in group else group["lr"] for group in groups]

    def state_dict(self) -> dict[str, Any]:
        """The state without `factor`, which is rebuilt from the configuration."""
        return {key: value for key, value in super().state_dict().items() if key != "factor"}


def rescale_lr(optimizer: Optimizer, scheduler: LRScheduler | None, scale: float) -> None:
    """Multiply the learning rates of an optimizer and the base of its schedule, before the first step."""
    for group in optimizer.param_groups:
        if "initial_lr" in group:
            group["initial_lr"] *= scale
            group["lr"] = group["initial_lr"]
    if scheduler is None:
        return
    scheduler.base_lrs = [lr * scale for lr in scheduler.base_lrs]
    if isinstance(scheduler, FactorLR):
        for group, lr in zip(optimizer.param_groups, scheduler.get_lr(), strict=True):
            group["lr"] = lr
