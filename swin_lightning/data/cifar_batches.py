"""CIFAR-10 and CIFAR-100 as distributed by their author and unpacked by torchvision: pickled arrays.

Only arrays, numbers and bytes are read from the pickles; anything else is refused, so that a file cannot run code.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from swin_lightning.errors import UserError

FOLDERS = ("cifar-10-batches-py", "cifar-100-python")
ALLOWED = {
    ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
}  # fmt: skip


def find_batches(path: str) -> Path | None:
    """The folder of the pickles: `path` or a folder of torchvision in it; None if there is none."""
    for folder in (Path(path), *(Path(path) / name for name in FOLDERS)):
        if (folder / "test_batch").is_file() or ((folder / "train").is_file() and (folder / "test").is_file()):
            return folder
    return None


def read_batches(folder: Path, split: str, label_column: str | None, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images `N, 32, 32, 3` uint8 and labels `N`.

    Args:
        folder: From `find_batches`.
        split: `train`; any other is the test split.
        label_column: `coarse_label` for the 20 groups of CIFAR-100.
        num_classes: Number of classes that the labels must fit.

    Raises:
        UserError: If a file is damaged, holds other objects, or has other classes.
    """
    if (folder / "test_batch").is_file():
        names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
        key = b"labels"
    else:
        names, key = ["train" if split == "train" else "test"], f"{label_column or 'fine_label'}s".encode()
    parts = [_load(folder / name) for name in names]
    try:
        pixels = np.concatenate([part[b"data"] for part in parts]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([np.asarray(part[key]) for part in parts])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"data.path: {str(folder / names[0])!r} is not a batch of CIFAR ({error!r})") from error
    if labels.max(initial=0) >= num_classes:
        raise UserError(f"data.path: {str(folder)!r} has {labels.max() + 1} classes; expected {num_classes}")
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # its name before numpy 2
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"holds an object of {module}.{name}")
        return super().find_class(module, name)


def _load(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _Unpickler(file, encoding="bytes").load()
    except FileNotFoundError as error:
        raise UserError(f"data.path: no file {str(path)!r}; unpack the archive of CIFAR again") from error
    except Exception as error:  # damaged pickles raise exceptions of many types
        raise UserError(f"data.path: cannot read {str(path)!r} ({error}); unpack the archive of CIFAR again") from error
