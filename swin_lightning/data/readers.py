"""Readers of images and labels: arrays in memory, image files, tar shards.

A reader has a length, returns `(image, label)` by index, and names its images. An image is an array `H, W, 3` uint8
RGB, or a `LazyImage` of which a crop decodes only what it needs; `np.asarray` converts either to an array.
"""

import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

import numpy as np

from swin_lightning.batch import IGNORE_INDEX
from swin_lightning.data.decoding import LazyImage
from swin_lightning.data.layouts import find_images, image_suffixes, left_out_note, list_class_folders
from swin_lightning.errors import UserError

# an integer label states the number of classes, for each of which the model has weights
MAX_CLASSES, MAX_LABEL_BYTES = 1_000_000, 32


class Reader(Protocol):
    """What the data modules read from."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray | LazyImage, int]: ...

    def name(self, index: int) -> str: ...


class Sources(dict[str, Reader]):
    """Readers by split."""

    def __missing__(self, split: str) -> Reader:
        stage = {"train": "fit", "val": "fit"}.get(split, split)
        raise UserError(f"the {split} split has not been read: call setup({stage!r}) of the data module first")


class ArrayReader:
    """Images that fit into memory: `N, H, W, 3` uint8 and labels `N`. Forked workers share the arrays."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])

    def name(self, index: int) -> str:
        return str(index)

    def subset(self, indices: np.ndarray) -> "ArrayReader":
        return ArrayReader(self.images[indices], self.labels[indices])


class SubsetReader:
    """Some of the images of several readers.

    Args:
        readers: The readers, in the order in which their images are numbered.
        positions: Numbers of the images.
        origin: How they were chosen, in words.
    """

    def __init__(self, readers: Sequence[Reader], positions: np.ndarray, origin: str = "") -> None:
        self.readers, self.positions, self.origin = list(readers), positions, origin
        self.ends = np.cumsum([len(reader) for reader in readers])
        self.labels = np.concatenate([labels_of(reader) for reader in readers])[positions]
        self.left_out: Counter[str] = sum((left_out_of(reader) for reader in readers), Counter())

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> tuple[np.ndarray | LazyImage, int]:
        reader, position = self._locate(index)
        return reader[position]

    def name(self, index: int) -> str:
        reader, position = self._locate(index)
        return reader.name(position)

    def _locate(self, index: int) -> tuple[Reader, int]:
        position = int(self.positions[index])
        number = int(np.searchsorted(self.ends, position, side="right"))
        return self.readers[number], position - int(self.ends[number - 1] if number else 0)


# what readers may have besides


def labels_of(reader: Reader) -> np.ndarray:
    """The labels `N` of a reader, its attribute `labels`.

    Raises:
        UserError: If it has none, as a reader that cannot tell them without decoding the images.
    """
    labels = getattr(reader, "labels", None)
    if labels is None:
        raise UserError(f"data: {type(reader).__name__} has no attribute labels, which drawing and weighting need")
    return np.asarray(labels, np.int64)


def groups_of(reader: Reader) -> np.ndarray | None:
    """The groups of the images of a reader by name, None if it has none."""
    groups = getattr(reader, "groups", None)
    return None if groups is None else np.asarray(groups)


def left_out_of(reader: Reader) -> Counter[str]:
    """Number of files that a reader left out, by reason."""
    return Counter(getattr(reader, "left_out", {}))


# image files


