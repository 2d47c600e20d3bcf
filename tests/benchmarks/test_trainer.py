"""Overhead of the Trainer against a bare loop."""

import re

import pytest
import torch

from benchmarks import trainer
from benchmarks.command import add_model_option, build_parser, parse

SMALL = ["--model", "swin_micro_patch4_window4_32", "--batch-size", "2", "--threads", "1", "--device", "cpu"]


@pytest.fixture
def options():
    parser = build_parser("trainer", None)
    add_model_option(parser)
    return parse(parser, SMALL)


def test_command_prints_both_loops_and_the_overhead(capsys, monkeypatch):
    monkeypatch.setattr(trainer, "STEPS", 8)
    trainer.main([*SMALL, "--rounds", "1"])
    line = capsys.readouterr().out.splitlines()[-1]
    number = r"-?[\d.]+"
    assert re.fullmatch(
        rf"swin_micro_patch4_window4_32, batch 2: bare loop {number} ms per step, Trainer {number} ms: "
        rf"overhead {number} ms, ratio {number} \({number}-{number}\)",
        line,
    )


def test_both_loops_start_from_the_same_weights_and_batch(options, monkeypatch):
    monkeypatch.setattr(trainer, "STEPS", 7)
    first = []
    for loop in (trainer.bare_loop, trainer.trainer_loop):
        model = trainer.build_classifier(options.model, 10)
        model.register_forward_hook(lambda module, args, logits: first.append(logits.detach().clone()))
        loop(model, trainer_batch(), options)
    assert len(first) == 2 * 7
    assert torch.equal(first[0], first[7])


def trainer_batch():
    torch.manual_seed(1)
    return {"image": torch.randn(2, 3, 32, 32), "target": torch.tensor([1, 2]), "index": torch.arange(2)}
