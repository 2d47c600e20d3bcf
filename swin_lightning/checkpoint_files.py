"""Checkpoint files without torch: their checksums, what they say about themselves, and the next best one.

`torch.save` writes a zip archive. Every member has a CRC-32, which `torch.load` does not check.
"""

import io
import pickle
import pickletools
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from swin_lightning.errors import UserError

MAX_PICKLE = 2**28  # bytes of the structure of a file, without its tensors
MEMO_OPCODES = {"PUT", "BINPUT", "LONG_BINPUT"}


def verify(path: str | Path) -> None:
    """Check the CRC-32 of all members of a checkpoint, once for every version of the file.

    Files of another format (safetensors, torch before 1.6) have no checksums and are not checked.

    Raises:
        UserError: If a member is damaged or the archive is incomplete. It names the next best checkpoint.
    """
    if damage := _damage_of(Path(path)):
        raise corrupt(path, damage)


def corrupt(path: str | Path, reason: str) -> UserError:
    """The error for a checkpoint that cannot be read. It names the next best checkpoint, if there is one."""
    other = next_best(Path(path))
    return UserError(f"checkpoint {str(path)!r} {reason}" + (f"; the next best one is {str(other)!r}" if other else ""))


def next_best(path: Path) -> Path | None:
    """The newest intact checkpoint in the folder of another one, or else of the other runs of its experiment."""
    for folder, pattern in ((path.parent, "*.ckpt"), (path.parent.parent.parent, f"*/{path.parent.name}/*.ckpt")):
        others = [other for other in folder.glob(pattern) if other != path]
        for other in sorted(others, key=saved_at, reverse=True):
            if "state_dict" in header(other) and _damage_of(other) is None:
                return other
    return None


def header(path: Path) -> dict[str, Any]:
    """The content of a checkpoint with placeholders for tensors and objects; empty if it cannot be read.

    Only the member with the structure is read. No class that it names is imported.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            content = _HeaderUnpickler(io.BytesIO(read_pickle(archive, name))).load()
    except Exception:  # a damaged file can raise any
        return {}
    return content if isinstance(content, dict) else {}


def read_pickle(archive: zipfile.ZipFile, name: str) -> bytes:
    """A pickle in an archive, which may not ask for memory that it does not fill.

    A position in the memo of pickle is allocated with all positions before it: 15 bytes once took 3 GB.

    Raises:
        pickle.UnpicklingError: If it does, or is larger than 256 MB.
    """
    with archive.open(name) as file:
        data = file.read(MAX_PICKLE + 1)
    positions = (argument or 0 for opcode, argument, _ in pickletools.genops(data) if opcode.name in MEMO_OPCODES)
    if len(data) > MAX_PICKLE or any(position > len(data) for position in positions):
        raise pickle.UnpicklingError("the pickle describes more than it holds")
    return data


def saved_at(path: Path) -> float:
    """When a checkpoint was written: what it says, or the time of the file if it says nothing.

    A checkpoint of `fit` says a time that is later than that of all checkpoints that the experiment had when the run
    started, whatever the clock showed.
    """
    stated = header(path).get("saved_at")
    return stated if isinstance(stated, float) else path.stat().st_mtime


# helpers


def _damage_of(path: Path) -> str | None:
    stat = path.stat()
    return _damage(path.resolve(), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _damage(path: Path, mtime_ns: int, size: int) -> str | None:
    """What is wrong with a version of a file, None if nothing is."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":
            return None
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(info.file_size for info in archive.infolist())
            if total > 2 * size + MAX_PICKLE:  # torch compresses nothing but the code of TorchScript
                return f"expands to {total >> 20} MB, more than it can hold"
            member = archive.testzip()
    except Exception:  # damage of the directory of the archive
        return "is not a checkpoint file or is corrupt (incomplete archive)"
    return f"is corrupt (wrong CRC-32 of {member})" if member else None


class _Placeholder:
    """Stands for any class or function in a pickle, and for what it returns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes any arguments."""

    def __setstate__(self, state: Any) -> None:
        """Takes any state."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """As of a dict."""

    def append(self, value: Any) -> None:
        """As of a list."""

    extend = add = append


class _HeaderUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _Placeholder

    def persistent_load(self, pid: Any) -> None:
        """No data of tensors."""
