"""Ranges of options of other libraries, whose annotations have none: the Trainer's, and those of losses of torch."""

from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Any, Literal

from lightning import Trainer
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy, StrategyRegistry
from torch import nn, optim
from torch.optim import lr_scheduler as schedulers

from swin_lightning import strategies
from swin_lightning.ranges import (
    NonNegative,
    NonNegativeInt,
    Pattern,
    Positive,
    PositiveInt,
    Probability,
    Range,
    Rate,
    Share,
)

assert strategies  # registers `fsdp2`
MOST_EPOCHS, MOST_STEPS = 10**6, 10**12


class Parts:
    """A duration as the arguments of `timedelta`."""

    text = "of weeks, days, hours, minutes or seconds, above 0 in all"

    def allows(self, value: Any) -> bool:
        """Whether they make a duration above 0, of at most 10 000 days."""
        try:
            return timedelta() < timedelta(**value) <= timedelta(days=10_000)
        except (TypeError, OverflowError, ValueError):
            return False


ACCELERATORS = ("auto", "gpu", *sorted(AcceleratorRegistry.available_accelerators()))
COMMON_STRATEGIES = "auto, ddp, ddp_spawn, ddp_notebook, fsdp2"  # the others are variants of them
STRATEGIES = ("auto", *sorted(StrategyRegistry.available_strategies()))
DURATION = Annotated[
    str,
    Pattern(r"(?=.*[1-9])\d{1,4}:([01]\d|2[0-3])(:[0-5]\d){2}", "a duration DD:HH:MM:SS above 0, such as 00:12:00:00"),
]
Duration = DURATION | timedelta | Annotated[dict[str, int], Parts()]
End = Literal[-1] | PositiveInt  # -1 for no limit
Factor = Annotated[float, Range(gt=0, le=2)]  # above 1 to look for the largest learning rate
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
        "max_epochs": Literal[-1]
        | Annotated[int, Range(ge=0, le=MOST_EPOCHS)]
        | None,  # 0: the test of an untrained model
        "min_epochs": NonNegativeInt | None,
        "max_steps": Literal[-1] | Annotated[int, Range(ge=1, le=MOST_STEPS)],
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
    optim.SGD.__init__: {"momentum": Rate},
    optim.Adam.__init__: {"betas": tuple[Rate, Rate], "eps": Positive},
    optim.AdamW.__init__: {"betas": tuple[Rate, Rate], "eps": Positive},
    schedulers.StepLR.__init__: {"step_size": PositiveInt, "gamma": Factor},
    schedulers.MultiStepLR.__init__: {"milestones": list[NonNegativeInt], "gamma": Factor},
    schedulers.ExponentialLR.__init__: {"gamma": Factor},
    schedulers.CosineAnnealingLR.__init__: {"T_max": PositiveInt, "eta_min": NonNegative},
    schedulers.CosineAnnealingWarmRestarts.__init__: {
        "T_0": PositiveInt,
        "T_mult": PositiveInt,
        "eta_min": NonNegative,
    },
    schedulers.PolynomialLR.__init__: {"total_iters": PositiveInt, "power": Positive},
}


def library_ranges(function: Callable[..., Any]) -> dict[str, Any]:
    """Types with ranges of the parameters of a library's function or constructor; empty for others."""
    return LIBRARY_RANGES.get(function, {})
