"""Augmentation of whole batches on their device: mixup, CutMix, random erasing.

Random parameters are drawn on the CPU from a generator seeded by the caller; the pixels stay on the device.
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
            y, x, h, w = _box(images.shape[-2:], 1 - ratio, 1.0, rng)
            images = images.clone()
            images[..., y : y + h, x : x + w] = images.flip(0)[..., y : y + h, x : x + w]
            ratio = 1 - h * w / (images.shape[-2] * images.shape[-1])  # the box may be clipped at the border
        else:
            images = images * ratio + images.flip(0) * (1 - ratio)
        one_hot = F.one_hot(targets, num_classes).to(images.dtype)
        return images, one_hot * ratio + one_hot.flip(0) * (1 - ratio)


def random_erasing(images: Tensor, probability: float, rng: np.random.Generator) -> Tensor:
    """Replace a box of some images by Gaussian noise.

    Args:
        images: Normalised images, `B, C, H, W`.
        probability: Probability of erasing, per image. A box has 2 % to 1/3 of the area, aspect ratio 0.3 to 1 / 0.3.
        rng: Generator of the boxes and of the noise's seed.

    Source: arXiv:1708.04896, mode `pixel` of the official Swin configuration.
    """
    B, _, H, W = images.shape
    boxes = np.zeros((B, 4), np.int64)
    for b in np.flatnonzero(rng.random(B) < probability):
        boxes[b] = _box((H, W), rng.uniform(0.02, 1 / 3), np.exp(rng.uniform(np.log(0.3), -np.log(0.3))), rng, True)
    y, x, h, w = torch.from_numpy(boxes).to(images.device, non_blocking=True).T[:, :, None]  # 4 tensors B, 1
    rows, columns = torch.arange(H, device=images.device), torch.arange(W, device=images.device)
    inside = ((rows >= y) & (rows < y + h))[:, :, None] & ((columns >= x) & (columns < x + w))[:, None, :]  # B, H, W
    generator = torch.Generator(images.device).manual_seed(int(rng.integers(2**63)))
    noise = torch.empty_like(images).normal_(generator=generator)
    return torch.where(inside[:, None], noise, images)


def _box(
    size: tuple[int, int] | torch.Size, area: float, aspect: float, rng: np.random.Generator, inside: bool = False
) -> tuple[int, int, int, int]:
    """A random box `y, x, h, w` with this fraction of the area: inside the image, or clipped at its border (CutMix)."""
    H, W = size
    h, w = round((area * H * W * aspect) ** 0.5), round((area * H * W / aspect) ** 0.5)
    if not inside:
        h, w = int(H * area**0.5), int(W * area**0.5)
        cy, cx = rng.integers(H), rng.integers(W)
        y0, y1 = np.clip((cy - h // 2, cy + h // 2), 0, H)
        x0, x1 = np.clip((cx - w // 2, cx + w // 2), 0, W)
        return int(y0), int(x0), int(y1 - y0), int(x1 - x0)
    h, w = min(h, H), min(w, W)
    return int(rng.integers(H - h + 1)), int(rng.integers(W - w + 1)), h, w
