"""Export a checkpoint: weights in the format of another project, or a torch.export program (`.pt2`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import nn

from swin_lightning.errors import CommandParser, UserError, add_allow_option
from swin_lightning.models.swin import SwinTransformer
from swin_lightning.models.weight_formats import EXPORT_FORMATS
from swin_lightning.models.weights import save_weights
from swin_lightning.models.windows import to_pair


def export(args: list[str]) -> None:
    """Export a checkpoint of a run: weights in the format of another project, or a torch.export program (pt2).

    If the run kept averaged (EMA) weights, these are exported. A pt2 program takes normalised float32 images
    B, 3, H, W and returns logits: torch.export.load(FILE).module()(images). It needs PyTorch only.
    """
    from swin_lightning.tasks.classification import load_classifier

    parser = CommandParser("swin-lightning export", description=export.__doc__)
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint (.ckpt) of a run")
    parser.add_argument(
        "--format", choices=[*EXPORT_FORMATS, "pt2"], default="swin_lightning", help="weight format, or pt2"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help=".safetensors or .pth file; .pt2 for pt2")
    parser.add_argument(
        "--size", type=int, nargs="+", metavar="S", help="image size of a pt2 program (default: img_size of the model)"
    )
    add_allow_option(parser)
    options = parser.parse_args(args)
    if options.size is not None and options.format != "pt2":
        raise UserError(
            f"--size {' '.join(map(str, options.size))} is only valid with --format pt2, not {options.format}"
        )
    classifier = load_classifier(options.checkpoint, options.allow_classes)
    if options.format == "pt2":
        size = options.size[0] if options.size is not None and len(options.size) == 1 else options.size
        export_pt2(classifier, options.output, size)
    else:
        save_weights(classifier, options.output, options.format)
    print(f"wrote {options.output} ({options.format} format)")


def export_pt2(classifier: nn.Module, path: str | Path, size: int | Sequence[int] | None = None) -> None:
    """Export a classifier in evaluation mode with `torch.export`.

    `torch.export.load(path).module()` maps normalised float32 images `B, C, H, W` to logits `B, K`, for any B and fixed
    H and W, and needs PyTorch only. It contains plain `nn.Linear` operations, no CPU-specific kernels. It can be
    compiled; with `torch._inductor.config.freezing = True` weights become constants.

    Args:
        classifier: Module with a `backbone` and a `head`, on the CPU. Its training mode is restored afterwards.
        path: A `.pt2` file.
        size: Side of the image in pixels, or height and width; None for `img_size` of the backbone.

    Raises:
        UserError: If the path has another suffix, or the image size is unknown or not positive.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise UserError(f"output {str(path)!r} must end with .pt2 for --format pt2")
    backbone = cast(nn.Module, classifier.backbone)
    if size is None:
        size = getattr(backbone, "img_size", None)
    if size is None:
        raise UserError(f"image size: {type(backbone).__name__} has no img_size; set it with --size")
    height, width = to_pair(size if isinstance(size, int) else tuple(size), "image size")
    in_chans = backbone.patch_embed.proj.in_channels if isinstance(backbone, SwinTransformer) else 3
    model = nn.Sequential(backbone, cast(nn.Module, classifier.head))
    modes = {module: module.training for module in model.modules()}
    try:
        # Only the batch is dynamic: whether windows are padded, shifted and masked depends on height and width
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        with torch.no_grad():
            images = torch.zeros(2, in_chans, height, width)
            program = torch.export.export(model.eval(), (images,), dynamic_shapes=shapes)
    finally:
        for module, training in modes.items():
            module.training = training
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, path)
