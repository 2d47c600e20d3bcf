"""Configuration: merging, flattening, and messages of the parser."""

from pathlib import Path

import pytest
from lightning import LightningModule
from torch import nn

from swin_lightning.config import (
    flatten,
    init_parameters,
    instantiate,
    load,
    load_file,
    planned_epochs,
    resolve_experiments,
)
from swin_lightning.data import Digits, ImageDataModule
from swin_lightning.errors import UserError
from swin_lightning.experiment_files import installed_experiments
from swin_lightning.tasks import SwinClassifier


def test_only_values_of_config_options_are_resolved():
    path = str(installed_experiments() / "digits_swin_micro.yaml")
    arguments = ["-c", "digits_swin_micro", "--config=digits_swin_micro", "--experiment", "digits_swin_micro"]
    assert resolve_experiments(arguments) == ["-c", path, f"--config={path}", "--experiment", "digits_swin_micro"]


def test_layers_merge_in_order_and_short_forms_are_understood():
    Path("short.yaml").write_text("model:\n  lr: 0.5\n  optimizer: torch.optim.SGD\n")
    Path("long.yaml").write_text(
        "model:\n  init_args:\n    weight_decay: 0.7\ndata:\n  init_args:\n    batch_size: 16\n"
    )
    config = load(["-c", "digits_swin_micro", "-c", "short.yaml", "-c", "long.yaml", "--model.optimizer.momentum=0.3"])
    flat = flatten(config.as_dict())
    assert flat["model.class_path"] == "swin_lightning.SwinClassifier"
    assert (flat["model.lr"], flat["model.weight_decay"], flat["data.batch_size"]) == (0.5, 0.7, 16)
    assert (flat["model.optimizer.class_path"], flat["model.optimizer.momentum"]) == ("torch.optim.SGD", 0.3)
    assert flat["data.crop"] == "pad" and flat["trainer.gradient_clip_val"] == 5.0


def test_model_without_class_path_is_a_swin_classifier():
    Path("flat.yaml").write_text("model:\n  backbone: {class_path: tests.test_config.Flat}\n  lr: 0.1\n")
    data, model = instantiate(load(["-c", "flat.yaml", "--data=Digits"]))
    assert type(data) is Digits and type(model) is SwinClassifier
    assert (model.lr, model.num_classes, model.class_names[3]) == (0.1, 10, "3")


class Flat(nn.Module):
    num_features = 3


def test_new_model_class_keeps_no_arguments_of_the_old_one():
    Path("own.yaml").write_text("model:\n  class_path: tests.test_config.Own\n  init_args: {width: 5}\n")
    config = load(["-c", "digits_swin_micro", "-c", "own.yaml"])
    assert config.model.init_args.as_dict() == {"width": 5}


class Own(LightningModule):
    def __init__(self, width: int = 3):
        super().__init__()
        self.width = width


def test_seed_reaches_the_data_and_configuration_of_a_run_is_read_back():
    config = load(["-c", "digits_swin_micro", "--seed_everything=7"])
    assert config.data.init_args.seed == 7
    Path("config.yaml").write_text("seed_everything: 3\nmodel:\n  class_path: tests.test_config.Own\ndata: null\n")
    data, model = instantiate(load_file("config.yaml"))
    assert data is None and model.width == 3


def test_flatten_leaves_out_init_args():
    tree = {
        "model": {"class_path": "A", "init_args": {"lr": 1, "backbone": {"class_path": "B", "init_args": {"d": [1]}}}}
    }
    assert flatten(tree) == {
        "model.class_path": "A", "model.lr": 1, "model.backbone.class_path": "B", "model.backbone.d": [1]
    }  # fmt: skip


def test_parameters_of_a_class_include_those_of_its_bases():
    assert {"seed", "batch_size", "image_size"} <= set(init_parameters(ImageDataModule)) < set(init_parameters(Digits))
    assert {"num_classes", "loss", "lr", "freeze"} <= set(init_parameters(SwinClassifier))
    assert "task" not in init_parameters(SwinClassifier)


def test_errors_of_a_file_name_file_and_line():
    Path("mine.yaml").write_text("model:\n  init_args:\n    lr: 0\n    layer_decay: x\n")
    arguments = ["-c", "digits_swin_micro", "-c", "mine.yaml"]
    with pytest.raises(UserError, match=r"^mine.yaml:4: model.layer_decay x: expected a number > 0 and <= 1"):
        load(arguments)
    Path("mine.yaml").write_text("model:\n  init_args:\n    lr: 0\n")
    with pytest.raises(UserError, match=r"^mine.yaml:3: model.lr 0.0: expected a number > 0"):
        load(arguments)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- 1\n", "mine.yaml: expected a mapping of options such as model and data"),
        ("trainer: 5\n", "mine.yaml:1: trainer 5: expected a mapping of options"),
        ("model: [1]\n", "mine.yaml:1: model: a list; expected class_path and init_args"),
        ("data:\n", "mine.yaml:1: data has no value"),
        ("foo: 1\n", "mine.yaml:1: unknown option foo"),
    ],
)
def test_form_of_a_configuration_file(text, words):
    Path("mine.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load(["-c", "digits_swin_micro", "-c", "mine.yaml"])
    assert str(caught.value).startswith(words)


def test_ranges_of_the_merged_configuration_are_checked():
    Path("mine.yaml").write_text("model: {lr: 0}\n")
    assert load(["-c", "digits_swin_micro", "-c", "mine.yaml", "--model.lr=0.1"]).model.init_args.lr == 0.1
    with pytest.raises(UserError, match=r"^model.lr 0.0: expected"):
        load(["-c", "digits_swin_micro", "--model.lr=0"])


def test_longest_planned_run_of_the_files():
    Path("short.yaml").write_text("trainer: {max_epochs: 2}\n")
    assert planned_epochs(["-c", "digits_swin_micro", "-c", "short.yaml", "--trainer.max_epochs=50"]) == 40
    assert planned_epochs([]) == 0
