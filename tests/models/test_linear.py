"""The linear layer as a convolution of one pixel: the same answers and gradients, on the processors it is for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from swin_lightning.models import linear as room
from swin_lightning.models.linear import Linear, linear


@pytest.fixture
def convolutions(monkeypatch):
    """Any processor counts as one of AMD; the shapes of the convolutions' inputs."""
    shapes, original = [], F.conv2d
    monkeypatch.setattr(room, "is_amd_with_avx512", lambda: True)
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
def test_a_convolution_gives_the_answers_and_gradients_of_a_linear_layer(convolutions, shape, image, bias):
    layer = Linear(6, 10, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    direction = torch.randn(*shape[:-1], 10)
    inputs = (x, *layer.parameters())
    y = layer(x)
    assert convolutions == ([image] if image else [])
    reference = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(y, reference)
    for ours, theirs in zip(
        torch.autograd.grad(y, inputs, direction), torch.autograd.grad(reference, inputs, direction), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


def test_tokens_that_do_not_lie_in_a_row(convolutions):
    x = torch.randn(6, 16, 32).permute(1, 2, 0)
    weight = torch.randn(4, 6)
    torch.testing.assert_close(linear(x, weight, None), F.linear(x, weight))
    assert len(convolutions) == 1


def test_lower_precision_and_compilers_get_the_plain_layer(convolutions):
    layer, x = Linear(6, 10), torch.randn(512, 6)
    layer.double()(x.double())
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    graph = torch.export.export(layer, (x,)).graph
    assert "linear" in str(graph) and "conv" not in str(graph)
    layer.to("meta")(x.to("meta"))
    assert not convolutions


def test_other_processors_get_the_plain_layer(convolutions, monkeypatch):
    monkeypatch.setattr(room, "is_amd_with_avx512", lambda: False)
    Linear(6, 10)(torch.randn(512, 6))
    assert not convolutions


def test_the_layer_is_a_linear_layer_for_those_who_ask():
    layer = Linear(6, 10)
    assert isinstance(layer, nn.Linear) and list(layer.state_dict()) == ["weight", "bias"]
