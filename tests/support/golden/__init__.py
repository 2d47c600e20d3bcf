"""Reference outputs of other implementations, computed in float64 for reproducible pseudo-random weights and images.

`official.json` was generated with microsoft/Swin-Transformer f82860b. It has the configuration of each model, the names
and shapes of parameters and buffers, and the first 16 logits of two images. Expect an error of 1e-5 in float32.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch


def load_golden(name, file="official.json"):
    """Reference values of one model."""
    return json.loads((Path(__file__).parent / file).read_text())[name]


def formula_parameters(shapes):
    """Values for parameters given by name -> shape; stable, since numpy guarantees the stream of RandomState."""
    return {name: torch.from_numpy(_formula(name, tuple(shape))).float() for name, shape in shapes.items()}


def formula_input(height, width):
    """Two images, `2, 3, height, width`."""
    return torch.from_numpy(np.random.RandomState(0).standard_normal((2, 3, height, width))).float()


def randomize(module, std=0.5):
    """Random values for all parameters, in evaluation mode; with the default initialisation, bias tables are tiny."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return module.eval()


def _formula(name, shape):
    a = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("relative_position_bias_table"):
        return 0.5 * a
    if name.endswith("logit_scale"):
        return math.log(10) + 0.1 * a
    if len(shape) == 1:
        return 1 + 0.1 * a if name.endswith("weight") else 0.1 * a
    return a / math.sqrt(math.prod(shape[1:]))
