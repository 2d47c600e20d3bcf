"""Registry of named models: published metrics, lookup, and use by name in a configuration."""

import inspect

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from swin_lightning import models
from swin_lightning.errors import UserError
from swin_lightning.models import registry
from swin_lightning.models.registry import (
    PretrainedMetrics,
    PublishedResult,
    compare_to_published,
    list_models,
    model_info,
    register_model,
)


@pytest.fixture
def own_registry(monkeypatch):
    """Models that a test registers disappear after it."""
    monkeypatch.setattr(registry, "MODELS", dict(registry.MODELS))


@pytest.mark.parametrize("name", list_models())
def test_registered_model_is_exported_with_its_image_size(name):
    info = model_info(name)
    assert info.name == name and getattr(models, name) is info.builder
    with torch.device("meta"):
        backbone = info.builder()
    assert type(backbone) is inspect.signature(info.builder).return_annotation
    assert isinstance(backbone, models.SwinTransformerV2) == name.startswith("swinv2")
    assert (backbone.img_size, backbone.num_classes) == ((info.image_size, info.image_size), 0)


def test_every_exported_builder_is_registered():
    builders = {name for name in models.__all__ if name.startswith(("swin_", "swinv2_"))}
    assert builders == set(list_models()) and len(builders) == 20


def test_num_classes():
    expected = {32: 10, 192: 21841}  # CIFAR-10, ImageNet-22K
    for info in map(model_info, list_models()):
        assert info.num_classes == expected.get(info.image_size, 1000)


def test_published_results_are_complete():
    published = [model_info(name).published for name in list_models()]
    assert sum(metrics is None for metrics in published) == 4  # pre-trained at 192 pixels, and the two small models
    results = [result for metrics in published if metrics for result in metrics.results]
    assert len(results) == 20
    assert all(80 < result.top1 < result.top5 < 99 for result in results)


def test_compare_to_published():
    name = "swin_lightning.models.swin_tiny_patch4_window7_224"
    assert compare_to_published(name, "imagenet_ft_22k", 0.5, 1.0, "resize 64, crop 56") == (
        "measured   top-1 50.0  top-5 100.0  resize 64, crop 56\n"
        "published  top-1 80.9  top-5 96.0  ImageNet-22K, then 1K; resize 256, crop 224"
    )
    line = compare_to_published(name, "imagenet", 0.5, 1.0, "").splitlines()[1]
    assert line == "published  top-1 81.2  top-5 95.5  ImageNet-1K; resize 256, crop 224"


@pytest.mark.parametrize(
    "class_path",
    [
        "swin_lightning.models.SwinTransformer",
        "swin_lightning.models.swin_micro_patch4_window4_32",
        "mine.swin_tiny_patch4_window7_224",
        "swin_tiny_patch4_window7_224_of_mine",
        "",
    ],
)
def test_no_comparison_for_models_without_published_results(class_path):
    assert compare_to_published(class_path, "mine", 0.5, 1.0, "") is None


def test_register_own_model(own_registry):
    metrics = PretrainedMetrics(params=1, gmacs=0.1, results=(PublishedResult(70.0, 90.0, "ImageNet-1K", "crop 64"),))

    @register_model(image_size=64, num_classes=5, published=metrics)
    def convnet(num_classes: int = 0) -> nn.Module:
        return nn.Identity()

    assert list_models()[-1] == "convnet"
    assert (model_info("convnet").builder, model_info("convnet").num_classes) == (convnet, 5)
    lines = compare_to_published(f"{__name__}.convnet", "mine", 0.6, 0.8, "crop 64")
    assert lines.splitlines()[1] == "published  top-1 70.0  top-5 90.0  ImageNet-1K; crop 64"


def test_names_of_other_modules_are_not_overwritten(own_registry):
    def swin_tiny_patch4_window7_224() -> nn.Module:
        return nn.Identity()

    with pytest.raises(
        UserError, match=r"swin_tiny_patch4_window7_224' is already registered by swin_lightning.models"
    ):
        register_model(image_size=224)(swin_tiny_patch4_window7_224)


def test_unknown_model():
    with pytest.raises(UserError, match=r"unknown model 'resnet50'; run `swin-lightning models`"):
        model_info("resnet50")


@pytest.mark.parametrize("name", ["swin_tiny_patch2_window4_32", "swinv2_tiny_patch4_window8_256"])
def test_model_by_name_in_configuration(name):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--backbone", type=nn.Module)
    key = f"--backbone=swin_lightning.models.{name}"
    config = parser.parse_args([key, "--backbone.drop_path_rate=0.4", "--backbone.in_chans=1"])
    assert config.backbone.init_args.qkv_bias is True
    with torch.device("meta"):
        backbone = parser.instantiate(config).backbone
    assert backbone.patch_embed.proj.in_channels == 1
    assert backbone.layers[-1].blocks[-1].drop_path.p == pytest.approx(0.4)
    for option in ("--backbone.nonsense=1", "--backbone.embed_dim=24"):  # sizes are fixed by the name
        with pytest.raises(ArgumentError, match="not accepted"):
            parser.parse_args([key, option])


def test_fine_tuned_models_have_pretrained_window_sizes():
    with torch.device("meta"):
        model = models.swinv2_base_patch4_window12to16_192to256()
    attentions = [layer.blocks[0].attn for layer in model.layers]
    assert [attn.window_size for attn in attentions] == [(16, 16)] * 4
    assert [attn.trained_window for attn in attentions] == [(12, 12)] * 3 + [(6, 6)]
