"""Linear layers as 1x1 convolutions: same outputs and gradients, on AMD CPUs with AVX-512 only, in plain modules."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from swin_lightning.models import SwinTransformer
from swin_lightning.models import linear as linear_module
from swin_lightning.models.linear import linear, use_onednn


@pytest.fixture
def convolutions(monkeypatch):
    """Pretend to have an AMD CPU with AVX-512; returns the input shapes of convolutions."""
    shapes, original = [], F.conv2d
    monkeypatch.setattr(linear_module, "is_amd_with_avx512", lambda: True)
    monkeypatch.setattr(F, "conv2d", lambda x, *more: shapes.append(tuple(x.shape)) or original(x, *more))
    return shapes


def accelerated(**kwargs):
    layer = nn.Linear(6, 10, **kwargs)
    use_onednn(layer)
    return layer


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
    layer = accelerated(bias=bias)
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


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated")
def test_other_dtypes_autocast_export_and_tracing_use_linear(convolutions):
    layer, x = accelerated(), torch.randn(512, 6)
    layer.double()(x.double())
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    graph = torch.export.export(layer, (x,)).graph
    assert "linear" in str(graph) and "conv" not in str(graph)
    traced = torch.jit.trace(layer, x, check_trace=False)
    assert "linear" in str(traced.graph) and "conv" not in str(traced.graph)
    layer.to("meta")(x.to("meta"))
    assert not convolutions


def test_other_cpus_use_linear(convolutions, monkeypatch):
    monkeypatch.setattr(linear_module, "is_amd_with_avx512", lambda: False)
    layer = accelerated()
    layer(torch.randn(512, 6))
    assert not convolutions and "forward" not in vars(layer)


def test_modules_stay_plain(convolutions):
    model = SwinTransformer(img_size=16, patch_size=2, embed_dim=8, depths=(1, 1), num_heads=(1, 1), num_classes=2)
    keys, types = list(model.state_dict()), [type(module) for module in model.modules()]
    use_onednn(model)
    assert list(model.state_dict()) == keys and [type(module) for module in model.modules()] == types
    model(torch.randn(16, 3, 16, 16))
    assert len(convolutions) == 1 + 8 + 1  # patch embedding, layers of two blocks, patch merging; the head has 16 rows
    use_onednn(model, enable=False)
    model(torch.randn(16, 3, 16, 16))
    assert len(convolutions) == 11


def test_copies_use_their_own_parameters(convolutions):
    layer, x = accelerated(), torch.randn(512, 6)
    copied, before = copy.deepcopy(layer), layer(x)
    nn.init.zeros_(layer.weight)
    torch.testing.assert_close(copied(x), before)
    assert len(convolutions) == 2
    buffer = io.BytesIO()
    torch.save(copied, buffer)
    buffer.seek(0)
    for loaded in (pickle.loads(pickle.dumps(copied)), torch.load(buffer, weights_only=False)):
        torch.testing.assert_close(loaded(x), before)
    assert len(convolutions) == 2  # a pickled model is a plain one
    use_onednn(loaded)  # again
    loaded(x)
    assert len(convolutions) == 2 or "forward" in vars(loaded)


def test_changed_modules_are_left_alone(convolutions):
    x, calls = torch.randn(512, 6), []
    for change in (
        parametrizations.weight_norm,
        lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight.as_subclass(Subclass))),
    ):
        before, after = nn.Linear(6, 10), accelerated()
        for layer in (before, after):
            change(layer)
            use_onednn(layer)
            torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    assert not convolutions
    wrapped = nn.Linear(6, 10)
    wrapped.forward = lambda x: calls.append(x) or x
    use_onednn(wrapped)
    assert wrapped(x) is x and len(calls) == 1


class Subclass(torch.Tensor):
    """A tensor subclass, such as a quantized weight."""


def test_hooks_and_pruning_see_the_module(convolutions):
    layer, x, seen = accelerated(), torch.randn(512, 6), []
    layer.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    prune.l1_unstructured(layer, "weight", 0.5)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    assert seen == [(512, 10)] and (layer.weight == 0).float().mean() == 0.5
