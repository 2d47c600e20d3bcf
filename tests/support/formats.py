"""Checkpoints of other projects, made by formula, and what those projects answer with them.

`golden/formats.json` holds for each (project, model) the names and shapes of a saved state dict and the first logits
of two images, computed by that project in float64. Blocks of a stage that are alike are written once: `blocks.0-5.`
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swin_lightning import SwinClassifier
from swin_lightning.models import SwinTransformer, SwinTransformerV2
from tests.support.golden import formula_input, formula_parameters

GOLDEN = {golden["name"]: golden for golden in json.loads((Path(__file__).parent / "golden/formats.json").read_text())}
for golden in GOLDEN.values():
    for part in ("parameters", "buffers"):
        unfolded: dict[str, Any] = {}
        for name, value in golden[part].items():
            blocks = re.search(r"\.(\d+)-(\d+)\.", name)
            numbers = range(int(blocks[1]), int(blocks[2]) + 1) if blocks else [0]
            unfolded |= {re.sub(r"\.\d+-\d+\.", f".{n}.", name): value for n in numbers}
        golden[part] = unfolded


def state_dict(name: str) -> dict[str, Tensor]:
    """What the project saves: the parameters, and its buffers filled with garbage."""
    golden = GOLDEN[name]
    state = formula_parameters(golden["parameters"])
    for key, (shape, dtype) in golden["buffers"].items():
        state[key] = torch.full(shape, -77 if "int" in dtype else float("nan"), dtype=getattr(torch, dtype))
    return state


def classifier(name: str, weights: Any = None, **overrides: Any) -> SwinClassifier:
    """Our classifier of a golden model's sizes, in evaluation mode."""
    config = {**GOLDEN[name]["config"], **overrides}
    num_classes = config.pop("num_classes")
    bias_resize = config.pop("bias_resize", "bicubic")
    backbone = (SwinTransformerV2 if GOLDEN[name]["format"].endswith("-v2") else SwinTransformer)(**config)
    weights = None if weights is None else str(weights)
    model = SwinClassifier(backbone, num_classes, weights=weights, bias_resize=bias_resize).eval()
    if "SimMIM" in name:  # whose files have no head: the figures are those of the pooled features
        model.head = nn.Identity()
    return model


@torch.no_grad()
def answers(model: SwinClassifier, size: list[int]) -> Tensor:
    """Logits of the two images."""
    return model(formula_input(*size))