class FileReader:
    """Image files and their labels.

    Args:
        paths: The files.
        labels: Class indices.
        left_out: Number of files that were left out, by reason.
        groups: Names of the groups, such as patients.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        left_out: Counter[str] | None = None,
        groups: Sequence[str] | None = None,
    ) -> None:
        self.paths, self.labels, self.left_out, self.groups = paths, labels, left_out or Counter(), groups

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[LazyImage, int]:
        return LazyImage(self.paths[index], self.name(index)), self.labels[index]

    def name(self, index: int) -> str:
        return str(self.paths[index])


def read_class_folders(root: Path, class_names: Sequence[str]) -> FileReader:
    """All images in `root/<class>/`; the label is the position of the class in `class_names`.

    Raises:
        UserError: If a class folder is not in `class_names` or contains no image.
    """
    paths: list[Path] = []
    labels: list[int] = []
    left_out: Counter[str] = Counter()
    for name in list_class_folders(root):
        if name not in class_names:
            raise UserError(
                f"data.path: class folder {str(root / name)!r} is not one of the {len(class_names)} known classes; "
                "every split must have the class folders of the training split"
            )
        found = find_images(root / name)
        if not found.paths:
            why = left_out_note(found.left_out)
            raise UserError(f"data.path: no images in class folder {str(root / name)!r}{why}; add images or remove it")
        paths += found.paths
        labels += [class_names.index(name)] * len(found.paths)
        left_out += found.left_out
    loose = find_images(root, deep=False)
    left_out += loose.left_out
    if loose.paths:
        left_out["images outside of the class folders"] += len(loose.paths)
    return FileReader(paths, labels, left_out)


def list_images(root: Path) -> list[Path]:
    """All image files below a folder, sorted."""
    return find_images(root).paths


def read_unlabelled(root: Path) -> FileReader:
    """All images below a folder, without labels."""
    found = find_images(root)
    return FileReader(found.paths, [IGNORE_INDEX] * len(found.paths), found.left_out)


# tar shards


class TarReader:
    """Images in uncompressed tar files (webdataset's layout), read in place by random access.

    The label is the number in `KEY.cls` next to `KEY.jpg`, otherwise the name of the image's folder in the tar file.
    A tar file inside a tar file is a folder. The headers of all files are read once, sequentially; a million images
    take about half a minute.

    Args:
        paths: The tar files.
        labelled: Whether the images must have labels there; otherwise the caller sets `labels`.

    Raises:
        UserError: If a file is not an uncompressed tar file, or an image has no label.
    """

    def __init__(self, paths: Sequence[Path], labelled: bool = True) -> None:
        self.paths = list(paths)
        self.members: list[str] = []
        self.raw_labels: list[int | str] = []  # as in the files: class index or folder name
        self.labels: list[int] = []
        locations: list[tuple[int, int, int]] = []
        for number, path in enumerate(self.paths):
            images, classes = _read_tar_headers(path)
            for key, (member, offset, size) in images.items():
                label = classes.get(key, PurePosixPath(member).parent.name)
                if label == "" and labelled:
                    raise UserError(f"data.path: image {member} in {path} has neither a {key}.cls nor a class folder")
                self.members.append(member)
                self.raw_labels.append(label)
                locations.append((number, offset, size))
        self.locations = np.array(locations, np.int64).reshape(-1, 3)  # file, byte offset, size in bytes

    def assign_labels(self, class_names: Sequence[str]) -> "TarReader":
        """Set `labels`: folder names become positions in `class_names`, numbers are class indices already.

        Raises:
            UserError: If a label is not one of the classes.
        """
        positions = {name: i for i, name in enumerate(class_names)}
        for raw, member in zip(self.raw_labels, self.members, strict=True):
            label = positions.get(raw, -1) if isinstance(raw, str) else raw
            if not 0 <= label < len(class_names):
                raise UserError(f"data.path: class {raw!r} of image {member} is not one of {len(class_names)} classes")
            self.labels.append(label)
        return self

    def __len__(self) -> int:
        return len(self.locations)

    def __getitem__(self, index: int) -> tuple[LazyImage, int]:
        number, offset, size = self.locations[index].tolist()
        with self.paths[number].open("rb") as file:
            file.seek(offset)
            return LazyImage(file.read(size), self.name(index)), self.labels[index]

    def name(self, index: int) -> str:
        return f"{self.paths[self.locations[index, 0]]}:{self.members[index]}"


def find_shards(root: Path, names: Sequence[str]) -> list[Path]:
    """The tar files of a split: `root/<name>*.tar` and `root/<name>/*.tar`, for the first name that has any."""
    for name in names:
        if found := sorted([*root.glob(f"{name}*.tar"), *root.glob(f"{name}/*.tar")]):
            return found
    return []


def tar_class_names(root: Path, reader: TarReader) -> list[str]:
    """The sorted folder names in the tar files; for numbers the lines of `root/classes.txt`, or else the numbers."""
    folders = {label for label in reader.raw_labels if isinstance(label, str)}
    if folders:
        return sorted(folders)
    class_list = root / "classes.txt"
    if class_list.is_file():
        return class_list.read_text(encoding="utf-8").splitlines()
    return [
        str(i) for i in range(max((label for label in reader.raw_labels if isinstance(label, int)), default=-1) + 1)
    ]


def _read_tar_headers(path: Path) -> tuple[dict[str, tuple[str, int, int]], dict[str, int]]:
    """Images (member name, byte offset, size in bytes) and class indices, both by key."""
    images: dict[str, tuple[str, int, int]] = {}
    classes: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            _index_tar(file, "", None, images, classes)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(f"data.path: cannot read shard {path}: {error}; expected an uncompressed tar file") from error
    return images, classes


def _index_tar(
    file: BinaryIO, root: str, end: int | None, images: dict[str, tuple[str, int, int]], classes: dict[str, int]
) -> None:
    """Add what a tar file holds that begins at the position of `file`; a tar file in it is a folder.

    Args:
        file: The file.
        root: Folder of the members: empty, or the name of an inner tar file with a slash.
        end: Byte after an inner tar file; None for the outer one.
        images: Member name, byte offset in `file` and size in bytes by key.
        classes: Class indices by key.
    """
    before = len(images)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if end is not None and member.offset_data + member.size > end:
                raise ValueError(f"{root[:-1]}.tar in it is cut off")
            name = root + member.name
            folder, _, base = name.rpartition("/")
            stem, dot, suffix = base.partition(".")
            key = f"{folder}/{stem}"
            if not member.isfile():
                continue
            if f"{dot}{suffix}".lower() in image_suffixes():
                images[key] = (name, member.offset_data, member.size)
            elif suffix == "cls":
                content = tar.extractfile(member)
                classes[key] = int(content.read(MAX_LABEL_BYTES + 1)) if content else -1
                if not 0 <= classes[key] < MAX_CLASSES:
                    raise ValueError(f"class {classes[key]} of {name} is not from 0 to {MAX_CLASSES - 1}")
            elif suffix == "tar" and end is None:
                file.seek(member.offset_data)
                _index_tar(file, f"{name[: -len('.tar')]}/", member.offset_data + member.size, images, classes)
    if end is not None and len(images) == before:  # tarfile takes damage behind the start of a file for its end
        raise ValueError(f"{root[:-1]}.tar in it has no images")
