"""Ranges as types: which values they allow, in which words they refuse, and that every constructor checks its own."""

import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from typing import Annotated, Literal, get_args

import numpy as np
import pytest

import swin_lightning
from swin_lightning.errors import UserError
from swin_lightning.ranges import (
    Ascending,
    Positive,
    PositiveInt,
    Probability,
    Range,
    Rate,
    check_arguments,
    constraints,
    describe,
    hints,
    matches,
)

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("hint", "allowed", "refused"),
    [
        (float, [0, -1.5, np.float32(2)], [NAN, INF, -INF, True, "1", None]),
        (int, [0, np.int64(3)], [1.0, True, "1"]),
        (Rate, [0, 0.99], [-0.1, 1, 1.5, NAN]),
        (PositiveInt | None, [1, None], [0, -1, 0.5, False]),
        (Literal["a", 1], ["a", 1], ["b", True, 1.0]),
        (bool | Literal["fast"], [True, "fast"], ["slow", 1]),
        (tuple[Positive, Positive], [(1, 2), [1, 2], np.array([1.0, 2.0])], [(1,), (1, 2, 3), (1, 0), "12", 1]),
        (Annotated[tuple[Probability, Probability], Ascending()], [(0, 1), (0.5, 0.5)], [(1, 0), (0, 1.1)]),
        (Sequence[PositiveInt], [[1], (1, 2), []], [[0], 1, "1"]),
        (int | tuple[int, int], [1, (1, 2)], [1.5, (1, 2, 3)]),
        (dict[str, Rate], [{}, {"a": 0.5}], [{"a": 1}, []]),
    ],
)
def test_what_a_type_allows(hint, allowed, refused):
    assert [value for value in allowed if not matches(value, hint)] == []
    assert [value for value in refused if matches(value, hint)] == []


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (Rate, "a number >= 0 and < 1"),
        (None | PositiveInt, "an integer >= 1 or null"),
        (Literal["a", "b"] | bool, "true or false or one of a, b"),
        (tuple[Probability, Probability], "a list of 2 values, each a number >= 0 and <= 1"),
        (Sequence[PositiveInt], "a list, each item an integer >= 1"),
        (dict[str, int], "a mapping to an integer"),
        (Annotated[int, Range(le=16384)], "an integer <= 16384"),
    ],
)
def test_types_in_words(hint, text):
    assert describe(hint) == text


def function(rate: Rate = 0.1, size: PositiveInt = 3, other: "Unknown | None" = None) -> None:  # noqa: F821
    """Its hints cannot be evaluated."""


def checked(rate: Rate = 0.1, size: PositiveInt | None = None) -> None:
    """A function with ranges."""


def test_arguments_are_checked_by_their_annotations():
    check_arguments(checked, {"rate": 0.5, "size": None, "unknown": -1})
    check_arguments(function, {"rate": 5})
    with pytest.raises(UserError) as caught:
        check_arguments(checked, {"rate": 1.5, "size": 0}, "model.")
    assert str(caught.value) == "model.rate 1.5: expected a number >= 0 and < 1; the default is 0.1"
    with pytest.raises(UserError, match=r"size 0: expected an integer >= 1 or null$"):
        check_arguments(checked, {"rate": 0.5, "size": 0})


INNER = {  # parts of a backbone, which checks their arguments
    "models.attention.WindowAttention", "models.layers.PatchEmbed", "models.swin.SwinTransformerBlock",
    "models.swin.BasicLayer", "models.swin_v2.WindowAttentionV2",
}  # fmt: skip


def test_every_public_class_with_ranges_checks_its_arguments():
    ranged = {}
    for module in pkgutil.walk_packages(swin_lightning.__path__, "swin_lightning."):
        if module.name.endswith(("__main__", "_triton")):
            continue
        for name, cls in vars(importlib.import_module(module.name)).items():
            if inspect.isclass(cls) and cls.__module__ == module.name and not name.startswith("_"):
                ranged[f"{module.name}.{name}".removeprefix("swin_lightning.")] = cls
    ranged = {path: cls for path, cls in ranged.items() if own_ranges(cls)}
    assert {"tasks.base.Task", "data.cifar.CIFAR100", "ema.EMA", "models.swin.SwinTransformer"} <= ranged.keys()
    assert {path for path, cls in ranged.items() if own_ranges(cls) - checked_arguments(cls)} == INNER


def own_ranges(cls):
    """Arguments of the constructor of a class that have a range."""
    init = vars(cls).get("__init__")
    found = hints(init) if inspect.isfunction(init) else {}
    return {name for name, hint in found.items() if has_range(hint)}


def has_range(hint):
    return bool(constraints(hint)) or any(has_range(each) for each in get_args(hint) if not isinstance(each, str))


def checked_arguments(cls):
    """Arguments that a constructor checks, by itself or in its bases."""
    inits = [vars(base).get("__init__") for base in cls.__mro__]
    return {
        name
        for init in inits
        if inspect.isfunction(init) and "check_arguments(" in inspect.getsource(init)
        for name in hints(init)
    }
