"""Ranges of options of other libraries, whose annotations have none: the Trainer's, and those of losses of torch."""

from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Any, Literal

from lightning import Trainer
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy, StrategyRegistry
from torch import nn

from swin_lightning import strategies
from swin_lightning.ranges import NonNegative, NonNegativeInt, Pattern, PositiveInt, Probability, Rate, Share

assert strategies  # registers `fsdp2`
ACCELERATORS = ("auto", "gpu", *sorted(AcceleratorRegistry.available_accelerators()))
COMMON_STRATEGIES = "auto, ddp, ddp_spawn, ddp_notebook, fsdp2"  # the others are variants of them
STRATEGIES = ("auto", *sorted(StrategyRegistry.available_strategies()))
DURATION = Annotated[str, Pattern(r"(?=.*[1-9])\d+:\d\d:\d\d:\d\d", "a duration DD:HH:MM:SS above 0")]
Duration = DURATION | timedelta | dict[str, int]
End = Literal[-1] | PositiveInt  # -1 for no limit
Part = NonNegativeInt | Probability  # a number of batches, or a fraction of all
SomePart = PositiveInt | Share
Devices = Annotated[str, Pattern(r"auto|-1|[1-9]\d*|\d+(,\d+)+,?|\d+,", "auto, a number, or indices such as 0,1")]

LIBRARY_RANGES: dict[Any, dict[str, Any]] = {
    Trainer.__init__: {
        "accelerator": Literal[ACCELERATORS] | Accelerator,
        "strategy": Annotated[str, Pattern("|".join(STRATEGIES), f"one of {COMMON_STRATEGIES}")] | Strategy,
        "devices": Devices | End | list[NonNegativeInt],
        "num_nodes": PositiveInt,
        "fast_dev_run": bool | NonNegativeInt,
        "max_epochs": Literal[-1] | NonNegativeInt | None,  # 0: the test of an untrained model
        "min_epochs": NonNegativeInt | None,
        "max_steps": End,
        "min_steps": NonNegativeInt | None,
        "max_time": Duration | None,
        "limit_train_batches": SomePart | None,
        "limit_val_batches": Part | None,
        "limit_test_batches": Part | None,
        "limit_predict_batches": SomePart | None,
        "overfit_batches": Part,
        "val_check_interval": SomePart | Duration | None,
        "check_val_every_n_epoch": PositiveInt | None,
        "num_sanity_val_steps": Literal[-1] | NonNegativeInt | None,
        "log_every_n_steps": PositiveInt | None,
        "accumulate_grad_batches": PositiveInt,
        "gradient_clip_val": NonNegative | None,
        "gradient_clip_algorithm": Literal["norm", "value"] | None,
        "profiler": Literal["simple", "advanced", "pytorch", "xla"] | Profiler | None,
        "reload_dataloaders_every_n_epochs": NonNegativeInt,
    },
    nn.CrossEntropyLoss.__init__: {"label_smoothing": Rate},
}


def library_ranges(function: Callable[..., Any]) -> dict[str, Any]:
    """Types with ranges of the parameters of a library's function or constructor; empty for others."""
    return LIBRARY_RANGES.get(function, {})
