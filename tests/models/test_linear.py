"""Linear layer as a 1x1 convolution: same outputs and gradients, on AMD CPUs with AVX-512 only."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from swin_lightning.models import linear as linear_module
from swin_lightning.models.linear import Linear, linear


@pytest.fixture
def convolutions(monkeypatch):
    """Pretend to have an AMD CPU with AVX-512; returns the input shapes of convolutions."""
    shapes, original = [], F.conv2d
    monkeypatch.setattr(linear_module, "is_amd_with_avx512", lambda: True)
    monkeypatch.setattr(F, "conv2d", lambda x, *more: shapes.append(tuple(x.shape)) or original(x, *more))
    return shapes


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "image"),
    [
        ((2, 14, 14, 6), (28, 6, 1, 14)),
        ((8, 49, 6), (28, 6, 1, 14)),
        ((400, 6), (16, 6, 1, 25)),
        ((128, 6), (16, 6, 1, 8)),
        ((127, 6), None),  # a prime number of tokens
        ((8, 6), None),
        ((0, 49, 6), None),
    ],
)
def test_outputs_and_gradients_match_linear(convolutions, shape, image, bias):
    layer = Linear(6, 10, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    direction = torch.randn(*shape[:-1], 10)
    inputs = (x, *layer.parameters())
    y = layer(x)
    assert convolutions == ([image] if image else [])
    reference = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(y, reference)
    gradients, expected = (torch.autograd.grad(out, inputs, direction) for out in (y, reference))
    for actual, gradient in zip(gradients, expected, strict=True):
        torch.testing.assert_close(actual, gradient, atol=1e-4, rtol=1e-5)


def test_non_contiguous_input(convolutions):
    x = torch.randn(6, 16, 32).permute(1, 2, 0)
    weight = torch.randn(4, 6)
    torch.testing.assert_close(linear(x, weight, None), F.linear(x, weight))
    assert len(convolutions) == 1


def test_other_dtypes_autocast_and_export_use_linear(convolutions):
    layer, x = Linear(6, 10), torch.randn(512, 6)
    layer.double()(x.double())
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    graph = torch.export.export(layer, (x,)).graph
    assert "linear" in str(graph) and "conv" not in str(graph)
    layer.to("meta")(x.to("meta"))
    assert not convolutions


def test_other_cpus_use_linear(convolutions, monkeypatch):
    monkeypatch.setattr(linear_module, "is_amd_with_avx512", lambda: False)
    Linear(6, 10)(torch.randn(512, 6))
    assert not convolutions


def test_is_an_nn_linear_with_the_same_state_dict():
    layer = Linear(6, 10)
    assert isinstance(layer, nn.Linear) and list(layer.state_dict()) == ["weight", "bias"]
