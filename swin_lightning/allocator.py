"""Memory on the CPU: start the process so that large tensors are not mapped and unmapped at every step.

glibc gives every freed large block back to the system, which clears the same pages again for the next tensor. The
variables below let it keep them, in huge pages where it can; where jemalloc is installed, which does the same, that one
is loaded. Either must be there when a process begins, so that the door starts itself once more. Loader processes and
ranks inherit it.

What is kept must fit what comes next. glibc aligns a block by cutting off its ends, and its caches of small pieces hold
on to these: a freed tensor is then too short for its successor, and memory grows by an eighth. Without the caches the
ends are joined again.
"""

import os
import sys
from collections.abc import Mapping

SWITCH = "SWIN_LIGHTNING_ALLOCATOR"  # `off` leaves memory to the system's defaults; else what was set is told here
KEEP = str(8 << 30)  # blocks below 8 GiB are kept

GLIBC = {
    "MALLOC_MMAP_THRESHOLD_": KEEP,
    "MALLOC_TRIM_THRESHOLD_": KEEP,
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
}
JEMALLOC = {"MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"}  # never give a page back
SETTINGS = (*GLIBC, *JEMALLOC, "LD_PRELOAD", SWITCH)


def settings(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to a process's variables: nothing beside a GPU, outside of glibc, or where the user chose already."""
    chosen = any(name in environment for name in SETTINGS)
    if chosen or has_gpu(environment) or "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}):
        return {}
    for folder in (f"{sys.prefix}/lib", "/usr/local/lib", f"/usr/lib/{os.uname().machine}-linux-gnu", "/usr/lib64"):
        library = f"{folder}/libjemalloc.so.2"
        if os.path.isfile(library):
            return {**JEMALLOC, "LD_PRELOAD": library, SWITCH: library}
    return {**GLIBC, SWITCH: "glibc"}


def has_gpu(environment: Mapping[str, str]) -> bool:
    """Whether there is a GPU of NVIDIA or AMD that this process may use."""
    hidden = environment.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    return not hidden and any(os.path.exists(device) for device in ("/dev/nvidiactl", "/dev/kfd"))


def restart() -> None:
    """Start this process once more with `settings`, if there are any and it is the command line's own process."""
    program = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]  # the interpreter, its options, our name
    if os.path.basename(program[-1]) not in ("swin-lightning", "swin_lightning"):
        return
    added = settings(os.environ)
    if added:
        os.environ.update(added)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def note() -> str | None:
    """The line for a run's log, None where nothing was set."""
    found = os.environ.get(SWITCH, "off")
    return None if found == "off" else f"memory: {found} keeps what is freed; {SWITCH}=off leaves it to the system"
