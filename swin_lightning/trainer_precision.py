"""The precision of a run whose `trainer.precision` is not set."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from lightning.pytorch.plugins import Precision
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from swin_lightning.models.processor import multiplies_bfloat16
from swin_lightning.models.swin import BasicLayer, SwinTransformer

log = logging.getLogger(__name__)

# Multiply-adds of a forward pass from which bf16-mixed is the default on a CPU that has instructions for it. Measured
# with 1 and 2 threads in training: 0.96 to 0.86 times as fast as float32 at 0.04 G, 1.04 to 1.23 at 1.2 G, and 1.5 to
# 1.9 at 4.5 G and more (Swin-T at batch size 1 has 4.5 G). docs/speed.md has the table.
MIN_MACS = 4e9


def trainer_precision(options: Mapping[str, Any], model: nn.Module, data: object) -> str | None:
    """`precision` of the Trainer's options; if it is None, the default for this machine, which is logged.

    Args:
        options: Arguments of the Trainer.
        model: Module that is trained or evaluated.
        data: Data module; those with `image_size` and `batch_size` say how large a step is.

    Returns:
        The precision; None if a plugin of the user states it.
    """
    plugins = options["plugins"] or []
    given: str | None = options["precision"]
    if given is not None or any(
        isinstance(p, Precision) for p in (plugins if isinstance(plugins, list) else [plugins])
    ):
        return given
    size, batch_size = (getattr(data, name, None) for name in ("image_size", "batch_size"))
    precision, reason = default_precision(options["accelerator"], model, size, batch_size)
    if getattr(rank_zero_only, "rank", 0) == 0:
        log.info(f"precision: {precision} ({reason}); set trainer.precision to change it")
    return precision


def default_precision(
    accelerator: object, model: nn.Module, image_size: int | None, batch_size: int | None
) -> tuple[str, str]:
    """`bf16-mixed` where the hardware has it and it is faster for the model, else `32-true`, with the reason.

    Args:
        accelerator: `trainer.accelerator`, or the type of a device.
        model: Module with a `SwinTransformer` somewhere in it; others are computed in float32 on a CPU.
        image_size: Side length of the images in pixels, None if unknown.
        batch_size: Images per forward pass, None if unknown.
    """
    if accelerator != "cpu" and torch.cuda.is_available():
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16-mixed", "the GPU supports it") if supported else ("32-true", "the GPU has no bfloat16")
    if not multiplies_bfloat16():
        return "32-true", "the CPU has no AVX512-BF16 or AMX instructions"
    backbone = next((module for module in model.modules() if isinstance(module, SwinTransformer)), None)
    if backbone is None or image_size is None or batch_size is None:
        return "32-true", "bf16-mixed was measured with Swin on images only"
    macs = batch_size * block_macs(backbone, image_size)
    if macs < MIN_MACS:
        return (
            "32-true",
            f"a batch has {macs / 1e9:.2g} G multiply-adds, bf16-mixed is faster from {MIN_MACS / 1e9:g} G",
        )
    return "bf16-mixed", "faster than float32 on CPUs with AVX512-BF16 or AMX"


def block_macs(backbone: SwinTransformer, image_size: int) -> int:
    """Multiply-adds of the linear layers in the blocks for one image, nine tenths of those of a network."""
    macs = 0
    for stage, layer in enumerate(cast(Iterable[BasicLayer], backbone.layers)):
        height, width = (-(-image_size // (p << stage)) for p in backbone.patch_size)
        macs += height * width * sum(p.numel() for p in layer.blocks.parameters() if p.ndim == 2)
    return macs
