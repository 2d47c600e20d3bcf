"""Files of every project: read with their answers, written and read again, and refused where anything is wrong."""

import logging
import os
import shlex
from collections import OrderedDict
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from swin_lightning import SwinClassifier
from swin_lightning.models import SwinTransformer, SwinTransformerV2
from swin_lightning.models.resize import resize_bias_table
from swin_lightning.models.weight_formats import WRITTEN, from_unfold, to_unfold
from swin_lightning.models.weights import export_weights, load_weights, save_weights
from tests.support import formats
from tests.support.golden import formula_input, formula_parameters

SMALL = {"img_size": 32, "patch_size": 2, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}


def small(version: int = 1, num_classes: int = 10, **kwargs: Any) -> SwinClassifier:
    """Two stages with random values everywhere, so that no exchange of two parameters goes unseen."""
    options = {key: kwargs.pop(key) for key in ("weights", "bias_resize", "head_rows") if key in kwargs}
    backbone = (SwinTransformer if version == 1 else SwinTransformerV2)(**{**SMALL, **kwargs})
    if not options:
        for name, parameter in backbone.named_parameters():
            parameter.data = formula_parameters({name: parameter.shape})[name]
    return SwinClassifier(backbone, num_classes, **options).eval()


@pytest.mark.parametrize("name", formats.GOLDEN)
def test_a_published_layout_gives_the_answers_of_its_project(name, tmp_path):
    golden, path = formats.GOLDEN[name], tmp_path / "weights.pth"
    state = formats.state_dict(name)
    wrapper = {"official": "model", "SimMIM": "model", "mmpretrain": "state_dict"}.get(name.partition("-")[0])
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    logits = formats.answers(formats.classifier(name, path), golden["input_size"])
    assert (logits[:, :16] - torch.tensor(golden["logits_first16"])).abs().max() < 1e-4
    assert (logits.norm(dim=1) - torch.tensor(golden["logits_norm"])).abs().max() < 1e-3


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("target", WRITTEN)
def test_what_is_exported_reads_back_the_same(target, version, suffix, tmp_path, caplog):
    model, path = small(version), tmp_path / f"weights{suffix}"
    save_weights(model, path, target)
    caplog.set_level(logging.INFO)
    again = small(version, weights=str(path))
    said = target if version == 1 else target.removesuffix("4")  # transformers names V2 as it did before release 5
    assert f"{said} format" in caplog.text
    x = formula_input(32, 32)
    assert torch.equal(model(x), again(x))


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in formats.GOLDEN
        if "cifar" in name or "torchvision-swinv2" in name or name.startswith("mmpretrain")
    ],
)
def test_an_export_has_the_names_and_shapes_that_its_project_saves(name, tmp_path):
    golden = formats.GOLDEN[name]
    exported = export_weights(formats.classifier(name), golden["format"].removesuffix("-v2"))
    expected = {key: tuple(shape) for key, shape in golden["parameters"].items()}
    if "torchvision" in name:  # whose models load strictly, buffers included
        expected |= {key: tuple(shape) for key, (shape, _) in golden["buffers"].items()}
    assert {key: tuple(value.shape) for key, value in exported.items()} == expected


def test_torchvision_buffers_and_zero_key_bias():
    model = small(2)
    exported = export_weights(model, "torchvision")
    bias = exported["features.1.0.attn.qkv.bias"].chunk(3)
    assert torch.equal(bias[0], model.backbone.layers[0].blocks[0].attn.q_bias)
    assert not bias[1].any()
    index = exported["features.1.0.attn.relative_position_index"]
    assert index[0] == 24  # the offset (0, 0) is the middle of 7 x 7
    assert exported["features.1.0.attn.relative_coords_table"][0, 0, 0].tolist() == pytest.approx(
        [-1.0566, -1.0566], abs=1e-3
    )


