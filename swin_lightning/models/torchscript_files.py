"""Read the parameters of a TorchScript archive without executing it.

`torch.jit.load` may run the code in the archive. Here only its tensors are read, by an unpickler that accepts nothing
else; modules become plain attribute holders.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swin_lightning.checkpoint_files import read_pickle

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class ScriptObject:
    """Stands for any module of the archive."""

    def __setstate__(self, state: object) -> None:
        self.state = state


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of `torch.jit.save`."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of the module in an archive, by their names.

    Raises:
        pickle.UnpicklingError: If the archive contains anything besides modules, tensors and plain values.
    """
    with zipfile.ZipFile(path) as archive:
        pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        file = io.BytesIO(read_pickle(archive, pickled))
        module = _Unpickler(file, archive, pickled.removesuffix("data.pkl")).load()
    return dict(_tensors(module, ""))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return ScriptObject
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch.jit._pickle":  # typed lists and dicts, whose second argument is the name of the type
            return lambda value, *_: value
        raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, *_ = pid
        content = bytearray(self.archive.read(f"{self.root}data/{key}"))
        return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    return storage.as_strided(size, stride, offset)  # refuses what is out of bounds


def _tensors(value: object, name: str) -> Iterator[tuple[str, Tensor]]:
    state = value.state if isinstance(value, ScriptObject) else None
    for key, item in state.items() if isinstance(state, Mapping) else ():
        if isinstance(item, Tensor):
            yield f"{name}{key}", item
        else:
            yield from _tensors(item, f"{name}{key}.")
