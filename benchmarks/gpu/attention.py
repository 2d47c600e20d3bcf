"""Ways to compute window attention, from the packed qkv map to the output map, with the gradient of the bias table."""

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.timing import timed
from swin_lightning.models.windows import (
    fit_window,
    gather_position_bias,
    repeat_for_batch,
    shifted_window_mask,
    window_partition,
    window_reverse,
)

Way = Callable[[Tensor, Tensor, tuple[int, int], tuple[int, int]], Tensor]  # qkv, table, window, shift
HEAD_DIM = 32


def general(backend: SDPBackend | None) -> Way:
    """The general path with a backend of scaled_dot_product_attention; None for the explicit softmax."""

    def way(qkv: Tensor, table: Tensor, window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
        H, W, _, nH, D = qkv.shape[1:]
        x = window_partition(qkv.flatten(3).roll((-shift[0], -shift[1]), (1, 2)), window)
        q, k, v = x.unflatten(-1, (3, nH, D)).permute(2, 0, 3, 1, 4)
        bias, mask = (
            gather_position_bias(table, window, window)[None],
            shifted_window_mask((H, W), window, shift, qkv.device),
        )
        if mask is not None:
            bias = bias.masked_fill(~mask[:, None], float("-inf"))
        bias = repeat_for_batch(bias.to(q.dtype), len(q))
        if backend is None:
            out = (q @ k.transpose(-2, -1) * D**-0.5 + bias).softmax(-1) @ v
        else:
            with sdpa_kernel(backend):
                out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out = window_reverse(out.transpose(1, 2).flatten(2), window, (H, W))
        return out.roll(shift, (1, 2)).unflatten(-1, (nH, D))

    return way


def operator(programs: int) -> Way:
    """The Triton operator with at least so many programs."""

    def way(qkv: Tensor, table: Tensor, window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
        from swin_lightning.models import window_attention_triton as kernels

        kernels.PROGRAMS = programs
        bias = gather_position_bias(table, window, window)
        return kernels.window_attention(qkv, bias, window, shift, qkv.shape[-1] ** -0.5)

    return way


def ways(device: torch.device) -> dict[str, Way]:
    """All ways by name; those that do not run on this device are reported as failed."""
    found = {
        "explicit": general(None),
        "SDPA efficient": general(SDPBackend.EFFICIENT_ATTENTION),
        "SDPA cuDNN": general(SDPBackend.CUDNN_ATTENTION),
        "SDPA math": general(SDPBackend.MATH),
    }
    if device.type == "cuda":
        found["explicit, compiled"] = torch.compile(general(None), dynamic=False)
    for programs in (512, 1024, 2048, 4096):
        found[f"operator, {programs} programs"] = operator(programs)
    return found


def compare(
    device: torch.device, batch: int, stages: list[tuple[int, int]], window_size: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """Time every way in every stage, with and without shift, and compare it with the definition in float64.

    Args:
        device: Where to run.
        batch: Number of images.
        stages: Side of the feature map and number of heads.
        window_size: Side of a window.
        rounds: Measurements of each way.

    Yields:
        Rows with `stage`, `shift`, `way`, and either `failed` or `error`, `forward` and `training` in milliseconds.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for stage, (side, nH) in enumerate(stages, 1):
        for shifted in (0, window_size // 2):
            torch.manual_seed(0)
            window, shift = fit_window((side, side), window_size, shifted)
            qkv = torch.randn(batch, side, side, 3, nH, HEAD_DIM, device=device, dtype=dtype, requires_grad=True)
            table = torch.randn((2 * window_size - 1) ** 2, nH, device=device, requires_grad=True)
            grad = torch.randn(batch, side, side, nH, HEAD_DIM, device=device, dtype=dtype)
            for name, way in ways(device).items():
                row = {"stage": stage, "shift": shifted, "way": name}
                yield row | _measure(way, (qkv, table, window, shift), grad, rounds)


def _measure(way: Way, arguments: tuple[Any, ...], grad: Tensor, rounds: int) -> dict[str, Any]:
    qkv, table, *rest = arguments
    try:
        error = _error(way, arguments, grad)
        with torch.no_grad():
            forward = _median(lambda: way(qkv, table, *rest), rounds, qkv.device)
        training = _median(lambda: torch.autograd.grad(way(qkv, table, *rest), (qkv, table), grad), rounds, qkv.device)
    except Exception as error:  # kernels and compilers raise many kinds
        return {"failed": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:100]}"}
    return {"error": error, "forward": forward, "training": training}


def _median(step: Callable[[], object], rounds: int, device: torch.device) -> float:
    for _ in range(1 if rounds == 1 else 3):
        step()
    return 1e3 * median(timed(step, 1, device) for _ in range(rounds))


def _error(way: Way, arguments: tuple[Any, ...], grad: Tensor) -> float:
    """Largest relative error of output and gradients for one image."""
    qkv, table, *rest = arguments
    results = []
    for function, dtype in ((way, qkv.dtype), (general(None), torch.float64)):
        x, y = qkv.detach()[:1].to(dtype).requires_grad_(), table.detach().requires_grad_()
        y = table.detach().to(torch.float64 if dtype == torch.float64 else table.dtype).requires_grad_()
        out = function(x, y, *rest)
        results.append([out, *torch.autograd.grad(out, (x, y), grad[:1].to(dtype))])
    pairs = [(a.detach().double(), b.detach()) for a, b in zip(*results, strict=True)]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)
