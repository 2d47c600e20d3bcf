"""Which classes a checkpoint, or the configuration in a run folder, may name.

A file may name the models, tasks, losses and data modules of this package, and classes of torch and torchmetrics by the
rules of `LIBRARY_RULES`. Everything else has to be allowed by the user. Nothing is imported before it has been checked.

jsonargparse imports what a class path names, and also strings: where a parameter takes a callable, `module.function` is
imported, and where it takes a class, a string may be YAML or the path of a YAML file. So strings are compared with the
types of their parameters.
"""

import enum
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path, PurePath
from typing import Any, Literal, get_args, get_origin

import yaml
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

from swin_lightning.errors import UserError
from swin_lightning.models.registry import MODELS

Allowed = str | Sequence[str | type]  # class paths, modules (all classes that they define), or classes
PACKAGE = "swin_lightning"
OWN_KINDS = (nn.Module, LightningDataModule, Optimizer, LRScheduler)
# classes that are defined in one of these modules, if they are of this kind
LIBRARY_RULES: dict[str, type] = {
    "torch.nn": nn.Module,  # losses and layers
    "torch.optim": Optimizer,
    "torch.optim.lr_scheduler": LRScheduler,
    # others of its modules download models
    "torchmetrics.classification": Metric,
    "torchmetrics.regression": Metric,
    "torchmetrics.aggregation": Metric,
}
MAX_DEPTH, MAX_VALUES = 32, 20_000  # a file of a few kB can describe 2**30 values by references to the same ones
TEXT = (str, int, float, complex, bool, bytes, type(None), PurePath, enum.Enum, timedelta, Tensor)


def check_block(block: Any, where: str, allow: Allowed = ()) -> None:
    """Check all classes that a block of a configuration names.

    Args:
        block: `{"class_path": ..., "init_args": {...}}`, from a file.
        where: The file, for messages.
        allow: What the user allows besides.

    Raises:
        UserError: For a class that is not allowed, with the way to allow it.
    """
    _Check(where, allow).block(block, "", 0)


def check_arguments(target: Any, arguments: Mapping[str, Any], where: str, allow: Allowed = ()) -> None:
    """Check the arguments of a class that the user has chosen; see `check_block`."""
    _Check(where, allow).arguments(target, arguments, "", 0)


def find_class(path: str, where: str, allow: Allowed = ()) -> Any:
    """The class or function that a file names.

    Raises:
        UserError: If it is not allowed, or does not exist.
    """
    return _Check(where, allow).find(path, "")


def named_classes(block: Any) -> list[str]:
    """All class paths in a part of a configuration, such as those that the user named."""
    if isinstance(block, Mapping):
        own = [block["class_path"]] if isinstance(block.get("class_path"), str) else []
        return own + [path for value in block.values() for path in named_classes(value)]
    if isinstance(block, list | tuple):
        return [path for value in block for path in named_classes(value)]
    return []


class _Check:
    """The walk over what a file says. `key` is the place in the file, for messages."""

    def __init__(self, where: str, allow: Allowed) -> None:
        entries = allow.split(",") if isinstance(allow, str) else allow
        self.where = where
        self.paths = {entry.strip() for entry in entries if isinstance(entry, str)} - {""}
        self.objects = [entry for entry in entries if not isinstance(entry, str)]
        self.values = 0

    def block(self, block: Any, key: str, depth: int) -> None:
        path, arguments = block.get("class_path"), block.get("init_args")
        target = self.find(path, key)
        for part in (arguments, block.get("dict_kwargs")):
            if part is not None and not isinstance(part, Mapping):
                raise self.error(key, f"arguments of {path} are a {type(part).__name__}, not a mapping")
            self.arguments(target, part or {}, key, depth + 1)

    def arguments(self, target: Any, arguments: Mapping[str, Any], key: str, depth: int) -> None:
        types = parameter_types(target)
        if arguments.get("weights") is not None and _defined_in(target, PACKAGE):
            raise self.error(f"{key}.weights", "a checkpoint has its own weights and cannot name a file to load")
        for name, value in arguments.items():
            self.value(value, [types.get(name, Any)], f"{key}.{name}", depth)

    def value(self, value: Any, hints: list[Any], key: str, depth: int) -> None:
        """Check a value and everything in it against the type hints of its argument.

        Raises:
            UserError: If it names a class that is not allowed or a file, or is too large.
        """
        self.values += 1
        if depth > MAX_DEPTH or self.values > MAX_VALUES:
            raise self.error(key[:80], f"more than {MAX_VALUES} values, or nested more than {MAX_DEPTH} times")
        hints = _alternatives(hints)
        if isinstance(value, Mapping):
            if "class_path" in value:
                self.block(value, key, depth)
                return
            for name, item in value.items():
                self.value(item, _item_types(hints, name), f"{key}.{name}", depth + 1)
        elif isinstance(value, list | tuple | set):
            for position, item in enumerate(value):
                self.value(item, _item_types(hints, None), f"{key}.{position}", depth + 1)
        elif isinstance(value, str):
            self.text(value, hints, key)
        elif not isinstance(value, TEXT):
            raise self.error(key, f"a {type(value).__name__} is not a plain value")

    def text(self, value: str, hints: list[Any], key: str) -> None:
        """A string is text where its parameter takes no class and no callable; elsewhere it must not name any."""
        kinds = {_kind(hint) for hint in hints}
        literals = {str(choice) for hint in hints if get_origin(hint) is Literal for choice in get_args(hint)}
        if kinds == {"text"} or value in literals:
            return
        if _is_structured(value):
            raise self.error(key, f"{_short(value)} is not plain text")
        if "class" not in kinds:
            return
        if all(part.isidentifier() for part in value.split(".")) and ("." in value or "text" not in kinds):
            self.find(value, key)
        elif _is_file(value):
            raise self.error(key, f"a checkpoint cannot name a file to read ({_short(value)})")

    def find(self, path: Any, key: str) -> Any:
        """The class or function with this path.

        Raises:
            UserError: If it is not a class path, or not allowed.
        """
        if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")):
            raise self.error(key, f"{_short(path)} is not a class path")
        module, _, name = path.rpartition(".")
        if (found := self._allowed(path, module, name)) is not None:
            return found
        first = path.split(".")[0]
        if first == PACKAGE and not any(part.startswith("_") for part in path.split(".")):
            found = getattr(_import(module), name, None)
            of_kind = inspect.isclass(found) and issubclass(found, OWN_KINDS)
            if _defined_in(found, PACKAGE) and (of_kind or any(info.builder is found for info in MODELS.values())):
                return found
        elif module in sys.modules:  # a file imports no other module
            found = vars(sys.modules[module]).get(name)
            for prefix, kind in LIBRARY_RULES.items():
                if inspect.isclass(found) and issubclass(found, kind) and _defined_in(found, prefix):
                    return found
        raise self.error(
            key,
            f"class {_short(path)} is not one of {PACKAGE}; if you trust its code and the file, add --allow_classes "
            f"{_short(path)} (in Python allow=[{_short(path)!r}])",
        )

    def _allowed(self, path: str, module: str, name: str) -> Any:
        """What the user has allowed under this path, None for nothing."""
        for entry in self.objects:
            if path == f"{entry.__module__}.{entry.__qualname__}":
                return entry
            if getattr(sys.modules.get(module), name, None) is entry:
                return entry
        modules = [entry for entry in self.paths if path.startswith(f"{entry}.")]
        if path not in self.paths and not modules:
            return None
        found = getattr(_import(module), name, None) if module else None
        if found is None:
            raise self.error("", f"class {_short(path)} does not exist, or its module cannot be imported")
        return found if path in self.paths or any(_defined_in(found, entry) for entry in modules) else None

    def error(self, key: str, message: str) -> UserError:
        return UserError(f"{self.where}: {key.lstrip('.') + ': ' if key.strip('.') else ''}{message}")


