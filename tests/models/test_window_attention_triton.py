"""Window attention as a Triton operator: in Triton's interpreter on the CPU, and compiled without a GPU."""

import json
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from swin_lightning.models import SwinTransformer, SwinTransformerV2, attention
from swin_lightning.models.windows import (
    fit_window,
    padded_size,
    repeat_for_batch,
    shifted_window_mask,
    window_partition,
    window_reverse,
)
from tests.support.cli import ROOT, environment
from tests.support.golden import randomize

pytest.importorskip("triton")
kernels = pytest.importorskip("swin_lightning.models.window_attention_triton")


@pytest.fixture(autouse=True)
def bfloat16_products(monkeypatch):
    """The interpreter of Triton 3.6 to 3.9 stores bfloat16 as uint16, and multiplies these numbers as integers."""
    import triton.language
    from triton.runtime.interpreter import InterpreterBuilder as builder

    multiply = builder.create_dot

    def to_float(handle):
        if str(handle.dtype.scalar) != "bf16":
            return handle
        bits = handle.data.astype("uint32") << 16
        return type(handle)(bits.view("float32"), triton.language.float32)

    def create_dot(self, a, b, *args):
        return multiply(self, to_float(a), to_float(b), *args)

    monkeypatch.setattr(builder, "create_dot", create_dot)


def definition(qkv, bias, window, shift, scale, head_scale):
    """Pad, roll, partition, masked softmax, and back; in float64."""
    _, H, W, _, nH, D = qkv.shape
    padded = padded_size((H, W), window)
    x = F.pad(qkv.double().flatten(3), (0, 0, 0, padded[1] - W, 0, padded[0] - H)).roll((-shift[0], -shift[1]), (1, 2))
    q, k, v = window_partition(x, window).unflatten(-1, (3, nH, D)).permute(2, 0, 3, 1, 4)
    if head_scale is not None:
        q, k, scale = F.normalize(q, dim=-1), F.normalize(k, dim=-1), head_scale.double()[:, None, None]
    scores, mask = q @ k.transpose(-2, -1) * scale + bias.double(), shifted_window_mask((H, W), window, shift)
    if mask is not None:
        scores = scores.masked_fill(~repeat_for_batch(mask, len(q))[:, None], float("-inf"))
    out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return window_reverse(out, window, padded).roll(shift, (1, 2))[:, :H, :W].unflatten(-1, (nH, D))


def make_inputs(size, window_size, shift, dtype=torch.float32, cosine=False, batch=2, heads=2, head_dim=16):
    window, shift = fit_window(size, window_size, shift)
    N = window[0] * window[1]
    qkv = torch.randn(batch, *size, 3, heads, head_dim).to(dtype).requires_grad_()
    bias = torch.randn(heads, N, N, requires_grad=True)
    head_scale = (torch.rand(heads) * 20 + 5).requires_grad_() if cosine else None
    return qkv, bias, window, shift, head_dim**-0.5, head_scale


def with_gradients(function, arguments, grad=None):
    """Output, and gradients of `qkv`, `bias` and `head_scale`."""
    out = function(*arguments)
    leaves = [x for x in arguments if torch.is_tensor(x) and x.requires_grad]
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)) if grad is None else grad
    return [x.detach() for x in (out, *torch.autograd.grad(out, leaves, grad.to(out.dtype)))]


