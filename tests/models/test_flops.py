"""Parameters and MACs: published values, a count by hand, and the table of `swin-lightning models`."""

import pytest

from swin_lightning import models
from swin_lightning.cli import main
from swin_lightning.models import flops
from swin_lightning.models.flops import count_params_and_macs
from swin_lightning.models.registry import list_models, model_info

# microsoft/Swin-Transformer, README.md: millions of parameters and GMACs with 1000 classes
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


def test_every_published_model_is_tested():
    assert [name for name in list_models() if model_info(name).published] == list(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_params_and_macs_match_published_values(name):
    info = model_info(name)
    params, macs = count_params_and_macs(info.builder, 1000, info.image_size)
    registered = (str(info.published.params), str(info.published.gmacs))
    assert (f"{params / 1e6:.0f}", f"{macs / 1e9:.1f}") == PUBLISHED[name] == registered
    assert params == EXACT.get(name, params)


def test_macs_of_one_block_counted_by_hand():
    def builder(num_classes):
        sizes = {"embed_dim": 24, "depths": (1,), "num_heads": (3,), "window_size": 4}
        return models.SwinTransformer(num_classes=num_classes, **sizes)

    params, macs = count_params_and_macs(builder, num_classes=10, image_size=16)
    tokens = 16  # 4 x 4, one window
    patch_embedding = tokens * (3 * 4 * 4) * 24
    linear_layers = tokens * 24 * (3 * 24 + 24 + 4 * 24 + 4 * 24)
    attention = 2 * tokens * tokens * 24
    head = 24 * 10
    assert macs == patch_embedding + linear_layers + attention + head
    assert params == sum(p.numel() for p in builder(10).parameters())


def test_models_command(capsys, monkeypatch):
    names = ["swin_tiny_patch4_window7_224", "swin_micro_patch4_window4_32"]
    monkeypatch.setattr(flops, "list_models", lambda: names)
    assert main(["models"]) is None
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:10] == f"{names[0]} 224 1000 28.29M (28M) 4.49G (4.5G) 81.2 / 95.5".split()
    assert lines[2].split()[:3] == ["80.9", "/", "96.0"]
    assert lines[2].index("80.9") == lines[1].index("81.2")
    assert lines[3].split() == [names[1], "32", "10", "0.37M", "0.01G"]
