"""Classes that a checkpoint may name."""

import sys
import textwrap

import pytest

import swin_lightning
from swin_lightning.checkpoint_classes import check_block, find_class, named_classes, parameter_types
from swin_lightning.errors import UserError
from tests.support.checkpoints import hyper_parameters

TRUSTED = [
    "swin_lightning.SwinClassifier",
    "swin_lightning.tasks.classification.SwinClassifier",
    "swin_lightning.models.swin_micro_patch4_window4_32",
    "swin_lightning.models.builders.swinv2_tiny_patch4_window8_256",
    "swin_lightning.models.SwinTransformerV2",
    "swin_lightning.losses.FocalLoss",
    "swin_lightning.data.Digits",
    "torch.nn.CrossEntropyLoss",
    "torch.nn.modules.loss.BCEWithLogitsLoss",
    "torch.optim.SGD",
    "torch.optim.adamw.AdamW",
    "torch.optim.lr_scheduler.StepLR",
    "torch.optim.lr_scheduler.ReduceLROnPlateau",
    "torchmetrics.classification.MulticlassRecall",
]
REFUSED = [
    "os.system",
    "posix.system",
    "subprocess.Popen",
    "builtins.exec",
    "torch.load",
    "torch.hub.load",
    "torch.compile",
    "torch.nn.functional.mse_loss",
    "torch.nn.modules.module.torch.load",
    "torch.optim.Optimizer.step",
    "torch.utils.cpp_extension.load_inline",
    "torchmetrics.text.BERTScore",
    "torchmetrics.image.fid.FrechetInceptionDistance",
    "lightning.pytorch.Trainer",
    "swin_lightning.cli.main",
    "swin_lightning.cli.os.system",
    "swin_lightning.cli.os",
    "swin_lightning.runs.os.system",
    "swin_lightning.export.export",
    "swin_lightning.errors.CommandParser",
    "swin_lightning.models.registry.register_model",
    "swin_lightning.models.weights.load_weights",
    "swin_lightning.tasks.base.Timer",
    "swin_lightning.tasks.base.AdamW",
    "swin_lightning.__main__.console",
    "swin_lightning",
    "SwinClassifier",
    "system",
    "os:system",
    "",
    "a b.c",
    7,
    None,
]


def block(value, key="loss"):
    """A classifier whose argument `key` is a value."""
    return {"class_path": "swin_lightning.SwinClassifier", "init_args": {key: value}}


@pytest.mark.parametrize("path", TRUSTED)
def test_own_classes_and_those_of_torch_are_found(path):
    assert find_class(path, "f.ckpt").__name__ == path.rpartition(".")[2]


@pytest.mark.parametrize("path", REFUSED)
def test_everything_else_is_refused_by_name_and_not_imported(path):
    before = set(sys.modules)
    with pytest.raises(UserError) as error:
        find_class(path, "f.ckpt")
    assert str(path) in str(error.value) and str(error.value).startswith("f.ckpt: ")
    assert str(path).startswith("swin_lightning.") or set(sys.modules) == before


def test_configurations_of_a_run_are_accepted():
    loss = {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"weight": [1.0, 2.0, 3.0], "reduction": "mean"}}
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}}
    schedule = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 3}}
    recall = {"class_path": "torchmetrics.classification.MulticlassRecall", "init_args": {"average": "macro"}}
    arguments = {**hyper_parameters(), "lr_schedule": schedule, "optimizer": optimizer, "loss": loss}
    arguments |= {"metrics": {"recall": recall}, "freeze": ["backbone.layers.0", "*.norm*"], "compile": "max-autotune"}
    arguments |= {"lr_interval": "step", "class_names": ["os.system", "{a: b}", "torch.nn"]}  # text
    del arguments["_class_path"], arguments["_instantiator"]
    check_block({"class_path": "swin_lightning.SwinClassifier", "init_args": arguments}, "f.ckpt")
    check_block(block("cosine", "lr_schedule"), "f.ckpt")


