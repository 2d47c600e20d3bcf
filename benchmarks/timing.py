"""Timing of interleaved rounds: a disturbance of the machine affects every case alike."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from statistics import median, quantiles

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from swin_lightning.models.linear import linear

MIN_SECONDS = 0.2  # of one measurement: shorter steps are repeated
PEAK_SIZE = {"cuda": 8192, "cpu": 2048}  # side of the matrices whose product stands for the peak of the machine


@dataclass
class BenchmarkCase:
    """One thing to be timed.

    Args:
        name: Row of the results table.
        step: Callable that does the work once.
        flop: Nominal floating-point operations of a step: a multiply-add counts as two, and samples that stochastic
            depth drops count as computed.
        first: Seconds of the first step, which includes compilation.
        seconds: Seconds of a step, one value per round.
        memory: Peak memory of a step in bytes, above what was allocated before; None if not measured.
    """

    name: str
    step: Callable[[], object]
    flop: float
    first: float = 0.0
    seconds: list[float] = field(default_factory=list)
    memory: int | None = None


def evaluation_step(model: nn.Module, images: Tensor, precision: str) -> Callable[[], object]:
    """A forward pass without gradients."""
    model.eval()

    def step() -> Tensor:
        with torch.inference_mode(), autocast(images, precision):
            result: Tensor = model(images)
            return result

    return step


def training_step(
    model: nn.Module, images: Tensor, targets: Tensor, precision: str, fused: bool = True
) -> Callable[[], object]:
    """Forward pass, cross-entropy, backward pass and AdamW; `fused=False` uses torch's default AdamW."""
    model.train()
    optimizer = AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=fused or None)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(images, precision):
            logits = model(images)
        F.cross_entropy(logits.float(), targets).backward()
        optimizer.step()

    return step


def peak_performance(device: torch.device, precision: str) -> BenchmarkCase:
    """A product of large matrices by the fastest library available: the practical peak of the machine."""
    n = PEAK_SIZE.get(device.type, 2048)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(n, n, device=device, dtype=dtype)
    return BenchmarkCase("matrix product", lambda: linear(a, a, None), 2 * n**3)


def interleave(cases: list[BenchmarkCase], rounds: int, device: torch.device, warmup: int = 3) -> None:
    """Time every case once per round; the case that starts a round changes from round to round."""
    repeats = {}
    for case in cases:
        case.first = timed(case.step, 1, device)
        seconds = min(timed(case.step, 1, device) for _ in range(warmup))
        repeats[case.name] = max(1, round(MIN_SECONDS / seconds))
    for start in range(rounds):
        for i in range(len(cases)):
            case = cases[(start + i) % len(cases)]
            case.seconds.append(timed(case.step, repeats[case.name], device))
    if device.type == "cuda":
        for case in cases:
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            case.step()
            case.memory = torch.cuda.max_memory_allocated() - before


def timed(step: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Seconds of a step, averaged over the repeats."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def paired_ratio(other: list[float], own: list[float]) -> tuple[float, float, float]:
    """Median and quartiles of `other / own` over the rounds."""
    ratios = [a / b for a, b in zip(other, own, strict=True)]
    if len(ratios) == 1:
        return ratios[0], ratios[0], ratios[0]
    low, _, high = quantiles(ratios, n=4, method="inclusive")
    return median(ratios), low, high


def autocast(images: Tensor, precision: str) -> AbstractContextManager[object]:
    return torch.autocast(images.device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
