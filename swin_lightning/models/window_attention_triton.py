"""Window attention as one Triton kernel per direction, as an operator of torch.

The operator reads the packed output of the qkv layer in map order, `B, H, W, 3, nH, D`, and writes `B, H, W, nH, D`.
Padding, shift and window partition are index arithmetic, and the mask is computed from coordinates: no copy of the map,
no mask and no repeated bias exist in memory. Padding tokens are neither read nor written.
The results are deterministic: there are no atomic operations; gradients that sum over windows are written as partial
sums and added by torch.

This module needs the `triton` package, which PyTorch's CUDA builds for Linux bring; `fused_attention.py` imports it on
a GPU only. Without a GPU the kernels run in Triton's interpreter (`TRITON_INTERPRET=1`).

Shapes: B batch size, H and W height and width of the feature map, (h, w) window size, N = h*w tokens per window, nH
heads, D channels per head.
"""

# Triton's functions have no types
# mypy: disable-error-code="no-untyped-def, no-untyped-call, no-any-return, untyped-decorator"

import math

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from swin_lightning.models.precision import to_float32
from swin_lightning.models.windows import (
    padded_size,
    repeat_for_batch,
    shifted_window_mask,
    window_partition,
    window_reverse,
)

EPS = 1e-12  # of the norms in the cosine, as in swin_v2.py
MAX_TOKENS = 64  # in a window: the scores of a window are kept in registers
HEAD_DIM = 32  # of all published models
PROGRAMS = 1024  # as many where there are as many windows: a few per multiprocessor


