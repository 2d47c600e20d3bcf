"""Pictures of what a backbone has learned without labels: features in two dimensions, reconstructed images."""

from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from swin_lightning.data import ImageDataModule
from swin_lightning.errors import UserError
from swin_lightning.explore.features import Features
from swin_lightning.explore.figures import COLORS, image_axes, subplots
from swin_lightning.tasks import SimMIM

Method = Literal["pca", "tsne", "umap"]


def project(features: Features, method: Method = "tsne", seed: int = 0) -> np.ndarray:
    """Features in two dimensions, `N, 2`: the two principal components, t-SNE or UMAP (`pip install umap-learn`).

    Raises:
        UserError: If UMAP is not installed.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if method == "umap":
        try:
            from umap import UMAP
        except ImportError as error:
            raise UserError("method 'umap' needs umap-learn: pip install umap-learn") from error
        reducer = UMAP(random_state=seed)
    elif method == "tsne":
        reducer = TSNE(random_state=seed, perplexity=min(30, (len(features.values) - 1) / 3))
    else:
        reducer = PCA(2, random_state=seed)
    points: np.ndarray = reducer.fit_transform(features.values)
    return points


def projection_figure(points: np.ndarray, features: Features, title: str = "") -> Figure:
    """Projected features, `N, 2`, one colour per class (they repeat from the ninth class on, with other markers)."""
    figure, axes = subplots(1, 1, width=5.0, height=4.0)
    ax = axes[0, 0]
    names = []
    for k in np.unique(features.labels):
        names.append(features.class_names[k] if 0 <= k < len(features.class_names) else "no label")
        style = {"color": COLORS[k % len(COLORS)], "marker": "ox^s"[k // len(COLORS) % 4]}
        ax.scatter(*points[features.labels == k].T, s=8, linewidths=0.8, label=str(k), **style)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(title, parse_math=False)
    legend = ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    for text, name in zip(legend.get_texts(), names, strict=True):  # as labels, those with _ would be left out
        text.set_parse_math(False)
        text.set_text(name)
    return figure


def reconstruct(model: SimMIM, images: Tensor, indices: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
    """Masks and reconstructions of normalised images `n, 3, S, S` with these indices.

    Returns:
        Masked pixels, `n, 1, S, S` bool, and images `n, 3, S, S` whose masked pixels are those of the model.

    Raises:
        UserError: If the model predicts normalised pixels (`norm_target`), which are no image.
    """
    if model.norm_target is not None:
        raise UserError(f"model.norm_target {model.norm_target}: the model does not predict pixels of an image")
    training = model.training
    model.eval()
    with torch.no_grad():
        masks = model.masks(images, indices, epoch)
        found = model(images, masks)
    model.train(training)  # it may be called within a training
    pixels = masks.repeat_interleave(model.patch_size, 1).repeat_interleave(model.patch_size, 2)[:, None]
    return pixels, torch.where(pixels, found, images)


def reconstruction_figure(data: ImageDataModule, images: Tensor, pixels: Tensor, columns: dict[str, Tensor]) -> Figure:
    """One row per image: the image, the image without its masked pixels, and reconstructions by title.

    Args:
        data: Data module, for its normalisation.
        images: Normalised images, `n, 3, S, S`.
        pixels: Masked pixels, `n, 1, S, S` bool.
        columns: Title -> normalised images, `n, 3, S, S`.
    """
    shown = {"image": data.denormalize(images), "input": data.denormalize(images).where(~pixels, 127)}
    shown |= {title: data.denormalize(found) for title, found in columns.items()}
    figure, axes = image_axes(len(images) * len(shown), len(shown), width=1.1, height=1.1)
    for i, ax in enumerate(axes):
        row, column = divmod(i, len(shown))
        title, pictures = list(shown.items())[column]
        ax.imshow(pictures[row].permute(1, 2, 0).numpy())
        if row == 0:
            ax.set_title(title, fontsize=8, parse_math=False)
    return figure
