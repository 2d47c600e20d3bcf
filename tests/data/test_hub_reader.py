"""Columns, classes and images of Hugging Face data sets."""

import datasets
import numpy as np
import pytest

from swin_lightning.data import ImageFolder
from swin_lightning.data.hub_reader import Columns, HuggingFaceReader, find_columns, find_split
from swin_lightning.errors import UserError
from tests.support.images import grey_png, write_image, write_parquet

IMAGE, TEXT = datasets.Image(), datasets.Value("string")
INTEGER, CLASSES = datasets.Value("int32"), datasets.ClassLabel(names=["cat", "dog"])


@pytest.mark.parametrize(
    ("features", "image", "label", "names"),
    [
        ({"image": IMAGE, "label": CLASSES}, "image", "label", ["cat", "dog"]),
        ({"label": INTEGER, "img": IMAGE}, "img", "label", None),
        ({"img": IMAGE, "coarse_label": CLASSES, "fine_label": CLASSES}, "img", "fine_label", ["cat", "dog"]),
        ({"jpg": IMAGE, "cls": INTEGER, "__key__": TEXT}, "jpg", "cls", None),
        ({"image": IMAGE, "species": CLASSES, "caption": TEXT}, "image", "species", ["cat", "dog"]),
    ],
)
def test_image_and_label_columns_are_found(features, image, label, names):
    columns = find_columns(features, "x")
    assert (columns.image, columns.label, columns.class_names) == (image, label, names)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"label": CLASSES}, r"path: no image column in 'owner/name', only \['label'\]"),
        ({}, "path: no image column in 'owner/name'"),
        ({"image": IMAGE, "y": INTEGER}, r"label_column: no column 'label' in 'owner/name', only \['image', 'y'\]"),
        (
            {"image": IMAGE, "a": CLASSES, "b": CLASSES},
            "label_column: 'owner/name' has several columns with classes, .'a', 'b'.; set one",
        ),
        (
            {"image": IMAGE, "label": datasets.List(INTEGER)},
            r"label_column: column 'label' .* is of type List\(.*; expected",
        ),
    ],
)
def test_unusable_columns_are_an_error(features, message):
    with pytest.raises(UserError, match=rf"data\.{message}"):
        find_columns(features, "owner/name")


def test_first_of_several_split_names_is_used():
    assert find_split({"valid": 1, "validation": 2}, ["val", "validation", "valid"], "x") == "validation"
    with pytest.raises(UserError, match=r"data\.path: no split 'val' in 'owner/name', only \['train'\]"):
        find_split({"train": 1}, ["val", "validation"], "owner/name")


def test_hugging_face_reader_reads_bytes_and_paths(tmp_path):
    write_image(tmp_path / "7.png", 7)
    rows = {"img": [{"bytes": grey_png(5), "path": None}, {"bytes": None, "path": str(tmp_path / "7.png")}]}
    features = datasets.Features({"img": IMAGE, "label": CLASSES})
    reader = HuggingFaceReader(datasets.Dataset.from_dict(rows | {"label": [1, 0]}, features=features), "owner/name")
    assert [(np.asarray(image)[0, 0].tolist(), label) for image, label in (reader[0], reader[1])] == [
        ([5, 5, 5], 1),
        ([7, 7, 7], 0),
    ]
    assert (len(reader), reader.name(1)) == (2, "owner/name[1]")


def test_columns_may_be_given():
    features = {"a": IMAGE, "b": IMAGE, "coarse": CLASSES, "fine": INTEGER, "name": TEXT}
    assert find_columns(features, "x", "b", "coarse") == Columns("b", "coarse", ["cat", "dog"])
    assert find_columns(features, "x", None, "name") == Columns("a", "name", None, text=True)
    assert find_columns({"a": IMAGE}, "x", labelled=False) == Columns("a", None)
    with pytest.raises(UserError, match=r"data\.image_column 'name' is no image column of 'x'; it has \['a', 'b'\]"):
        find_columns(features, "x", "name")
    with pytest.raises(UserError, match=r"data\.label_column: no column 'y' in 'x', only"):
        find_columns(features, "x", None, "y")


@pytest.mark.parametrize(
    ("kind", "labels", "names", "expected"),
    [
        (TEXT, ["dog", "cat", "dog", "emu"], ["cat", "dog", "emu"], [1, 0, 1, 2]),
        (INTEGER, [10, 3, 10, 7], ["3", "7", "10"], [2, 0, 2, 1]),
    ],
)
def test_text_and_integer_labels(tmp_path, hf_cache, kind, labels, names, expected):
    shards = [("train", 0, [1, 2, 3, 4], labels), ("validation", 0, [5], labels[:1])]
    path = write_parquet(tmp_path / "hub", {"image": IMAGE, "species": kind}, shards)
    data = ImageFolder(str(path), label_column="species")
    assert (data.class_names, data.num_classes) == (names, 3)
    reader = data.load("train")
    assert [label for _, label in (reader[i] for i in range(4))] == reader.labels.tolist() == expected
    assert data.load("val").labels.tolist() == expected[:1]


def test_test_split_without_labels(tmp_path, hf_cache):
    features = {"image": IMAGE, "label": CLASSES}
    shards = [("train", 0, [1, 2] * 4, [0, 1] * 4), ("test", 0, [3, 4], [-1, -1])]
    data = ImageFolder(str(write_parquet(tmp_path / "hub", features, shards)), batch_size=2)
    assert data.load("test").labels.tolist() == [-1, -1] and not data.has_test_labels()


def test_label_of_another_split_that_is_no_class_is_an_error(tmp_path, hf_cache):
    shards = [("train", 0, [1, 2], ["a", "b"]), ("validation", 0, [5], ["c"])]
    data = ImageFolder(str(write_parquet(tmp_path / "hub", {"image": IMAGE, "label": TEXT}, shards)))
    with pytest.raises(UserError, match=r"label 'c' of .* is not one of the 2 classes of the training split"):
        data.load("val")
