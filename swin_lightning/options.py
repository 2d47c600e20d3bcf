"""The options of the command line: names, types, effective values and descriptions.

Used by the help, the JSON schema and the shell completion. Types and descriptions come from signatures and docstrings.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]
from lightning import LightningModule, Trainer
from torch import Tensor

import swin_lightning.data
import swin_lightning.models
import swin_lightning.tasks
from swin_lightning import config
from swin_lightning.experiment_files import installed_experiments
from swin_lightning.ranges import Range, constraints

LINKED = {
    *(
        "model.num_classes",
        "model.class_names",
        "model.class_weights",
        "data.seed",
    ),  # see the links of config.add_options
    *("model.optimizer.params", "model.optimizer.lr", "model.optimizer.weight_decay", "model.lr_schedule.optimizer"),
}  # set by other options or by the task


# known classes by class path


def task_classes() -> dict[str, Any]:
    """Tasks of this package."""
    package = swin_lightning.tasks
    tasks = {f"swin_lightning.{name}": getattr(package, name) for name in package.__all__}
    return {path: cls for path, cls in tasks.items() if issubclass(cls, LightningModule) and cls.__name__ != "Task"}


def data_modules() -> dict[str, Any]:
    """Data modules of this package."""
    package = swin_lightning.data
    return {f"{package.__name__}.{name}": getattr(package, name) for name in package.__all__}


def backbones() -> dict[str, Any]:
    """Classes and functions of `swin_lightning.models` that build a backbone."""
    package = swin_lightning.models
    found = {name: getattr(package, name) for name in package.__all__}
    registered = package.list_models()
    return {f"{package.__name__}.{name}": f for name, f in found.items() if inspect.isclass(f) or name in registered}


# configuration


class _LenientParser(config.Parser):
    """Parser that accepts a configuration without its required options, such as an overlay alone."""

    def validate(self, *args: Any, **kwargs: Any) -> None:
        super().validate(*args, **{**kwargs, "skip_required": True})


def class_arguments(block: Namespace | None) -> dict[str, Any]:
    """The arguments in a block of a configuration that names a class."""
    return vars(block.init_args) if block is not None and "init_args" in block else {}


def effective_config(arguments: Sequence[str], command: str = "fit") -> Namespace:
    """The configuration of arguments that may be incomplete: base.yaml, the files given by `-c`, options, defaults.

    Raises:
        UserError: For an experiment that does not exist, an unknown option or a value of the wrong type.
    """
    parser = _LenientParser(default_config_files=[str(installed_experiments() / "base.yaml")])
    parser.add_argument("-c", "--config", action=ActionConfigFile)
    config.add_options(parser)
    skip: set[str | int] = {"model", "train_dataloaders", "val_dataloaders", "datamodule", "dataloaders"}
    parser.add_method_arguments(Trainer, command, skip=skip)
    return config.parse(parser, arguments)


# types and values in words


def kind(hint: Any) -> tuple[str, tuple[Any, ...]]:
    """What a type is in a configuration, and of what.

    Returns:
        `any`, `null`, `bool`, `int`, `float`, `str`, `choice` of values, `union` of types, `list` and `mapping` of
        types (of one, or one per item), or `class`: a class path with arguments.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return kind(arguments[0])
    if origin in (Union, UnionType):
        return "union", arguments
    if origin is Literal:
        return "choice", arguments
    if hint is Tensor:  # see the type that tasks/base.py registers
        return "list", (float,)
    if (origin or hint) in (list, tuple, Sequence, Iterable):
        return "list", tuple(argument for argument in arguments if argument is not ...)
    if (origin or hint) in (dict, Mapping):
        return "mapping", arguments[1:]
    if hint in (None, NoneType):
        return "null", ()
    if hint in (Any, object, inspect.Parameter.empty):
        return "any", ()
    for plain in (bool, int, float, str):
        if inspect.isclass(hint) and issubclass(hint, plain):
            return plain.__name__, ()
    return ("str", ()) if hint in (Path, PathLike, timedelta) else ("class", ())


def type_text(hint: Any) -> str:
    """A type in plain words, such as `float`, `one of cosine, linear` or `class path`. None is left out."""
    name, parts = kind(hint)
    texts = [type_text(part) for part in parts if kind(part)[0] != "null"] if name in ("union", "list") else []
    if name == "union":
        choices = ", ".join(text.removeprefix("one of ") for text in texts if text.startswith("one of "))
        texts = [*([f"one of {choices}"] if choices else []), *(t for t in texts if not t.startswith("one of "))]
        return " or ".join(dict.fromkeys(texts))
    if name == "list":
        return f"list of {texts[0]}" if len(set(texts)) == 1 else "list"
    if name == "choice":
        return f"one of {', '.join(map(str, parts))}"
    bounds = "".join(f" {sign} {number:g}" for sign, number in number_bounds(hint))
    return {"class": "class path"}.get(name, name) + bounds


def number_bounds(hint: Any) -> list[tuple[str, float]]:
    """Signs and limits of a number with a range."""
    return [bound for each in constraints(hint) if isinstance(each, Range) for bound in each.bounds]


def choices(hint: Any) -> list[str]:
    """The values to choose from, for a type that lists them."""
    name, parts = kind(hint)
    if name == "union":
        return [choice for part in parts for choice in choices(part)]
    return {"bool": ["true", "false"], "choice": list(map(str, parts))}.get(name, [])


def value_text(value: Any) -> str:
    """A value of a configuration as in YAML; a class by its name."""
    if isinstance(value, Namespace):
        name = str(value.get("class_path", "")).rsplit(".", 1)[-1]
        return name or value_text(value.as_dict())
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(value_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {value_text(item)}' for key, item in value.items())}}}"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
