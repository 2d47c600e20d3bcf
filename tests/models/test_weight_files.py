"""Reading checkpoint files: invalid files, pickled objects, wrappers."""

import logging
import os
import shlex
from typing import Any

import pytest
import torch

from swin_lightning.errors import UserError
from swin_lightning.models.weight_files import read_checkpoint, read_parameters
from swin_lightning.models.weights import export_weights, save_weights
from tests.support.formats import assert_same_features, small_classifier


class Explosive:
    """Unpickling it creates a folder."""

    def __reduce__(self) -> Any:
        return os.mkdir, (Explosive.path,)


class Config(dict):
    """Like the configuration object in official training checkpoints."""


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """Bytes of a valid file per suffix."""
    folder, model = tmp_path_factory.mktemp("valid"), small_classifier()
    files = {suffix: folder / f"w{suffix}" for suffix in (".pth", ".safetensors")}
    for path in files.values():
        save_weights(model, path)
    return {suffix: path.read_bytes() for suffix, path in files.items()}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_corrupt_files(suffix, valid, tmp_path):
    for name, content in {"cut": valid[suffix][:-2000], "text": b"not a checkpoint", "empty": b""}.items():
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(content)
        with pytest.raises(UserError, match=path.name):
            read_checkpoint(path)


def test_files_without_parameters(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"list.pth' contains a list instead of a dict of parameters"):
        read_checkpoint(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"none.pth' contains no parameters; it has epoch"):
        read_parameters(tmp_path / "none.pth", own={})
    with pytest.raises(UserError, match=r"absent.pth': no such file"):
        read_checkpoint(tmp_path / "absent.pth")


def test_pickled_code_is_not_executed(tmp_path):
    Explosive.path = str(tmp_path / "exploded")
    for content in (
        Explosive(),
        {"model": Explosive()},
        {"model": export_weights(small_classifier()), "x": Explosive()},
    ):
        torch.save(content, tmp_path / "evil.pth")
        with pytest.raises(UserError, match=r"pickled Python objects \(posix.mkdir\); refusing .*model.state_dict\(\)"):
            read_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_suggested_command_extracts_the_state_dict(wrapper, tmp_path, monkeypatch):
    model, path = small_classifier(), tmp_path / "train.pth"
    torch.save({wrapper: export_weights(model, "official"), "config": Config(lr=1)}, path)
    with pytest.raises(UserError, match=rf"pickled Python objects \({__name__}.Config\); refusing to load") as error:
        read_checkpoint(path)
    python, _, code = shlex.split(str(error.value).partition("with: ")[2])
    assert python == "python"
    monkeypatch.delattr(f"{__name__}.Config")  # the command does not need the class
    exec(code, {})
    torch.serialization.clear_safe_globals()
    assert_same_features(small_classifier(weights=tmp_path / "train.weights.pth"), model)


@pytest.mark.parametrize("wrapper", ["state_dict_ema", "model_ema"])
def test_averaged_weights_of_timm_and_torchvision(wrapper, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = small_classifier()
    averaged = export_weights(model, "torchvision")
    raw = {key: torch.zeros_like(value) for key, value in averaged.items()}
    averaged = {f"module.{key}": value for key, value in averaged.items()} | {"n_averaged": torch.tensor(7)}
    torch.save({wrapper.removesuffix("_ema"): raw, wrapper: averaged, "epoch": 3}, tmp_path / "w.pth")
    assert_same_features(small_classifier(weights=tmp_path / "w.pth"), model)
    assert "torchvision format (averaged weights)" in caplog.text


def lightning_checkpoint(path, state, **content):
    torch.save({"pytorch-lightning_version": "2.6.6", "state_dict": state, **content}, path)
    return path


def test_averaged_weights_of_a_run(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = small_classifier()
    raw = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    path = lightning_checkpoint(tmp_path / "last.ckpt", model.state_dict(), current_model_state=raw)
    assert_same_features(small_classifier(weights=path), model)
    assert "swin_lightning format (Lightning checkpoint, averaged weights)" in caplog.text


def test_other_parts_of_a_task_are_ignored(tmp_path, caplog):
    """Loss, metrics and a teacher whose own format would be detected."""
    caplog.set_level(logging.INFO)
    model = small_classifier()
    teacher = {f"teacher.{key}": value for key, value in export_weights(small_classifier(2), "transformers").items()}
    others = {"loss.weight": torch.ones(10), "val_metrics.acc.total": torch.ones(()), "decoder.0.bias": torch.ones(3)}
    extra = {"loss.settings": {"alpha": 0.5}}  # not a tensor
    path = lightning_checkpoint(tmp_path / "last.ckpt", {**teacher, **others, **extra, **model.state_dict()})
    assert_same_features(small_classifier(weights=path), model)
    assert (
        f"ignored {len(teacher) + 4} entries outside of backbone and head: decoder.0.bias, loss.settings" in caplog.text
    )


def test_lightning_checkpoints_are_strict_otherwise(tmp_path):
    state = {f"backbone.extra.{key}": value for key, value in export_weights(small_classifier(), "official").items()}
    path = lightning_checkpoint(tmp_path / "last.ckpt", state | small_classifier().state_dict())
    with pytest.raises(UserError, match=r"do not match the model: .*unexpected backbone.extra.patch_embed"):
        small_classifier(weights=path)


def test_other_parts_in_a_weights_file_are_an_error(tmp_path):
    torch.save({**small_classifier().state_dict(), "loss.weight": torch.ones(10)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"do not match the model: unexpected loss.weight"):
        small_classifier(weights=tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{}", "it has no weight_map"),
        ("[1", "it has no weight_map"),
        ('{"weight_map": {"a": "../w.pth"}}', "names '../w.pth', which is not a file of weights in its folder"),
        ('{"weight_map": {"a": "x.index.json"}}', "names 'x.index.json'"),
        ('{"weight_map": {"a": "absent.safetensors"}}', "absent.safetensors': no such file"),
    ],
)
def test_invalid_index_of_shards(index, message, tmp_path):
    (tmp_path / "x.index.json").write_text(index)
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path / "x.index.json")


def test_keys_outside_of_the_prefix_do_not_hide_those_inside(tmp_path):
    model = small_classifier()
    state = {f"model.{key}": value for key, value in export_weights(model, "official").items()}
    torch.save({"state_dict": {**state, "head.weight": torch.zeros(10, 48)}}, tmp_path / "w.ckpt")
    assert torch.equal(small_classifier(weights=tmp_path / "w.ckpt").head.weight, model.head.weight)
