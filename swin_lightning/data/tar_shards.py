"""Images in tar files as webdataset writes them, read in place: random access without unpacking."""

import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from swin_lightning.data.decoding import Encoded
from swin_lightning.data.readers import IMAGE_SUFFIXES
from swin_lightning.errors import UserError


class TarImages:
    """Images of uncompressed tar files and their labels.

    A label is the number in `KEY.cls` beside `KEY.jpg`, or else the name of the image's folder inside the tar.
    The headers of all files are read once, one after another; a million images take about half a minute.

    Args:
        paths: The tar files.

    Raises:
        ValueError: For a file that is no plain tar, or an image without a label.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self._names: list[str] = []
        self.keys: list[int | str] = []  # labels as the files say them
        places: list[tuple[int, int, int]] = []
        for number, path in enumerate(self.paths):
            images, classes = _read_headers(path)
            for key, (name, start, size) in images.items():
                label = classes.get(key, PurePosixPath(name).parent.name)
                if label == "":
                    raise UserError(f"{path}: {name} has neither a {key}.cls beside it nor a class folder")
                self._names.append(name)
                self.keys.append(label)
                places.append((number, start, size))
        self.places = np.array(places, np.int64).reshape(-1, 3)  # file, first byte, bytes
        self.labels: list[int] = []

    def name_classes(self, class_names: Sequence[str]) -> "TarImages":
        """Turn the labels into places among the class names; a number is one already.

        Raises:
            ValueError: If one is not among them.
        """
        place = {name: i for i, name in enumerate(class_names)}
        for key, name in zip(self.keys, self._names, strict=True):
            label = place.get(key, -1) if isinstance(key, str) else key
            if not 0 <= label < len(class_names):
                raise UserError(f"the class {key!r} of {name} is not among the {len(class_names)} classes")
            self.labels.append(label)
        return self

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Encoded, int]:
        number, start, size = self.places[index].tolist()
        with self.paths[number].open("rb") as file:
            file.seek(start)
            return Encoded(file.read(size), self.name(index)), self.labels[index]

    def name(self, index: int) -> str:
        return f"{self.paths[self.places[index, 0]]}:{self._names[index]}"


def find_shards(root: Path, names: Sequence[str]) -> list[Path]:
    """The tar files of a split: `root/<name>*.tar` or `root/<name>/*.tar`, of the first name that has any."""
    for name in names:
        if found := sorted([*root.glob(f"{name}*.tar"), *root.glob(f"{name}/*.tar")]):
            return found
    return []


def class_list(root: Path, images: TarImages) -> list[str]:
    """Class names: the folders inside the tars, sorted; for numbers the lines of `root/classes.txt`, or the numbers."""
    texts = {key for key in images.keys if isinstance(key, str)}
    if texts:
        return sorted(texts)
    listed = root / "classes.txt"
    if listed.is_file():
        return listed.read_text().splitlines()
    return [str(i) for i in range(max((key for key in images.keys if isinstance(key, int)), default=-1) + 1)]


def _read_headers(path: Path) -> tuple[dict[str, tuple[str, int, int]], dict[str, int]]:
    """Images by key (name, first byte, bytes), and class numbers by key."""
    images: dict[str, tuple[str, int, int]] = {}
    classes: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                stem, dot, suffix = base.partition(".")
                key = f"{folder}/{stem}"
                if not member.isfile():
                    continue
                if f"{dot}{suffix}".lower() in IMAGE_SUFFIXES:
                    images[key] = (member.name, member.offset_data, member.size)
                elif suffix == "cls":
                    content = tar.extractfile(member)
                    classes[key] = int(content.read()) if content else -1
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(f"cannot read the shard {path}: {error}; it must be an uncompressed tar") from error
    return images, classes
