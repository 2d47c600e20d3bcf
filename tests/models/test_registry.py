"""The named models: figures as published, usable by name in a configuration."""

import inspect

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from swin_lightning import models
from swin_lightning.cli import main
from swin_lightning.models.flops import builders, count, image_size, num_classes, published
from swin_lightning.models.swin_v2 import WindowAttentionV2

# microsoft/Swin-Transformer, README.md: millions of parameters and 10^9 MACs with 1000 classes
PUBLISHED = {
    "swin_tiny_patch4_window7_224": ("28", "4.5"),
    "swin_small_patch4_window7_224": ("50", "8.7"),
    "swin_base_patch4_window7_224": ("88", "15.4"),
    "swin_large_patch4_window7_224": ("197", "34.5"),
    "swin_base_patch4_window12_384": ("88", "47.1"),
    "swin_large_patch4_window12_384": ("197", "103.9"),
    "swinv2_tiny_patch4_window8_256": ("28", "5.9"),
    "swinv2_small_patch4_window8_256": ("50", "11.5"),
    "swinv2_base_patch4_window8_256": ("88", "20.3"),
    "swinv2_tiny_patch4_window16_256": ("28", "6.6"),
    "swinv2_small_patch4_window16_256": ("50", "12.6"),
    "swinv2_base_patch4_window16_256": ("88", "21.8"),
    "swinv2_base_patch4_window12to16_192to256": ("88", "21.8"),
    "swinv2_large_patch4_window12to16_192to256": ("197", "47.5"),
    "swinv2_base_patch4_window12to24_192to384": ("88", "54.7"),
    "swinv2_large_patch4_window12to24_192to384": ("197", "115.4"),
}
EXACT = {"swin_tiny_patch4_window7_224": 28_288_354, "swinv2_tiny_patch4_window8_256": 28_347_154}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(name):
    parameters, macs = count(builders()[name], 1000, image_size(name))
    figures = published(builders()[name])
    assert (f"{parameters / 1e6:.0f}", f"{macs / 1e9:.1f}") == PUBLISHED[name] == (figures.parameters, figures.macs)
    assert parameters == EXACT.get(name, parameters)
    assert figures.results


def test_what_is_counted():
    """A linear layer of 24 x 24, and two attention products, on 4 x 4 tokens of one window, written out."""
    parameters, macs = count(
        lambda **kw: models.SwinTransformer(embed_dim=24, depths=(1,), num_heads=(3,), window_size=4, **kw), 10, 16
    )
    tokens = 16
    linear = tokens * 24 * (3 * 24 + 24 + 4 * 24 + 4 * 24)
    assert macs == tokens * 3 * 16 * 24 + linear + 2 * tokens * tokens * 24 + 24 * 10
    assert parameters == sum(
        p.numel()
        for p in models.SwinTransformer(
            embed_dim=24, depths=(1,), num_heads=(3,), window_size=4, num_classes=10
        ).parameters()
    )


def test_every_builder_is_exported_and_annotated():
    for name, builder in builders().items():
        assert getattr(models, name) is builder
        assert inspect.signature(builder).return_annotation in (models.SwinTransformer, models.SwinTransformerV2)
        assert ("swinv2" in name) == (inspect.signature(builder).return_annotation is models.SwinTransformerV2)
    assert num_classes("swinv2_base_patch4_window12_192") == 21841


@pytest.mark.parametrize("name", ["swin_tiny_patch2_window4_32", "swinv2_tiny_patch4_window8_256"])
def test_by_name_in_a_configuration(name):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--backbone", type=nn.Module)
    key = f"--backbone=swin_lightning.models.{name}"
    config = parser.parse_args([key, "--backbone.drop_path_rate=0.4", "--backbone.in_chans=1"])
    assert config.backbone.init_args.qkv_bias is True
    backbone = parser.instantiate(config).backbone
    assert backbone.patch_embed.proj.in_channels == 1
    assert backbone.layers[-1].blocks[-1].drop_path.p == pytest.approx(0.4)
    for option in ("--backbone.nonsense=1", "--backbone.embed_dim=24"):  # the name fixes the sizes
        with pytest.raises(ArgumentError, match="not accepted"):
            parser.parse_args([key, option])


def test_the_fine_tuned_know_their_first_windows(monkeypatch):
    trained = []
    monkeypatch.setattr(WindowAttentionV2, "set_trained_window", lambda self, window: trained.append(window))
    with torch.device("meta"):
        model = models.swinv2_base_patch4_window12to16_192to256()
    assert [layer.blocks[0].attn.window_size for layer in model.layers] == [16] * 4
    assert trained[-24:] == [12] * 22 + [6] * 2


def test_the_table(capsys, monkeypatch):
    few = ("swin_tiny_patch4_window7_224", "swin_micro_patch4_window4_32")
    chosen = {name: builders()[name] for name in few}
    monkeypatch.setattr("swin_lightning.models.flops.builders", lambda: chosen)
    assert main(["models"]) is None
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:9] == f"{few[0]} 1000 28.29M (28M) 4.49G (4.5G) 81.2 / 95.5".split()
    assert lines[2].split()[:3] == ["80.9", "/", "96.0"]
    assert lines[3].split() == ["swin_micro_patch4_window4_32", "10", "0.37M", "0.01G"]
