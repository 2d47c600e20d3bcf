"""Texts in figures do not overlap."""

import numpy as np
import pytest
import torch

from swin_lightning.explore.attention_maps import record_attention, swin_blocks
from swin_lightning.explore.evaluation import load_samples, to_numpy
from swin_lightning.explore.model_figures import (
    bias_figure,
    distance_figure,
    features_figure,
    query_figure,
    saliency_figure,
)
from swin_lightning.models import SwinTransformer, SwinTransformerV2
from tests.support.figures import INVALID_FORMULA, text_overlaps
from tests.support.small_swin import SMALL


@pytest.fixture(scope="module")
def photos(loaded):
    return to_numpy(load_samples(loaded[1], "test", range(8))[0])


@pytest.fixture(scope="module")
def attention(loaded, photos):
    model, data = loaded
    with torch.no_grad(), record_attention(model) as record:
        model(data.normalize(torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2)))
    return record


def test_query_figure(photos, attention):
    assert text_overlaps(query_figure(photos[0], list(attention.values()), (0.5, 0.5))) == []


def test_distance_figure(attention):
    figure = distance_figure(attention, 4)
    assert text_overlaps(figure) == []
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1.1", "1.2", "2.1", "2.2"]


def test_saliency_figure(photos):
    maps = {"rollout": torch.rand(8, 8, 8), "Grad-CAM": torch.rand(8, 4, 4)}
    assert text_overlaps(saliency_figure(photos, maps, ["a long name: 99 %"] * 8)) == []
    saliency_figure(photos[:1], {}, [INVALID_FORMULA]).draw_without_rendering()


@pytest.mark.parametrize("network", [SwinTransformer, SwinTransformerV2])
def test_bias_figure(network):
    name, block = swin_blocks(network(**SMALL))[-1]
    figure = bias_figure(block, name)
    assert text_overlaps(figure) == []
    assert figure.get_suptitle() == "relative position bias, stage 2, block 2"


def test_features_figure(photos):
    figure = features_figure(photos[0], [torch.rand(16, 8, 8), torch.rand(32, 4, 4)])
    assert text_overlaps(figure) == []
    assert [ax.get_title() for ax in figure.axes[1:3]] == ["stage 1: 8 x 8\n16 channels", "stage 2: 4 x 4\n32 channels"]
