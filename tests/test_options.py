"""Options: parameters with types and descriptions, their texts, and configurations that are incomplete."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from jsonargparse import Namespace
from torch import Tensor, nn

from swin_lightning import SwinClassifier
from swin_lightning.data import CIFAR100
from swin_lightning.errors import UserError
from swin_lightning.models import swin_tiny_patch4_window7_224
from swin_lightning.options import (
    backbones,
    choices,
    data_modules,
    effective_config,
    number_bounds,
    task_classes,
    type_text,
    value_text,
)
from swin_lightning.ranges import NonNegativeInt, Positive, Probability


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (float, "float"),
        (int | None, "int"),
        (bool | Literal["fast", "slow"], "one of fast, slow or bool"),
        (Literal[1, 2] | Literal[3], "one of 1, 2, 3"),
        (list[int], "list of int"),
        (Sequence[float], "list of float"),
        (tuple[float, float], "list of float"),
        (tuple[int, str], "list"),
        (list[nn.Module] | nn.Module | None, "list of class path or class path"),
        (dict[str, nn.Module], "mapping"),
        (nn.Module, "class path"),
        (Callable[[int], nn.Module], "class path"),
        (str | timedelta | Path, "str"),
        (Tensor, "list of float"),
        (Any, "any"),
        (NonNegativeInt, "int >= 0"),
        (Positive, "float > 0"),
        (Probability, "float >= 0 <= 1"),
    ],
)
def test_types_in_words(hint, text):
    assert type_text(hint) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1e-6, "1e-06"),
        ("val/acc", "val/acc"),
        ((2, 2.5), "[2, 2.5]"),
        ({"hours": 1}, "{hours: 1}"),
        (Namespace(class_path="a.b.Mine", init_args=Namespace(x=1)), "Mine"),
        ([Namespace(class_path="a.Mine")], "[Mine]"),
    ],
)
def test_values_as_in_yaml(value, text):
    assert value_text(value) == text


def test_choices_and_bounds_of_types():
    assert choices(Literal["a", "b"] | bool | None) == ["a", "b", "true", "false"]
    assert choices(float) == []
    assert number_bounds(Probability) == [(">=", 0), ("<=", 1)]
    assert number_bounds(float) == []


def test_known_classes():
    assert task_classes()["swin_lightning.SwinClassifier"] is SwinClassifier
    assert "swin_lightning.Task" not in task_classes()
    assert data_modules()["swin_lightning.data.CIFAR100"] is CIFAR100
    assert backbones()["swin_lightning.models.swin_tiny_patch4_window7_224"] is swin_tiny_patch4_window7_224
    assert "swin_lightning.models.register_model" not in backbones()


def test_effective_config_accepts_an_overlay_alone_but_no_mistakes():
    config = effective_config(["-c", "hardware/gpu", "--data=ImageFolder"])
    assert config.trainer.precision == "bf16-mixed" and config.trainer.gradient_clip_val == 5.0
    assert config.model.init_args.backbone is None and config.data.init_args.path is None
    with pytest.raises(UserError, match=r"unknown option model.lrr"):
        effective_config(["--model.lrr=1"])
