"""Splits, class folders and image files on disk: spellings, links, what is left out."""

from collections import Counter

import pytest

from swin_lightning.data.layouts import (
    find_images,
    find_root,
    find_split_folders,
    image_suffixes,
    left_out_note,
    list_class_folders,
    summarize_left_out,
)
from swin_lightning.errors import UserError
from tests.support.images import write_image


def names(folders):
    return {split: folder.name for split, folder in folders.items()}


def make(root, *paths):
    for path in paths:
        write_image(root / path)
    return root


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["Train/a/1.png", "Val/a/1.png", "TEST/a/1.png"], {"train": "Train", "val": "Val", "test": "TEST"}),
        (["training/a/1.png", "Validation/a/1.png"], {"train": "training", "val": "Validation"}),
        (["train/a/1.png", "valid/a/1.png", "testing/2.png"], {"train": "train", "val": "valid", "test": "testing"}),
        (["train/a/1.png", "notes/1.png"], {"train": "train"}),
        (["val/a/1.png"], {"val": "val"}),
        (["cat/1.png", "dog/1.png"], {}),
        (["train/1.png", "bus/1.png", "test/1.png"], {}),  # vehicles
        (["test/1.png", "exam/1.png"], {}),
    ],
)
def test_split_folders(tmp_path, paths, expected):
    assert names(find_split_folders(make(tmp_path, *paths))) == expected


def test_two_folders_of_a_split_are_an_error(tmp_path):
    make(tmp_path, "train/a/1.png", "val/a/1.png", "validation/a/1.png")
    with pytest.raises(UserError, match=r"data\.path: 'val' and 'validation' in .* are both val; keep one"):
        find_split_folders(tmp_path)


def test_root_is_the_only_folder_of_an_unpacked_archive(tmp_path):
    make(tmp_path, "flowers-v2/photos/rose/1.png", "flowers-v2/photos/lily/1.png", "__MACOSX/flowers-v2/._x.png")
    assert find_root(tmp_path) == tmp_path / "flowers-v2" / "photos"
    assert find_root(tmp_path / "flowers-v2" / "photos") == tmp_path / "flowers-v2" / "photos"
    assert find_root(make(tmp_path / "one", "rose/1.png")) == tmp_path / "one"


def test_leftovers_are_no_class_folders(tmp_path):
    folders = ("@eaDir", "__MACOSX", ".ipynb_checkpoints", "#recycle", "lost+found", "$RECYCLE.BIN")
    make(tmp_path, "cat/1.png", *(f"{name}/1.png" for name in folders))
    assert list_class_folders(tmp_path) == ["cat"]


def test_images_are_listed_and_the_rest_is_counted(tmp_path):
    make(tmp_path, "b.png", "sub/deep/a.PNG", "._b.png", ".ipynb_checkpoints/b.png", "@eaDir/b.png", "sub/Thumbs.db")
    for name in ("c.txt", "d.heic", "README", "e.txt", "f.xyz", "g.abc"):
        (tmp_path / name).write_text("", encoding="utf-8")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    found = find_images(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in found.paths] == ["b.png", "sub/deep/a.PNG"]
    summary = summarize_left_out(found.left_out)
    assert summary.startswith("4 hidden or system files, 1 broken links, 2 with the ending .txt, 1 ")
    assert summary.endswith(", 2 with other endings")
    assert [path.name for path in find_images(tmp_path, deep=False).paths] == ["b.png"]


def test_an_empty_count_has_no_note():
    assert left_out_note(Counter()) == summarize_left_out(Counter()) == ""
    assert left_out_note(Counter({"broken links": 2})) == " (left out: 2 broken links)"


def test_linked_folders_are_read_and_circles_left_out(tmp_path):
    make(tmp_path, "set/cat/1.png", "elsewhere/2.png", "elsewhere/sub/3.png")
    (tmp_path / "set" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "dog").symlink_to(tmp_path / "elsewhere" / "sub")
    (tmp_path / "elsewhere" / "sub" / "up").symlink_to(tmp_path / "elsewhere")
    found = find_images(tmp_path / "set" / "cat")
    assert [path.name for path in found.paths] == ["1.png", "2.png", "3.png"]
    assert found.left_out == {"links in a circle": 1}
    assert list_class_folders(tmp_path / "set") == ["cat", "dog"]


def test_every_decodable_ending_counts_and_no_other():
    assert {".jpg", ".jfif", ".jpe", ".pgm", ".jp2", ".tga", ".webp", ".tiff", ".gif"} <= image_suffixes()
    assert not {".eps", ".ps", ".h5", ".mpg", ".wmf", ".pdf", ".txt"} & image_suffixes()
