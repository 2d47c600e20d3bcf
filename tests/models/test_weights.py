"""Loading and saving weights: strictness, heads, backbones by themselves, other window and image sizes."""

import logging
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from swin_lightning.errors import UserError
from swin_lightning.models.resize import resize_bias_table
from swin_lightning.models.weight_formats import EXPORT_FORMATS
from swin_lightning.models.weights import export_weights, load_weights, save_weights
from tests.support.formats import Classifier, assert_same_features, small_backbone, small_classifier
from tests.support.golden import formula_input

# strictness


def qkv_key(keys):
    return next(key for key in keys if "qkv" in key or "q_proj" in key or "query" in key)


@pytest.mark.parametrize("target", EXPORT_FORMATS)
def test_mismatches_are_named_and_nothing_is_loaded(target, tmp_path):
    path, model = tmp_path / "w.pth", small_classifier()
    complete = export_weights(small_classifier(), target)
    keys = [key for key in complete if "position_index" not in key]
    some = [keys[0], keys[7], keys[-1], qkv_key(keys)]
    cases = [(f"missing {name}", {key: value for key, value in complete.items() if key != name}) for name in some]
    cases += [(f"{name} has shape (5, 3), expected", {**complete, name: torch.zeros(5, 3)}) for name in some]
    cases += [("unexpected surprise.weight", {**complete, "surprise.weight": torch.zeros(3)})]
    if target != "swin_lightning":  # resized if all blocks of a stage agree, not in a single block
        name = next(name for name in keys if "bias_table" in name)
        cases += [(f"{name} has shape (169, 2)", {**complete, name: torch.zeros(169, 2)})]
    cases += [("epochs has type int, expected a tensor", {**complete, "epochs": 3})]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for problem, state in cases:
        torch.save(state, path)
        with pytest.raises(UserError, match="do not match the model") as error:
            load_weights(model, path)
        assert problem in str(error.value)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_each_kind_of_mismatch_is_shown(tmp_path):
    torch.save(export_weights(small_classifier(2), "official"), tmp_path / "v2.pth")
    with pytest.raises(
        UserError, match=r"missing layers.*closest.*; unexpected .*logit_scale; .*has shape.* more. .*swinv2"
    ):
        small_classifier(weights=tmp_path / "v2.pth")


# heads


def test_head_with_other_number_of_classes_keeps_initial_values(tmp_path, caplog):
    save_weights(small_classifier(), tmp_path / "w.pth", "timm")
    model = small_classifier(num_classes=7)
    initial = model.head.weight.clone(), model.head.bias.clone()
    load_weights(model, tmp_path / "w.pth")
    assert "classifier: checkpoint has 10 classes; initialised a new 7-class head" in caplog.text
    assert torch.equal(model.head.weight, initial[0]) and torch.equal(model.head.bias, initial[1])


def test_imagenet1k_rows_of_an_imagenet22k_head(tmp_path, caplog):
    source, path = small_classifier(num_classes=21841), tmp_path / "22k.pth"
    save_weights(source, path, "timm")
    model = small_classifier(num_classes=1000, weights=path, head_rows="imagenet22k")
    # rows of tench, goldfish, great white shark and, last, toilet tissue in timm's list of the classes
    rows = torch.tensor([359, 368, 460, 21817])
    assert torch.equal(model.head.weight[[0, 1, 2, 999]], source.head.weight[rows])
    assert torch.equal(model.head.bias[[0, 1, 2, 999]], source.head.bias[rows])
    assert "classifier: selected the 1000 ImageNet-1K rows of the 21841-class head" in caplog.text
    assert not torch.equal(small_classifier(num_classes=1000, weights=path).head.weight[0], source.head.weight[359])
    small_classifier(num_classes=7, weights=path, head_rows="imagenet22k")
    assert "classifier: checkpoint has 21841 classes; initialised a new 7-class head" in caplog.text


class Task(nn.Module):
    """A task without `head`, such as masked image modelling."""

    def __init__(self):
        super().__init__()
        self.backbone, self.decoder = small_backbone(), nn.Linear(48, 3)


@pytest.mark.parametrize("target", EXPORT_FORMATS)
@pytest.mark.parametrize("build", [Task, small_backbone])
def test_head_of_the_file_is_ignored_without_own_head(target, build, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    source = small_classifier()
    save_weights(source, tmp_path / "w.pth", target)
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    load_weights(model, tmp_path / "w.pth")
    assert_same_features(model if build is Task else Classifier(model, 10), source)
    assert "ignored the classifier of the checkpoint: the model has no head" in caplog.text
    assert build is small_backbone or not model.decoder.weight.any()


# backbones


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("target", ["swin_lightning", "official", "transformers", "mmpretrain"])
@pytest.mark.parametrize("num_classes", [0, 10])
def test_backbone_without_classifier(num_classes, target, suffix, tmp_path):
    backbone = small_backbone(num_classes=num_classes)
    save_weights(backbone, tmp_path / f"w{suffix}", target)
    loaded = small_backbone(num_classes=num_classes)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
    load_weights(loaded, tmp_path / f"w{suffix}")
    assert torch.equal(loaded(formula_input(32, 32)), backbone(formula_input(32, 32)))
    model = small_classifier(weights=tmp_path / f"w{suffix}")  # also in a classifier
    if num_classes:
        assert torch.equal(model(formula_input(32, 32)), backbone(formula_input(32, 32)))


def test_any_backbone_in_our_own_format(tmp_path):
    def convnet():
        backbone = nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(3), pool=nn.AdaptiveAvgPool2d(2), flat=nn.Flatten()))
        backbone.num_features = 12
        return backbone

    model = Classifier(convnet(), 4)
    model.backbone.norm.running_mean.fill_(3.0)
    save_weights(model, tmp_path / "w.safetensors")
    loaded = Classifier(convnet(), 4, tmp_path / "w.safetensors")
    assert torch.equal(loaded.head.weight, model.head.weight)
    assert loaded.backbone.norm.running_mean.eq(3).all()
    with pytest.raises(UserError, match="'timm' requires a Swin Transformer; the backbone is a Sequential"):
        save_weights(model, tmp_path / "w.pth", "timm")


