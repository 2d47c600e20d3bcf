"""Feature pyramid: shapes, unused parameters in distributed training, weights, a segmentation head on top."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from swin_lightning.errors import UserError
from swin_lightning.models import SwinTransformer, SwinTransformerV2
from swin_lightning.models.features import FeaturePyramid
from swin_lightning.models.weights import load_weights, save_weights
from tests.support.cli import ROOT
from tests.support.formats import small_backbone, small_classifier
from tests.support.golden import formula_input

SIZES = {"img_size": 32, "embed_dim": 8, "depths": (1, 1, 1), "num_heads": (1, 1, 1), "window_size": 4}


@pytest.mark.parametrize("version", [SwinTransformer, SwinTransformerV2])
@pytest.mark.parametrize("out_indices", [None, (0, 1), (1,), (2, 0)])
def test_maps_have_the_announced_shapes_and_every_trainable_parameter_a_gradient(version, out_indices):
    pyramid = FeaturePyramid(version(**SIZES, num_classes=5, patch_size=2), out_indices)
    maps = pyramid(torch.randn(2, 3, 40, 32))
    stages = (0, 1, 2) if out_indices is None else out_indices
    assert pyramid.channels == tuple(8 * 2**s for s in stages) == tuple(pyramid.feature_info.channels())
    assert pyramid.strides == tuple(2 * 2**s for s in stages) == tuple(pyramid.feature_info.reduction())
    shapes = [(2, c, 40 // s, 32 // s) for c, s in zip(pyramid.channels, pyramid.strides, strict=True)]
    assert [tuple(x.shape) for x in maps] == shapes
    sum(x.square().sum() for x in maps).backward()
    assert all((p.grad is not None) == p.requires_grad for p in pyramid.parameters())  # DDP needs this


def test_maps_are_those_of_the_backbone():
    backbone, images = small_backbone(), formula_input(32, 32)
    expected = backbone.feature_maps(images)
    with torch.no_grad():
        for x, y in zip(FeaturePyramid(backbone, norm=False)(images), expected, strict=True):
            torch.testing.assert_close(x, y)
        (first,) = backbone.feature_maps(images, [0])
        torch.testing.assert_close(first, expected[0])
        normed = FeaturePyramid(backbone, (1,))(images)[0]
        torch.testing.assert_close(normed.mean(1), torch.zeros(2, 8, 8), atol=1e-5, rtol=0)


def test_stages_after_the_last_one_are_not_computed():
    backbone, calls = small_backbone(), []
    backbone.layers[0].downsample.register_forward_hook(lambda *_: calls.append("merging"))
    backbone.layers[1].register_forward_hook(lambda *_: calls.append("stage"))
    FeaturePyramid(backbone, (0,))(formula_input(32, 32))
    assert not calls


def test_weights_of_a_classifier(tmp_path):
    save_weights(small_classifier(), tmp_path / "w.pth", "timm")
    pyramid = FeaturePyramid(
        SwinTransformer(img_size=32, patch_size=2, embed_dim=24, depths=(2, 2), num_heads=(2, 4), window_size=4), (0,)
    )
    load_weights(pyramid, tmp_path / "w.pth")
    expected = small_backbone().feature_maps(formula_input(32, 32))[0]
    pyramid.norms[0] = nn.Identity()
    torch.testing.assert_close(pyramid.eval()(formula_input(32, 32))[0], expected)


@pytest.mark.parametrize("out_indices", [(3,), (-1,), ()])
def test_invalid_stages(out_indices):
    with pytest.raises(UserError, match="must name stages from 0 to 2"):
        FeaturePyramid(SwinTransformer(**SIZES), out_indices)


@pytest.fixture
def segmenter():
    """The class of docs/extending.md."""
    text = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    namespace = {}
    exec(re.search(r"```python\n(# my_segmentation.py\n.*?)```", text, re.DOTALL)[1], namespace)
    return namespace["Segmenter"]


def test_segmentation_head_learns(segmenter):
    """Pixels of bright squares on noise, from maps of strides 2, 4 and 8."""
    torch.manual_seed(0)
    model = segmenter(SwinTransformer(**SIZES, patch_size=2, drop_path_rate=0.0, init_std=0.2), 1, width=16)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-3)

    def batch():
        mask = torch.zeros(8, 1, 32, 32)
        for m, y, x in zip(mask, torch.randint(24, (8,)), torch.randint(24, (8,)), strict=True):
            m[:, y : y + 8, x : x + 8] = 1
        return torch.randn(8, 3, 32, 32) + 2 * mask, mask

    for _ in range(40):
        images, mask = batch()
        loss = F.binary_cross_entropy_with_logits(model(images), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, mask = batch()
    with torch.no_grad():
        found, wanted = model(images) > 0, mask.bool()
    assert (found & wanted).sum() / (found | wanted).sum() > 0.6  # intersection over union
