"""Which pixels a token can see, measured by gradients.

Shapes: B batch, H W map, C channels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from swin_lightning.explore.saliency import backbone_of


@dataclass(frozen=True)
class ReceptiveField:
    """What the token in the middle of a map saw.

    Attributes:
        name: The part of the backbone behind which the token stands, such as `layers.0.blocks.1`.
        influence: Size of the token's gradient at every pixel, `height, width`; exactly 0 where it cannot see.
    """

    name: str
    influence: Tensor

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width in pixels of the box around all that it sees."""
        rows, columns = (self.influence.sum(dim=dim).nonzero().flatten() for dim in (1, 0))
        return int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1


def receptive_fields(model: nn.Module, images: Tensor) -> list[ReceptiveField]:
    """The receptive field of the middle token after patch embedding, each block and each merging.

    A token is read along one random direction, since its plain sum is constant behind a norm. Blocks of an untrained
    Swin V2 are the identity and see nothing more; take a trained one.

    Args:
        model: A Swin Transformer, or a module that holds one, in evaluation mode.
        images: `B, 3, height, width`, normalised; influence is averaged over them.
    """
    backbone = backbone_of(model)
    outputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(_keep(name, outputs))
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


def _keep(name: str, outputs: dict[str, Tensor]) -> Any:
    def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
        outputs[name] = output

    return hook
