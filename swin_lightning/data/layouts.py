"""Find splits, class folders and image files below a folder, and say what is left out and why.

Hidden entries and leftovers of operating systems and tools are ignored everywhere. Links to folders are followed.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

from swin_lightning.data.decoding import image_formats
from swin_lightning.errors import UserError

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing"),
}
# macOS archives, Synology, NAS and Windows bins, file systems
LEFTOVERS = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information"}
LEFTOVER_FILES = {"thumbs.db", "desktop.ini", "icon\r"}
SHOWN_SUFFIXES = 3  # endings named in a line


@dataclass
class ImageList:
    """Image files and how many others were left out.

    Attributes:
        paths: The image files.
        left_out: Reason -> number of files or folders.
    """

    paths: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


@cache
def image_suffixes() -> frozenset[str]:
    """The endings, in lower case, of the formats that are read."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in image_formats())


def split_names(*splits: str) -> tuple[str, ...]:
    """The names that splits may have on disk or on the Hub, in order of preference."""
    return tuple(name for split in splits for name in SPLIT_NAMES[split])


def is_ignored(name: str) -> bool:
    """Whether an entry of a folder is hidden or a leftover of a system or tool."""
    return name.startswith(".") or name.lower() in LEFTOVERS | LEFTOVER_FILES


def subfolders(root: Path) -> list[Path]:
    """The visible folders in a folder, sorted by name."""
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not is_ignored(entry.name))


def find_images(root: Path, deep: bool = True) -> ImageList:
    """The image files in a folder, sorted by path.

    Args:
        root: The folder.
        deep: Search the folders in it as well; links are followed, except in circles.
    """
    found = ImageList()
    for path in _walk(root, deep, found.left_out, ()):
        suffix = path.suffix.lower()
        if suffix in image_suffixes():
            found.paths.append(path)
        else:
            found.left_out[f"with the ending {suffix}" if suffix else "without an ending"] += 1
    found.paths.sort()
    return found


def find_split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits `train`, `val` and `test`, in any usual spelling; empty for class folders alone.

    A folder `train` in which images lie directly, beside other folders, is a class like these. Without a folder
    `train`, the others are splits if there are no further folders.

    Raises:
        UserError: If a split has two folders.
    """
    folders = subfolders(root) if root.is_dir() else []
    names = {name: split for split, names in SPLIT_NAMES.items() for name in names}
    found: dict[str, Path] = {}
    for folder in folders:
        split = names.get(folder.name.lower())
        if split in found:
            raise UserError(
                f"data.path: {found[split].name!r} and {folder.name!r} in {root} are both {split}; keep one"
            )
        if split is not None:
            found[split] = folder
    others = len(folders) > len(found)
    is_class = others and ("train" not in found or not subfolders(found["train"]))
    return {} if is_class else found


def has_images(root: Path) -> bool:
    """Whether there is an image file below a folder."""
    return any(path.suffix.lower() in image_suffixes() for path in _walk(root, True, Counter(), ()))


def find_root(root: Path) -> Path:
    """The folder that holds splits or class folders: `root`, or the only folder in it, as in an unpacked archive."""
    while root.is_dir() and not find_split_folders(root):
        folders = subfolders(root)
        if len(folders) != 1 or not any(map(has_images, subfolders(folders[0]))):
            break
        root = folders[0]
    return root


def list_class_folders(root: Path) -> list[str]:
    """The names of the class folders in a folder, sorted.

    Raises:
        UserError: If the folder does not exist or contains no folder.
    """
    if not root.is_dir():
        raise UserError(f"data.path: no folder {str(root)!r}; expected {root}/<class>/<image>")
    names = [folder.name for folder in subfolders(root)]
    if not names:
        raise UserError(
            f"data.path: no class folders in {str(root)!r}; expected {root}/<class>/<image>, or a table of paths and "
            "labels as data.path (.csv, .parquet)"
        )
    return names


def summarize_left_out(left_out: Counter[str]) -> str:
    """Numbers and reasons in words, the most frequent first; empty if nothing was left out."""
    endings = [(reason, n) for reason, n in left_out.most_common() if reason.startswith("with")]
    parts = [f"{n} {reason}" for reason, n in left_out.most_common() if not reason.startswith("with")]
    shown = [f"{n} {reason}" for reason, n in endings[:SHOWN_SUFFIXES]]
    if rest := sum(n for _, n in endings[SHOWN_SUFFIXES:]):
        shown.append(f"{rest} with other endings")
    return ", ".join(parts + shown)


def left_out_note(left_out: Counter[str]) -> str:
    """Addition to an error message about missing images."""
    return f" (left out: {summary})" if (summary := summarize_left_out(left_out)) else ""


# helpers


def _walk(folder: Path, deep: bool, left_out: Counter[str], parents: Sequence[tuple[int, int]]) -> Iterator[Path]:
    """The visible files below a folder; `parents` are device and inode of the folders above."""
    state = folder.stat()
    parents = (*parents, (state.st_dev, state.st_ino))
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_ignored(entry.name):
                left_out["hidden or system files"] += 1
            elif entry.is_dir():
                inner = entry.stat()
                if (inner.st_dev, inner.st_ino) in parents:
                    left_out["links in a circle"] += 1
                elif deep:
                    yield from _walk(Path(entry.path), deep, left_out, parents)
            elif entry.is_file():
                yield Path(entry.path)
            else:
                left_out["broken links" if entry.is_symlink() else "special files"] += 1
