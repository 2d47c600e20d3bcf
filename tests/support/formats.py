"""Checkpoints of other projects with reproducible pseudo-random weights, and the logits of those projects for them.

`golden/formats.json` has, for each combination of project and model, the names and shapes of a saved state dict and the
first logits of two images, computed by that project in float64. Identical blocks of a stage are listed once, as
`blocks.0-5.`.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swin_lightning.models import SwinTransformer, SwinTransformerV2
from swin_lightning.models.weights import load_weights
from tests.support.golden import formula_input, formula_parameters

GOLDEN = {golden["name"]: golden for golden in json.loads((Path(__file__).parent / "golden/formats.json").read_text())}
for golden in GOLDEN.values():
    for part in ("parameters", "buffers"):
        expanded: dict[str, Any] = {}
        for name, value in golden[part].items():
            blocks = re.search(r"\.(\d+)-(\d+)\.", name)
            numbers = range(int(blocks[1]), int(blocks[2]) + 1) if blocks else [0]
            expanded |= {re.sub(r"\.\d+-\d+\.", f".{n}.", name): value for n in numbers}
        golden[part] = expanded


def state_dict(name: str) -> dict[str, Tensor]:
    """State dict as saved by the project; buffers have invalid values, since they must not be loaded."""
    golden = GOLDEN[name]
    state = formula_parameters(golden["parameters"])
    for key, (shape, dtype) in golden["buffers"].items():
        state[key] = torch.full(shape, -77 if "int" in dtype else float("nan"), dtype=getattr(torch, dtype))
    return state


class Classifier(nn.Module):
    """Backbone and linear head, filled from a weights file if there is one; in evaluation mode."""

    def __init__(self, backbone: nn.Module, num_classes: int, weights: Any = None, **options: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.num_features, num_classes)
        if weights is not None:
            load_weights(self, weights, **options)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


def golden_classifier(name: str, weights: Any = None, **overrides: Any) -> Classifier:
    """Our classifier with the sizes of a golden model."""
    config = {**GOLDEN[name]["config"], **overrides}
    num_classes = config.pop("num_classes")
    backbone = (SwinTransformerV2 if GOLDEN[name]["format"].endswith("-v2") else SwinTransformer)(**config)
    model = Classifier(backbone, num_classes, weights)
    if "SimMIM" in name:  # no head in these files: the golden values are pooled features
        model.head = nn.Identity()
    return model


SMALL = {"img_size": 32, "patch_size": 2, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}


def small_backbone(version: int = 1, **kwargs: Any) -> SwinTransformer:
    """Two stages with pseudo-random values in all parameters, so that swapped parameters change the outputs."""
    backbone = (SwinTransformer if version == 1 else SwinTransformerV2)(**{**SMALL, **kwargs})
    for name, parameter in backbone.named_parameters():
        parameter.data = formula_parameters({name: parameter.shape})[name]
    return backbone.eval()


def small_classifier(version: int = 1, num_classes: int = 10, weights: Any = None, **kwargs: Any) -> Classifier:
    """`small_backbone` with a head; with weights, initial values are those of the constructor."""
    options = {key: kwargs.pop(key) for key in ("bias_resize", "head_rows") if key in kwargs}
    if weights is None:
        return Classifier(small_backbone(version, **kwargs), num_classes)
    backbone = (SwinTransformer if version == 1 else SwinTransformerV2)(**{**SMALL, **kwargs})
    return Classifier(backbone, num_classes, weights, **options)


@torch.no_grad()
def assert_same_features(model: nn.Module, expected: nn.Module) -> None:
    """The backbones of two classifiers give the same features."""
    images = formula_input(32, 32)
    torch.testing.assert_close(model.backbone(images), expected.backbone(images), atol=1e-6, rtol=0)


@torch.no_grad()
def logits(model: nn.Module, size: list[int]) -> Tensor:
    """Logits of the two images."""
    return model(formula_input(*size))
