"""The ways to compute attention inside windows, side by side: `swin-lightning benchmark model --attention`.

For windows of 49, 64, 144 and 256 tokens: torch's fused kernels by name, the softmax by hand, the same compiled, and
FlexAttention; forward, and forward with backward, which includes the gradient of bias and mask. A way that has no such
gradient is timed forward alone.
"""

import argparse
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from swin_lightning.benchmark.measure import Contestant, matrix_product, take_turns

Way = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
WINDOWS = (49, 64, 144, 256)
HEADS, CHANNELS, IMAGE_WINDOWS = 3, 32, 16  # of a head; windows of an image, each with a mask of its own


def by_hand(q: Tensor, k: Tensor, v: Tensor, term: Tensor) -> Tensor:
    """The definition: `softmax(q k^T * scale + term) v`."""
    return (q @ k.transpose(-2, -1) * CHANNELS**-0.5 + term.repeat(len(q) // len(term), 1, 1, 1)).softmax(-1) @ v


def fused(backend: SDPBackend) -> Way:
    """torch's own choice of kernel restricted to one."""

    def way(q: Tensor, k: Tensor, v: Tensor, term: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=term.repeat(len(q) // len(term), 1, 1, 1))

    return way


def flex() -> Way:
    """FlexAttention, compiled: the term is read where it lies and never repeated."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention)

    def way(q: Tensor, k: Tensor, v: Tensor, term: Tensor) -> Tensor:
        def add(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score + term[b % len(term), h, i, j]

        result: Tensor = compiled(q, k, v, score_mod=add)
        return result

    return way


def ways() -> dict[str, Way]:
    kernels = {"efficient": SDPBackend.EFFICIENT_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION,
               "cudnn": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH}  # fmt: skip
    named: dict[str, Way] = {f"SDPA {name}": fused(backend) for name, backend in kernels.items()}
    return named | {"by hand": by_hand, "by hand, compiled": torch.compile(by_hand), "FlexAttention": flex()}


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Print milliseconds of every way for every window; a way that fails or answers differently is said to."""
    device = torch.device(options.device)
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    found = []
    for tokens in WINDOWS:
        batch = IMAGE_WINDOWS * max(1, options.batch_size * 49 // tokens)
        shape = (batch, HEADS, tokens, CHANNELS)
        q, k, v = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
        term = torch.randn(IMAGE_WINDOWS, HEADS, tokens, tokens, device=device, dtype=dtype, requires_grad=True)
        reference = by_hand(*(x.detach().float() for x in (q, k, v, term)))
        print(f"windows of {tokens} tokens, {batch} of them, {HEADS} heads of {CHANNELS}, {dtype}", flush=True)
        contestants = []
        for name, way in ways().items():
            problem = check(way, (q, k, v, term), reference)
            if problem:
                print(f"  {name:20} {problem}", flush=True)
                continue
            flop = 4.0 * batch * HEADS * tokens**2 * CHANNELS
            contestants.append(Contestant(f"{name}|forward", forward(way, (q, k, v, term)), flop))
            missing = check_gradient(way, (q, k, v, term))
            if missing:
                print(f"  {name:20} {missing}", flush=True)
            else:
                contestants.append(Contestant(f"{name}|training", backward(way, (q, k, v, term)), flop))
        take_turns([*contestants, matrix_product(device, options.precision)], options.rounds or 12, device)
        times = {c.name: 1e3 * median(c.seconds) for c in contestants}
        for name in [key.removesuffix("|forward") for key in times if key.endswith("|forward")]:
            ahead, training = times[f"{name}|forward"], times.get(f"{name}|training")
            said = "       -" if training is None else f"{training:8.3f} ms"
            print(f"  {name:20} forward {ahead:8.3f} ms   training {said}", flush=True)
            found.append({"tokens": tokens, "way": name, "forward": ahead, "training": training})
    return found


def check(way: Way, inputs: tuple[Tensor, ...], reference: Tensor) -> str | None:
    """What is wrong with a way's answer, in a few words."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kernels that say why they cannot
            result = forward(way, inputs)()
    except Exception as error:  # kernels and compilers fail in ways of their own
        return f"is not possible here: {first_line(error)}"
    difference = float((result.float() - reference).abs().max())
    limit = 3e-2 if result.dtype == torch.bfloat16 else 1e-4
    return None if difference <= limit else f"answers differently by {difference:.1e}"


def check_gradient(way: Way, inputs: tuple[Tensor, ...]) -> str | None:
    """Why a way that answers cannot be trained, in a few words."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gradients = torch.autograd.grad(way(*inputs).float().sum(), inputs, allow_unused=True)
    except Exception as error:
        return f"has no backward pass here: {first_line(error)}"
    return "has no gradient for the bias" if any(x is None for x in gradients) else None


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:90]


def forward(way: Way, inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
    detached = [x.detach() for x in inputs]

    def step() -> Tensor:
        with torch.no_grad():
            return way(*detached)

    return step


def backward(way: Way, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    direction = torch.randn_like(inputs[0])

    def step() -> object:
        return torch.autograd.grad(way(*inputs), inputs, direction)

    return step