# types of parameters


def parameter_types(target: Any) -> dict[str, Any]:
    """Types of the parameters of a class or function, with those that `**kwargs` passes on."""
    sources: Iterable[Any] = (target,)
    if inspect.isclass(target):
        sources = (vars(cls).get("__init__") for cls in target.__mro__)
    elif inspect.isclass(result := _hints(target).get("return")):
        return {**parameter_types(result), **_hints(target)}
    found: dict[str, Any] = {}
    for source in sources:
        found = {**_hints(source), **found}
    return found


def _hints(function: Any) -> dict[str, Any]:
    if not inspect.isfunction(function):
        return {}
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # names that are imported for type checkers only
        return {}


def _alternatives(hints: list[Any]) -> list[Any]:
    """The members of unions."""
    flat: list[Any] = []
    for hint in hints:
        union = get_origin(hint) in (typing.Union, types.UnionType)
        flat += _alternatives(list(get_args(hint))) if union else [hint]
    return flat


def _item_types(hints: list[Any], name: Any) -> list[Any]:
    """Types of an item of a mapping (`name` given) or list."""
    found: list[Any] = []
    for hint in hints:
        arguments = [part for part in get_args(hint) if part is not ...]
        origin = get_origin(hint) or hint
        if inspect.isclass(origin) and issubclass(origin, Mapping):
            found += arguments[1:] or [Any]
        elif inspect.isclass(origin) and issubclass(origin, Iterable) and origin is not str:
            found += arguments or [Any]
        elif inspect.isclass(origin) and name is not None:  # a dataclass, whose fields are given
            found.append(parameter_types(origin).get(name, Any))
    return found or [Any]


def _kind(hint: Any) -> str:
    """`text`: a string is a string; `any`: it may be parsed as YAML; `class`: it may name a class or a callable."""
    if get_origin(hint) is Literal or (inspect.isclass(hint) and issubclass(hint, TEXT)):
        return "text"
    if hint in (Any, object) or isinstance(hint, typing.TypeVar):
        return "any"
    parts = [part for part in get_args(hint) if part is not ...]
    origin = get_origin(hint) or hint
    if inspect.isclass(origin) and issubclass(origin, list | tuple | set | dict | Sequence | Mapping):
        kinds = {_kind(part) for part in _alternatives(parts)}
        return "class" if "class" in kinds else "any" if "any" in kinds else "text"
    return "class"


# helpers


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, ValueError):
        return None


def _defined_in(found: Any, module: str) -> bool:
    defined = getattr(found, "__module__", None)
    return isinstance(defined, str) and (defined == module or defined.startswith(f"{module}."))


def _is_structured(value: str) -> bool:
    """Whether a string is more than one scalar in YAML; it is not composed, so that aliases are not followed."""
    if value.strip().isprintable() and not any(sign in value for sign in "{}[]&*!:-\n"):
        return False
    try:
        tokens = [type(token) for token in yaml.scan(value)]
    except yaml.YAMLError:
        return False
    plain = (yaml.StreamStartToken, yaml.StreamEndToken, yaml.ScalarToken)
    return any(token not in plain for token in tokens)


def _is_file(value: str) -> bool:
    try:
        return Path(value).exists()
    except (OSError, ValueError):
        return False


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
