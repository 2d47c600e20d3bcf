"""What a result depends on: the machine, the versions of packages, and environment variables of a process."""

import importlib.metadata
import os
import platform
import re
from contextlib import suppress
from pathlib import Path

import torch

from swin_lightning.allocator import ENV_VAR, SETTINGS

PACKAGES = ("swin_lightning", "torch", "lightning", "timm", "torchvision", "transformers")


def describe_machine(device: torch.device) -> str:
    """The GPU's name, or the processor with its family and model and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, threads: {torch.get_num_threads()}"


def processor() -> str:
    """Name of the CPU with family and model, which virtual machines do not hide."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    name = re.search(r"model name\s*: (.+)", text)
    numbers = [re.search(rf"^{key}\s*: (\d+)", text, re.MULTILINE) for key in ("cpu family", "model")]
    if not name:
        return platform.processor()
    family, model = (number[1] if number else "?" for number in numbers)
    return f"{name[1]} (family {family} model {model})"


def package_versions() -> dict[str, str]:
    """Versions of the compared packages that are installed."""
    versions = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def default_environment() -> dict[str, str]:
    """Environment variables of a user who starts Python: without the allocator settings of our own command line."""
    ours = () if os.environ.get(ENV_VAR, "off") == "off" else SETTINGS
    return {name: value for name, value in os.environ.items() if name not in ours} | {ENV_VAR: "off"}
