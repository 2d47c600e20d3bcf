"""Splits that a data set does not have: held out, folds, groups; layouts on disk that need them."""

import logging

import pytest

from swin_lightning.data import CIFAR10, Digits, ImageFolder
from swin_lightning.errors import UserError
from tests.support.images import write_image

PARTS = ("train", "val", "test")


def write(root, *folders, count=10):
    """Class folders with `count` images."""
    for folder in folders:
        for i in range(count):
            write_image(root / folder / f"{i}.png", i)
    return root


def files(data, split):
    reader = data.load(split)
    return {reader.name(i) for i in range(len(reader))}


def sizes(data):
    return [len(data.load(split)) for split in PARTS]


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["cat", "dog"], [14, 3, 3]),
        (["train/cat", "train/dog"], [14, 3, 3]),
        (["train/cat", "train/dog", "test/cat", "test/dog"], [17, 3, 20]),
        (["train/cat", "train/dog", "Val/cat"], [20, 10, 10]),
        (["train/cat", "train/dog", "val/cat", "test/dog"], [20, 10, 10]),
    ],
)
def test_missing_splits_are_held_out(tmp_path, folders, expected):
    data = ImageFolder(str(write(tmp_path, *folders)))
    assert (data.class_names, sizes(data)) == (["cat", "dog"], expected)
    train, val, test = (files(data, split) for split in PARTS)
    assert not train & val and not train & test
    assert (val == test) == (folders[-1] == "Val/cat")  # tested on the validation split


def test_sizes_and_seed_of_the_draws(tmp_path):
    path = str(write(tmp_path, "cat", "dog"))
    data = ImageFolder(path, val_size=0.2, test_size=4, seed=5)
    assert sizes(data) == [12, 4, 4]
    assert sorted(data.load("test").labels) == [0, 0, 1, 1]
    assert files(data, "val") == files(ImageFolder(path, val_size=0.2, test_size=4), "val")
    assert files(data, "val") != files(ImageFolder(path, val_size=0.2, test_size=4, split_seed=1), "val")


def test_a_size_for_a_split_of_the_data_set_is_an_error(tmp_path):
    path = str(write(tmp_path, "train/cat", "train/dog", "val/cat", "val/dog", "test/dog"))
    with pytest.raises(UserError, match=r"data\.val_size 0\.1: the data set has a validation split; leave the option"):
        ImageFolder(path, val_size=0.1).load("train")
    with pytest.raises(UserError, match=r"data\.test_size 9: the data set has a test split"):
        ImageFolder(path, test_size=9).load("train")
    with pytest.raises(UserError, match=r"data\.group_file 'x\.csv' has no effect"):
        ImageFolder(path, group_file="x.csv").load("train")


def test_folds_are_the_test_split_or_else_the_validation_split(tmp_path):
    flat = str(write(tmp_path / "flat", "cat", "dog"))
    tests = [files(ImageFolder(flat, folds=5, fold=fold), "test") for fold in range(5)]
    assert [len(test) for test in tests] == [4] * 5 and len(set.union(*tests)) == 20
    data = ImageFolder(flat, folds=5, fold=2)
    assert sizes(data) == [13, 3, 4] and len(set.union(*(files(data, split) for split in PARTS))) == 20
    whole = str(write(tmp_path / "whole", "train/cat", "train/dog", "val/cat", "val/dog", "test/cat"))
    data = [ImageFolder(whole, folds=4, fold=fold) for fold in range(4)]
    assert [sizes(module) for module in data] == [[30, 10, 10]] * 4
    assert len(set.union(*(files(module, "val") for module in data))) == 40  # training and validation together


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "data.folds 1 must be at least 2, or 0 to disable folds"),
        ({"folds": 5, "fold": 5}, "data.fold 5 must be from 0 to 4"),
        ({"fold": 1}, "data.fold 1 must be 0 without data.folds"),
    ],
)
def test_a_fold_that_does_not_exist_is_an_error(options, message):
    with pytest.raises(UserError, match=message):
        Digits(**options)


