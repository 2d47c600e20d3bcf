"""Pictures of the demo page: what the network sees, attention of every stage from a place, and Grad-CAM."""

import io
import re

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from swin_lightning.explore.attention_maps import BlockAttention, record_attention
from swin_lightning.explore.figures import COLORS, draw_heatmap, subplots
from swin_lightning.explore.saliency import grad_cam
from swin_lightning.inference import Predictor

Array = np.ndarray
SHOWN_SIDE = 384  # pixels of a picture on the page


def network_view(pixels: Tensor) -> Array:
    """The crop that the network sees, `3, S, S` uint8, enlarged to whole multiples: `T, T, 3`."""
    image = pixels.permute(1, 2, 0).numpy()
    factor = max(1, SHOWN_SIDE // image.shape[0])
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def stage_attention(predictor: Predictor, pixels: Tensor) -> list[list[BlockAttention]]:
    """Attention of the last regular and the last shifted block of every stage, for one image `3, S, S` uint8."""
    images = predictor.preprocessing.normalize(pixels[None])
    with torch.no_grad(), record_attention(predictor.module) as record:
        predictor.module(images)
    stages: dict[int, list[BlockAttention]] = {}
    for name, block in record.items():
        found = re.search(r"layers\.(\d+)\.", name)
        stages.setdefault(int(found[1]) if found else 0, []).append(block)
    return [blocks[-2:] for _, blocks in sorted(stages.items())]


def attention_picture(predictor: Predictor, pixels: Tensor, place: tuple[float, float]) -> Array:
    """Attention from a place, mean of the heads: a column per stage, a row per block; grey outside of the window.

    Args:
        predictor: A checkpoint with a Swin Transformer.
        pixels: The crop, `3, S, S` uint8.
        place: Fractions of height and width.

    Returns:
        `H, W, 3` uint8.
    """
    stages = stage_attention(predictor, pixels)
    image = pixels.permute(1, 2, 0).numpy()
    rows = max(map(len, stages))
    figure, axes = subplots(rows, len(stages), 2.6, 2.8)
    for ax in axes.flat:
        ax.set_axis_off()
    for column, blocks in enumerate(stages):
        for ax, block in zip(axes[:, column], blocks, strict=False):
            H, W = block.size
            y, x = (min(int(part * length), length - 1) for part, length in zip(place, (H, W), strict=True))
            weights = block.attention_from(y, x)[0].mean(dim=0).numpy()  # H, W
            values = np.where(weights > 0, weights, np.nan)
            draw_heatmap(ax, image // 2, values, vmin=0, vmax=weights.max())
            scale = image.shape[0] / H
            ax.plot((x + 0.5) * scale - 0.5, (y + 0.5) * scale - 0.5, "o", color=COLORS[5], markeredgecolor="white")
            kind = "shifted windows" if any(block.shift) else "windows"
            ax.set_title(f"stage {column + 1}: {kind}\n{H} x {W} tokens", fontsize=9)
    return _to_array(figure)


def grad_cam_picture(predictor: Predictor, pixels: Tensor) -> Array:
    """Grad-CAM of the predicted class over the crop, `H, W, 3` uint8."""
    images = predictor.preprocessing.normalize(pixels[None])
    values = grad_cam(predictor.module, images)[0].numpy()
    figure, ((ax,),) = subplots(1, 1, 3.2, 3.2)
    ax.set_axis_off()
    draw_heatmap(ax, pixels.permute(1, 2, 0).numpy(), values, interpolation="bilinear")
    return _to_array(figure)


def _to_array(figure: Figure) -> Array:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return np.asarray(Image.open(file).convert("RGB"))
