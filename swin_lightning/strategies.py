"""Strategies for several devices: FSDP2, and the names that are not supported.

DDP in its variants is Lightning's. `trainer.strategy: fsdp2` names the class `FSDP2` below.
"""

import re
import sys
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
    StrategyRegistry,
)
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from swin_lightning.errors import UserError

FULL = StateDictOptions(full_state_dict=True)
STEPS = ("training_step", "validation_step", "test_step", "predict_step")


class FSDP2(ModelParallelStrategy):
    """Fully sharded data parallelism (FSDP2): weights, gradients and optimizer state are divided among all devices.

    Lightning's `ModelParallelStrategy` as it is divides the devices of a machine by tensor parallelism: with its
    default sizes, layers that are sharded over `device_mesh["data_parallel"]` do not average their gradients over the
    devices. Here all devices share a batch, as with DDP. A checkpoint is one file with the full state, the same as that
    of DDP, written by rank 0 through the Trainer's `CheckpointIO`; every rank reads it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(save_distributed_checkpoint=False, **options)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup(self, trainer: Trainer) -> None:
        if isinstance(self.precision_plugin, MixedPrecision) and self.precision_plugin.scaler is not None:
            raise UserError("trainer.precision 16-mixed: fsdp2 has no loss scaling; use bf16-mixed or 32-true")
        assert self.model is not None
        if not any(isinstance(p, DTensor) for p in self.model.parameters()):
            raise UserError(
                f"trainer.strategy fsdp2: {type(self.model).__name__} must call swin_lightning.strategies.shard in its "
                "configure_model, as Task does"
            )
        super().setup(trainer)

    def on_validation_start(self) -> None:
        """Use the buffers of rank 0, such as the statistics of a BatchNorm, as DDP does and as a checkpoint stores."""
        assert self.model is not None
        for buffer in self.model.buffers():
            torch.distributed.broadcast(buffer, src=0)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._resharded(super().validation_step(*args, **kwargs))

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._resharded(super().test_step(*args, **kwargs))

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._resharded(super().predict_step(*args, **kwargs))

    def _resharded(self, output: Any) -> Any:
        if isinstance(self.model, FSDPModule):
            self.model.reshard()  # in training, the backward pass does
        return output

    # Lightning's methods map the optimizer state by the order of the model's parameters, which is not that of the
    # parameter groups: state of a file by DDP would go to other parameters

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.model is not None
        load_full_state(self.model, checkpoint["state_dict"], strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        assert self.model is not None
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            named = _by_name(state, optimizer, self.model)
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=named, options=FULL)


StrategyRegistry.register("fsdp2", FSDP2, description="FSDP2: weights, gradients and optimizer state are sharded")


def shard(module: LightningModule, units: list[nn.Module]) -> None:
    """Shard a module over all processes, in place. The weights become those of rank 0.

    Each unit is gathered for its own forward and backward pass, everything else for the whole step.

    Args:
        module: On any device.
        units: Modules that are called through `forward`, none within another.

    Raises:
        UserError: For a parameter without dimensions.
    """
    device = module.trainer.strategy.root_device
    scalars = [name for name, p in module.named_parameters() if p.dim() == 0]
    if scalars:
        raise UserError(f"trainer.strategy fsdp2 cannot shard the scalar {', '.join(scalars)}; make it a vector of 1")
    with torch.no_grad():
        for tensor in chain(module.parameters(), module.buffers()):
            value = tensor.to(device)
            torch.distributed.broadcast(value, src=0)
            tensor.copy_(value)
    for unit in units:
        fully_shard(unit)
    fully_shard(module)
    for name in STEPS:
        register_fsdp_forward_method(module, name)


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks of a network: elements of a list or sequence of composed modules of one class.

    Of nested ones, such as stages and their blocks, the inner ones.
    """
    found: dict[nn.Module, None] = {}
    for container in module.modules():
        elements = list(container) if isinstance(container, nn.ModuleList | nn.Sequential) else []
        if len({type(element) for element in elements}) == 1 and all(any(e.children()) for e in elements):
            found |= dict.fromkeys(e for e in elements if any(True for _ in e.parameters()))
    return [block for block in found if not any(inner in found for inner in block.modules() if inner is not block)]


