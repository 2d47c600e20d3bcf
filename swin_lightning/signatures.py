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
            types = {**_type_hints(function), **types}
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
    result = _type_hints(target).get("return")
    return (target, *(result.__mro__ if inspect.isclass(result) else ()))


def _type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError:  # types that are imported for type checkers only
        return {}


def _plain_text(text: str) -> str:
    """A docstring entry without the markup of Sphinx, on one line."""
    text = re.sub(r":\w+:`~?([^`]*)`", lambda role: role[1].rsplit(".", 1)[-1], text)
    return re.sub(r"\s+", " ", text).replace("``", "`").replace("**", "").strip()


def first_sentence(text: str) -> str:
    """The first sentence of a description."""
    return re.split(r"(?<=[\w)`'\"]\.) +(?=[A-Z`])", text, maxsplit=1)[0]
