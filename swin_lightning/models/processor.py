"""What this machine's CPU can do, as Linux says in /proc/cpuinfo; nothing is known on other systems."""

import functools
import re
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets (`flags`, on Arm `Features`) and the vendor of the first core, such as `avx512_bf16`."""
    text = CPUINFO.read_text(encoding="utf-8") if CPUINFO.is_file() else ""
    found = [re.search(rf"^{key}\s*:(.*)$", text, re.MULTILINE) for key in ("vendor_id", "flags", "Features")]
    return frozenset(name for line in found if line for name in line[1].split())


@functools.cache
def is_amd_with_avx512() -> bool:
    """Whether this is an AMD CPU with AVX-512."""
    return "AuthenticAMD" in cpu_flags() and torch.backends.cpu.get_cpu_capability() == "AVX512"


@functools.cache
def is_intel_with_amx() -> bool:
    """Whether this is an Intel CPU with AMX, Sapphire Rapids or newer."""
    return {"GenuineIntel", "amx_bf16"} <= cpu_flags() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def multiplies_bfloat16() -> bool:
    """Whether torch multiplies bfloat16 matrices with instructions of an x86 CPU: AVX512-BF16 or AMX.

    Arm CPUs with bfloat16 instructions are not counted: none was measured.
    """
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})