def load_full_state(module: nn.Module, state: Mapping[str, Any], strict: bool = True) -> None:
    """`load_state_dict` for a module that may be sharded; every rank gives the full state."""
    if any(isinstance(p, DTensor) for p in module.parameters()):
        set_model_state_dict(module, dict(state), options=StateDictOptions(full_state_dict=True, strict=strict))
    else:
        module.load_state_dict(state, strict=strict)


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded. All ranks must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be sharded, with the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def restore_progress(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Take epoch and step from a checkpoint at the end of training, after a fit in processes that have ended."""
    trainer.fit_loop.load_state_dict(checkpoint["loops"]["fit_loop"])
    epochs = trainer.fit_loop.epoch_progress.current
    epochs.completed = epochs.ready


TPU = "is not supported; use auto, ddp or fsdp2 on GPUs or CPUs"
UNSUPPORTED = {  # what a name begins with -> what is wrong and what to use
    "fsdp": "is not supported; use fsdp2",
    "deepspeed": "is not supported, since its checkpoints are folders; use fsdp2 or ddp",
    **dict.fromkeys(("xla", "single_xla", "single_tpu"), TPU),
}


def check_strategy(strategy: str | Strategy, sync_batchnorm: bool = False) -> None:
    """Refuse strategies that cannot work.

    Args:
        strategy: A name, or an object of Lightning's or the user's.
        sync_batchnorm: Option of the Trainer, which Lightning would ignore with FSDP2.

    Raises:
        UserError: For a name that does not exist, and for strategies that are not supported.
    """
    if sync_batchnorm and (isinstance(strategy, FSDP2) or strategy == "fsdp2"):
        raise UserError("trainer.sync_batchnorm true has no effect with fsdp2; use ddp, or SyncBatchNorm in the model")
    if isinstance(strategy, FSDPStrategy | DeepSpeedStrategy):
        prefix = "fsdp" if isinstance(strategy, FSDPStrategy) else "deepspeed"
        raise UserError(f"trainer.strategy {type(strategy).__name__} {UNSUPPORTED[prefix]}")
    if not isinstance(strategy, str):
        return
    if re.search("notebook|fork", strategy) and not hasattr(sys, "ps1"):  # set in notebooks and interactive sessions
        raise UserError(f"trainer.strategy {strategy} is for notebooks only; use ddp or ddp_spawn")
    reasons = {name: _refusal(name) for name in ("auto", *StrategyRegistry.available_strategies())}
    supported = [name for name, reason in reasons.items() if not reason and "unused_parameters" not in name]
    reason = reasons.get(strategy.lower(), f"does not exist; choose {', '.join(supported)}, or give a class_path")
    if reason:
        raise UserError(f"trainer.strategy {strategy} {reason}")


# helpers


def _refusal(name: str) -> str:
    return next((why for prefix, why in UNSUPPORTED.items() if name.startswith(prefix) and name != "fsdp2"), "")


def _by_name(state: Mapping[str, Any], optimizer: Optimizer, module: nn.Module) -> dict[str, Any]:
    """State of an optimizer with names of parameters in place of numbers; they correspond by their order."""
    names = {id(p): name for name, p in module.named_parameters()}
    ours = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    theirs = [group["params"] for group in state["param_groups"]]
    if [*map(len, ours)] != [*map(len, theirs)]:
        raise UserError(
            f"the optimizer of the checkpoint has parameter groups of {[*map(len, theirs)]} parameters, this run of "
            f"{[*map(len, ours)]}; resume with the same model and freeze options"
        )
    name_of = dict(zip(chain(*theirs), chain(*ours), strict=True))
    groups = [{**group, "params": params} for group, params in zip(state["param_groups"], ours, strict=True)]
    return {"state": {name_of[key]: value for key, value in state["state"].items()}, "param_groups": groups}
