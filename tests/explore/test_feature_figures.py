"""Features in two dimensions, and reconstructed images."""

import importlib.util

import numpy as np
import pytest
import torch

from swin_lightning import SimMIM
from swin_lightning.data import Digits
from swin_lightning.errors import UserError
from swin_lightning.explore.feature_figures import project, projection_figure, reconstruct, reconstruction_figure
from swin_lightning.models import SwinTransformer
from tests.explore.test_probes import clusters, make


def test_principal_components_are_those_of_the_covariance():
    features = clusters(0)
    points = project(features, "pca")
    centred = features.values - features.values.mean(axis=0)
    singular = np.linalg.svd(centred, compute_uv=False)
    assert np.linalg.norm(points, axis=0) == pytest.approx(singular[:2], rel=1e-4)


def test_neighbours_keep_their_class_in_tsne():
    features = clusters(0, noise=0.1)
    points = project(features)
    distances = np.linalg.norm(points[:, None] - points, axis=2) + 1e9 * np.eye(60)
    assert (features.labels[distances.argmin(axis=1)] == features.labels).mean() > 0.95


@pytest.mark.skipif(importlib.util.find_spec("umap") is not None, reason="umap-learn is installed")
def test_umap_is_optional():
    with pytest.raises(UserError, match="pip install umap-learn"):
        project(clusters(0), "umap")


def test_figure_shows_every_class_once():
    features = make(np.random.default_rng(0).standard_normal((4, 2)), [0, 1, 1, -1], 2)
    features.class_names[:] = ["_cat", "$dog"]
    ax = projection_figure(features.values, features, "t-SNE").axes[0]
    assert sorted(text.get_text() for text in ax.get_legend().get_texts()) == ["$dog", "_cat", "no label"]
    assert sorted(len(c.get_offsets()) for c in ax.collections) == [1, 1, 2]


def test_reconstruction_changes_masked_pixels_alone():
    backbone = SwinTransformer(img_size=32, patch_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 1), window_size=4)
    model, data = SimMIM(backbone, mask_patch_size=8), Digits(num_workers=0)
    images = torch.randn(3, 3, 32, 32)
    pixels, found = reconstruct(model, images, torch.arange(3))
    assert model.training and model.backbone.training  # as before
    assert pixels.sum(dim=(1, 2, 3)).tolist() == [10 * 64] * 3
    same = (found == images).all(dim=1, keepdim=True)
    assert torch.equal(same, ~pixels)
    figure = reconstruction_figure(data, images, pixels, {"untrained": found})
    assert [ax.get_title() for ax in figure.axes[:3]] == ["image", "input", "untrained"] and len(figure.axes) == 9
    shown = torch.from_numpy(figure.axes[1].images[0].get_array())
    assert torch.equal((shown == 127).all(dim=-1), pixels[0, 0])
    model.norm_target = 3
    with pytest.raises(UserError, match="norm_target 3"):
        reconstruct(model, images, torch.arange(3))