class UnfoldMerging(nn.Module):
    """Patch merging as mmcv writes it: channel-major."""

    def forward(self, x: Tensor, merging: dict[str, Tensor]) -> Tensor:  # B, H, W, C
        B, H, W, _ = x.shape
        x = nn.functional.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)  # B, H/2*W/2, 4*C
        x = nn.functional.layer_norm(x, x.shape[-1:], merging["norm.weight"], merging["norm.bias"])
        return (x @ merging["reduction.weight"].T).view(B, H // 2, W // 2, -1)


def test_mmpretrain_merges_in_the_order_of_unfold():
    model = small()
    exported = export_weights(model, "mmpretrain")
    theirs = "backbone.stages.0.downsample."
    merging = {name.removeprefix(theirs): value for name, value in exported.items() if name.startswith(theirs)}
    x = torch.randn(2, 6, 4, 24)
    torch.testing.assert_close(UnfoldMerging()(x, merging), model.backbone.layers[0].downsample(x))
    assert torch.equal(from_unfold(to_unfold(x)), x)
    assert {"backbone.norm1.weight", "backbone.stages.1.blocks.0.ffn.layers.0.0.weight", "head.fc.bias"} <= set(
        exported
    )
    v2 = export_weights(small(2), "mmpretrain")
    assert v2["backbone.stages.1.downsample.norm.weight"].shape == (48,)


def test_prefixes_of_parallel_and_compiled_models(tmp_path):
    model = small()
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
        torch.save({prefix + key: value for key, value in export_weights(model, "timm").items()}, tmp_path / "w.pth")
        assert_same(small(weights=str(tmp_path / "w.pth")), model)


def test_a_backbone_saved_without_its_prefix(tmp_path, caplog):
    model = small()
    for target, prefix in (("transformers", "swin."), ("transformers4", "swin."), ("mmpretrain", "backbone.")):
        state = export_weights(model, target)
        bare = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        torch.save(bare, tmp_path / "w.pth")
        again = small(weights=str(tmp_path / "w.pth"))
        x = formula_input(32, 32)
        assert torch.equal(again.backbone(x), model.backbone(x))
        assert "the file has no head; ours of 10 is new" in caplog.text


@pytest.mark.parametrize("version", [1, 2])
def test_simmim_pretraining(version, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = small(version)
    official = export_weights(model, "official")
    state = {f"encoder.{key}".replace("cpb_mlp", "rpe_mlp"): v for key, v in official.items() if "head" not in key}
    state |= {
        "encoder.mask_token": torch.zeros(1, 1, 24),
        "decoder.0.weight": torch.zeros(3),
        "decoder.0.bias": torch.zeros(3),
    }
    torch.save({"model": state}, tmp_path / "simmim.pth")
    again = small(version, weights=str(tmp_path / "simmim.pth"))
    x = formula_input(32, 32)
    assert torch.equal(again.backbone(x), model.backbone(x))
    assert "SimMIM format" in caplog.text
    assert "left out encoder.mask_token, decoder.0.weight, decoder.0.bias" in caplog.text


def test_a_run_with_averaging_brings_the_averaged_weights(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = small()
    raw = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    content = {"pytorch-lightning_version": "2.6.6", "state_dict": model.state_dict(), "current_model_state": raw}
    torch.save(content, tmp_path / "last.ckpt")
    assert_same(small(weights=str(tmp_path / "last.ckpt")), model)
    assert "averaged weights of a run" in caplog.text


def test_a_head_of_other_classes_is_new_and_said(tmp_path, caplog):
    save_weights(small(), tmp_path / "w.pth", "timm")
    model = small(num_classes=7, weights=str(tmp_path / "w.pth"))
    assert "the file has a head of 10 classes; ours of 7 is new" in caplog.text
    assert model.head.weight.detach().std() == pytest.approx(0.02, rel=0.3)
    assert not model.head.bias.any()


@pytest.mark.parametrize("target", WRITTEN)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(target, tmp_path):
    path = tmp_path / "w.pth"
    complete = export_weights(small(), target)
    names = [name for name in complete if "position_index" not in name]
    some = [
        names[0],
        names[7],
        names[-1],
        next(name for name in names if "qkv" in name or "q_proj" in name or "query" in name),
    ]
    cases = [(f"missing {name}", {k: v for k, v in complete.items() if k != name}) for name in some]
    cases += [(f"{name} has shape", {**complete, name: torch.zeros(5, 3)}) for name in some]
    cases += [("unexpected surprise.weight", {**complete, "surprise.weight": torch.zeros(3)})]
    if target != "swin_lightning":
        name = next(name for name in names if "bias_table" in name)  # a window belongs to a stage, not to a block
        cases += [(f"{name} has shape (169, 2)", {**complete, name: torch.zeros(169, 2)})]
    cases += [("epochs is a int", {**complete, "epochs": 3})]
    for problem, state in cases:
        torch.save(state, path)
        model = small()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ValueError, match="do not fit the model") as error:
            load_weights(model, path)
        assert problem in str(error.value)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Explosive:
    def __reduce__(self) -> Any:
        return os.mkdir, (Explosive.path,)


class Config(dict):
    """Stands for the configuration object of official training checkpoints."""


def test_files_that_are_no_checkpoint(tmp_path):
    good = tmp_path / "good.pth"
    save_weights(small(), good)
    save_weights(small(), tmp_path / "good.safetensors")
    Explosive.path = str(tmp_path / "exploded")
    for suffix in (".pth", ".safetensors"):
        (tmp_path / f"cut{suffix}").write_bytes((tmp_path / f"good{suffix}").read_bytes()[:-2000])
        (tmp_path / f"text{suffix}").write_text("no checkpoint at all")
        (tmp_path / f"empty{suffix}").write_bytes(b"")
    torch.save({"model": Explosive()}, tmp_path / "evil.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    for name in (
        *(f"{kind}{s}" for kind in ("cut", "text", "empty") for s in (".pth", ".safetensors")),
        "evil.pth",
        "list.pth",
        "none.pth",
        "absent.pth",
    ):
        with pytest.raises(ValueError, match=name):
            small(weights=str(tmp_path / name))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_a_training_checkpoint_says_how_to_convert_it_and_that_works(wrapper, tmp_path, monkeypatch):
    model, path = small(), tmp_path / "train.pth"
    torch.save({wrapper: export_weights(model, "official"), "config": Config(lr=1)}, path)
    with pytest.raises(ValueError, match=rf"besides tensors \({__name__}.Config\)") as error:
        small(weights=str(path))
    python, _, code = shlex.split(str(error.value).partition("parameters: ")[2])
    assert python == "python"
    monkeypatch.delattr(f"{__name__}.Config")  # whoever converts the file need not have what wrote it
    exec(code, {})
    torch.serialization.clear_safe_globals()
    assert_same(small(weights=str(tmp_path / "train.weights.pth")), model)


def test_no_way_is_offered_where_there_is_none(tmp_path):
    Explosive.path = str(tmp_path / "exploded")
    torch.save({"model": export_weights(small(), "official"), "config": Explosive()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"\(posix.mkdir\).*ask its author for the parameters alone"):
        small(weights=str(tmp_path / "evil.pth"))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("wrapper", ["state_dict_ema", "model_ema"])
def test_averaged_weights_of_timm_and_torchvision(wrapper, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = small()
    averaged = export_weights(model, "torchvision")
    raw = {key: torch.zeros_like(value) for key, value in averaged.items()}
    averaged = {f"module.{key}": value for key, value in averaged.items()} | {"n_averaged": torch.tensor(7)}
    torch.save({wrapper.removesuffix("_ema"): raw, wrapper: averaged, "epoch": 3}, tmp_path / "w.pth")
    assert_same(small(weights=str(tmp_path / "w.pth")), model)
    assert "torchvision format (averaged weights)" in caplog.text


def test_each_kind_of_misfit_is_shown(tmp_path):
    torch.save(export_weights(small(2), "official"), tmp_path / "v2.pth")
    with pytest.raises(ValueError, match=r"missing layers.*; unexpected .*logit_scale; .*has shape.* more$"):
        small(weights=str(tmp_path / "v2.pth"))


def test_the_head_for_imagenet_takes_its_rows_of_that_for_imagenet_22k(tmp_path, caplog):
    source, path = small(num_classes=21841), str(tmp_path / "22k.pth")
    save_weights(source, path, "timm")
    model = small(num_classes=1000, weights=path, head_rows="imagenet22k")
    # where timm's list of the classes has the names of tench, goldfish, great white shark and, last, toilet tissue
    rows = torch.tensor([359, 368, 460, 21817])
    assert torch.equal(model.head.weight[[0, 1, 2, 999]], source.head.weight[rows])
    assert torch.equal(model.head.bias[[0, 1, 2, 999]], source.head.bias[rows])
    assert "of a head of 21841 classes, ours has the 1000 rows of ImageNet-1K" in caplog.text
    assert not torch.equal(small(num_classes=1000, weights=path).head.weight[0], source.head.weight[359])
    small(num_classes=7, weights=path, head_rows="imagenet22k")
    assert "the file has a head of 21841 classes; ours of 7 is new" in caplog.text


@pytest.mark.parametrize(("mode", "neighbour"), [("bicubic", 0.97), ("geometric", 0.88)])
def test_bias_tables_of_another_window(mode, neighbour, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    axis = torch.arange(-6.0, 7.0)
    gaussian = torch.exp(-(axis[:, None] ** 2 + axis**2) / 8).reshape(-1, 1)
    assert resize_bias_table(gaussian, 12, mode).view(23, 23)[11, 12].item() == pytest.approx(neighbour, abs=0.005)
    assert torch.equal(resize_bias_table(gaussian, 7, mode), gaussian)
    save_weights(small(), tmp_path / "w.pth", "torchvision")
    model = small(window_size=6, bias_resize=mode, weights=str(tmp_path / "w.pth"))
    assert f"bias tables resized from window 4 to 6 ({mode})" in caplog.text
    table = model.backbone.layers[0].blocks[0].attn.relative_position_bias_table
    torch.testing.assert_close(
        table, resize_bias_table(small().backbone.layers[0].blocks[0].attn.relative_position_bias_table, 6, mode)
    )


CLAMPED = {"depths": (2, 2, 2), "num_heads": (2, 4, 8), "window_size": 8}  # the last map is 4 x 4


@pytest.mark.parametrize("target", ["official", "timm"])
def test_bias_tables_clamped_to_the_map_are_those_of_the_project(target, tmp_path):
    """Official and timm models build tables of 15 x 15 for window 8, and of 7 x 7 where the map is 4 x 4."""
    model = small(**CLAMPED)
    save_weights(model, tmp_path / "w.pth", target)
    name = "layers.2.blocks.1.attn.relative_position_bias_table"
    full, table = model.backbone.get_parameter(name), export_weights(model, target)[name]
    assert torch.equal(table, full.view(15, 15, 8)[4:11, 4:11].reshape(49, 8))
    again = small(**CLAMPED, weights=str(tmp_path / "w.pth"))
    assert_same(again, model)
    assert torch.equal(again.backbone.get_parameter(name).view(15, 15, 8)[4:11, 4:11].reshape(49, 8), table)


def test_a_larger_window_than_the_map_is_resized_to_the_map(tmp_path, caplog):
    """Officially, tables of window 4 become those of the clamped windows: 8, 8, 4; the last is not stretched."""
    caplog.set_level(logging.INFO)
    window4 = {**CLAMPED, "window_size": 4}
    save_weights(small(**window4), tmp_path / "w.pth", "official")
    model = small(**CLAMPED, weights=str(tmp_path / "w.pth"))
    name = "layers.{}.blocks.0.attn.relative_position_bias_table"
    theirs = [small(**window4).backbone.get_parameter(name.format(stage)) for stage in range(3)]
    ours = [model.backbone.get_parameter(name.format(stage)) for stage in range(3)]
    torch.testing.assert_close(ours[1], resize_bias_table(theirs[1], 8))
    assert torch.equal(ours[2].view(15, 15, 8)[4:11, 4:11].reshape(49, 8), theirs[2])
    assert "bias tables of window 4 are the centre of window 8; bias tables resized from window 4 to 8" in caplog.text


@pytest.mark.parametrize(("target", "sides"), [("official", "16, 8"), ("timm", "16, 8"), ("torchvision", "16, 8, 4")])
def test_an_export_says_where_others_attend_to_pads(target, sides, caplog):
    export_weights(small(depths=(2, 2, 2), num_heads=(2, 4, 8)), target)
    assert not caplog.text
    export_weights(small(**{**CLAMPED, "window_size": 6}), target)
    assert f"{target} attends to pads" in caplog.text
    assert f"no multiple of window 6, here at side {sides}:" in caplog.text


def test_position_embeddings_of_another_image(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = small(ape=True)
    save_weights(model, tmp_path / "w.pth", "transformers")
    assert_same(small(ape=True, weights=str(tmp_path / "w.pth")), model)
    larger = small(ape=True, img_size=48, weights=str(tmp_path / "w.pth"))
    assert larger.backbone.absolute_pos_embed.shape == (1, 24 * 24, 24)
    assert "position embedding resized" in caplog.text


def test_any_backbone_reads_what_it_wrote_and_no_other_format(tmp_path):
    def plain() -> SwinClassifier:
        backbone = nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(3), pool=nn.AdaptiveAvgPool2d(2), flat=nn.Flatten()))
        backbone.num_features = 12
        return SwinClassifier(backbone, 4)

    model = plain()
    save_weights(model, tmp_path / "w.safetensors")
    again = plain()
    load_weights(again, tmp_path / "w.safetensors")
    assert torch.equal(again.head.weight, model.head.weight)
    with pytest.raises(ValueError, match="Sequential"):
        save_weights(model, tmp_path / "w.pth", "timm")
    with pytest.raises(ValueError, match="unknown"):
        save_weights(small(), tmp_path / "w.pth", "tim")
    with pytest.raises(ValueError, match="safetensors"):
        save_weights(small(), tmp_path / "w.bin")


def test_half_precision_files(tmp_path):
    state = {name: value.half().contiguous() for name, value in export_weights(small(), "official").items()}
    save_file(state, tmp_path / "half.safetensors")
    model = small(weights=str(tmp_path / "half.safetensors"))
    assert model.head.weight.dtype == torch.float32
    torch.testing.assert_close(model.backbone.norm.weight, small().backbone.norm.weight, atol=1e-3, rtol=0)


def assert_same(model: SwinClassifier, other: SwinClassifier) -> None:
    x = formula_input(32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.backbone(x), other.backbone(x), atol=1e-6, rtol=0)
