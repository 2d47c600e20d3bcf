"""Readers of class folders and tar shards."""

import tarfile

import numpy as np
import pytest
from PIL import Image

from swin_lightning.data.readers import (
    TarReader,
    list_class_folders,
    read_class_folders,
    tar_class_names,
)
from swin_lightning.errors import UserError
from tests.support.images import grey_png, write_image, write_shards, write_tar

# class folders


@pytest.fixture
def folder(tmp_path):
    """Two classes of three images; the grey value gives class and number."""
    for label, name in enumerate(("cat", "dog")):
        for i in range(3):
            write_image(tmp_path / "pets" / name / f"{i}.png", 100 * label + i)
    return tmp_path / "pets"


def test_class_folders_give_images_labels_and_names(folder):
    (folder / ".cache").mkdir()
    (folder / "cat" / "notes.txt").write_text("not an image", encoding="utf-8")
    write_image(folder / "cat" / "more" / "9.PNG", 9)
    assert list_class_folders(folder) == ["cat", "dog"]
    reader = read_class_folders(folder, ["cat", "dog"])
    assert [(np.asarray(image)[0, 0, 0], label) for image, label in (reader[i] for i in range(len(reader)))] == [
        *[(0, 0), (1, 0), (2, 0), (9, 0)],
        *[(100, 1), (101, 1), (102, 1)],
    ]
    assert np.asarray(reader[0][0]).shape == (6, 9, 3)
    assert reader.name(6) == str(folder / "dog" / "2.png")


def test_labels_follow_the_given_class_names(folder):
    assert read_class_folders(folder, ["dog", "emu", "cat"]).labels == [2, 2, 2, 0, 0, 0]


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"data\.path: no folder '.*/nowhere'; expected .*/nowhere/<class>/<image>"):
        list_class_folders(tmp_path / "nowhere")


def test_folder_without_class_folders_is_an_error(tmp_path):
    write_image(tmp_path / "flat" / "0.png")
    with pytest.raises(UserError, match=f"data.path: no class folders in '{tmp_path / 'flat'}'"):
        list_class_folders(tmp_path / "flat")


def test_empty_class_folder_is_an_error(folder):
    (folder / "emu").mkdir()
    with pytest.raises(UserError, match=f"data.path: no images in class folder '{folder / 'emu'}'"):
        read_class_folders(folder, ["cat", "dog", "emu"])


def test_unknown_class_folder_is_an_error(folder):
    with pytest.raises(UserError, match=f"class folder '{folder / 'dog'}' is not one of the 2 known classes"):
        read_class_folders(folder, ["cat", "emu"])


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"no image"])
def test_corrupt_image_is_an_error_with_its_path(folder, damage):
    path = folder / "dog" / "1.png"
    Image.effect_noise((50, 50), 50).convert("RGB").save(path)
    path.write_bytes(damage(path.read_bytes()))
    reader = read_class_folders(folder, ["cat", "dog"])
    with pytest.raises(UserError, match=f"cannot read image {path}"):
        np.asarray(reader[4][0])


# tar shards


@pytest.mark.parametrize("class_folders", [False, True])
def test_tar_shards_are_read_in_place(tmp_path, class_folders):
    root = write_shards(tmp_path / "set", class_folders=class_folders)
    reader = TarReader(sorted(root.glob("*.tar"))).assign_labels(["cat", "dog"])
    assert [(int(np.asarray(image)[3, 4, 0]), label) for image, label in (reader[i] for i in range(10))] == [
        (i, i % 2) for i in range(10)
    ]
    prefix = "dog/" if class_folders else ""
    assert reader.name(7) == f"{root}/train-000001.tar:{prefix}00007.png"


def test_tar_class_names_are_folders_or_lines_of_classes_txt_or_numbers(tmp_path):
    root = write_shards(tmp_path / "set", shards=1)
    reader = TarReader([root / "train-000000.tar"])
    assert tar_class_names(root, reader) == ["0", "1"]
    (root / "classes.txt").write_text("señal\ndog\n", encoding="utf-8")
    assert tar_class_names(root, reader) == ["señal", "dog"]
    folders = TarReader([write_shards(tmp_path / "folders", shards=1, class_folders=True) / "train-000000.tar"])
    assert tar_class_names(root, folders) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"no tar at all" * 100), "cannot read shard .*bad.tar: "),
        (lambda path: tarfile.open(path, "w:gz").close(), "expected an uncompressed tar file"),
        (lambda path: write_tar(path, {"0.png": grey_png(0)}), r"image 0.png in .*bad.tar has neither a .*cls"),
        (lambda path: write_tar(path, {"0.png": grey_png(0), "0.cls": b"cat"}), "cannot read shard .*invalid literal"),
    ],
)
def test_invalid_shard_is_an_error(tmp_path, write, message):
    write(tmp_path / "bad.tar")
    with pytest.raises(UserError, match=message):
        TarReader([tmp_path / "bad.tar"])


def test_label_outside_the_class_names_is_an_error(tmp_path):
    reader = TarReader([write_shards(tmp_path / "set", shards=1) / "train-000000.tar"])
    with pytest.raises(UserError, match=r"class 1 of image 00001.png is not one of 1 classes"):
        reader.assign_labels(["only"])
