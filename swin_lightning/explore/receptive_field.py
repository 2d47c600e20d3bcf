"""Receptive fields, measured by gradients.

Shapes: B batch, H W token map, C channels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from swin_lightning.explore.saliency import find_backbone


@dataclass(frozen=True)
class ReceptiveField:
    """Receptive field of the token at the centre of a map.

    Attributes:
        name: Module whose output contains the token, such as `layers.0.blocks.1`.
        influence: Absolute gradient of the token with respect to every pixel, `height, width`; exactly 0 outside the
            receptive field.
    """

    name: str
    influence: Tensor

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width of the bounding box in pixels."""
        rows, columns = (self.influence.sum(dim=dim).nonzero().flatten() for dim in (1, 0))
        return int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1


def receptive_fields(model: nn.Module, images: Tensor) -> list[ReceptiveField]:
    """The receptive field of the centre token after patch embedding, each block and each patch merging.

    The gradient is that of a random projection of the token, because the plain sum of its channels is constant after a
    LayerNorm. Blocks of an untrained Swin V2 are the identity and do not enlarge the field; use a trained model.

    Args:
        model: A Swin Transformer in evaluation mode, or a module that contains one.
        images: `B, 3, height, width`, normalised; the influence is averaged over the batch.
    """
    backbone = find_backbone(model)
    outputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(_store_output(name, outputs))
        for name, module in backbone.named_modules()
        if name == "patch_embed" or name.split(".")[-2:-1] == ["blocks"] or name.endswith("downsample")
    ]
    try:
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            images = images.detach().requires_grad_()
            backbone.forward_intermediates(images)
    finally:
        for handle in handles:
            handle.remove()
    generator = torch.Generator().manual_seed(0)
    fields = []
    for name, x in outputs.items():
        token = x[:, x.shape[1] // 2, x.shape[2] // 2]  # B, C
        direction = torch.randn(token.shape[1], generator=generator).to(token)
        (gradient,) = torch.autograd.grad((token @ direction).sum(), images, retain_graph=True)
        fields.append(ReceptiveField(name, gradient.abs().sum(dim=1).mean(dim=0).cpu()))
    return fields


def _store_output(name: str, outputs: dict[str, Tensor]) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
        outputs[name] = output

    return hook
