"""Weight formats of other projects: golden outputs, round trips, keys and shapes of exports."""

import logging

import pytest
import torch
from torch import Tensor, nn

from swin_lightning.models.weight_formats import (
    EXPORT_FORMATS,
    SWIN_LIGHTNING,
    TRANSFORMERS_4,
    KeyMapping,
    detect_format,
    from_unfold_order,
    merge_chunks,
    to_unfold_order,
)
from swin_lightning.models.weights import export_weights, save_weights
from tests.support import formats
from tests.support.formats import assert_same_features, small_classifier
from tests.support.golden import formula_input

WRAPPERS = {"official": "model", "SimMIM": "model", "mmpretrain": "state_dict"}
# Swin-T V1 of these projects has the keys of their smaller golden model, which is not marked as slow
SLOW = ("timm-swin_tiny_224", "torchvision-swin_tiny_224", "transformers-swin_tiny_224")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in formats.GOLDEN]
)
def test_logits_match_the_project_that_saved_the_weights(name, tmp_path, monkeypatch):
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, **_: tensor)  # faster; all parameters are loaded
    golden, path = formats.GOLDEN[name], tmp_path / "weights.pth"
    state = formats.state_dict(name)
    wrapper = WRAPPERS.get(name.partition("-")[0])
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    logits = formats.logits(formats.golden_classifier(name, path), golden["input_size"])
    assert (logits[:, :16] - torch.tensor(golden["logits_first16"])).abs().max() < 1e-4
    assert (logits.norm(dim=1) - torch.tensor(golden["logits_norm"])).abs().max() < 1e-3


@pytest.mark.parametrize("name", [name for name in formats.GOLDEN if "SimMIM" not in name])
def test_exported_keys_and_shapes_match_the_project(name):
    golden = formats.GOLDEN[name]
    with torch.device("cpu" if name == "torchvision-swinv2_tiny_256" else "meta"):  # it exports values of buffers
        model = formats.golden_classifier(name)
        exported = export_weights(model, golden["format"].removesuffix("-v2"))
    expected = {key: tuple(shape) for key, shape in golden["parameters"].items()}
    if "torchvision" in name:  # its state dict includes buffers
        expected |= {key: tuple(shape) for key, (shape, _) in golden["buffers"].items()}
    assert {key: tuple(value.shape) for key, value in exported.items()} == expected


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("target", EXPORT_FORMATS)
def test_round_trip(target, version, suffix, tmp_path, caplog):
    model, path = small_classifier(version), tmp_path / f"weights{suffix}"
    save_weights(model, path, target)
    caplog.set_level(logging.INFO)
    loaded = small_classifier(version, weights=path)
    detected = target if version == 1 else target.removesuffix("4")  # transformers did not rename V2 in release 5
    assert f"{detected} format" in caplog.text
    images = formula_input(32, 32)
    assert torch.equal(model(images), loaded(images))


def test_torchvision_buffers_and_zero_key_bias():
    model = small_classifier(2)
    exported = export_weights(model, "torchvision")
    bias = exported["features.1.0.attn.qkv.bias"].chunk(3)
    assert torch.equal(bias[0], model.backbone.layers[0].blocks[0].attn.q_bias)
    assert not bias[1].any()
    index = exported["features.1.0.attn.relative_position_index"]
    assert index[0] == 24  # offset (0, 0) is the centre of 7 x 7
    coords = exported["features.1.0.attn.relative_coords_table"][0, 0, 0]
    assert coords.tolist() == pytest.approx([-1.0566, -1.0566], abs=1e-3)


class UnfoldMerging(nn.Module):
    """Patch merging as in mmcv, with the channel order of `nn.Unfold`."""

    def forward(self, x: Tensor, merging: dict[str, Tensor]) -> Tensor:  # B, H, W, C
        B, H, W, _ = x.shape
        x = nn.functional.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)  # B, H/2*W/2, 4*C
        x = nn.functional.layer_norm(x, x.shape[-1:], merging["norm.weight"], merging["norm.bias"])
        return (x @ merging["reduction.weight"].T).view(B, H // 2, W // 2, -1)


def test_mmpretrain_merges_patches_in_unfold_order():
    model = small_classifier()
    exported = export_weights(model, "mmpretrain")
    prefix = "backbone.stages.0.downsample."
    merging = {key.removeprefix(prefix): value for key, value in exported.items() if key.startswith(prefix)}
    x = torch.randn(2, 6, 4, 24)
    torch.testing.assert_close(UnfoldMerging()(x, merging), model.backbone.layers[0].downsample(x))
    assert torch.equal(from_unfold_order(to_unfold_order(x)), x)
    keys = {"backbone.norm1.weight", "backbone.stages.1.blocks.0.ffn.layers.0.0.weight", "head.fc.bias"}
    assert keys <= exported.keys()
    v2 = export_weights(small_classifier(2), "mmpretrain")
    assert v2["backbone.stages.1.downsample.norm.weight"].shape == (48,)


def test_qkv_chunks():
    (query, key, value) = TRANSFORMERS_4.map_key("layers.1.blocks.0.attn.qkv.weight", last_stage=1)
    assert query == KeyMapping("swin.encoder.layers.1.blocks.0.attention.self.query.weight")
    assert value.key.endswith("self.value.weight") and key.qkv_chunk is None
    merged = merge_chunks([torch.tensor([1]), torch.tensor([2]), torch.tensor([3])], [query, key, value])
    assert merged.tolist() == [1, 2, 3]
    rows = torch.arange(6)
    assert merge_chunks([rows], [KeyMapping("qkv.bias", qkv_chunk=2)]).tolist() == [4, 5]


def test_detection_prefers_the_names_of_the_model():
    """Any backbone can be saved and loaded, even if its names look like those of another format."""
    keys = ["backbone.layer.0.attention.self.query.weight", "head.weight"]
    assert detect_format(keys).name == "transformers4"
    assert detect_format(keys, own=keys) == SWIN_LIGHTNING


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_parallel_and_compiled_models(prefix, tmp_path):
    model = small_classifier()
    torch.save({prefix + key: value for key, value in export_weights(model, "timm").items()}, tmp_path / "w.pth")
    assert_same_features(small_classifier(weights=tmp_path / "w.pth"), model)


@pytest.mark.parametrize(
    ("target", "prefix"), [("transformers", "swin."), ("transformers4", "swin."), ("mmpretrain", "backbone.")]
)
def test_backbone_saved_without_prefix(target, prefix, tmp_path, caplog):
    model = small_classifier()
    state = export_weights(model, target)
    backbone = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    torch.save(backbone, tmp_path / "w.pth")
    assert_same_features(small_classifier(weights=tmp_path / "w.pth"), model)
    assert "no classifier in checkpoint; initialised a new 10-class head" in caplog.text


@pytest.mark.parametrize("version", [1, 2])
def test_simmim_pretraining(version, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = small_classifier(version)
    official = export_weights(model, "official")
    state = {f"encoder.{key}".replace("cpb_mlp", "rpe_mlp"): v for key, v in official.items() if "head" not in key}
    state["encoder.mask_token"] = torch.zeros(1, 1, 24)
    state |= {f"decoder.0.{part}": torch.zeros(3) for part in ("weight", "bias")}
    torch.save({"model": state}, tmp_path / "simmim.pth")
    assert_same_features(small_classifier(version, weights=tmp_path / "simmim.pth"), model)
    assert "SimMIM format" in caplog.text
    ignored = "decoder.0.bias, decoder.0.weight, encoder.mask_token"
    assert f"ignored 3 entries outside of backbone and head: {ignored}" in caplog.text
