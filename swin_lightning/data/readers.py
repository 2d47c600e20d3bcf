"""Where images come from: arrays in memory, folders of class folders, Hugging Face data sets.

A source has a length, gives `(image, label)` by index and names its images. An image is an array `H, W, 3` uint8 RGB,
or an `Encoded` file of which a crop decodes what it needs; `np.asarray` turns either into the array.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from swin_lightning.data.decoding import Encoded
from swin_lightning.errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"}


class Source(Protocol):
    """What the datamodules read from."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray | Encoded, int]: ...

    def name(self, index: int) -> str: ...


class ArrayImages:
    """Images that fit into memory: `N, H, W, 3` uint8 and labels `N`. Forked workers share the arrays."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])

    def name(self, index: int) -> str:
        return str(index)

    def subset(self, indices: np.ndarray) -> "ArrayImages":
        return ArrayImages(self.images[indices], self.labels[indices])


class FileImages:
    """Image files and their labels."""

    def __init__(self, paths: Sequence[Path], labels: Sequence[int]) -> None:
        self.paths, self.labels = paths, labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Encoded, int]:
        return Encoded(self.paths[index], str(self.paths[index])), self.labels[index]

    def name(self, index: int) -> str:
        return str(self.paths[index])


class HubImages:
    """A split of a Hugging Face data set with an image column and a class label column."""

    def __init__(self, split: Any, repository: str) -> None:
        from datasets import Image as ImageFeature

        self.image_column = next(name for name, kind in split.features.items() if isinstance(kind, ImageFeature))
        self.label_column = label_column(split.features)
        self.split = split.cast_column(self.image_column, ImageFeature(decode=False))
        self.repository = repository
        names = getattr(split.features[self.label_column], "names", None)
        self.num_classes = len(names) if names else None  # None where the labels are plain numbers

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Encoded, int]:
        row = self.split[index]
        image = row[self.image_column]
        return Encoded(image["bytes"] or Path(image["path"]), self.name(index)), row[self.label_column]

    def name(self, index: int) -> str:
        return f"{self.repository}[{index}]"


def label_column(features: Any) -> str:
    """The column of class labels: `label` (`fine_label` in CIFAR-100, `cls` in tars), else the only ClassLabel."""
    from datasets import ClassLabel

    classes = [name for name, kind in features.items() if isinstance(kind, ClassLabel)]
    for name in ("label", "fine_label", "cls"):
        if name in features:
            return name
    if len(classes) != 1:
        raise UserError(f"no label column among {list(features)}; expected one named 'label'")
    return classes[0]


def class_folders(root: Path) -> list[str]:
    """The class names of a folder of class folders, sorted.

    Raises:
        ValueError: If there is no such folder, or no folder in it.
    """
    if not root.is_dir():
        raise UserError(f"data.path: there is no folder {root}; expected one folder a class in it")
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"data.path: {root} holds no class folders; expected {root}/<class>/<image>.jpg")
    return names


def read_class_folders(root: Path, class_names: Sequence[str]) -> FileImages:
    """All images under `root/<class>/`, labelled by the place of the class among `class_names`.

    Raises:
        ValueError: If a class folder is unknown or holds no image.
    """
    paths: list[Path] = []
    labels: list[int] = []
    for name in class_folders(root):
        if name not in class_names:
            raise UserError(
                f"class folder {root / name} is not among the {len(class_names)} classes of the training set"
            )
        files = list_images(root / name)
        if not files:
            raise UserError(f"class folder {root / name} holds no image; fill or remove it")
        paths += files
        labels += [class_names.index(name)] * len(files)
    return FileImages(paths, labels)


def list_images(root: Path) -> list[Path]:
    """All image files under a folder, sorted."""
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
