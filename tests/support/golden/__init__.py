"""Reference outputs of other implementations, computed in float64 for weights and an input that follow from a formula.

`official.json` comes from microsoft/Swin-Transformer f82860b: for each model its config, the names and shapes of
parameters and buffers, and the first 16 logits of two images. In float32 expect an error of 1e-5.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch


def load_golden(name, file="official.json"):
    """One model's reference figures."""
    return json.loads((Path(__file__).parent / file).read_text())[name]


def formula_parameters(shapes):
    """Name -> shape to name -> tensor. numpy freezes the stream of RandomState, so these values never change."""
    return {name: torch.from_numpy(_formula(name, tuple(shape))).float() for name, shape in shapes.items()}


def formula_input(height, width):
    """Two images, `2, 3, height, width`."""
    return torch.from_numpy(np.random.RandomState(0).standard_normal((2, 3, height, width))).float()


def _formula(name, shape):
    a = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("relative_position_bias_table"):
        return 0.5 * a
    if name.endswith("logit_scale"):
        return math.log(10) + 0.1 * a
    if len(shape) == 1:
        return 1 + 0.1 * a if name.endswith("weight") else 0.1 * a
    return a / math.sqrt(math.prod(shape[1:]))
