"""Compare implementations of attention inside windows of 49, 64, 144 and 256 tokens.

Measured are the fused kernels of scaled_dot_product_attention one by one, the explicit softmax, eager and compiled,
and FlexAttention; once the forward pass alone and once with the backward pass, including the gradient of bias and mask.
A kernel without that gradient is timed in the forward pass only.
"""

import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.command import build_parser, parse, run
from benchmarks.timing import BenchmarkCase, interleave, peak_performance

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # q, k, v: B*nW, h, N, C/h; bias: nW, h, N, N
WINDOW_TOKENS = (49, 64, 144, 256)
HEADS, HEAD_DIM = 3, 32
WINDOWS_PER_IMAGE = 16  # each with its own mask


def main(args: list[str]) -> None:
    """Print the milliseconds of every kernel for every window size.

    Raises:
        UserError: For wrong options.
    """
    options = parse(build_parser("attention", __doc__), args)
    compare(options.batch_size, options.rounds or 12, torch.device(options.device), options.precision)


def compare(batch_size: int, rounds: int, device: torch.device, precision: str) -> list[dict[str, Any]]:
    """Time every kernel and print a line for each; kernels that fail or return other values are reported as such.

    Args:
        batch_size: Images of 16 windows of 49 tokens; larger windows get fewer images, for the same number of tokens.
        rounds: Measurements of each kernel.
        device: Where to run.
        precision: `32` or `bf16`.

    Returns:
        Rows with the keys `tokens`, `kernel`, `forward` and `training` in milliseconds (None without a gradient).
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rows = []
    for tokens in WINDOW_TOKENS:
        windows = WINDOWS_PER_IMAGE * max(1, batch_size * 49 // tokens)
        shape = (windows, HEADS, tokens, HEAD_DIM)
        q, k, v = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
        bias_shape = (WINDOWS_PER_IMAGE, HEADS, tokens, tokens)
        bias = torch.randn(bias_shape, device=device, dtype=dtype, requires_grad=True)
        expected = explicit_attention(*(x.detach().float() for x in (q, k, v, bias)))
        print(f"{windows} windows of {tokens} tokens, {HEADS} heads of {HEAD_DIM} channels, {dtype}", flush=True)
        cases = []
        for name, kernel in kernels().items():
            if failure := check_output(kernel, (q, k, v, bias), expected):
                print(f"  {name:20} {failure}", flush=True)
                continue
            flop = 4.0 * windows * HEADS * tokens**2 * HEAD_DIM
            cases.append(BenchmarkCase(f"{name}|forward", forward_step(kernel, (q, k, v, bias)), flop))
            if failure := check_gradient(kernel, (q, k, v, bias)):
                print(f"  {name:20} {failure}", flush=True)
            else:
                cases.append(BenchmarkCase(f"{name}|training", backward_step(kernel, (q, k, v, bias)), flop))
        interleave([*cases, peak_performance(device, precision)], rounds, device)
        times = {case.name: 1e3 * median(case.seconds) for case in cases}
        for name in [key.removesuffix("|forward") for key in times if key.endswith("|forward")]:
            forward, training = times[f"{name}|forward"], times.get(f"{name}|training")
            text = "       -" if training is None else f"{training:8.3f} ms"
            print(f"  {name:20} forward {forward:8.3f} ms   training {text}", flush=True)
            rows.append({"tokens": tokens, "kernel": name, "forward": forward, "training": training})
    return rows


def kernels() -> dict[str, Kernel]:
    """All implementations by name."""
    backends = {
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    }
    named: dict[str, Kernel] = {f"SDPA {name}": sdpa(backend) for name, backend in backends.items()}
    explicit = {"explicit": explicit_attention, "explicit, compiled": torch.compile(explicit_attention)}
    return named | explicit | {"FlexAttention": flex_attention()}


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """The definition: `softmax(q k^T * scale + bias) v`."""
    return (q @ k.transpose(-2, -1) * HEAD_DIM**-0.5 + bias.repeat(len(q) // len(bias), 1, 1, 1)).softmax(-1) @ v


def sdpa(backend: SDPBackend) -> Kernel:
    """scaled_dot_product_attention restricted to one backend."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.repeat(len(q) // len(bias), 1, 1, 1))

    return kernel


def flex_attention() -> Kernel:
    """FlexAttention, compiled; it indexes the bias instead of repeating it for every image."""
    from torch.nn.attention import flex_attention as flex

    compiled = torch.compile(flex.flex_attention)

    def kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        def add_bias(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score + bias[b % len(bias), h, i, j]

        result: Tensor = compiled(q, k, v, score_mod=add_bias)
        return result

    return kernel


def check_output(kernel: Kernel, inputs: tuple[Tensor, ...], expected: Tensor) -> str | None:
    """Why a kernel cannot be compared, None if its output is as expected."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of SDPA, with the reasons why a backend is not available
            result = forward_step(kernel, inputs)()
    except Exception as error:  # kernels and compilers raise many kinds
        return f"not available: {_first_line(error)}"
    difference = (result.float() - expected).detach().abs().max().item()
    limit = 3e-2 if result.dtype == torch.bfloat16 else 1e-4
    return None if difference <= limit else f"wrong output: differs by {difference:.1e}"


def check_gradient(kernel: Kernel, inputs: tuple[Tensor, ...]) -> str | None:
    """Why a kernel cannot be used in training, None if it has all gradients."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gradients = torch.autograd.grad(kernel(*inputs).float().sum(), inputs, allow_unused=True)
    except Exception as error:
        return f"no backward pass: {_first_line(error)}"
    return "no gradient for the bias" if any(x is None for x in gradients) else None


def forward_step(kernel: Kernel, inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
    """A forward pass without gradients."""
    detached = [x.detach() for x in inputs]

    def step() -> Tensor:
        with torch.no_grad():
            return kernel(*detached)

    return step


def backward_step(kernel: Kernel, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """Forward and backward pass."""
    grad_output = torch.randn_like(inputs[0])

    def step() -> object:
        return torch.autograd.grad(kernel(*inputs), inputs, grad_output)

    return step


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:90]


if __name__ == "__main__":
    run(main)
