"""Which state dict of a file is taken, and what is said about it; the kinds of files are in test_file_kinds.py."""

import logging

import torch

from swin_lightning.models.weight_search import clean_key, find_state_dict
from swin_lightning.models.weights import _own_parameters, export_weights
from tests.support.formats import assert_same_features, small_classifier


def test_names_of_wrapper_modules_are_removed_at_any_depth():
    key = "_forward_module._orig_mod.layers.0._fsdp_wrapped_module.blocks.1._checkpoint_wrapped_module.norm1.weight"
    assert clean_key(key) == "layers.0.blocks.1.norm1.weight"
    assert clean_key("my_orig_mod.x") == "my_orig_mod.x"


def test_preference_is_logged_with_the_alternatives(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = small_classifier()
    state = export_weights(model, "timm")
    zeros = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save({"student": zeros, "teacher": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pth")
    assert_same_features(small_classifier(weights=tmp_path / "w.pth"), model)
    assert "took the entries 'teacher.module.*'; it also has student" in caplog.text


def test_a_teacher_of_another_size_is_not_taken(tmp_path):
    model, teacher = small_classifier(), small_classifier(embed_dim=48)
    state = {f"teacher.{k}": v for k, v in export_weights(teacher, "timm").items()}
    state |= {f"model.{k}": v for k, v in export_weights(model, "timm").items()}
    torch.save({"pytorch-lightning_version": "2.0", "state_dict": state}, tmp_path / "w.ckpt")
    assert_same_features(small_classifier(weights=tmp_path / "w.ckpt"), model)


def test_two_classifiers_outside_of_the_prefix_are_ambiguous(tmp_path, caplog):
    model = small_classifier()
    state = {f"encoder.{k}": v for k, v in export_weights(model, "timm").items() if "head" not in k}
    head = {"weight": torch.ones(10, 48), "bias": torch.ones(10)}
    state |= {f"{name}.{part}": value for name in ("fc1_head.fc", "classifier") for part, value in head.items()}
    torch.save({"model": {"net." + k: v for k, v in state.items()}}, tmp_path / "w.pth")
    loaded = small_classifier(weights=tmp_path / "w.pth")
    assert "no classifier in checkpoint; initialised a new 10-class head" in caplog.text
    assert_same_features(loaded, model)


def test_no_tensors():
    assert find_state_dict({"epoch": 3, "args": {"lr": 0.1}}, _own_parameters(small_classifier())) is None
