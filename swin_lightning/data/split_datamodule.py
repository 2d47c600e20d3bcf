"""Data modules whose missing splits are drawn: validation and test images held out, k folds, groups."""

import csv
import os
from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from swin_lightning.batch import IGNORE_INDEX
from swin_lightning.data.image_datamodule import ImageDataModule
from swin_lightning.data.readers import Reader, SubsetReader, groups_of, labels_of
from swin_lightning.data.splits import folds as divide_into_folds
from swin_lightning.data.splits import hold_out
from swin_lightning.errors import UserError
from swin_lightning.ranges import NonNegativeInt, Range, Seed, check_arguments

HeldOut = Annotated[int, Range(ge=0)] | Annotated[float, Range(gt=0, lt=1)]  # number of images, or share
DEFAULT_SIZE = 0.15


class SplitDataModule(ImageDataModule):
    """Base of data modules that draw the splits which a data set does not have. Draws depend on `split_seed` alone.

    A subclass implements `found_splits` and `read`. `load` gives the splits after drawing.

    Args:
        val_size: Share (below 1) or number of the training images held out for validation, if there is no validation
            split; 0.15 by default, 0 for none.
        test_size: Share or number of the training images held out for testing, if there is no test split. By default as
            many as for validation if there is neither; a data set with a validation split is tested on that.
        split_seed: Seed of the draws.
        folds: Number of folds k for cross-validation; 0 disables it. Training and validation images are divided
            together. The fold `fold` is the test split; the validation split if the data set has a test split.
        fold: The fold of this run, from 0 to k - 1.
        group_file: CSV file with the columns `path` and `group`; images of one group, such as a patient, are never on
            both sides. Paths are those of the images, relative to the folder of the file or to `path`.
        **base: Arguments of `ImageDataModule`.

    Raises:
        UserError: If an option contradicts the splits of the data set, or the images are too few.
    """

    def __init__(
        self,
        val_size: HeldOut | None = None,
        test_size: HeldOut | None = None,
        split_seed: Seed = 0,
        folds: NonNegativeInt = 0,
        fold: NonNegativeInt = 0,
        group_file: str | None = None,
        **base: Any,
    ) -> None:
        check_arguments(SplitDataModule.__init__, locals(), "data.")
        super().__init__(**base)
        if folds == 1:
            raise UserError(f"data.folds {folds} must be at least 2, or 0 to disable folds")
        if not 0 <= fold < max(folds, 1):
            wanted = f"from 0 to {folds - 1}" if folds else "0 without data.folds, the number of folds"
            raise UserError(f"data.fold {fold} must be {wanted}")
        self.val_size, self.test_size, self.split_seed = val_size, test_size, split_seed
        self.folds, self.fold, self.group_file = folds, fold, group_file

    # for subclasses

    @abstractmethod
    def found_splits(self) -> set[str]:
        """Which of `train`, `val` and `test` the data set has."""

    @abstractmethod
    def read(self, split: str) -> Reader:
        """Read a split that the data set has."""

    def hold_out_val(
        self, labels: np.ndarray, size: float, groups: np.ndarray | None, of: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the training and of the validation images, see `splits.hold_out`."""
        return hold_out(labels, size, self.split_seed, groups, "data.val_size", of)

    # the splits

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and hasattr(self.sources["train"], "__len__"):  # not for a stream
            super().setup("test")  # a test split without labels is known before training

    def load(self, split: str) -> Reader:
        has_test = "test" in self.found_splits()
        if self.draws and not (split == "test" and has_test) and split in self._drawn:
            return self._drawn[split]
        if split == "test" and not has_test:
            return self.sources.get("val") or self.load("val")
        return self.read(split)

    @cached_property
    def draws(self) -> bool:
        """Whether splits are drawn."""
        found = self.found_splits()
        for name, size in (("val", self.val_size), ("test", self.test_size)):
            if size and name in found:
                words = {"val": "validation", "test": "test"}[name]
                raise UserError(f"data.{name}_size {size}: the data set has a {words} split; leave the option out")
        drawn = bool(self.folds or self.test_size or (self.val_size != 0 and "val" not in found))
        if self.group_file is not None and not drawn:
            raise UserError(f"data.group_file {self.group_file!r} has no effect: no split is drawn from the images")
        return drawn

    def split_files(self) -> Iterator[tuple[str, str, str]]:
        """Name, class and split of all labelled images, if splits are drawn."""
        for split in ("train", "val", "test") if self.draws else ():
            reader = self.load(split)
            for i, label in enumerate(labels_of(reader)):
                if label != IGNORE_INDEX:
                    yield reader.name(i), self.class_names[label], split

    @cached_property
    def _drawn(self) -> dict[str, Reader]:
        """The splits that are drawn, and the training images that remain."""
        found = self.found_splits()
        pool = [self.read(split) for split in ("train", "val") if split == "train" or (self.folds and split in found)]
        labels = np.concatenate([labels_of(reader) for reader in pool])
        groups = self._groups(pool)
        rest, parts, origins = np.arange(len(labels)), {}, {"train": ""}
        whole = ", groups kept together" if groups is not None else ""
        if self.folds:
            name = "val" if "test" in found else "test"
            parts[name] = divide_into_folds(labels, self.folds, self.split_seed, groups)[self.fold]
            origins[name] = f"fold {self.fold} of {self.folds}{whole}"
            rest = np.setdiff1d(rest, parts[name])
        val_size = DEFAULT_SIZE if self.val_size is None else self.val_size
        same_size = self.test_size is None and not ({"val", "test"} & found or self.folds)
        sizes = {"test": val_size if same_size else self.test_size, "val": val_size}
        for name, size in sizes.items():
            if name in parts or not size or (name in found and not (name == "val" and self.folds)):
                continue
            inner = None if groups is None else groups[rest]
            if name == "val":
                kept, held = self.hold_out_val(labels[rest], size, inner, len(labels))
            else:
                kept, held = hold_out(labels[rest], size, self.split_seed, inner, "data.test_size", len(labels))
            parts[name], rest = rest[held], rest[kept]
            origins[name] = f"held out with {name}_size {size}, split_seed {self.split_seed}{whole}"
        parts["train"] = rest
        return {name: SubsetReader(pool, positions, origins[name]) for name, positions in parts.items()}

    def _groups(self, pool: list[Reader]) -> np.ndarray | None:
        """Numbers of the groups of the images in a list of readers; None without groups."""
        if self.group_file is None:
            own = [groups_of(reader) for reader in pool]
            if any(groups is None for groups in own):
                return None
            names: Any = np.concatenate([groups for groups in own if groups is not None])
        else:
            by_path = read_groups(Path(self.group_file), Path(getattr(self, "path", ".")))
            paths = [reader.name(i) for reader in pool for i in range(len(reader))]
            names = [by_path.get(os.path.abspath(path)) for path in paths]
            missing = [path for path, name in zip(paths, names, strict=True) if name is None]
            if missing:
                raise UserError(
                    f"data.group_file: {self.group_file!r} has no group for {len(missing)} of {len(paths)} images, "
                    f"such as {missing[0]!r}"
                )
        return np.unique(names, return_inverse=True)[1]


def read_groups(path: Path, root: Path) -> dict[str, str]:
    """Group by absolute path of the image.

    Args:
        path: CSV file with the columns `path` and `group`.
        root: Folder of the images; relative paths are relative to it, or to the folder of the file.

    Raises:
        UserError: If the file cannot be read or lacks a column.
    """
    if not path.is_file():
        raise UserError(f"data.group_file: no file {str(path)!r}; expected a CSV file with the columns path and group")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if not {"path", "group"} <= set(rows.fieldnames or ()):
            raise UserError(f"data.group_file: {str(path)!r} needs the columns path and group, not {rows.fieldnames}")
        groups: dict[str, str] = {}
        for row in rows:
            for folder in (path.parent, root):
                groups[os.path.abspath(folder / row["path"])] = row["group"]
        return groups
