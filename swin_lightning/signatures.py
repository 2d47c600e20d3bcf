"""Parameters of classes and functions, with types and descriptions from signatures and docstrings."""

import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import docstring_parser
from jsonargparse import ArgumentParser

from swin_lightning.library_ranges import library_ranges
from swin_lightning.ranges import hints


@dataclass(frozen=True)
class Parameter:
    """A parameter of a class or function. `default` is `inspect.Parameter.empty` if it is required."""

    name: str
    type: Any
    default: Any
    description: str

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def summary(self) -> str:
        """The first sentence of the description."""
        return first_sentence(self.description)


@cache
def parameters(target: Callable[..., Any]) -> dict[str, Parameter]:
    """Parameters of a class or function by name, with those that `**kwargs` passes on.

    A class passes them to its bases; a function to the class that it returns, except those that it sets itself.
    """
    parser = ArgumentParser()
    add: Any = parser.add_class_arguments if inspect.isclass(target) else parser.add_function_arguments
    accepted = [name.removeprefix("of.") for name in add(target, "of", fail_untyped=False)]
    found: dict[str, inspect.Parameter] = {}
    types: dict[str, Any] = {}
    texts: dict[str, str] = {}
    for source in _sources(target):
        function = vars(source).get("__init__") if inspect.isclass(source) else source
        if inspect.isfunction(function):
            found = {**inspect.signature(function).parameters, **found}
            types = {**_types(function), **types}
        for docstring in (vars(source).get("__doc__"), getattr(function, "__doc__", None)):
            for entry in docstring_parser.parse(docstring or "").params:
                texts.setdefault(entry.arg_name, _plain_text(entry.description or ""))
    return {
        name: Parameter(name, types.get(name, Any), found[name].default, texts.get(name, ""))
        for name in accepted
        if name in found
    }


def _sources(target: Callable[..., Any]) -> tuple[Any, ...]:
    """A class and its bases, or a function and the class that it returns with its bases."""
    if inspect.isclass(target):
        return target.__mro__
    try:
        result = typing.get_type_hints(target).get("return")
    except (NameError, TypeError):  # types that are imported for type checkers only
        result = None
    return (target, *(result.__mro__ if inspect.isclass(result) else ()))


@cache
def argument_types(target: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Types with ranges, and defaults, of the parameters of a class and its bases, or of a function and its class.

    The default is None for a parameter without one.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for source in _sources(target):
        function = vars(source).get("__init__") if inspect.isclass(source) else source
        if inspect.isfunction(function):
            defaults = inspect.signature(function).parameters
            for name, hint in _types(function).items():
                default = defaults[name].default if name in defaults else None
                found.setdefault(name, (hint, None if default is inspect.Parameter.empty else default))
    return found


def _types(function: Callable[..., Any]) -> dict[str, Any]:
    """Types of the parameters of a function with their ranges."""
    return {**hints(function), **library_ranges(function)}


def _plain_text(text: str) -> str:
    """A docstring entry without the markup of Sphinx, on one line."""
    text = re.sub(r":\w+:`~?([^`]*)`", lambda role: role[1].rsplit(".", 1)[-1], text)
    return re.sub(r"\s+", " ", text).replace("``", "`").replace("**", "").strip()


def first_sentence(text: str) -> str:
    """The first sentence of a description."""
    return re.split(r"(?<=[\w)`'\"]\.) +(?=[A-Z`])", text, maxsplit=1)[0]
