"""Modules from checkpoints: what is loaded, and what a file cannot choose."""

import pytest
import torch
from lightning import LightningModule
from torch import nn

from swin_lightning import SwinClassifier, Task
from swin_lightning.errors import UserError
from swin_lightning.tasks.classification import load_classifier
from swin_lightning.tasks.loading import load_module
from tests.support.checkpoints import backbone, state_dict, write_checkpoint


def test_checkpoint_is_loaded_in_evaluation_mode(tmp_path):
    path, expected = write_checkpoint(tmp_path / "a.ckpt"), state_dict()
    for load in (SwinClassifier.load_from_checkpoint, Task.load_from_checkpoint, load_classifier):
        model = load(path)
        assert type(model) is SwinClassifier and not model.training
        assert (model.lr, model.class_names) == (0.002, ["a", "b", "c"])
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert type(load_module(path, LightningModule)) is SwinClassifier
    assert SwinClassifier.load_from_checkpoint(path, lr=0.5).lr == 0.5
    assert SwinClassifier.load_from_checkpoint(path, "cpu", weights_only=True).device.type == "cpu"


class Mine(SwinClassifier):
    """A task of the user."""


def test_class_of_the_user(tmp_path):
    path = write_checkpoint(tmp_path / "a.ckpt", _class_path=f"{__name__}.Mine")
    with pytest.raises(UserError, match=rf"class {__name__}.Mine is not one of swin_lightning; .*--allow_classes"):
        SwinClassifier.load_from_checkpoint(path)
    for allow in ([Mine], [f"{__name__}.Mine"], __name__):
        assert type(SwinClassifier.load_from_checkpoint(path, allow=allow)) is Mine
    assert type(Mine.load_from_checkpoint(path)) is Mine  # named by the call
    with pytest.raises(UserError, match=r"swin_lightning\.SwinClassifier is not a Mine"):
        Mine.load_from_checkpoint(write_checkpoint(tmp_path / "b.ckpt"))


DIFFERENT = {
    "classes": ({}, {"num_classes": 4, "class_names": ["a", "b", "c", "d"]}),
    "names": ({}, {"class_names": ["a", "b"]}),
    "many classes": ({}, {"num_classes": 10**9, "class_names": None}),
    "width": ({}, {"backbone": backbone(embed_dim=16)}),
    "huge width": ({}, {"backbone": backbone(embed_dim=10**6)}),
    "depth": ({}, {"backbone": backbone(depths=[10**8, 1])}),
    "huge depth": ({}, {"backbone": backbone(depths=[10**12, 1])}),
    "huge window": ({}, {"backbone": backbone(window_size=10**5)}),
    "huge table": ({}, {"backbone": backbone(ape=True, img_size=10**6)}),
    "unknown argument": ({}, {"backbone": backbone(unknown=1)}),
    "type": ({}, {"lr": "fast"}),
    "class": ({}, {"backbone": {"class_path": "os.system", "init_args": {"command": "touch ran"}}}),
    "file": ({}, {"weights": "other.pth"}),
    "NaN": ({"head.bias": torch.full((3,), float("nan"))}, {}),
    "dtype": ({"head.bias": torch.zeros(3, dtype=torch.int32)}, {}),
    "missing": ({"head.bias": None}, {}),
    "more": ({"other": torch.zeros(3)}, {}),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_files_that_contradict_themselves(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state, changes = DIFFERENT[name]
    path = write_checkpoint(tmp_path / "a.ckpt", state, **changes)
    with pytest.raises(UserError, match=r"^(checkpoint '.*a\.ckpt'|model\.|the model)"):
        SwinClassifier.load_from_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_checkpoint_of_a_run(tmp_path):
    torch.save(state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match="has no state_dict"):
        SwinClassifier.load_from_checkpoint(tmp_path / "w.pth")
    torch.save({"state_dict": {}, "hyper_parameters": [1]}, tmp_path / "h.ckpt")
    with pytest.raises(UserError, match="are not a mapping of names to values"):
        SwinClassifier.load_from_checkpoint(tmp_path / "h.ckpt")
    with pytest.raises(UserError, match="weights_only=False would run code"):
        SwinClassifier.load_from_checkpoint(tmp_path / "h.ckpt", weights_only=False)


def test_module_that_was_built_in_python(tmp_path):
    class Plain(LightningModule):
        def __init__(self, width: int):
            super().__init__()
            self.layer = nn.Linear(width, 1)

    content = {"state_dict": Plain(3).state_dict(), "hyper_parameters": {"width": 3, "unused": 1}}
    torch.save(content, tmp_path / "p.ckpt")
    assert load_module(tmp_path / "p.ckpt", Plain).layer.in_features == 3
