"""Tensors that depend on sizes alone are kept, and never where they would be wrong."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from swin_lightning.models import SwinTransformer, SwinTransformerV2, constants
from swin_lightning.models.constants import constant

SIZES = {"img_size": 32, "embed_dim": 8, "depths": (2,), "num_heads": (2,), "window_size": 3, "num_classes": 2}


@pytest.fixture(autouse=True)
def empty_cache():
    constants._cache.clear()


def ones(size, device):
    return torch.ones(size, device=device)


def test_one_tensor_for_each_size_and_device():
    x = torch.zeros(1)
    assert constant(ones, 3, like=x) is constant(ones, 3, like=x)
    assert constant(ones, 4, like=x).shape == (4,)
    assert constant(ones, 3, like=x.to("meta")).is_meta
    assert not constant(ones, 3, like=x).is_meta


def test_number_of_entries_is_bounded(monkeypatch):
    monkeypatch.setattr(constants, "MAX_ENTRIES", 2)
    x = torch.zeros(1)
    first = constant(ones, 1, like=x)
    constant(ones, 2, like=x)
    assert constant(ones, 1, like=x) is first
    constant(ones, 3, like=x)
    assert constant(ones, 1, like=x) is not first


@pytest.mark.parametrize("version", [SwinTransformer, SwinTransformerV2])
def test_training_after_evaluation_in_inference_mode(version):
    model, images = version(**SIZES), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        model.eval()(images)
    assert constants._cache
    model.train()(images).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("version", [SwinTransformer, SwinTransformerV2])
def test_changed_parameters_change_the_output(version):
    """Optimizers, weight averaging and `.data` change the bias; only what depends on sizes is kept."""
    model, images = version(**SIZES).eval(), torch.randn(2, 3, 32, 32)
    attention, other = model.layers[0].blocks[1].attn, version(**SIZES).eval()
    with torch.no_grad():
        model(images)
        for parameter in attention.parameters():
            parameter.data = parameter.data + torch.randn_like(parameter)
        other.load_state_dict(model.state_dict())
        constants._cache.clear()
        expected = other(images)
        assert torch.equal(model(images), expected)


def test_fake_tensors_are_not_kept():
    model = SwinTransformer(**SIZES).eval()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        assert isinstance(model(torch.randn(1, 3, 32, 32)), FakeTensor)
    assert not constants._cache
    with torch.no_grad():
        real = model(torch.randn(1, 3, 32, 32))
    assert constants._cache and type(real) is torch.Tensor
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        assert isinstance(model(torch.randn(1, 3, 32, 32)), FakeTensor)