def test_groups_of_a_file_stay_together(tmp_path):
    root = write(tmp_path / "set", "cat", "dog", count=12)
    rows = [f"{name}/{i}.png,patient {i % 6}" for name in ("cat", "dog") for i in range(12)]
    table = tmp_path / "groups.csv"
    table.write_text("\n".join(["path,group", *rows]), encoding="utf-8")
    data = ImageFolder(str(root), group_file=str(table), test_size=0.3, val_size=0.3)
    patients = [{int(name.split("/")[-1].removesuffix(".png")) % 6 for name in files(data, split)} for split in PARTS]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 6
    table.write_text("\n".join(["path,group", *rows[:-3]]), encoding="utf-8")
    with pytest.raises(UserError, match=r"has no group for 3 of 24 images, such as .*dog/10\.png"):
        ImageFolder(str(root), group_file=str(table)).load("train")
    table.write_text("path,patient\n", encoding="utf-8")
    with pytest.raises(UserError, match="needs the columns path and group, not"):
        ImageFolder(str(root), group_file=str(table)).load("train")


def test_digits_have_fixed_splits_and_folds_of_all_images():
    digits = Digits()
    assert sizes(digits) == [1257, 180, 360] and not digits.draws
    folds = [Digits(folds=5, fold=fold, val_size=180) for fold in range(5)]
    assert [len(data.load("test")) for data in folds] == [360, 360, 359, 359, 359]
    assert len(folds[0].load("val")) == 180


def test_test_folder_without_classes_has_no_labels(tmp_path, caplog):
    write(tmp_path, "train/cat", "train/dog")
    write(tmp_path, "test", count=5)
    data = ImageFolder(str(tmp_path), image_size=8, batch_size=4)
    assert data.load("test").labels == [-1] * 5
    assert sizes(data) == [17, 3, 5]
    write_image(tmp_path / "train" / "cat" / ".hidden.png")
    with caplog.at_level(logging.INFO):
        data = ImageFolder(str(tmp_path), image_size=8, batch_size=4)
        data.setup("fit")
    assert [record.getMessage() for record in caplog.records] == [
        "train: 17 images in 2 classes; left out: 1 hidden or system files",
        "val: 3 images in 2 classes (held out with val_size 0.15, split_seed 0); left out: 1 hidden or system files",
        "test: 5 images without labels: predictions will be written, and no accuracy computed",
    ]


def test_split_files_are_those_of_drawn_splits(tmp_path):
    root = write(tmp_path, "cat", "dog")
    rows = list(ImageFolder(str(root)).split_files())
    assert len(rows) == 20
    assert {split: sum(row[2] == split for row in rows) for split in PARTS} == {"train": 14, "val": 3, "test": 3}
    assert {(row[0].split("/")[-2], row[1]) for row in rows} == {("cat", "cat"), ("dog", "dog")}
    assert list(Digits().split_files()) == []


@pytest.mark.parametrize("folders", [["cat"], ["train/cat", "val/cat"]])
def test_one_class_is_an_error(tmp_path, folders):
    with pytest.raises(UserError, match=r"has one class only, .'cat'.; at least two are needed"):
        ImageFolder(str(write(tmp_path, *folders))).num_classes  # noqa: B018


def test_folder_without_images_is_an_error_that_says_what_is_there(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "scan.dcm").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"no images in folder .* \(left out: 1 with the ending .dcm\); expected"):
        ImageFolder(str(tmp_path)).prepare_data()


def test_cifar_keeps_the_draw_of_recorded_results():
    assert CIFAR10().val_size == 5000 and CIFAR10().found_splits() == {"train", "test"}
    assert CIFAR10(val_size=0).found_splits() == {"train", "val", "test"}


def test_class_weights_are_inverse_to_the_number_of_images(tmp_path):
    write(tmp_path, "train/cat", "val/cat", "val/dog")
    write(tmp_path, "train/dog", count=30)
    path = str(tmp_path)
    assert ImageFolder(path).class_weights is None
    assert ImageFolder(path, class_weights="balanced").class_weights == [2.0, pytest.approx(2 / 3)]
    data = ImageFolder(path, image_size=8, batch_size=10, num_workers=0, sampler="balanced")
    data.setup("fit")
    targets = [int(target) for batch in data.train_dataloader() for target in batch["target"]]
    assert [targets.count(label) for label in (0, 1)] == [20, 20]
