"""The precision of a run that does not set it: by what the hardware has and how large a step is."""

import logging

import pytest
import torch
import yaml
from lightning.pytorch.plugins import MixedPrecision

from swin_lightning import trainer_precision as module
from swin_lightning.cli import main
from swin_lightning.models import swin_micro_patch4_window4_32, swin_tiny_patch4_window7_224
from swin_lightning.trainer_precision import block_macs, default_precision, trainer_precision
from tests.support.cli import DIGITS, SHORT

QUICK = ["fit", "-c", DIGITS, *SHORT, "--trainer.max_steps=1", "--trainer.limit_val_batches=1"]


@pytest.fixture
def bfloat16_cpu(monkeypatch):
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def swin_tiny():
    with torch.device("meta"):
        return torch.nn.Sequential(swin_tiny_patch4_window7_224(num_classes=10))


def test_large_steps_are_in_bfloat16_on_a_cpu_that_has_it(bfloat16_cpu, swin_tiny, monkeypatch):
    assert default_precision("auto", swin_tiny, 224, 1)[0] == "bf16-mixed"
    assert default_precision("cpu", swin_tiny, 112, 4)[0] == "bf16-mixed"
    small = default_precision("cpu", swin_tiny, 112, 2)
    assert small == ("32-true", "a batch has 2.2 G multiply-adds, bf16-mixed is faster from 4 G")
    assert default_precision("cpu", swin_micro_patch4_window4_32(), 32, 128)[0] == "32-true"
    for unknown in ((torch.nn.Linear(2, 2), 224, 64), (swin_tiny, None, 64), (swin_tiny, 224, None)):
        assert default_precision("cpu", *unknown) == ("32-true", "bf16-mixed was measured with Swin on images only")
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda: False)
    assert default_precision("cpu", swin_tiny, 224, 64)[0] == "32-true"


@pytest.mark.parametrize(("accelerator", "supported", "expected"), [
    ("auto", True, "bf16-mixed"), ("gpu", False, "32-true"), ("cpu", True, "32-true"),
])  # fmt: skip
def test_gpu(accelerator, supported, expected, swin_tiny, monkeypatch):
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert default_precision(accelerator, swin_tiny, 224, 64)[0] == expected


def test_block_macs_are_those_of_the_linear_layers(swin_tiny):
    tokens, dims, depths = (56**2, 28**2, 14**2, 7**2), (96, 192, 384, 768), (2, 2, 6, 2)
    linear = sum(n * depth * 12 * dim**2 for n, dim, depth in zip(tokens, dims, depths, strict=True))
    assert linear < block_macs(swin_tiny[0], 224) < 1.02 * linear  # and the bias tables


def test_what_the_user_states_is_kept(bfloat16_cpu, swin_tiny, caplog):
    plugin = MixedPrecision("bf16-mixed", "cpu")
    for given, plugins, expected in (("32-true", None, "32-true"), (None, [plugin], None), (None, plugin, None)):
        options = {"precision": given, "plugins": plugins, "accelerator": "cpu"}
        assert trainer_precision(options, swin_tiny, None) == expected
    assert not caplog.records


def test_a_resumed_run_keeps_its_precision(bfloat16_cpu, monkeypatch, caplog):
    monkeypatch.setattr(module, "MIN_MACS", 1e6)
    caplog.set_level(logging.INFO, "swin_lightning")
    first = main(QUICK)
    line = "precision: bf16-mixed (faster than float32 on CPUs with AVX512-BF16 or AMX); set trainer.precision to "
    assert [record.message for record in caplog.records if "precision" in record.message] == [f"{line}change it"]
    assert yaml.safe_load(first.run.config.read_text())["trainer"]["precision"] == "bf16-mixed"
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda: False)  # another machine
    resumed = main([*QUICK, "--trainer.max_steps=2", "--ckpt_path=last"])
    assert resumed.run_dir == first.run_dir and resumed.trainer.precision == "bf16-mixed"
