"""When window attention runs as the Triton operator: switches, and the check at first use."""

import warnings

import pytest
import torch

from swin_lightning.models import SwinTransformer
from swin_lightning.models.fused_attention import (
    ENV_VAR,
    check_kernel,
    fused_attention_serves,
    kernel_works,
    use_fused_attention,
)
from swin_lightning.models.precision import autocast_dtype

ARGUMENTS = (0, torch.bfloat16, (7, 7), 32, False)


@pytest.fixture
def kernels(monkeypatch):
    """A GPU whose kernels are those of the interpreter, with an error that a test sets."""
    pytest.importorskip("triton")
    from swin_lightning.models import window_attention_triton

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(window_attention_triton, "self_check", lambda *args: 1e-3)
    check_kernel.cache_clear()
    yield window_attention_triton
    check_kernel.cache_clear()


def test_the_operator_serves_cuda_devices_only():
    assert not fused_attention_serves(torch.zeros(1, 7, 7, 32), (7, 7), 32, False)
    assert not fused_attention_serves(torch.zeros(1, 7, 7, 32, device="meta"), (7, 7), 32, False)


def test_kernels_that_exist_and_are_correct_are_used(kernels):
    assert kernel_works(*ARGUMENTS)
    assert not kernel_works(0, torch.float32, (7, 7), 32, False)
    assert not kernel_works(0, torch.bfloat16, (12, 12), 32, False)


def test_environment_variable_turns_the_operator_off(kernels, monkeypatch):
    monkeypatch.setenv(ENV_VAR, "off")
    assert not kernel_works(*ARGUMENTS)


@pytest.mark.parametrize("failure", ["wrong", "crash"])
def test_kernels_that_fail_their_check_are_replaced_by_the_general_path(failure, kernels, monkeypatch):
    def self_check(*args):
        if failure == "crash":
            raise RuntimeError("out of registers\nstack")
        return 0.1

    monkeypatch.setattr(kernels, "self_check", self_check)
    text = {"wrong": "ValueError: relative error 1.0e-01", "crash": "RuntimeError: out of registers"}[failure]
    with pytest.warns(UserWarning, match=f"{text}; set SWIN_LIGHTNING_TRITON=off"):
        assert not kernel_works(*ARGUMENTS)
    with warnings.catch_warnings():  # once
        warnings.simplefilter("error")
        assert not kernel_works(*ARGUMENTS)


def test_check_is_not_affected_by_modes_of_the_caller(kernels, monkeypatch):
    seen = {}

    def self_check(*args):
        seen.update(inference=torch.is_inference_mode_enabled(), autocast=torch.is_autocast_enabled("cpu"))
        return 1e-3

    monkeypatch.setattr(kernels, "self_check", self_check)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert kernel_works(*ARGUMENTS)
    assert seen == {"inference": False, "autocast": False}


def test_compiled_models_ask_once_and_outside_of_the_graph(kernels, monkeypatch):
    monkeypatch.setattr(kernels, "self_check", lambda *args: 1e-3 if type(torch.ones(1)) is torch.Tensor else 1.0)

    def function(x):
        with torch.autocast("cpu", torch.bfloat16):
            return x + 1 if kernel_works(0, autocast_dtype(x) or x.dtype, (7, 7), 32, False) else x

    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(2)).tolist() == [1, 1]


def test_switch_of_a_model(monkeypatch):
    monkeypatch.setattr("swin_lightning.models.attention.fused_attention_serves", lambda *args: True)
    model = SwinTransformer(img_size=32, embed_dim=32, depths=(1, 1), num_heads=(1, 1))
    attentions = [layer.blocks[0].attn for layer in model.layers]
    x = torch.zeros(1, 7, 7, 32)
    assert all(module.serves_map(x, (7, 7)) for module in attentions)
    use_fused_attention(model, False)
    assert not any(module.serves_map(x, (7, 7)) for module in attentions)
    use_fused_attention(model)
    assert all(module.serves_map(x, (7, 7)) for module in attentions)
