"""Ranges of arguments as types, checked in Python, in configuration files, in sweeps and by editors alike.

`lr: Positive` is a float for type checkers and for jsonargparse. A constructor checks its arguments by
`check_arguments(Class.__init__, locals())`; the command line checks a whole configuration by the same types before
anything is built, and the help and the JSON schema show them. NaN and infinity are no numbers here.
"""

import inspect
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from numbers import Integral, Real
from os import PathLike
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from swin_lightning.errors import UserError, shorten


@dataclass(frozen=True)
class Range:
    """Limits of a number: at least `ge`, above `gt`, at most `le`, below `lt`."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def allows(self, value: Any) -> bool:
        """Whether a number is within the limits."""
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    @property
    def bounds(self) -> list[tuple[str, float]]:
        """Signs and limits, such as `[(">=", 0), ("<", 1)]`."""
        limits = {">=": self.ge, ">": self.gt, "<=": self.le, "<": self.lt}
        return [(sign, limit) for sign, limit in limits.items() if limit is not None]

    @property
    def text(self) -> str:
        return " and ".join(f"{sign} {limit:.10g}" for sign, limit in self.bounds)


@dataclass(frozen=True)
class Ascending:
    """The two ends of an interval: the first is not above the second."""

    def allows(self, value: Any) -> bool:
        """Whether the values do not decrease."""
        return list(value) == sorted(value)

    @property
    def text(self) -> str:
        return "in ascending order"


@dataclass(frozen=True)
class Pattern:
    """A regular expression that a whole string matches, and what it allows in words."""

    regex: str
    text: str

    def allows(self, value: Any) -> bool:
        """Whether a string has this form."""
        return re.fullmatch(self.regex, value) is not None


# numbers of more than one option; upper limits are where a value cannot be meant

NonNegativeInt = Annotated[int, Range(ge=0)]
PositiveInt = Annotated[int, Range(ge=1)]
NonNegative = Annotated[float, Range(ge=0)]
Positive = Annotated[float, Range(gt=0)]
Probability = Annotated[float, Range(ge=0, le=1)]
Rate = Annotated[float, Range(ge=0, lt=1)]  # of dropout, smoothing, averaging: at 1 nothing is left
Share = Annotated[float, Range(gt=0, le=1)]
LearningRate = Annotated[float, Range(gt=0, le=1000)]
Seed = Annotated[int, Range(ge=0, lt=2**32)]
ImageSide = Annotated[int, Range(ge=1, le=16384)]  # in pixels
Channel = tuple[Probability, Probability, Probability]  # red, green and blue, in [0, 1]


# checks


def check_arguments(function: Callable[..., Any], values: Mapping[str, Any], prefix: str = "") -> None:
    """Check arguments against the annotations of a function.

    Args:
        function: Function, or `__init__` of a class. Classes, callables and tensors in its annotations are not checked.
        values: Arguments by name, such as `locals()`; others are ignored.
        prefix: Of the names in messages, such as `data.`.

    Raises:
        UserError: For the first value that its annotation does not allow, with what is allowed and the default.
    """
    defaults = dict(_defaults(function))
    for name, hint in hints(function).items():
        if name in values and not matches(values[name], hint):
            raise UserError(out_of_range(f"{prefix}{name}", values[name], hint, defaults.get(name)))


def out_of_range(key: str, value: Any, hint: Any, default: Any = None) -> str:
    """The message for a value that a type does not allow; a default is shown if there is one."""
    usual = f"; the default is {shorten(default)}" if default is not None else ""
    return f"{key} {shorten(value)}: expected {describe(hint)}{usual}"


def matches(value: Any, hint: Any) -> bool:
    """Whether a type with its ranges allows a value. Types other than numbers, strings and lists allow any."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return matches(value, arguments[0]) and all(each.allows(value) for each in constraints(hint))
    if origin in (Union, UnionType):
        return any(matches(value, argument) for argument in arguments)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if hint in (None, NoneType):
        return value is None
    if hint in (bool, str, timedelta):
        return isinstance(value, hint)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if origin in (tuple, list, Sequence, Iterable):
        items = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(items, Sequence) or isinstance(items, str):
            return False
        if origin is tuple and ... not in arguments:
            return len(items) == len(arguments) and all(map(matches, items, arguments))
        return all(matches(item, arguments[0]) for item in items)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(matches(item, arguments[1]) for item in value.values())
    if hint in (Any, object, inspect.Parameter.empty):
        return True
    if value is None:
        return False
    if inspect.isclass(hint) and isinstance(value, str | int | float):
        return isinstance(value, hint) or (isinstance(value, str) and issubclass(hint, PurePath | PathLike))
    return True


def describe(hint: Any) -> str:
    """What a type allows, in words: `a number >= 0 and < 1`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        texts = [each.text for each in constraints(hint)]
        return texts[0] if arguments[0] is str and texts else " ".join([describe(arguments[0]), *texts])
    if origin in (Union, UnionType):
        choices = [choice for each in arguments if get_origin(each) is Literal for choice in get_args(each)]
        named = [describe(Literal[tuple(dict.fromkeys(choices))])] if choices else []
        others = [describe(argument) for argument in arguments if get_origin(argument) is not Literal]
        texts = [text for text in dict.fromkeys([*others, *named]) if text]
        texts.sort(key=lambda text: text == "null")
        return " or ".join(texts)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if origin is tuple and ... not in arguments:
        same = len(set(arguments)) == 1
        items = (
            f"{len(arguments)} values, each {describe(arguments[0])}" if same else ", ".join(map(describe, arguments))
        )
        return f"a list of {items}"
    if origin in (tuple, list, Sequence, Iterable):
        return f"a list, each item {describe(arguments[0])}"
    if origin in (dict, Mapping):
        return f"a mapping to {describe(arguments[1])}"
    words: dict[Any, str] = {None: "null", NoneType: "null", bool: "true or false", str: "text", timedelta: ""}
    return {**words, int: "an integer", float: "a number"}.get(hint, "a class path with its arguments")


def constraints(hint: Any) -> list[Any]:
    """The ranges of an annotated type."""
    return [each for each in getattr(hint, "__metadata__", ()) if hasattr(each, "allows")]


def plain(hint: Any) -> Any:
    """A type without its ranges."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


@cache
def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Types of the parameters of a function with their ranges; none where they are known to type checkers only."""
    try:
        found = typing.get_type_hints(function, include_extras=True)
    except NameError:
        return {}
    return {name: hint for name, hint in found.items() if name != "return"}


@cache
def _defaults(function: Callable[..., Any]) -> tuple[tuple[str, Any], ...]:
    parameters = inspect.signature(function).parameters.values()
    return tuple((p.name, p.default) for p in parameters if p.default is not p.empty)
