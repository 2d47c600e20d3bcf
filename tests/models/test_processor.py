"""What /proc/cpuinfo says about the CPU."""

import pytest
import torch

from swin_lightning.models import processor

INTEL = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu avx512f amx_bf16 amx_tile\n\nprocessor\t: 1\n"
ZEN_4 = "vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512f avx512_bf16\n"
ZEN_3 = "vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n"


@pytest.mark.parametrize(("cpuinfo", "capability", "amd", "bfloat16"), [
    (INTEL, "AVX512", False, True), (ZEN_4, "AVX512", True, True), (ZEN_4, "AVX2", True, True),
    (ZEN_3, "AVX2", False, False), (ARM, "DEFAULT", False, False), (None, "DEFAULT", False, False),
])  # fmt: skip
def test_processors(cpuinfo, capability, amd, bfloat16, tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        path.write_text(cpuinfo)
    monkeypatch.setattr(processor, "CPUINFO", path)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    cached = (processor.cpu_flags, processor.is_amd_with_avx512, processor.is_intel_with_amx)
    for function in cached:
        function.cache_clear()
    try:
        assert processor.is_amd_with_avx512() == (amd and capability == "AVX512")
        assert processor.is_intel_with_amx() == (cpuinfo == INTEL)
        assert processor.multiplies_bfloat16() == bfloat16
    finally:
        for function in cached:
            function.cache_clear()
