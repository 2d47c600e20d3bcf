"""Options: parameters with types and descriptions, their texts, and configurations that are incomplete."""

import inspect
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from jsonargparse import Namespace
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveFloat
from lightning import Trainer
from torch import Tensor, nn

from swin_lightning import SwinClassifier
from swin_lightning.data import CIFAR100
from swin_lightning.errors import UserError
from swin_lightning.models import SwinTransformer, swin_tiny_patch4_window7_224
from swin_lightning.options import (
    backbones,
    choices,
    data_modules,
    effective_config,
    first_sentence,
    number_bounds,
    parameters,
    task_classes,
    type_text,
    value_text,
)


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
        (PositiveFloat, "float > 0"),
        (ClosedUnitInterval, "float >= 0 <= 1"),
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
    assert number_bounds(ClosedUnitInterval) == [("≥", 0.0), ("≤", 1.0)]
    assert number_bounds(float) == []


def test_first_sentence():
    assert first_sentence("Size, e.g. 3 pixels. It counts.") == "Size, e.g. 3 pixels."
    assert first_sentence("Values: `a` (0.5), `b`. `a` is faster.") == "Values: `a` (0.5), `b`."
    assert first_sentence("No period") == "No period"


def test_parameters_of_a_class_and_its_bases():
    found = parameters(SwinClassifier)
    assert found["label_smoothing"].default == 0.0
    assert found["lr"].type is float and found["lr"].default == 1e-3  # of Task
    assert "learning rate" in found["lr"].description
    assert found["backbone"].required and not found["lr"].required
    assert "task" not in found and "self" not in found
    # a parameter that only a base documents
    assert parameters(CIFAR100)["path"].default == "uoft-cs/cifar100" and parameters(CIFAR100)["path"].description


def test_parameters_of_a_function_are_those_it_passes_on():
    found = parameters(swin_tiny_patch4_window7_224)
    assert (
        found["drop_path_rate"].default
        == inspect.signature(swin_tiny_patch4_window7_224).parameters["drop_path_rate"].default
    )
    assert found["mlp_ratio"].type is float and found["mlp_ratio"].description  # of SwinTransformer
    assert not {"embed_dim", "depths", "window_size"} & set(found)  # set by the function
    assert set(found) < set(parameters(SwinTransformer))


def test_descriptions_have_no_markup():
    texts = {name: parameter.description for name, parameter in parameters(Trainer).items()}
    assert texts["max_time"].startswith(
        "Stop training after this amount of time has passed. Disabled by default (`None`)"
    )
    assert not any(":class:" in text or "``" in text or "\n" in text for text in texts.values())


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
