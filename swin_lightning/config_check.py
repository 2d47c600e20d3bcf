"""Check the values of a parsed configuration against the ranges in the types of its classes, before anything is built.

jsonargparse checks that a value is a number; whether it is in range is checked here for the whole configuration, that
is after overlays and the command line have replaced values of earlier files.
"""

import importlib
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from jsonargparse import Namespace
from lightning import Trainer

from swin_lightning.callbacks import EarlyStopping
from swin_lightning.checkpointing import Checkpoint
from swin_lightning.ema import EMA
from swin_lightning.errors import UserError, shorten
from swin_lightning.non_finite import NonFinite
from swin_lightning.ranges import Seed, matches, out_of_range
from swin_lightning.signatures import argument_types

GROUPS: dict[str, type] = {
    "trainer": Trainer,
    "checkpoint": Checkpoint,
    "ema": EMA,
    "early_stopping": EarlyStopping,
    "non_finite": NonFinite,
}  # keys with the arguments of a fixed class
FROM_DATA = ("num_classes", "class_names", "class_weights")  # arguments of the model


def check_values(config: Namespace) -> None:
    """Check every value of a configuration of the trainer commands.

    Raises:
        UserError: For the first value out of range, with its dotted key and what is allowed.
    """
    if "seed_everything" in config and not matches(config.seed_everything, Seed):
        raise UserError(out_of_range("seed_everything", config.seed_everything, Seed))
    for key, target in GROUPS.items():
        if isinstance(config.get(key), Namespace):
            _check_arguments(key, target, vars(config[key]))
    for key in ("model", "data"):
        _check_block(key, config.get(key))
    _check_linked(config)
    trainer = config.trainer
    if trainer.accelerator == "cpu" and not re.fullmatch(r"auto|\d+", str(trainer.devices)):
        raise UserError(
            f"trainer.devices {shorten(trainer.devices)}: on a CPU it is the number of processes; expected an integer "
            ">= 1, or auto"
        )
    most = max(8, 2 * (os.cpu_count() or 1))
    if trainer.accelerator == "cpu" and str(trainer.devices).isdigit() and int(trainer.devices) > most:
        raise UserError(f"trainer.devices {trainer.devices}: on this CPU expected at most {most} processes")


def _check_linked(config: Namespace) -> None:
    """What the data module gives to the model cannot be chosen, and arguments have one place."""
    for key in ("model", "data"):
        block = config.get(key)
        extra = list(block.get("dict_kwargs") or {}) if isinstance(block, Namespace) else []
        if extra and block.class_path.startswith("swin_lightning."):
            raise UserError(f"unknown option {key}.{shorten(extra[0])} in dict_kwargs; write options under init_args")
    arguments = config.model.get("init_args") if isinstance(config.get("model"), Namespace) else None
    if not isinstance(arguments, Namespace) or config.get("data") is None:
        return
    for name in FROM_DATA:
        if arguments.get(name) is not None:
            value = shorten(arguments[name])
            raise UserError(f"model.{name} {value}: the data module gives it; leave it out (expected null)")


def _check_block(key: str, block: Any) -> None:
    """Check what a class in a configuration is given, and the classes within."""
    if isinstance(block, list):
        for position, item in enumerate(block):
            _check_block(f"{key}[{position}]", item)
    elif isinstance(block, dict):
        for name, item in block.items():
            _check_block(f"{key}.{name}", item)
    elif isinstance(block, Namespace) and "class_path" in block:
        module, _, name = block.class_path.rpartition(".")
        arguments = block.get("init_args")
        if isinstance(arguments, Namespace):
            target = getattr(importlib.import_module(module), name)  # jsonargparse has imported it
            _check_arguments(key, target, vars(arguments))


def _check_arguments(key: str, target: Callable[..., Any], values: Mapping[str, Any]) -> None:
    types = argument_types(target)
    for name, value in values.items():
        hint, default = types.get(name, (Any, None))
        required = value is None and default is None  # not given yet, or set by a link
        if not required and not matches(value, hint):
            raise UserError(out_of_range(f"{key}.{name}", value, hint, default))
        _check_block(f"{key}.{name}", value)
