"""CPU memory allocator settings: keep freed memory instead of returning it to the operating system.

By default glibc returns large freed blocks to the kernel, which zeroes the same pages again for the next tensor, at
every training step. The settings below let glibc keep them, in huge pages where possible; jemalloc, which does the
same, is preloaded instead if it is installed. Both must be set before a process starts, so the command line re-executes
itself once. Data loader workers and ranks inherit the environment.

glibc allocates aligned blocks by trimming larger ones. The fragments end up in tcache and fastbins, which prevents
coalescing with the block when it is freed: it is then too small for the next tensor, and memory use grows by an eighth.
Hence both caches are turned off.
"""

import os
import sys
from collections.abc import Mapping

ENV_VAR = "SWIN_LIGHTNING_ALLOCATOR"  # set by the user: "off" disables this module; set by us: the allocator in use
KEEP = str(8 << 30)  # blocks smaller than 8 GiB are kept

GLIBC = {
    "MALLOC_MMAP_THRESHOLD_": KEEP,
    "MALLOC_TRIM_THRESHOLD_": KEEP,
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
}
JEMALLOC = {"MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"}  # never return pages
SETTINGS = (*GLIBC, *JEMALLOC, "LD_PRELOAD", ENV_VAR)


def settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables to add to a process; none on GPU machines, without glibc, or if the user has set any."""
    configured = any(name in environment for name in SETTINGS)
    if configured or has_gpu(environment) or "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}):
        return {}
    for folder in (f"{sys.prefix}/lib", "/usr/local/lib", f"/usr/lib/{os.uname().machine}-linux-gnu", "/usr/lib64"):
        library = f"{folder}/libjemalloc.so.2"
        if os.path.isfile(library):
            return {**JEMALLOC, "LD_PRELOAD": library, ENV_VAR: library}
    return {**GLIBC, ENV_VAR: "glibc"}


def has_gpu(environment: Mapping[str, str]) -> bool:
    """Whether an NVIDIA or AMD GPU is visible to this process."""
    hidden = environment.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    return not hidden and any(os.path.exists(device) for device in ("/dev/nvidiactl", "/dev/kfd"))


def reexec_with_allocator() -> None:
    """Re-execute this process with `settings`, if there are any and it is a process of the command line."""
    program = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]  # interpreter, its options, script or module
    if not program or os.path.basename(program[-1]) not in ("swin-lightning", "swin_lightning"):
        return  # Python code that calls the console
    added = settings(os.environ)
    if added:
        os.environ.update(added)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def describe() -> str | None:
    """Log message about the settings in use, None without any."""
    allocator = os.environ.get(ENV_VAR, "off")
    if allocator == "off":
        return None
    return f"allocator: {allocator} tuned to keep freed memory; set {ENV_VAR}=off to disable"