EVIL = {"class_path": "evil.Module"}
HIDDEN = {
    "nested": ("loss", {"class_path": "torch.nn.Sequential", "init_args": {"args": [EVIL]}}),
    "backbone": ("backbone", EVIL),
    "string for a callable": ("loss", "evil.function"),
    "string for a factory": ("optimizer", "evil.Module"),
    "string for a schedule": ("lr_schedule", "evil.Module"),
    "string for a class": ("backbone", "evil.Module"),
    "short name for a class": ("backbone", "Bottleneck"),
    "YAML for a class": ("backbone", "{class_path: evil.Module}"),
    "escaped YAML": ("backbone", '{"class\\x5fpath": evil.Module}'),
    "block YAML": ("loss", "class_path: evil.Module\ninit_args: {}"),
    "YAML with an alias": ("loss", "&a evil.Module"),
    "metric": ("metrics", {"recall": EVIL}),
    "YAML for the metrics": ("metrics", "{a: {class_path: evil.Module}}"),
    "string for a metric": ("metrics", {"recall": "evil.Module"}),
    "unknown argument": ("unknown", {"a": [[{"b": EVIL}]]}),
    "unknown argument, YAML": ("unknown", "{class_path: evil.Module}"),
    "dict_kwargs": ("loss", {"class_path": "torch.nn.CrossEntropyLoss", "dict_kwargs": {"x": EVIL}}),
    "function of a loss": (
        "loss",
        {"class_path": "torch.nn.TripletMarginWithDistanceLoss", "init_args": {"distance_function": "evil.function"}},
    ),
    "arguments as a file": ("loss", {"class_path": "torch.nn.CrossEntropyLoss", "init_args": "evil.yaml"}),
    "file for a class": ("backbone", "evil.yaml"),
    "weights": ("weights", "https://example.org/evil.pth"),
    "object": ("loss", object()),
    "deep": ("loss", [[]]),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_names_are_found_wherever_they_are(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text("open('ran', 'w'); Module = function = print")
    (tmp_path / "evil.yaml").write_text("class_path: evil.Module")
    key, value = HIDDEN[name]
    if name == "deep":
        for _ in range(100):
            value = [value]
    with pytest.raises(UserError, match=rf"^f\.ckpt: {key}"):
        check_block(block(value, key), "f.ckpt")
    assert not (tmp_path / "ran").exists() and "evil" not in sys.modules


def test_values_that_refer_to_themselves_end():
    value = "x"
    for _ in range(30):
        value = [value, value]
    with pytest.raises(UserError, match="more than 20000 values"):
        check_block(block(value), "f.ckpt")


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    code = """
        import os
        from torch import nn
        from swin_lightning import SwinClassifier
        class Net(nn.Module):
            def __init__(self, act: type[nn.Module] = nn.GELU, name="x"): super().__init__()
        class Other(Net): pass
        def build(width: int) -> Net: return Net()
    """
    (tmp_path / "user_net.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "user_net", raising=False)
    return "user_net"


def test_the_user_allows_a_class_a_module_or_an_object(user_module):
    with pytest.raises(UserError, match=r"class user_net.Net is not .* add --allow_classes user_net.Net \(in Python"):
        find_class("user_net.Net", "f")
    assert "user_net" not in sys.modules
    found = find_class("user_net.Net", "f", ["user_net.Net"])
    assert found.__name__ == "Net"
    assert find_class("user_net.Net", "f", "a.B, user_net.Net") is found
    assert find_class("user_net.Other", "f", ["user_net"]).__name__ == "Other"
    assert find_class("user_net.Net", "f", [found]) is found
    assert find_class("user_net.build", "f", "user_net").__name__ == "build"
    for path in ("user_net.os.system", "user_net.os", "user_net.SwinClassifier"):  # not defined there
        with pytest.raises(UserError, match=f"class {path} (is not one of|does not exist)"):
            find_class(path, "f", ["user_net"])
    with pytest.raises(UserError, match=r"user_net.Missing does not exist"):
        find_class("user_net.Missing", "f", ["user_net.Missing"])
    with pytest.raises(UserError, match="is not one of swin_lightning"):
        find_class("user_net.Other", "f", [found])


def test_arguments_of_an_allowed_class_are_checked(user_module):
    net = {"class_path": "user_net.Net", "init_args": {"act": "torch.nn.GELU", "name": "teacher.ckpt"}}
    check_block(net, "f", "user_net")
    for arguments in ({"act": "os.system"}, {"name": "{class_path: os.system}"}):
        with pytest.raises(UserError, match=r"os\.system"):
            check_block({**net, "init_args": arguments}, "f", "user_net")


def test_named_classes():
    config = {"class_path": "a.B", "init_args": {"x": [{"class_path": "c.D"}], "y": {"class_path": "e.F"}, "z": 1}}
    assert named_classes(config) == ["a.B", "c.D", "e.F"] and named_classes("a.B") == []


def test_types_of_arguments_that_are_passed_on():
    types = parameter_types(swin_lightning.SwinClassifier)
    assert types["num_classes"] is int and types["lr"] is not None and "lr_schedule" in types
    assert "embed_dim" in parameter_types(swin_lightning.models.swin_tiny_patch4_window7_224)
