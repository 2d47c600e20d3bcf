"""The JSON schema of experiments: complete for ours, strict for mistakes, and current."""

import contextlib
import io
import json

import jsonschema
import pytest
import yaml

from swin_lightning.cli import main
from swin_lightning.config import load
from swin_lightning.errors import UserError
from tests.support.cli import EXPERIMENTS

FILES = [path for path in sorted(EXPERIMENTS.rglob("*.yaml")) if "sweeps" not in path.parts]
SCHEMA = json.loads((EXPERIMENTS / "experiment.schema.json").read_text(encoding="utf-8"))
DIGITS = yaml.safe_load((EXPERIMENTS / "digits_swin_micro.yaml").read_text(encoding="utf-8"))


def errors(content):
    return list(jsonschema.Draft7Validator(SCHEMA).iter_errors(content))


def changed(path, value):
    """The digits experiment with one value changed."""
    content = json.loads(json.dumps(DIGITS))
    *parents, last = path.split(".")
    block = content
    for key in parents:
        block = block.setdefault(key, {})
    block[last] = value
    return content


def test_committed_schema_is_current():
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        main(["schema"])
    written, committed = json.loads(output.getvalue()), dict(SCHEMA)
    assert written.pop("$comment") and committed.pop("$comment")  # names the version of Lightning
    assert written == committed


def test_schema_is_valid():
    jsonschema.Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_experiments_and_overlays_fit_and_name_the_schema(path):
    text = path.read_text(encoding="utf-8")
    assert errors(yaml.safe_load(text)) == []
    first = text.splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (path.parent / first.partition("=")[2]).resolve() == EXPERIMENTS / "experiment.schema.json"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.init_args.lrr", 0.1),
        ("model.init_args.lr", "fast"),
        ("model.init_args.lr_schedule", "cosin"),
        ("data.init_args.batchsize", 3),
        ("data.init_args.crop", "padd"),
        ("trainer.max_epoch", 3),
        ("trainer.max_epochs", "many"),
        ("checkpoint.monitors", "val/acc"),
        ("models", {}),
    ],
)
def test_mistakes_are_found(path, value):
    assert errors(changed(path, value))


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"lr": 0.1, "optimizer": "torch.optim.SGD"}},
        {"model": {"init_args": {"loss": {"class_path": "my.Loss", "init_args": {"gamma": 1}}}}},
        {"model": {"class_path": "my_task.Mine", "init_args": {"anything": [1]}}},
        {"data": {"class_path": "my_data.Mine", "init_args": {"anything": [1]}}},
        {"trainer": {"callbacks+": [{"class_path": "lightning.pytorch.callbacks.DeviceStatsMonitor"}]}},
        {"model": {"metrics": {"f1": {"class_path": "torchmetrics.F1Score", "init_args": {"task": "multiclass"}}}}},
    ],
)
def test_overlays_of_users_fit(content):
    assert errors(content) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_misspelt_keys_and_values_of_another_type_are_found(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    for block, key in keys_of(content):
        value = block.pop(key)
        block[f"{key}x"] = value
        assert errors(content), f"{key}x"
        del block[f"{key}x"]
        block[key] = [[value]]
        assert errors(content), f"{key}: {block[key]}"
        block[key] = value
    assert errors(content) == []


def keys_of(block):
    """Mappings with each of their keys; arguments of classes that the schema does not know are left out."""
    for key, value in list(block.items()):
        yield block, key
        if isinstance(value, dict):
            yield from keys_of(value)


@pytest.mark.parametrize(
    "text",
    [
        "model: {lr: 0.5}",
        "model: {init_args: {lr: 0.5}}",
        "model: {class_path: SwinClassifier, init_args: {lr: 0.5}}",
        "model: {class_path: swin_lightning.tasks.SwinClassifier, init_args: {lrr: 0.5}}",
        "model: {class_path: swin_lightning.SwinClassifier, lr: 0.5}",
        "model: {init_args: {lr: 0.5}, weight_decay: 0.1}",
        "model: SwinClassifier",
        "model: {backbone: {drop_path_rate: 0.3}}",
        "model: {backbone: swin_lightning.models.SwinTransformer}",
        "model: {backbone: {class_path: swin_lightning.models.SwinTransformer, init_args: {depths: [2, x]}}}",
        "model: {backbone: {class_path: swin_lightning.models.SwinTransformer, init_args: {depths+: [2]}}}",
        "model: {backbone: {class_path: swin_lightning.models.swin_micro_patch4_window4_32, "
        "init_args: {window_size: 3}}}",
        "model: {backbone: {class_path: torch.nn.Linear, init_args: {in_features: 3, out_features: 3}}}",
        "model: {freeze+: a}",
        "model: {compile: fast}",
        "model: {metrics: [f1]}",
        "model: {lr: true}",
        "model.lr: 0.5",
        "data: {class_path: swin_lightning.data.Digits, init_args: {path: x}}",
        "data: {crop_scale: [0.1]}",
        "data: {crop_scale+: 0.1}",
        "data: Digits",
        "trainer: {callbacks: RichModelSummary}",
        "trainer: {callbacks: [3]}",
        "trainer: {logger+: {class_path: swin_lightning.loggers.CSVLogger}}",
        "trainer: {max_epochs+: [1]}",
        "trainer: {max_time: {hours: x}}",
        "trainer: {precision: 17}",
        "trainer: {precision: 16}",
        "seed_everything: -1",
        "test_after_fit: 1",
        "early_stopping: {patience: 3.5}",
    ],
)
def test_schema_and_parser_agree_on_overlays(text, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(text)
    try:
        load(["-c", "digits_swin_micro", "-c", str(overlay)])
        accepted = True
    except UserError:
        accepted = False
    assert (errors(yaml.safe_load(text)) == []) == accepted
