"""Ranges of options of other libraries: they name parameters that exist, and allow the defaults."""

import inspect

import pytest

from swin_lightning.library_ranges import LIBRARY_RANGES
from swin_lightning.ranges import matches


@pytest.mark.parametrize("function", LIBRARY_RANGES, ids=lambda function: function.__qualname__)
def test_ranges_are_those_of_existing_parameters_and_allow_their_defaults(function):
    parameters = inspect.signature(function).parameters
    for name, hint in LIBRARY_RANGES[function].items():
        default = parameters[name].default
        assert default is inspect.Parameter.empty or matches(default, hint), name
