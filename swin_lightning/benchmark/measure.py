"""Time models in turns: what disturbs the machine for a while disturbs them all."""

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

MIN_SECONDS = 0.2  # of one measurement: short steps are repeated within it


@dataclass
class Contestant:
    """Something to be timed.

    Args:
        name: Row of the table.
        step: Does the work once.
        flop: Nominal operations of a step: a product counts two, what stochastic depth leaves out counts as done.
        first: Seconds of the first step, where compilation happens.
        seconds: Of a step, one value a round.
        memory: Bytes that a step needs beyond what was there before, None where it was not measured.
    """

    name: str
    step: Callable[[], object]
    flop: float
    first: float = 0.0
    seconds: list[float] = field(default_factory=list)
    memory: int | None = None


def evaluation(model: nn.Module, images: Tensor, precision: str) -> Callable[[], object]:
    """A forward pass without gradients."""
    model.eval()

    def step() -> Tensor:
        with torch.inference_mode(), autocast(images, precision):
            result: Tensor = model(images)
            return result

    return step


def training(
    model: nn.Module, images: Tensor, targets: Tensor, precision: str, fused: bool = True
) -> Callable[[], object]:
    """Forward, cross-entropy, backward and AdamW."""
    model.train()
    optimizer = AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=fused or None)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(images, precision):
            logits = model(images)
        F.cross_entropy(logits.float(), targets).backward()
        optimizer.step()

    return step


def matrix_product(device: torch.device, precision: str) -> Contestant:
    """A product of large matrices, by the faster of torch's libraries: what the machine can do at best."""
    n = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(n, n, device=device, dtype=dtype)
    return Contestant("matrix product", lambda: linear(a, a, None), 2 * n**3)


def take_turns(contestants: list[Contestant], rounds: int, device: torch.device, warmup: int = 3) -> None:
    """Time every contestant once a round; each round another one begins."""
    repeats = {}
    for contestant in contestants:
        contestant.first = timed(contestant.step, 1, device)
        each = min(timed(contestant.step, 1, device) for _ in range(warmup))
        repeats[contestant.name] = max(1, round(MIN_SECONDS / each))
    for start in range(rounds):
        for i in range(len(contestants)):
            contestant = contestants[(start + i) % len(contestants)]
            contestant.seconds.append(timed(contestant.step, repeats[contestant.name], device))
    if device.type == "cuda":
        for contestant in contestants:
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            contestant.step()
            contestant.memory = torch.cuda.max_memory_allocated() - before


def timed(step: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Seconds of a step."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    synchronize()
    return (time.perf_counter() - start) / repeats


def paired_ratio(other: list[float], own: list[float]) -> tuple[float, float, float]:
    """How many times longer the other takes: median and quartiles of the rounds' ratios."""
    ratios = [theirs / mine for theirs, mine in zip(other, own, strict=True)]
    if len(ratios) == 1:
        return ratios[0], ratios[0], ratios[0]
    low, _, high = quantiles(ratios, n=4, method="inclusive")
    return median(ratios), low, high


def autocast(images: Tensor, precision: str) -> AbstractContextManager[object]:
    return torch.autocast(images.device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