def largest_error(actual, expected):
    return max(
        float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(actual, expected, strict=True)
    )


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize(
    ("size", "window_size", "shift"),
    [
        ((14, 14), 7, 3),
        ((7, 14), 7, 3),  # shifted along one axis
        ((3, 7), 7, 3),  # clamped window without shift
        ((6, 7), 4, 2),  # padded and shifted
        ((5, 5), (3, 4), (1, 2)),  # padded, window that is not square
        pytest.param((16, 8), 8, 4, marks=pytest.mark.slow),
        pytest.param((13, 15), 7, 3, marks=pytest.mark.slow),
        pytest.param((1, 1), 7, 3, marks=pytest.mark.slow),
    ],
)
def test_output_and_gradients_equal_the_definition(size, window_size, shift, cosine):
    arguments = make_inputs(size, window_size, shift, cosine=cosine, batch=1 if size[0] > 10 else 2)
    actual = with_gradients(kernels.window_attention, arguments)
    expected = with_gradients(definition, arguments)
    assert largest_error(actual, expected) < (2e-5 if cosine else 2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cosine", [False, True])
def test_error_in_half_precision(dtype, cosine):
    """As large as rounding the inputs; logits of up to 100 are not rounded."""
    arguments = make_inputs((7, 8), 4, 2, dtype, cosine, batch=1)
    if cosine:
        arguments = (*arguments[:5], torch.tensor([100.0, 30.0], requires_grad=True))
    actual = with_gradients(kernels.window_attention, arguments)
    assert actual[0].dtype == actual[1].dtype == dtype and actual[2].dtype == torch.float32
    expected = with_gradients(definition, arguments)
    assert largest_error(actual[:1], expected[:1]) < 2 * torch.finfo(dtype).eps
    assert largest_error(actual, expected) < (8 if cosine else 2) * torch.finfo(dtype).eps


def test_windows_are_shared_between_programs_deterministically(monkeypatch):
    """Each program sums the bias gradient of several windows, whose number is not a multiple of theirs."""
    arguments = make_inputs((4, 6), 2, 1, cosine=True, batch=1)
    monkeypatch.setattr(kernels, "PROGRAMS", 3)  # 6 windows of 2 heads: 4 windows for a program, then 2
    first, second = (with_gradients(kernels.window_attention, arguments) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert largest_error(first, with_gradients(definition, arguments)) < 2e-5


def test_samples_are_computed_or_dropped():
    arguments = make_inputs((4, 4), 4, 2, batch=4)
    samples, grad = torch.tensor([2, -1, 0]), torch.randn(3, 4, 4, 2, 16)
    out, dqkv, dbias = with_gradients(lambda *args: kernels.window_attention(*args, samples), arguments, grad)
    full_grad = torch.zeros(4, 4, 4, 2, 16)
    full_grad[2], full_grad[0] = grad[0], grad[2]
    full, full_dqkv, full_dbias = with_gradients(definition, arguments, full_grad)
    torch.testing.assert_close(out[[0, 2]].double(), full[[2, 0]].double(), atol=1e-5, rtol=0)
    assert not out[1].any() and not dqkv[[1, 3]].any()
    assert largest_error([dqkv, dbias], [full_dqkv, full_dbias]) < 2e-6


@pytest.fixture
def fused(monkeypatch):
    """The operator also on the CPU."""
    monkeypatch.setattr(attention, "fused_attention_serves", lambda x, window, head_dim, cosine: True)


def logits_and_gradients(model, function, images):
    model.zero_grad()
    logits = function(images)
    logits.square().sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("version", [SwinTransformer, SwinTransformerV2])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_network_with_the_operator_equals_the_general_path(version, compiled, fused):
    """Padded, shifted and clamped windows; compiled, with fake tensors, in one graph."""
    sizes = {"embed_dim": 32, "depths": (2, 1), "num_heads": (2, 2), "window_size": 4, "drop_path_rate": 0.0}
    model = randomize(version(img_size=20, num_classes=3, **sizes), 0.3).train()
    images = torch.randn(1, 3, 20, 20)
    actual = model
    if compiled:
        torch.compiler.reset()
        actual = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    results = [logits_and_gradients(model, actual, images)]
    for module in model.modules():
        module.allow_fused = False
    results.append(logits_and_gradients(model, model, images))
    assert not torch.equal(results[0][0], results[1][0])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * max(1.0, float(b.abs().max())), rtol=0)


def test_dropout_takes_the_general_path(fused):
    model = SwinTransformer(img_size=32, embed_dim=32, depths=(1,), num_heads=(1,), attn_drop_rate=0.1)
    module = model.layers[0].blocks[0].attn
    assert not module.train().serves_map(torch.zeros(1, 8, 8, 32), (7, 7))
    assert module.eval().serves_map(torch.zeros(1, 8, 8, 32), (7, 7))


def test_operator_registration():
    """Schema, fake tensors, autograd and dispatch of the operator, by torch's own checks."""
    qkv, bias, window, shift, scale, head_scale = make_inputs((4, 4), 4, 0, cosine=True, batch=1)
    arguments = (qkv, bias, None, head_scale, list(window), list(shift), scale)
    torch.library.opcheck(torch.ops.swin_lightning.window_attention.default, arguments)


@pytest.mark.parametrize("cosine", [False, True])
def test_self_check(cosine, monkeypatch):
    arguments = (torch.device("cpu"), torch.bfloat16, (3, 4), 16, cosine)
    assert 1e-4 < kernels.self_check(*arguments) < 2e-2
    monkeypatch.setattr(kernels, "window_attention", lambda *args: 1.1 * kernels.explicit_attention(*args))
    assert kernels.self_check(*arguments) > 0.05
    monkeypatch.setattr(kernels, "window_attention", lambda *args: math.nan * kernels.explicit_attention(*args))
    assert kernels.self_check(*arguments) == math.inf


def test_windows_that_would_spill_are_refused():
    half = torch.bfloat16
    assert kernels.is_supported(half, (7, 7), 32, False, 8) and kernels.is_supported(torch.float16, (8, 8), 32, True, 9)
    assert not kernels.is_supported(half, (12, 12), 32, False, 9)
    assert not kernels.is_supported(torch.float32, (7, 7), 32, False, 9)
    assert not kernels.is_supported(half, (7, 7), 48, False, 9)
    assert not kernels.is_supported(half, (7, 7), 32, True, 8)
    assert not kernels.is_supported(half, (7, 7), 32, False, 7)


@pytest.mark.slow
def test_kernels_compile_without_spills():
    """For every supported window, dtype and kind of attention on A100, H100 and B200, with tensor core instructions."""
    command = [sys.executable, "-m", "tests.support.compile_kernels", "80", "90", "100"]
    variables = environment() | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    swin_t = {(row["capability"], row["kernel"]) for row in rows if row["window"] == [7, 7] and not row["cosine"]}
    assert swin_t == {(capability, kernel) for capability in (80, 90, 100) for kernel in ("forward", "backward")}
    assert [row for row in rows if row["spilled"] or not row["tensor_cores"]] == []
