"""Write a classifier as a program that runs without this package: torch.export's `.pt2`."""

from pathlib import Path
from typing import cast

import torch
from torch import nn

from swin_lightning.errors import UserError


def export_pt2(classifier: nn.Module, path: str | Path, size: int | None = None) -> None:
    """Write a classifier in evaluation mode; `torch.export.load(path).module()(images)` needs torch alone.

    The program takes normalised float32 images `B, 3, S, S` of any number and one size, and gives logits. It holds
    plain linear layers, no kernels of this machine. `torch.compile(program.module())` compiles it, and with
    `torch._inductor.config.freezing` its weights become constants.

    Args:
        classifier: Module with a Swin `backbone` and a linear `head`, on the CPU; its mode is left as it is.
        path: A `.pt2` file.
        size: Side S of the images, in pixels; None takes the backbone's `img_size`.

    Raises:
        ValueError: For another ending of the path, no known size, or one that is not positive.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise UserError(f"output {str(path)!r} must end with .pt2 for the format pt2")
    if size is None:
        size = getattr(classifier.backbone, "img_size", None)
    if not isinstance(size, int) or size < 1:
        raise UserError(f"image size {size!r} must be a whole number of at least 1; say it with --size")
    model = nn.Sequential(cast(nn.Module, classifier.backbone), cast(nn.Module, classifier.head))
    modes = {module: module.training for module in model.modules()}
    try:
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        program = torch.export.export(model.eval(), (torch.zeros(2, 3, size, size),), dynamic_shapes=shapes)
    finally:
        for module, training in modes.items():
            module.training = training
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, path)
