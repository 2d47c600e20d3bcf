"""Window attention as a Triton operator, in Triton's interpreter on the CPU."""

import pytest
import torch
import torch.nn.functional as F

from swin_lightning.models.windows import (
    fit_window,
    padded_size,
    repeat_for_batch,
    shifted_window_mask,
    window_partition,
    window_reverse,
)

pytest.importorskip("triton")
kernels = pytest.importorskip("swin_lightning.models.window_attention_triton")


def explicit(qkv, bias, window, shift, scale, head_scale):
    """The definition: pad, roll, partition, masked softmax, and back; in float64."""
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


def inputs(size, window_size, shift, dtype, cosine=False, batch=2, heads=2, head_dim=16):
    window, shift = fit_window(size, window_size, shift)
    N = window[0] * window[1]
    qkv = torch.randn(batch, *size, 3, heads, head_dim).to(dtype).requires_grad_()
    bias = torch.randn(heads, N, N, requires_grad=True)
    head_scale = (torch.rand(heads) * 20 + 5).requires_grad_() if cosine else None
    return qkv, bias, window, shift, head_dim**-0.5, head_scale


def with_gradients(function, arguments):
    out = function(*arguments)
    torch.manual_seed(1)
    leaves = [x for x in arguments if torch.is_tensor(x) and x.requires_grad]
    return [out, *torch.autograd.grad(out, leaves, torch.randn(out.shape).to(out.dtype))]


def relative_errors(arguments):
    pairs = zip(with_gradients(kernels.window_attention, arguments), with_gradients(explicit, arguments), strict=True)
    return [float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs]


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize(
    ("size", "window_size", "shift"),
    [
        ((14, 14), 7, 3),
        ((8, 16), 8, 4),
        ((7, 14), 7, 3),  # shift along one axis
        ((3, 7), 7, 3),  # clamped window, no shift
        ((10, 9), 4, 2),  # padded and shifted
        ((5, 13), (3, 5), (1, 2)),  # padded, window that is not square
    ],
)
def test_equals_the_definition(size, window_size, shift, cosine):
    assert max(relative_errors(inputs(size, window_size, shift, torch.float32, cosine))) < 2e-6
