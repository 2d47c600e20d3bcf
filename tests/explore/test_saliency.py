import pickle

import pytest
import torch
from torch import nn

from swin_lightning.explore.saliency import attention_rollout, find_backbone, grad_cam, principal_components_rgb
from swin_lightning.models import SwinTransformer, SwinTransformerV2
from swin_lightning.tasks.classification import SwinClassifier
from tests.support.small_swin import SMALL

M = SMALL["window_size"]


@pytest.mark.parametrize("size", [(24, 24), (22, 26)])
@pytest.mark.parametrize("network", [SwinTransformer, SwinTransformerV2])
def test_rollout_sums_to_one(network, size):
    maps = attention_rollout(SwinClassifier(network(**SMALL), num_classes=3), torch.randn(2, 3, *size))
    assert maps.shape == (2, size[0] // 2, size[1] // 2)
    assert maps.min() > 0
    assert maps.sum(dim=(1, 2)) == pytest.approx([1.0, 1.0], abs=1e-5)


def test_rollout_of_a_single_window():
    model = SwinTransformer(**SMALL | {"depths": (1,), "num_heads": (1,)})
    for parameter in model.layers.parameters():
        nn.init.zeros_(parameter)  # uniform attention
    images = torch.zeros(1, 3, 8, 8)
    assert attention_rollout(model, images).flatten().tolist() == pytest.approx([1 / 16] * 16)
    table = model.layers[0].blocks[0].attn.relative_position_bias_table
    with torch.no_grad():  # every token attends to the one below; the last row attends uniformly
        table[(0 - 1 + M - 1) * (2 * M - 1) + M - 1] = 100.0
    maps = attention_rollout(model, images)[0]
    # half from the token itself, half from the one above; that half of the last row is spread over all 16 tokens
    expected = torch.tensor([0.5, 1.0, 1.0, 1.0]) / 16 + 0.5 * 4 / 16 / 16
    torch.testing.assert_close(maps, expected[:, None].expand(4, 4))


@pytest.mark.parametrize("network", [SwinTransformer, SwinTransformerV2])
def test_grad_cam_weights_features_by_mean_gradient(network):
    model = SwinClassifier(network(**SMALL), num_classes=3).eval()
    images, classes = torch.randn(2, 3, 16, 16), torch.tensor([2, 0])
    with torch.no_grad():
        features = model.backbone.forward_intermediates(images)[-1]
    features.requires_grad_()
    logits = model.head(model.backbone.norm(features).mean(dim=(1, 2)))
    (logits[0, 2] + logits[1, 0]).backward()
    for i in range(2):
        weights = features.grad[i].mean(dim=(0, 1))
        expected = (features[i] @ weights).clamp(min=0)
        torch.testing.assert_close(grad_cam(model, images, classes)[i], expected.detach())
    model.zero_grad()
    assert torch.equal(grad_cam(model, images), grad_cam(model, images, logits.argmax(dim=1)))
    assert grad_cam(model, images, stage=0).shape == (2, 8, 8)
    assert all(p.grad is None for p in model.parameters())
    pickle.dumps(model)  # fails if a hook, which is a local function, was not removed


def test_principal_components_separate_the_largest_differences():
    features = torch.zeros(5, 4, 4)
    features[0, :2] = 10.0  # the upper half differs in one channel
    features[1, :, :1] = 1.0
    rgb = principal_components_rgb(features)
    assert rgb.shape == (4, 4, 3) and rgb.min() == 0 and rgb.max() == 1
    assert (rgb[:2, :, 0].mean() - rgb[2:, :, 0].mean()).abs() > 0.9


def test_find_backbone():
    backbone = SwinTransformer(**SMALL)
    assert find_backbone(SwinClassifier(backbone, num_classes=3)) is backbone
    with pytest.raises(ValueError, match="Linear has no Swin Transformer block"):
        find_backbone(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="BasicLayer has Swin Transformer blocks, but no SwinTransformer"):
        find_backbone(backbone.layers[0])
