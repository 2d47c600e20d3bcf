"""Images listed in a table: a CSV or parquet file with a row of path, label and perhaps split and group per image."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from swin_lightning.batch import IGNORE_INDEX
from swin_lightning.data.layouts import SPLIT_NAMES
from swin_lightning.data.readers import FileReader
from swin_lightning.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame

SUFFIXES = (".csv", ".tsv", ".parquet")
# names of the columns, in order of preference
PATH_NAMES = ("path", "image", "file", "filename", "file_name", "image_path", "filepath")
LABEL_NAMES = ("label", "class", "category", "target", "labels")


@dataclass(frozen=True)
class Manifest:
    """A table of images.

    Attributes:
        table: Text columns `path` (absolute or relative to the working directory), `label` (empty for none), `split`
            (`train`, `val`, `test`) and `group` (if there are groups).
        name: The file.
    """

    table: "DataFrame"
    name: str

    @property
    def splits(self) -> set[str]:
        return set(self.table["split"])

    @property
    def class_names(self) -> list[str]:
        """The labels of the training images in alphabetical order, or in that of their numbers if all are integers.

        Raises:
            UserError: If a training image has no label.
        """
        labels = self.table.loc[self.table["split"] == "train", "label"].unique().tolist()
        if "" in labels:
            raise UserError(f"data.path: training images without a label in {self.name!r}; label or remove their rows")
        return sorted(labels, key=int if all(label.isdecimal() for label in labels) else str)

    def read(self, split: str, class_names: list[str]) -> FileReader:
        """The images of a split.

        Raises:
            UserError: If a label is not one of the classes, or a file does not exist.
        """
        rows = self.table[self.table["split"] == split]
        positions = {"": IGNORE_INDEX, **{name: i for i, name in enumerate(class_names)}}
        unknown = sorted(set(rows["label"]) - set(positions))
        if unknown:
            raise UserError(
                f"data.path: label {unknown[0]!r} of the {split} split in {self.name!r} is not one of the "
                f"{len(class_names)} classes of the training split"
            )
        paths = [Path(path) for path in rows["path"]]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise UserError(
                f"data.path: {len(missing)} of {len(paths)} files in {self.name!r} do not exist, such as "
                f"{str(missing[0])!r}; paths are relative to the folder of the table"
            )
        groups = rows["group"].tolist() if "group" in rows else None
        return FileReader(paths, [positions[label] for label in rows["label"]], None, groups)


def read_manifest(
    path: Path, image_column: str | None = None, label_column: str | None = None, group_column: str | None = None
) -> Manifest:
    """Read a table.

    Args:
        path: `.csv`, `.tsv` or `.parquet` file.
        image_column: Column of the paths, which are relative to the folder of the table; found by its name by default.
        label_column: Column of the labels; found by its name by default.
        group_column: Column of the groups; `group` by default, if there is one. A column `split` is optional as well.

    Raises:
        UserError: If the file cannot be read, lacks a column, or names an unknown split.
    """
    import pandas as pd  # takes 0.2 s, and most data sets are no tables

    try:
        if path.suffix.lower() == ".parquet":
            rows: Any = pd.read_parquet(path)
        else:
            separator = "\t" if path.suffix.lower() == ".tsv" else ","
            rows = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: of the parsers of pandas and pyarrow
        raise UserError(f"data.path: cannot read the table {str(path)!r} ({str(error).splitlines()[0]})") from error
    if not len(rows):
        raise UserError(f"data.path: the table {str(path)!r} has no rows")
    image = _column(rows, image_column, PATH_NAMES, "image_column", path)
    label = _column(rows, label_column, LABEL_NAMES, "label_column", path)
    if not rows[image].map(lambda value: isinstance(value, str)).all():
        raise UserError(
            f"data.path: column {image!r} of {str(path)!r} does not hold paths; for images inside parquet files give "
            "the folder of the files as data.path"
        )
    table = pd.DataFrame({"path": [str(path.parent / name) for name in rows[image]], "label": _to_text(rows[label])})
    if group_column is not None or "group" in rows:
        table["group"] = _to_text(rows[_column(rows, group_column, ("group",), "group_column", path)])
    table["split"] = _splits(rows, path)
    return Manifest(table, str(path))


# helpers


def _column(rows: Any, given: str | None, names: tuple[str, ...], option: str, path: Path) -> str:
    """The given column, or the first with one of the names in any case."""
    found = {str(column).lower(): str(column) for column in reversed(list(rows))}
    if given is not None and given in list(rows):
        return given
    if given is None:
        for name in names:
            if name in found:
                return found[name]
    raise UserError(
        f"data.{option}: no column {given or names[0]!r} in {str(path)!r}, only {list(map(str, rows))}; set one of them"
    )


def _to_text(column: Any) -> Any:
    """Labels as text: whole numbers without a decimal point, missing values empty."""
    if column.dtype.kind == "f" and np.all(column.dropna() % 1 == 0):  # integers with missing values
        column = column.astype("Int64")
    return column.astype("string").fillna("").to_numpy(object)


def _splits(rows: Any, path: Path) -> list[str]:
    names = {name: split for split, names in SPLIT_NAMES.items() for name in names}
    if "split" not in rows:
        return ["train"] * len(rows)
    given = rows["split"].astype(str).str.lower()
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise UserError(f"data.path: unknown split {unknown[0]!r} in {str(path)!r}; expected train, val or test")
    return [names[split] for split in given]