def test_invalid_targets(tmp_path):
    with pytest.raises(UserError, match="unknown format 'tim'; choose one of swin_lightning, official"):
        save_weights(small_classifier(), tmp_path / "w.pth", "tim")
    with pytest.raises(UserError, match=r"w.bin' must end with .safetensors or .pth"):
        save_weights(small_classifier(), tmp_path / "w.bin")


def test_half_precision_files(tmp_path):
    state = {name: value.half().contiguous() for name, value in export_weights(small_classifier(), "official").items()}
    save_file(state, tmp_path / "half.safetensors")
    model = small_classifier(weights=tmp_path / "half.safetensors")
    assert model.head.weight.dtype == torch.float32
    expected = small_backbone().norm.weight
    torch.testing.assert_close(model.backbone.norm.weight, expected, atol=1e-3, rtol=0)


# other window and image sizes


@pytest.mark.parametrize("mode", ["bicubic", "geometric"])
def test_bias_tables_are_resized_to_another_window_size(mode, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    save_weights(small_classifier(), tmp_path / "w.pth", "torchvision")
    model = small_classifier(window_size=6, bias_resize=mode, weights=tmp_path / "w.pth")
    assert f"bias tables resized from window 4 to 6 ({mode})" in caplog.text
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    expected = resize_bias_table(small_backbone().get_parameter(name), 6, mode)
    torch.testing.assert_close(model.backbone.get_parameter(name), expected)


CLAMPED = {"depths": (2, 2, 2), "num_heads": (2, 4, 8), "window_size": 8}  # feature maps of side 16, 8, 4


@pytest.mark.parametrize("target", ["official", "timm"])
def test_bias_tables_of_clamped_windows(target, tmp_path):
    """Official and timm models have tables of 15 x 15 for window 8, and of 7 x 7 where the feature map is 4 x 4."""
    model = small_classifier(**CLAMPED)
    save_weights(model, tmp_path / "w.pth", target)
    name = "layers.2.blocks.1.attn.relative_position_bias_table"
    full, table = model.backbone.get_parameter(name), export_weights(model, target)[name]
    assert torch.equal(table, full.view(15, 15, 8)[4:11, 4:11].reshape(49, 8))
    loaded = small_classifier(**CLAMPED, weights=tmp_path / "w.pth")
    assert_same_features(loaded, model)
    assert torch.equal(loaded.backbone.get_parameter(name).view(15, 15, 8)[4:11, 4:11].reshape(49, 8), table)


def test_bias_tables_are_resized_to_the_clamped_window(tmp_path, caplog):
    """As in official code, tables of window 4 become tables of windows 8, 8 and 4; the last one is not resized."""
    caplog.set_level(logging.INFO)
    window4 = small_classifier(**{**CLAMPED, "window_size": 4})
    save_weights(window4, tmp_path / "w.pth", "official")
    model = small_classifier(**CLAMPED, weights=tmp_path / "w.pth")
    name = "layers.{}.blocks.0.attn.relative_position_bias_table"
    original = [window4.backbone.get_parameter(name.format(stage)) for stage in range(3)]
    resized = [model.backbone.get_parameter(name.format(stage)) for stage in range(3)]
    torch.testing.assert_close(resized[1], resize_bias_table(original[1], 8))
    assert torch.equal(resized[2].view(15, 15, 8)[4:11, 4:11].reshape(49, 8), original[2])
    assert "bias tables of window 4 padded to window 8; bias tables resized from window 4 to 8" in caplog.text


@pytest.mark.parametrize(("target", "sides"), [("official", "16, 8"), ("timm", "16, 8"), ("torchvision", "16, 8, 4")])
def test_export_warns_about_padding(target, sides, caplog):
    export_weights(small_classifier(depths=(2, 2, 2), num_heads=(2, 4, 8)), target)
    assert not caplog.text
    export_weights(small_classifier(**{**CLAMPED, "window_size": 6}), target)
    assert f"{target} attends to padding or fails" in caplog.text
    assert f"feature maps of side {sides} are not a multiple of the window size 6" in caplog.text


def test_position_embeddings_are_resized_to_another_image_size(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = small_classifier(ape=True)
    save_weights(model, tmp_path / "w.pth", "transformers")
    assert_same_features(small_classifier(ape=True, weights=tmp_path / "w.pth"), model)
    larger = small_classifier(ape=True, img_size=48, weights=tmp_path / "w.pth")
    assert larger.backbone.absolute_pos_embed.shape == (1, 24 * 24, 24)
    assert "position embedding resized (bicubic)" in caplog.text
