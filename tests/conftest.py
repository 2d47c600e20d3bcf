"""Shared by all tests: one thread, no network, and a working directory of its own for each test."""

import os
import sys

os.environ["WANDB_MODE"] = "disabled"  # the tests of loggers enable it
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of parallel test processes wait for each other
if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton kernels on the CPU; read by `import triton`, as torch does
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # its import would look for a newer version

import pytest
import torch
from lightning import Trainer

torch.set_num_threads(1)


def pytest_xdist_auto_num_workers(config):
    """One worker more than there are cores: some tests wait for processes that they have started."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_leftovers():
    """A process group or a W&B run of one test must not reach the next one."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
        sys.modules["wandb"].finish()


@pytest.fixture
def make_trainer():
    """A silent Trainer on the CPU; keyword arguments override."""

    def make(**kwargs):
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
        defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "enable_checkpointing": False}
        return Trainer(**(defaults | quiet | kwargs))

    return make