@triton.jit
def _tokens(window, samples, H, W, sy, sx, h: tl.constexpr, w: tl.constexpr, BLOCK: tl.constexpr):
    """Tokens of a window: place in the map, whether they exist, and region; sample to read and to write."""
    rows, columns = tl.cdiv(H, h), tl.cdiv(W, w)  # of windows
    target, at = window // (rows * columns), window % (rows * columns)
    n = tl.arange(0, BLOCK)
    y = (at // columns) * h + n // w + sy  # the map is rolled by the shift
    x = (at % columns) * w + n % w + sx
    # tokens that wrap around the padded map belong to another region than the others in their window
    wrapped_y, wrapped_x = y >= rows * h, x >= columns * w
    y = tl.where(wrapped_y, y - rows * h, y)
    x = tl.where(wrapped_x, x - columns * w, x)
    real = (n < h * w) & (y < H) & (x < W)
    source = target
    if samples is not None:
        source = tl.load(samples + target).to(tl.int32)
        real = real & (source >= 0)
    region = tl.where(real, wrapped_y.to(tl.int32) * 2 + wrapped_x.to(tl.int32), 4)
    return y * W + x, real, region, source.to(tl.int64), target.to(tl.int64)


@triton.jit
def _load_bias(bias, head, BLOCK: tl.constexpr):
    """Bias of a head, padded to BLOCK x BLOCK: wide loads without a mask."""
    n = tl.arange(0, BLOCK)
    return tl.load(bias + head * (BLOCK * BLOCK) + n[:, None] * BLOCK + n[None, :])


@triton.jit
def _inverse_norm(x, EPS: tl.constexpr):
    x = x.to(tl.float32)
    return 1.0 / tl.maximum(tl.sqrt(tl.sum(x * x, 1)), EPS)


@triton.jit
def _softmax(scores, region):
    """Attention within a region; tokens that do not exist are one too, so that no row is empty."""
    scores = tl.where(region[:, None] == region[None, :], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    return weights / tl.sum(weights, 1)[:, None]


@triton.jit(do_not_specialize=["windows", "per_program", "nH", "H", "W", "sy", "sx"])
def _forward(
    qkv, bias, out, samples, head_scale, scale, windows, per_program, nH, H, W, sy, sx,
    h: tl.constexpr, w: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """Attention of one head in several windows, so that the bias is loaded once."""
    head, first = tl.program_id(0) % nH, (tl.program_id(0) // nH) * per_program
    position_bias = _load_bias(bias, head, BLOCK)
    if head_scale is not None:
        scale = tl.load(head_scale + head)
    C, d = nH * D, tl.arange(0, D)
    for window in range(first, tl.minimum(first + per_program, windows)):
        place, real, region, source, target = _tokens(window, samples, H, W, sy, sx, h, w, BLOCK)
        q_at = source * (H * W * 3 * C) + head * D  # int64 for the sample, int32 within it
        at = place[:, None] * (3 * C) + d[None, :]
        q = tl.load(qkv + q_at + at, mask=real[:, None], other=0.0)
        k = tl.load(qkv + q_at + C + at, mask=real[:, None], other=0.0)
        v = tl.load(qkv + q_at + 2 * C + at, mask=real[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if head_scale is not None:
            scores = scores * _inverse_norm(q, EPS)[:, None] * _inverse_norm(k, EPS)[None, :]
        p = _softmax(scores + position_bias, region)
        o = tl.dot(p.to(v.dtype), v, input_precision="ieee")
        out_at = place[:, None] * C + d[None, :]
        tl.store(out + target * (H * W * C) + head * D + out_at, o.to(out.dtype.element_ty), mask=real[:, None])


@triton.jit(do_not_specialize=["windows", "per_program", "nH", "H", "W", "sy", "sx"])
def _backward(
    qkv, bias, grad, dqkv, dbias, dscale, samples, head_scale, scale, windows, per_program, nH, H, W, sy, sx,
    h: tl.constexpr, w: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """Gradients of one head in several windows; those of the bias and of the scale are summed over these windows."""
    N: tl.constexpr = h * w
    group, head = tl.program_id(0) // nH, tl.program_id(0) % nH
    if head_scale is not None:
        scale = tl.load(head_scale + head)
    C, d = nH * D, tl.arange(0, D)
    dbias_sum = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    dscale_sum = tl.zeros((BLOCK,), dtype=tl.float32)
    for window in range(group * per_program, tl.minimum((group + 1) * per_program, windows)):
        place, real, region, source, target = _tokens(window, samples, H, W, sy, sx, h, w, BLOCK)
        q_at = source * (H * W * 3 * C) + head * D  # int64 for the sample, int32 within it
        at = place[:, None] * (3 * C) + d[None, :]
        q = tl.load(qkv + q_at + at, mask=real[:, None], other=0.0)
        k = tl.load(qkv + q_at + C + at, mask=real[:, None], other=0.0)
        v = tl.load(qkv + q_at + 2 * C + at, mask=real[:, None], other=0.0)
        g_at = target * (H * W * C) + head * D
        g = tl.load(grad + g_at + place[:, None] * C + d[None, :], mask=real[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if head_scale is not None:
            q_norm, k_norm = _inverse_norm(q, EPS), _inverse_norm(k, EPS)
            scores = scores * q_norm[:, None] * k_norm[None, :]
        p = _softmax(scores + _load_bias(bias, head, BLOCK), region)
        dv = tl.dot(tl.trans(p.to(g.dtype)), g, input_precision="ieee")
        dp = tl.dot(g, tl.trans(v), input_precision="ieee")
        ds = p * (dp - tl.sum(p * dp, 1)[:, None])  # zero in rows of tokens that do not exist, where g is zero
        dbias_sum += ds
        ds *= scale
        if head_scale is not None:
            ds = ds * q_norm[:, None] * k_norm[None, :]
        low = ds.to(q.dtype)
        dq = tl.dot(low, k, input_precision="ieee")
        dk = tl.dot(tl.trans(low), q, input_precision="ieee")
        if head_scale is not None:  # a cosine does not change with the length of q and k: remove the part along them
            along = tl.sum(q * dq, 1)
            dscale_sum += along
            dq -= q * (along * q_norm * q_norm)[:, None]
            dk -= k * (tl.sum(k * dk, 1) * k_norm * k_norm)[:, None]
        tl.store(dqkv + q_at + at, dq.to(dqkv.dtype.element_ty), mask=real[:, None])
        tl.store(dqkv + q_at + C + at, dk.to(dqkv.dtype.element_ty), mask=real[:, None])
        tl.store(dqkv + q_at + 2 * C + at, dv.to(dqkv.dtype.element_ty), mask=real[:, None])
    n = tl.arange(0, BLOCK)
    partial = dbias + tl.program_id(0).to(tl.int64) * (N * N)
    tl.store(partial + n[:, None] * N + n[None, :], dbias_sum, mask=(n[:, None] < N) & (n[None, :] < N))
    if head_scale is not None:
        tl.store(dscale + tl.program_id(0), tl.sum(dscale_sum, 0) / scale)


def window_attention(
    qkv: Tensor,
    bias: Tensor,
    window: tuple[int, int],
    shift: tuple[int, int],
    scale: float = 1.0,
    head_scale: Tensor | None = None,
    samples: Tensor | None = None,
) -> Tensor:
    """Attention within the windows of a map: `softmax(q k^T * scale + bias) v`, without mask and without dropout.

    Differentiable once in `qkv`, `bias` and `head_scale`.

    Args:
        qkv: Query, key and value of every token of the map without padding, `B, H, W, 3, nH, D`.
        bias: Relative position bias, `nH, N, N`.
        window: Height and width of a window as returned by `fit_window`; the map is padded to a multiple of it.
        shift: Cyclic shift of the padded map as returned by `fit_window`.
        scale: Factor of the scores.
        head_scale: For cosine attention (Swin V2), `nH`: query and key are normalised, and this replaces `scale`.
        samples: Drop path: indices of the samples that are computed, each at most once, `K`. Where an index is -1 the
            output is zero. All samples by default. The gradient of all other samples is zero.

    Returns:
        `B or K, H, W, nH, D` in the dtype of `qkv`.
    """
    pad = block_size(window[0] * window[1]) - window[0] * window[1]
    bias = F.pad(bias.float(), (0, pad, 0, pad)).contiguous()
    if head_scale is not None:
        head_scale = head_scale.float().contiguous()
    samples = samples if samples is None else samples.contiguous()
    out: Tensor = _operator(qkv.contiguous(), bias, samples, head_scale, list(window), list(shift), scale)
    return out


def is_supported(dtype: torch.dtype, window: tuple[int, int], head_dim: int, cosine: bool, capability: int) -> bool:
    """Whether the kernels serve without spilling registers, as found by compiling them for several GPUs.

    Args:
        dtype: Of query, key and value. float32 spills.
        window: Height and width of a window; those of more than 64 tokens spill.
        head_dim: Channels per head.
        cosine: Cosine attention (Swin V2).
        capability: Major compute capability of the GPU, such as 9 for an H100; at least 8.
    """
    tokens = window[0] * window[1]
    if dtype not in (torch.float16, torch.bfloat16) or head_dim != HEAD_DIM or tokens > MAX_TOKENS or capability < 8:
        return False
    return not cosine or tokens <= 32 or capability in (9, 10) or (capability == 8 and tokens == MAX_TOKENS)


def self_check(device: torch.device, dtype: torch.dtype, window: tuple[int, int], head_dim: int, cosine: bool) -> float:
    """Largest relative error of output and gradients, compared with the definition in float32 on two small maps.

    The maps are of 2 x 2 windows, with padding and shift, and of one window.
    """
    (h, w), nH, errors = window, 2, []
    generator = torch.Generator(device).manual_seed(0)
    for size, shift in (((2 * h - 1, 2 * w), (h // 2, w // 2)), (window, (0, 0))):
        qkv = torch.randn(2, *size, 3, nH, head_dim, device=device, generator=generator).to(dtype).requires_grad_()
        bias = torch.randn(nH, h * w, h * w, device=device, generator=generator).requires_grad_()
        head_scale = torch.full((nH,), 10.0, device=device).requires_grad_() if cosine else None
        leaves = [x for x in (qkv, bias, head_scale) if x is not None]
        results = []
        for function in (window_attention, explicit_attention):
            out = function(qkv, bias, window, shift, head_dim**-0.5, head_scale)
            results.append([out, *torch.autograd.grad(out.float().square().sum(), leaves)])
        for actual, expected in zip(*results, strict=True):
            difference = (actual.detach().float() - expected.detach().float()).norm()
            errors.append(float(difference / expected.detach().float().norm()))
    return max(errors) if all(map(math.isfinite, errors)) else math.inf


def explicit_attention(
    qkv: Tensor,
    bias: Tensor,
    window: tuple[int, int],
    shift: tuple[int, int],
    scale: float = 1.0,
    head_scale: Tensor | None = None,
) -> Tensor:
    """`window_attention` by its definition in at least float32: pad, roll, partition, masked softmax, and back."""
    size, nH = (qkv.shape[1], qkv.shape[2]), qkv.shape[4]
    padded = padded_size(size, window)
    x = F.pad(to_float32(qkv).flatten(3), (0, 0, 0, padded[1] - size[1], 0, padded[0] - size[0]))
    x = window_partition(x.roll((-shift[0], -shift[1]), (1, 2)), window)
    q, k, v = x.unflatten(-1, (3, nH, -1)).permute(2, 0, 3, 1, 4)  # B*nW, nH, N, D
    if head_scale is None:
        scores = q @ k.transpose(-2, -1) * scale
    else:
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * head_scale[:, None, None]
    scores, mask = scores + bias, shifted_window_mask(size, window, shift, qkv.device)
    if mask is not None:
        scores = scores.masked_fill(~repeat_for_batch(mask, len(q))[:, None], float("-inf"))
    out = window_reverse((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), window, padded)
    return out.roll(shift, (1, 2))[:, : size[0], : size[1]].unflatten(-1, (nH, -1))


def launch_options(tokens: int, cosine: bool, capability: int, backward: bool) -> dict[str, int]:
    """Warps and pipeline stages of a program, chosen so that no register is spilled."""
    few = not cosine and (capability == 9 or (not backward and capability != 10))
    warps = {16: 1, 32: 2}.get(block_size(tokens), 4 if few else 8)
    return {"num_warps": warps, "num_stages": 1 if capability == 10 else 2}


def block_size(tokens: int) -> int:
    """Side of the tile that holds the scores of a window: the next power of two, at least 16."""
    return max(16, 1 << (tokens - 1).bit_length())


def _options(qkv: Tensor, tokens: int, cosine: bool, backward: bool) -> dict[str, int]:
    capability = torch.cuda.get_device_capability(qkv.device)[0] if qkv.is_cuda else 0
    return launch_options(tokens, cosine, capability, backward)


def _grid(qkv: Tensor, samples: Tensor | None, window: list[int]) -> tuple[int, int, int]:
    """Number of windows, windows per program, and programs per head."""
    B, H, W, _, nH, _ = qkv.shape
    windows = (B if samples is None else len(samples)) * -(-H // window[0]) * -(-W // window[1])
    per_program = max(1, windows * nH // PROGRAMS)
    return windows, per_program, -(-windows // per_program)


@torch.library.custom_op("swin_lightning::window_attention", mutates_args=())
def _operator(
    qkv: Tensor,
    bias: Tensor,
    samples: Tensor | None,
    head_scale: Tensor | None,
    window: list[int],
    shift: list[int],
    scale: float,
) -> Tensor:
    B, H, W, _, nH, D = qkv.shape
    K, (h, w) = B if samples is None else len(samples), window
    windows, per_program, groups = _grid(qkv, samples, window)
    new = qkv.new_empty if samples is None else qkv.new_zeros
    out = new(K, H, W, nH, D)
    if windows:
        with torch.cuda.device_of(qkv):
            _forward[(groups * nH,)](
                qkv, bias, out, samples, head_scale, scale, windows, per_program, nH, H, W, *shift,
                h=h, w=w, D=D, BLOCK=block_size(h * w), EPS=EPS,
                **_options(qkv, h * w, head_scale is not None, False),
            )  # fmt: skip
    return out


@_operator.register_fake
def _(qkv, bias, samples, head_scale, window, shift, scale):
    B, H, W, _, nH, D = qkv.shape
    return qkv.new_empty(B if samples is None else samples.shape[0], H, W, nH, D)


@torch.library.custom_op("swin_lightning::window_attention_backward", mutates_args=())
def _backward_operator(
    grad: Tensor,
    qkv: Tensor,
    bias: Tensor,
    samples: Tensor | None,
    head_scale: Tensor | None,
    window: list[int],
    shift: list[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    _, H, W, _, nH, D = qkv.shape
    h, w = window
    windows, per_program, groups = _grid(qkv, samples, window)
    dqkv = torch.empty_like(qkv) if samples is None else torch.zeros_like(qkv)
    dbias = bias.new_empty(groups, nH, h * w, h * w)
    dscale = bias.new_empty(groups, nH) if head_scale is not None else bias.new_zeros(1, nH)
    if windows:
        with torch.cuda.device_of(qkv):
            _backward[(groups * nH,)](
                qkv, bias, grad, dqkv, dbias, dscale, samples, head_scale, scale, windows, per_program, nH, H, W,
                *shift, h=h, w=w, D=D, BLOCK=block_size(h * w), EPS=EPS,
                **_options(qkv, h * w, head_scale is not None, True),
            )  # fmt: skip
    pad = bias.shape[-1] - h * w
    return dqkv, F.pad(dbias.sum(0), (0, pad, 0, pad)), dscale.sum(0)


@_backward_operator.register_fake
def _(grad, qkv, bias, samples, head_scale, window, shift, scale):
    return torch.empty_like(qkv), torch.empty_like(bias), bias.new_empty(qkv.shape[4])


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])
    ctx.arguments = inputs[4:]


def _gradient(ctx, grad):
    qkv, bias, samples, head_scale = ctx.saved_tensors
    dqkv, dbias, dscale = _backward_operator(grad.contiguous(), qkv, bias, samples, head_scale, *ctx.arguments)
    return dqkv, dbias, None, None if head_scale is None else dscale, None, None, None


_operator.register_autograd(_gradient, setup_context=_setup_context)
