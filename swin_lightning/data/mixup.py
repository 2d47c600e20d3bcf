"""Mixup and CutMix of a batch on its device.

Random parameters are drawn on the CPU from a generator seeded by the caller; the pixels stay on the device. With the
same seed for all parts of a global batch, and `sampling.deal_pairs`, the parts are mixed as the whole would be.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class MixupCutmix:
    """Mixup or CutMix of a batch, with a single mixing ratio per batch.

    Args:
        mixup: Alpha of mixup's Beta distribution; 0 disables it.
        cutmix: Alpha of CutMix's Beta distribution; 0 disables it.
        probability: Probability that a batch is mixed.
        switch: Probability of CutMix instead of mixup if both are enabled.

    Source: arXiv:1710.09412 (mixup), arXiv:1905.04899 (CutMix); defaults of the official Swin configuration.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch: float = 0.5

    def __call__(
        self, images: Tensor, targets: Tensor, num_classes: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Mix every image with the one at the mirrored position in the batch.

        Args:
            images: `B, C, H, W`.
            targets: Class indices, `B`.
            num_classes: Number of classes K.
            rng: Generator of the ratio and the box.

        Returns:
            Images `B, C, H, W`; targets as probabilities `B, K` if the batch was mixed, otherwise unchanged.
        """
        if not (self.mixup or self.cutmix) or rng.random() >= self.probability:
            return images, targets
        cut = bool(self.cutmix) and (not self.mixup or rng.random() < self.switch)
        alpha = self.cutmix if cut else self.mixup
        ratio = float(rng.beta(alpha, alpha))  # weight of the image itself
        if cut:
            y, x, h, w = _box(images.shape[-2:], 1 - ratio, rng)
            images = images.clone()
            images[..., y : y + h, x : x + w] = images.flip(0)[..., y : y + h, x : x + w]
            ratio = 1 - h * w / (images.shape[-2] * images.shape[-1])  # the box may be clipped at the border
        else:
            images = images * ratio + images.flip(0) * (1 - ratio)
        one_hot = F.one_hot(targets, num_classes).to(images.dtype)
        return images, one_hot * ratio + one_hot.flip(0) * (1 - ratio)


def _box(size: torch.Size, area: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A random box `y, x, h, w` with this fraction of the area, clipped at the border of the image."""
    H, W = size
    h, w = int(H * area**0.5), int(W * area**0.5)
    cy, cx = rng.integers(H), rng.integers(W)
    y0, y1 = np.clip((cy - h // 2, cy + h // 2), 0, H)
    x0, x1 = np.clip((cx - w // 2, cx + w // 2), 0, W)
    return int(y0), int(x0), int(y1 - y0), int(x1 - x0)
