"""What all tests share: one thread, no network, and nothing written outside of the test's own folder."""

import os

os.environ["WANDB_MODE"] = "disabled"  # the tests of tracking turn it on
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or its import asks the network for a newer version

import pytest
import torch
from lightning import Trainer

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def make_trainer():
    """A silent Trainer on the CPU; keyword arguments override."""

    def make(**kwargs):
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
        defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "enable_checkpointing": False}
        return Trainer(**(defaults | quiet | kwargs))

    return make
