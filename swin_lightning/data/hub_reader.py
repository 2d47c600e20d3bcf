"""Hugging Face data sets: their image column, label column and classes, and a reader of a split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swin_lightning.batch import IGNORE_INDEX
from swin_lightning.data.decoding import LazyImage
from swin_lightning.errors import UserError

LABEL_NAMES = ("label", "fine_label", "cls", "labels")  # in order of preference


@dataclass(frozen=True)
class Columns:
    """The columns of a Hugging Face data set that are used.

    Attributes:
        image: Name of the image column.
        label: Name of the label column; None for images without labels.
        class_names: Class names of a ClassLabel column; None for plain integers and text.
        text: Whether the labels are text.
    """

    image: str
    label: str | None
    class_names: list[str] | None = None
    text: bool = False


def find_columns(
    features: Any, path: str, image: str | None = None, label: str | None = None, labelled: bool = True
) -> Columns:
    """Find the image column and the label column.

    The label column is the given one, else named `label`, `fine_label` (CIFAR-100), `cls` (tar files) or `labels`, or
    the only ClassLabel column.

    Args:
        features: The `datasets.Features` of the data set.
        path: The data set in error messages.
        image: Name of the image column.
        label: Name of the label column.
        labelled: Whether a label column is required.

    Raises:
        UserError: If there is no such column, or if the labels are neither integers nor text.
    """
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    images = [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
    if image is not None and image not in images:
        raise UserError(
            f"data.image_column {image!r} is no image column of {path!r}; it has {images or list(features)}"
        )
    if not images:
        raise UserError(f"data.path: no image column in {path!r}, only {list(features)}")
    image = image or images[0]
    class_labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    found = [name for name in LABEL_NAMES if name in features] or class_labels
    if label is None and len(found) > 1 and found is class_labels:
        raise UserError(f"data.label_column: {path!r} has several columns with classes, {found}; set one of them")
    if label is not None:
        found = [label] if label in features else []
    if not found:
        if not labelled:
            return Columns(image, None)
        raise UserError(
            f"data.label_column: no column {label or LABEL_NAMES[0]!r} in {path!r}, only {list(features)}; set one of "
            "them"
        )
    feature = features[found[0]]
    dtype = str(getattr(feature, "dtype", feature))
    text = dtype in ("string", "large_string")
    if not text and not dtype.startswith(("int", "uint", "bool")):
        raise UserError(
            f"data.label_column: column {found[0]!r} of {path!r} is of type {dtype}; expected text, integers or a "
            "ClassLabel"
        )
    names = getattr(feature, "names", None)
    return Columns(image, found[0], list(names) if names else None, text)


def find_split(splits: Any, names: Sequence[str], path: str) -> str:
    """The first of several names that a data set has as a split.

    Raises:
        UserError: If it has none of them.
    """
    for name in names:
        if name in splits:
            return name
    raise UserError(f"data.path: no split {names[0]!r} in {path!r}, only {list(splits)}")


class HuggingFaceReader:
    """A split (`datasets.Dataset`) of the Hugging Face data set `path`.

    Args:
        split: The split.
        path: The data set in names and error messages.
        columns: Its columns; found by name by default.
        classes: Values of the label column in the order of the classes; None if these are the class indices themselves.

    Raises:
        UserError: If there is no image column or no label column, or a label is not one of the classes.
    """

    def __init__(
        self, split: Any, path: str, columns: Columns | None = None, classes: Sequence[str | int] | None = None
    ) -> None:
        from datasets import Image as ImageFeature

        self.path, self.columns = path, columns or find_columns(split.features, path)
        self.split = split.cast_column(self.columns.image, ImageFeature(decode=False))
        values = label_values(split, self.columns)
        if classes is not None and self.columns.label is not None:
            positions = {value: i for i, value in enumerate(classes)}
            values = [IGNORE_INDEX if value in (None, "") else positions.get(value, -2) for value in values]
            if -2 in values:
                unknown = label_values(split, self.columns)[values.index(-2)]
                raise UserError(
                    f"data.path: label {unknown!r} of {path!r} is not one of the {len(classes)} classes of the "
                    "training split"
                )
        self.labels = np.array([IGNORE_INDEX if value is None else value for value in values], np.int64)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[LazyImage, int]:
        image = self.split[index][self.columns.image]
        return LazyImage(image["bytes"] or Path(image["path"]), self.name(index)), int(self.labels[index])

    def name(self, index: int) -> str:
        return f"{self.path}[{index}]"


def label_values(split: Any, columns: Columns) -> list[Any]:
    """The label column of a split, without its images; `IGNORE_INDEX` for all if there is none."""
    if columns.label is None:
        return [IGNORE_INDEX] * len(split)
    values: list[Any] = split.select_columns([columns.label]).with_format("arrow")[:].column(0).to_pylist()
    return values


def label_classes(split: Any, columns: Columns) -> list[str | int]:
    """The values of the labels of a split in order, without those of unlabelled images."""
    return sorted({value for value in label_values(split, columns) if value not in (None, "", IGNORE_INDEX)})
