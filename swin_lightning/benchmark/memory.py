"""Memory in use, on the CPU (resident set of the process) and on a GPU (allocated by torch)."""

import re
import sys
from contextlib import suppress
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def peak_memory(device: torch.device) -> int:
    """Largest number of bytes in use since the last `reset_peak_memory`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident()


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of `peak_memory`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        reset_peak_resident()


def resident() -> int:
    """Bytes of this process in physical memory; outside of Linux the largest number so far."""
    return _status("VmRSS") or _max_resident()


def peak_resident() -> int:
    """Largest number of resident bytes since the last `reset_peak_resident`; outside of Linux since the start."""
    return _status("VmHWM") or _max_resident()


def reset_peak_resident() -> None:
    """Start a new measurement of `peak_resident`."""
    with suppress(OSError):  # Linux only
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _status(field: str) -> int:
    text = STATUS.read_text(encoding="utf-8") if STATUS.is_file() else ""
    match = re.search(rf"{field}:\s*(\d+) kB", text)
    return 1024 * int(match[1]) if match else 0


def _max_resident() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
