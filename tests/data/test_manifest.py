"""Tables of images: columns, splits, groups, labels of any type."""

from pathlib import Path

import pandas as pd
import pytest

from swin_lightning.data import ImageFolder
from swin_lightning.data.manifest import read_manifest
from swin_lightning.errors import UserError
from tests.support.images import write_image

ROWS = {
    "path": ["a/0.png", "a/1.png", "b/2.png", "b/3.png", "b/4.png"],
    "label": ["dog", "cat", "NA", "cat", ""],
    "split": ["train", "Training", "train", "valid", "test"],
    "group": ["x", "x", "y", "y", "z"],
}


@pytest.fixture
def write(tmp_path):
    """Write columns as a table, and the images that it names."""

    def write(columns, suffix=".csv"):
        frame = pd.DataFrame(columns)
        for i in range(5):
            write_image(tmp_path / ROWS["path"][i], i)
        path = tmp_path / f"table{suffix}"
        if suffix == ".parquet":
            frame.to_parquet(path)
        else:
            frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
        return str(path)

    return write


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_splits_and_labels_of_a_table(write, tmp_path, suffix):
    data = ImageFolder(write(ROWS, suffix))
    assert data.class_names == ["NA", "cat", "dog"]
    assert {split: data.load(split).labels for split in ("train", "val", "test")} == {
        "train": [2, 1, 0], "val": [1], "test": [-1],
    }  # fmt: skip
    assert data.load("train").name(1) == str(tmp_path / "a" / "1.png")
    assert data.load("train").groups == ["x", "x", "y"] and not data.draws


def test_splits_are_drawn_with_the_groups_of_the_table(write):
    columns = {key: ROWS[key] for key in ("path", "group")} | {"label": ["a", "b", "a", "b", "a"]}
    data = ImageFolder(write(columns), val_size=2, test_size=1)
    splits = {name.split("/")[-1]: split for name, _, split in data.split_files()}
    assert splits["0.png"] == splits["1.png"] and splits["2.png"] == splits["3.png"] and len(splits) == 5
    assert len(set(splits.values())) == 3


def test_columns_are_found_by_name_or_given(write):
    path = write({"File": ROWS["path"], "Class": [1, 10, 2, 1, 2], "other": list("uvuvu")}, ".parquet")
    assert read_manifest(Path(path)).class_names == ["1", "2", "10"]
    assert ImageFolder(path, label_column="other").class_names == ["u", "v"]
    with pytest.raises(UserError, match=r"data\.label_column: no column 'kind' in .*, only .'File', 'Class', 'other'."):
        ImageFolder(path, label_column="kind").class_names  # noqa: B018
    with pytest.raises(
        UserError, match=r"column 'Class' of .* does not hold paths; for images inside parquet files give"
    ):
        ImageFolder(path, image_column="Class", label_column="other").class_names  # noqa: B018


def test_whole_numbers_with_missing_values_are_no_floats(write):
    path = write({"path": ROWS["path"], "label": [1, 2, 1, 2, None], "split": ROWS["split"]}, ".parquet")
    assert ImageFolder(path).class_names == ["1", "2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": ["train", "train", "train", "val", "final"]}, "unknown split 'final' in .*; expected train, val or"),
        ({"label": ["dog", "", "NA", "cat", ""]}, "training images without a label in .*; label or remove their rows"),
        ({"label": ["dog", "cat", "NA", "emu", ""]}, "label 'emu' of the val split .* is not one of the 3 classes"),
        (
            {"path": ["a/0.png", "a/1.png", "b/2.png", "gone.png", "b/4.png"]},
            "1 of 1 files in .* do not exist, such as ",
        ),
    ],
)
def test_invalid_rows_are_an_error(write, change, message):
    with pytest.raises(UserError, match=rf"data\.path: {message}"):
        ImageFolder(write(ROWS | change)).load("val")


def test_unreadable_table_is_an_error(tmp_path):
    for name, content in {"x.parquet": "text", "y.csv": "", "z.csv": "path,label\n"}.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=r"cannot read the table|has no rows"):
            ImageFolder(str(tmp_path / name)).class_names  # noqa: B018
