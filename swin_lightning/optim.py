"""Parameter groups and the learning-rate schedule of the official Swin recipes."""

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from swin_lightning.errors import UserError

# bias tables and the small networks that make biases: regularised by nothing (official `no_weight_decay_keywords`)
NO_DECAY = ("relative_position_bias_table", "absolute_pos_embed", "cpb_mlp", "logit_scale")


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    layer_id: Callable[[str], int] | None = None,
) -> list[dict[str, Any]]:
    """Group parameters by weight decay and depth.

    Vectors (norms, biases) and the names in `NO_DECAY` have no weight decay. With `layer_decay` below 1 the
    learning rate of layer i is `lr * layer_decay ** (last - i)`; it is written into the group, so that every
    scheduler sees it.

    Args:
        model: Its trainable parameters are grouped.
        lr: Learning rate of the last layer.
        weight_decay: Of the matrices.
        layer_decay: Factor from a layer to the one before it.
        layer_id: Depth of a parameter by its name; needed where `layer_decay` is not 1.

    Returns:
        Groups for an optimizer, with names. Source: microsoft/Swin-Transformer, optimizer.py.

    Raises:
        ValueError: Where layer-wise decay is asked for and the depth is unknown.
    """
    if layer_decay != 1.0 and layer_id is None:
        raise UserError(
            f"model.layer_decay {layer_decay} needs a backbone with a method layer_id(name); "
            "add one to yours, or set layer_decay to 1"
        )
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    depth = {name: layer_id(name) if layer_id and layer_decay != 1.0 else 0 for name, _ in parameters}
    last = max(depth.values(), default=0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in parameters:
        decayed = parameter.ndim > 1 and not any(keyword in name for keyword in NO_DECAY)
        group = groups.setdefault(
            (depth[name], decayed),
            {
                "name": f"layer{depth[name]}_" * (layer_decay != 1.0) + ("decay" if decayed else "no_decay"),
                "params": [],
                "lr": lr * layer_decay ** (last - depth[name]),
                "weight_decay": weight_decay if decayed else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def warmup_cosine(step: int, total: int, warmup: int, start: float, end: float) -> float:
    """The factor on the learning rate at an optimizer step: linear from `start` to 1, then cosine to `end`.

    Args:
        step: Optimizer step, from 0.
        total: Steps of the run; the cosine arrives at `end` with the last one.
        warmup: Steps of the linear part.
        start: Factor at step 0.
        end: Factor at step `total`.
    """
    if step < warmup:
        return start + (1 - start) * step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress))
