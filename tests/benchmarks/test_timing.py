"""Timing of interleaved rounds."""

import pytest
import torch
from torch import nn

from benchmarks.timing import BenchmarkCase, evaluation_step, interleave, paired_ratio, training_step

CPU = torch.device("cpu")


def test_paired_ratio_is_median_and_quartiles_of_rounds():
    assert paired_ratio([2.0, 3.0, 40.0], [1.0, 1.0, 10.0]) == (3.0, 2.5, 3.5)
    assert paired_ratio([3.0], [2.0]) == (1.5, 1.5, 1.5)


def test_interleave_rotates_the_first_case():
    calls = []
    cases = [BenchmarkCase(name, lambda name=name: calls.append(name), 1.0) for name in "abc"]
    interleave(cases, 3, CPU, warmup=1)
    assert "".join(calls[6:]) == "abcbcacab"
    assert [len(case.seconds) for case in cases] == [3, 3, 3]


def test_interleave_repeats_short_steps(monkeypatch):
    monkeypatch.setattr("benchmarks.timing.MIN_SECONDS", 5.0)
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))  # every measurement takes 1 s
    calls = []
    case = BenchmarkCase("a", lambda: calls.append(1), 1.0)
    interleave([case], 2, CPU, warmup=1)
    assert case.first == 1.0 and case.seconds == [0.2, 0.2]
    assert len(calls) == 1 + 1 + 2 * 5


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_steps_run_in_the_given_precision(precision):
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.randn(2, 3, 2, 2)
    logits = evaluation_step(model, images, precision)()
    assert logits.dtype == {"32": torch.float32, "bf16": torch.bfloat16}[precision]
    before = model[1].weight.detach().clone()
    assert not model.training
    training_step(model, images, torch.tensor([0, 1]), precision)()
    assert model.training and model[1].weight.dtype == torch.float32
    assert not torch.equal(model[1].weight, before)
