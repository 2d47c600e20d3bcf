"""Task: what every training task shares. Backbone, weights, freezing, optimizer, schedule, compilation."""

import inspect
import math
import os
import warnings
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from jsonargparse.typing import register_type
from lightning import LightningModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler, Timer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from swin_lightning.checkpoint_classes import Allowed
from swin_lightning.errors import UserError, summarize
from swin_lightning.models.linear import use_onednn
from swin_lightning.models.resize import BiasResize
from swin_lightning.models.weights import HeadRows, load_weights
from swin_lightning.optim import FactorLR, Muon, ScheduleName, lr_factor, parameter_groups, rescale_lr
from swin_lightning.ranges import LearningRate, NonNegative, Positive, Share, check_arguments
from swin_lightning.run_check import check_rates, check_run
from swin_lightning.step_mean import StepMean
from swin_lightning.strategies import FSDP2, repeated_blocks, shard
from swin_lightning.tasks.loading import load_module

CompileMode = Literal["reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
OptimizerFactory = Callable[[Iterable[Any], float], Optimizer]  # (parameter groups, lr); lr is an option of the task
SchedulerFactory = Callable[[Optimizer], LRScheduler]
# the stages of a backbone share their code: without this option they share one limit of recompilations as well
ISOLATED = {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}

# lists of numbers in a configuration become tensors, such as the class weights of a loss
register_type(
    Tensor,
    serializer=lambda tensor: tensor.tolist(),
    deserializer=lambda values: torch.tensor(values, dtype=torch.get_default_dtype()),
    fail_already_registered=False,
)


class Task(LightningModule):
    """Base of the tasks: a backbone and how it is trained. A subclass adds its head, its loss and its metrics.

    A subclass calls `finish_init()` at the end of its `__init__`, when all of its modules exist.

    Args:
        backbone: The network. For `weights` of other projects it is a `SwinTransformer` or `SwinTransformerV2`.
        lr: Peak learning rate for the global batch, not scaled by anything.
        weight_decay: Weight decay of matrices and convolutions; norms, biases and bias tables have none.
        layer_decay: Factor on the learning rate from one layer to the one before it.
        optimizer: Class of `torch.optim` or your own, called with parameter groups and `lr`; AdamW by default. Learning
            rate and weight decay are set per group, so they are not options of the optimizer.
        lr_schedule: `cosine`, `linear`, `constant`, `step`, `wsd` (warm-up, stable, decay), or a class of
            `torch.optim.lr_scheduler` or your own, called with the optimizer. The run ends, for the schedule, at the
            first of `max_epochs`, `max_steps` and `max_time`.
        lr_interval: Update the learning rate every `step` or `epoch`; by default every step for a schedule given by
            name and every epoch for a class.
        warmup_epochs: Epochs of linear warm-up, for a class of schedule as well.
        warmup_lr: Learning rate of the first step if there is a warm-up.
        min_lr: Learning rate at the end of `cosine`, `linear` and `wsd`.
        lr_decay_epochs: Epochs between decays of `step`.
        lr_decay_rate: Factor of each decay of `step`.
        lr_decay_share: Share of the run, at its end, in which `wsd` decays.
        freeze: Parameters that are not trained: `backbone` (linear probe), or name patterns such as
            `backbone.layers.0` or `*.norm*`. Modules that are frozen as a whole stay in evaluation mode.
        weights: File to load the parameters from, see `models.weights`.
        bias_resize: How bias tables in `weights` of another window size are resized: `bicubic` as in the official code,
            `geometric` as in SimMIM.
        head_rows: `imagenet22k` initialises an ImageNet-1K head from the rows of an ImageNet-22K head in `weights`.
        compile: Compile the backbone with torch.compile, with its default mode or the one given. Stochastic depth then
            computes dropped samples too, so that shapes are static.
        gradient_checkpointing: Recompute the blocks in the backward pass to save memory.

    Raises:
        UserError: If an argument is out of range, the weights do not fit, or the backbone lacks what an option needs.
    """

    def __init__(
        self,
        backbone: nn.Module,
        lr: LearningRate = 1e-3,
        weight_decay: NonNegative = 0.05,
        layer_decay: Share = 1.0,
        optimizer: OptimizerFactory | None = None,
        lr_schedule: ScheduleName | SchedulerFactory = "cosine",
        lr_interval: Literal["step", "epoch"] | None = None,
        warmup_epochs: NonNegative = 0.0,
        warmup_lr: NonNegative = 1e-6,
        min_lr: NonNegative = 1e-5,
        lr_decay_epochs: Positive = 30.0,
        lr_decay_rate: Share = 0.1,
        lr_decay_share: Share = 0.2,
        freeze: str | list[str] | None = None,
        weights: str | None = None,
        bias_resize: BiasResize = "bicubic",
        head_rows: HeadRows | None = None,
        compile: bool | CompileMode = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        check_arguments(Task.__init__, locals(), "model.")
        check_rates(lr, min_lr, warmup_lr, weight_decay if optimizer is None else 0.0, lr_schedule, warmup_epochs)
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Attribute .* is an instance of")  # removed below
            self.save_hyperparameters(logger=False)  # the command line logs the whole configuration under its own keys
        self.hparams["weights"] = None  # a checkpoint has its own
        for name in [name for name, value in self.hparams.items() if not _is_plain(value)]:
            del self.hparams[name]  # built in Python: a checkpoint holds plain values only
        self.lr, self.min_lr, self.layer_decay, self.weight_decay = lr, min_lr, layer_decay, weight_decay
        self.optimizer, self.lr_schedule, self.lr_interval = optimizer, lr_schedule, lr_interval
        self.warmup_epochs, self.warmup_lr = warmup_epochs, warmup_lr
        self.lr_decay_epochs, self.lr_decay_rate, self.lr_decay_share = lr_decay_epochs, lr_decay_rate, lr_decay_share
        self.freeze_patterns = [freeze] if isinstance(freeze, str) else list(freeze or [])
        self.weights, self.bias_resize, self.head_rows = weights, bias_resize, head_rows
        self.compile_backbone = compile
        self._frozen: list[nn.Module] = []
        self._finished = False
        self._step_means: dict[str, StepMean] = {}

        self.backbone = backbone
        if gradient_checkpointing:
            if not hasattr(backbone, "set_grad_checkpointing"):
                name = type(backbone).__name__
                raise UserError(f"model.gradient_checkpointing: {name} has no set_grad_checkpointing()")
            backbone.set_grad_checkpointing()  # type: ignore[operator]

    def finish_init(self) -> None:
        """Load `weights`, then apply `freeze`. A subclass that does not call it has both done in `setup`."""
        if self._finished:
            return
        self._finished = True
        if self.weights is not None:
            load_weights(self, self.weights, self.bias_resize, self.head_rows)
        self._freeze(strict=False)  # a subclass may have more modules to come

    def log_step_mean(self, name: str, value: Tensor, **options: Any) -> None:
        """Log a value of `training_step` for the global batch: its mean over accumulated batches and devices.

        Args:
            name: Name of the value, such as `train/loss`.
            value: Scalar, the mean over this batch on this device.
            **options: Arguments of `log`.
        """
        try:
            trainer = self.trainer
        except RuntimeError:  # a step without a Trainer, where `log` does nothing either
            return
        self.log(name, self._step_means.setdefault(name, StepMean()).update(trainer, value), **options)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # without the options of Lightning that run code
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        *,
        allow: Allowed = (),
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Self:
        """The task of a checkpoint in evaluation mode, see `load_module` for its arguments and errors.

        `map_location` is a device, by default the CPU; `weights_only` is always true: a checkpoint never runs code.
        """
        if weights_only is False:
            raise UserError("load_from_checkpoint: weights_only=False would run code from the file; leave it out")
        task = load_module(checkpoint_path, cls, allow, strict, **kwargs)
        return task if map_location is None else task.to(map_location)

    # Lightning's hooks

    def setup(self, stage: str) -> None:
        self.finish_init()
        self._freeze(strict=True)
        use_onednn(self)
        if self.compile_backbone:
            mode = self.compile_backbone if isinstance(self.compile_backbone, str) else None
            for module in self.compiled_modules():
                # in place, which keeps parameter names; static shapes, since dynamic=True took >20 min to compile
                module.compile(mode=mode, dynamic=False, **ISOLATED)
            self.compile_backbone = False

    def configure_model(self) -> None:
        """Shard the parameters, under the strategy `fsdp2` alone."""
        if self.device_mesh is None or isinstance(self, FSDPModule):  # another strategy, or a test after fit
            return
        if not isinstance(self.trainer.strategy, FSDP2):
            raise UserError(
                f"trainer.strategy {type(self.trainer.strategy).__name__}: {type(self).__name__} is sharded by fsdp2; "
                "for another parallelism override its configure_model"
            )
        shard(self, self.sharded_units())

    def sharded_units(self) -> list[nn.Module]:
        """Modules that `fsdp2` gathers one at a time; all others are gathered for the whole step.

        By default the blocks of the backbone: the elements of a `ModuleList` or `Sequential` of one class. Override it
        for a backbone that has no such elements, or that does not call them through `forward`.
        """
        return repeated_blocks(self.backbone)

    def compiled_modules(self) -> list[nn.Module]:
        """Modules that `compile` compiles. Override it for a task that does not call the backbone as a whole."""
        return [self.backbone]

    @property
    def seed(self) -> int:
        """Seed of random numbers that a task draws by itself: that of the data module, else `seed_everything`.

        Draw them as a function of it, the epoch and `batch["index"]`, and they depend neither on the number of
        processes nor on a resume.
        """
        try:
            seed = getattr(getattr(self.trainer, "datamodule", None), "seed", None)
        except RuntimeError:  # without a Trainer
            seed = None
        return seed if isinstance(seed, int) else int(os.environ.get("PL_GLOBAL_SEED", 0))

    def train(self, mode: bool = True) -> "Task":
        super().train(mode)
        for module in self._frozen if mode else []:
            module.eval()  # statistics of norms, dropout and stochastic depth
        return self

    def configure_optimizers(self) -> Any:
        """The optimizer over `parameter_groups`, and the schedule."""
        layer_id = getattr(self.backbone, "layer_id", None)
        groups = parameter_groups(
            self, self.lr, self.weight_decay, self.layer_decay, layer_id and _strip_backbone(layer_id)
        )
        optimizer = self._build_optimizer(groups)
        if callable(self.lr_schedule):
            scheduler = _call("model.lr_schedule", self.lr_schedule, optimizer)
            interval = self.lr_interval or "epoch"
        else:
            scheduler, interval = FactorLR(optimizer, self._lr_factor), self.lr_interval or "step"
        self._lr_of_schedule = self.lr
        config = {"scheduler": scheduler, "interval": interval, "name": "lr"}
        if isinstance(scheduler, ReduceLROnPlateau):
            config["monitor"] = "val/loss" if scheduler.mode == "min" else "val/acc"
        return {"optimizer": optimizer, "lr_scheduler": config}

    def on_fit_start(self) -> None:
        check_run(self.trainer, self, getattr(self.trainer, "datamodule", None))

    def on_train_start(self) -> None:
        """Follow `lr` where it was changed after the optimizer was built, as by Lightning's LearningRateFinder."""
        scale = self.lr / getattr(self, "_lr_of_schedule", self.lr)
        if scale != 1.0:
            rescale_lr(self.trainer.optimizers[0], self.trainer.lr_scheduler_configs[0].scheduler, scale)
            self._lr_of_schedule = self.lr

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """One optimizer step; a schedule given as a class is warmed up here, since it does not know of the warm-up."""
        factor = self._warmup_factor()
        if factor == 1.0:
            return super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        scheduled = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] *= factor
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        for group, lr in zip(optimizer.param_groups, scheduled, strict=True):
            group["lr"] = lr

    # helpers

    def _freeze(self, strict: bool) -> None:
        for pattern in self.freeze_patterns:
            matched = [p for name, p in self.named_parameters() if _matches(name, pattern)]
            if strict and not matched:
                names = ", ".join(dict.fromkeys(name.split(".")[0] for name, _ in self.named_parameters()))
                raise UserError(f"model.freeze {pattern!r} matches no parameter; the modules are {names}")
            for parameter in matched:
                parameter.requires_grad_(False)
        if not self.freeze_patterns:
            return
        parameters = {module: list(module.parameters()) for module in self.modules()}
        self._frozen = [module for module, own in parameters.items() if own and not any(p.requires_grad for p in own)]
        self.train(self.training)

    def _build_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        if self.optimizer is None:
            optimizer: Optimizer = AdamW(groups, lr=self.lr)
        else:
            optimizer = _call("model.optimizer", self.optimizer, groups, self.lr)
        name, defaults = type(optimizer).__name__, optimizer.defaults
        if defaults.get("lr", self.lr) != self.lr:
            raise UserError(f"model.optimizer: {name} must take (params, lr, ...): lr is its second argument")
        decay = defaults.get("weight_decay", 0.0)
        if self.optimizer is not None and decay not in (_default(type(optimizer), "weight_decay"), self.weight_decay):
            raise UserError(
                f"model.optimizer.weight_decay {decay} has no effect; set model.weight_decay, which applies per group"
            )
        if "weight_decay" in defaults:
            defaults["weight_decay"] = self.weight_decay  # for groups that are added later
        if isinstance(optimizer, (Adam, AdamW, Muon)) and self.device.type in ("cuda", "cpu"):
            for group in optimizer.param_groups:
                # a third of the time of the default; set here and not in the constructor, since AdamW(fused=True)
                # unscales float16 gradients itself, which rules out clipping
                others = any(group.get(key) for key in ("foreach", "capturable", "differentiable"))
                if group.get("fused", False) is None and not others:
                    group["fused"] = True
        return optimizer

    def _lr_factor(self, count: int) -> float:
        """Factor of a schedule given by name after `count` scheduler steps."""
        # Evaluated lazily: reading the number of steps in configure_optimizers would make the Trainer build the loaders
        # before a resumed run knows its position (Lightning-AI/pytorch-lightning#20550).
        start, end = self.warmup_lr / self.lr, self.min_lr / self.lr
        if count == 0:
            return start if self.warmup_epochs else 1.0
        per_epoch = self._steps_per_epoch()
        step = count * per_epoch if self.lr_interval == "epoch" else count
        schedule = self.lr_schedule
        assert isinstance(schedule, str)
        total = self._total_steps(step)
        if math.isinf(total) and schedule in ("cosine", "linear", "wsd"):
            raise UserError(
                f"model.lr_schedule {schedule} needs an end of the run: set trainer.max_epochs, max_steps or max_time"
            )
        warmup, decay_every = round(self._steps_of(self.warmup_epochs)), max(1, round(self.lr_decay_epochs * per_epoch))
        return lr_factor(
            schedule, step, total, warmup, start, end, decay_every, self.lr_decay_rate, self.lr_decay_share
        )

    def _warmup_factor(self) -> float:
        """Factor of the warm-up on a schedule given as a class."""
        if not (self.warmup_epochs and callable(self.lr_schedule)):
            return 1.0
        step, warmup = self.trainer.global_step, round(self._steps_of(self.warmup_epochs))
        return lr_factor("constant", step, math.inf, warmup, self.warmup_lr / self.lr, 1.0)

    def _steps_per_epoch(self, accumulate: int | None = None) -> int:
        return max(
            1, math.ceil(self.trainer.num_training_batches / (accumulate or self.trainer.accumulate_grad_batches))
        )

    def _steps_of(self, epochs: float) -> float:
        """Optimizer steps of the first epochs of the run; Lightning's callback may accumulate differently in each."""
        callbacks = cast(Any, self.trainer).callbacks
        schedule = next((c for c in callbacks if isinstance(c, GradientAccumulationScheduler)), None)
        if schedule is None:
            return epochs * self._steps_per_epoch()
        steps = [self._steps_per_epoch(schedule.get_accumulate_grad_batches(k)) for k in range(math.ceil(epochs))]
        return sum(steps) - (math.ceil(epochs) - epochs) * (steps[-1] if steps else 0)

    def _total_steps(self, step: int) -> float:
        """Optimizer steps of the run by the first of max_epochs, max_steps and max_time; the last is extrapolated."""
        trainer = self.trainer
        limits = [math.inf]
        if trainer.max_steps >= 0:
            limits.append(trainer.max_steps)
        if trainer.max_epochs is not None and trainer.max_epochs >= 0:
            limits.append(self._steps_of(trainer.max_epochs))
        for timer in (c for c in cast(Any, trainer).callbacks if isinstance(c, Timer)):  # of max_time
            elapsed, remaining = timer.time_elapsed(), timer.time_remaining()
            if remaining is not None and elapsed > 0:
                share = elapsed / max(elapsed, elapsed + remaining)
                limits.append(step / float(trainer.strategy.broadcast(share)))  # clocks differ between ranks
        return min(limits)


# helpers


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict | list | tuple):
        return all(map(_is_plain, [*value, *(value.values() if isinstance(value, dict) else ())]))
    return value is None or isinstance(value, str | int | float | bool)


def _call(option: str, factory: Callable[..., Any], *args: Any) -> Any:
    """Call what an option names; arguments that it rejects are the user's mistake."""
    try:
        return factory(*args)
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UserError(f"{option}: {summarize(error)}; check its arguments") from error


def _default(cls: type, name: str) -> Any:
    parameter = inspect.signature(cls).parameters.get(name)
    return parameter.default if parameter else 0.0


def _strip_backbone(layer_id: Callable[[str], int]) -> Callable[[str], int]:
    """Depth by the task's parameter names: those of the backbone lose their prefix, the others keep their names."""
    return lambda name: layer_id(name.removeprefix("backbone."))
