"""`ImageFolder`: class folders, tar shards and Hugging Face data sets."""

import datasets
import numpy as np
import pytest

from swin_lightning.data import ImageFolder
from swin_lightning.errors import UserError
from tests.support.images import write_image, write_parquet, write_shards

OPTIONS = {"image_size": 8, "batch_size": 4, "num_workers": 0}


def contents(reader):
    """Grey value and label of every image."""
    return [(int(np.asarray(image)[0, 0, 0]), label) for image, label in (reader[i] for i in range(len(reader)))]


@pytest.fixture
def folder(tmp_path):
    """Two classes; the grey value gives class and number."""
    for split, count in (("train", 3), ("val", 1)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                write_image(tmp_path / "pets" / split / name / f"{i}.png", 100 * label + i)
    return tmp_path / "pets"


# class folders


@pytest.mark.parametrize(("given", "accumulate", "expected"), [(32, 1, 6), (32, 4, 4), (6, 1, 6), (4, 1, 4)])
def test_batch_larger_than_the_training_set_is_lowered(folder, given, accumulate, expected, caplog, make_trainer):
    data = ImageFolder(str(folder), **OPTIONS | {"batch_size": given})
    data.trainer = make_trainer(accumulate_grad_batches=accumulate)
    data.setup("fit")
    assert (data.batch_size, len(data.train_dataloader())) == (expected, accumulate * (6 // expected))
    said = f"data.batch_size {given} is larger than the training set of 6 images and lowered to {expected};"
    assert (said in caplog.text) == (given != expected)


def test_class_folders(folder):
    data = ImageFolder(str(folder), **OPTIONS)
    data.prepare_data()
    assert (data.class_names, data.num_classes) == (["cat", "dog"], 2)
    data.setup("fit")
    assert contents(data.sources["train"]) == [(0, 0), (1, 0), (2, 0), (100, 1), (101, 1), (102, 1)]
    assert contents(data.sources["val"]) == [(0, 0), (100, 1)]
    assert data.sample_name("train", 5) == str(folder / "train" / "dog" / "2.png")


def test_testing_uses_the_test_split_if_there_is_one(folder):
    assert contents(ImageFolder(str(folder)).load("test")) == [(0, 0), (100, 1)]
    for i in range(4):
        write_image(folder / "test" / "dog" / f"{i}.png", i)
    assert contents(ImageFolder(str(folder)).load("test")) == [(i, 1) for i in range(4)]


def test_missing_path_is_an_error():
    with pytest.raises(UserError, match=r"data\.path: no folder 'missing/pets/of/all'"):
        ImageFolder("missing/pets/of/all").prepare_data()


def test_missing_training_folder_is_an_error(folder):
    (folder / "train").rename(folder.parent / "elsewhere")
    data = ImageFolder(str(folder))
    assert contents(data.load("val")) == contents(data.load("test")) == [(0, 0), (100, 1)]
    with pytest.raises(UserError, match=f"data.path: no folder '{folder / 'train'}'; expected .*/<class>"):
        data.load("train")


def test_class_that_is_not_in_the_training_split_is_an_error(folder):
    write_image(folder / "val" / "emu" / "0.png")
    with pytest.raises(UserError, match=f"class folder '{folder / 'val' / 'emu'}' is not one of the 2 known classes"):
        ImageFolder(str(folder)).load("val")


# tar shards


@pytest.mark.parametrize("class_folders", [False, True])
def test_tar_shards(tmp_path, class_folders):
    root = write_shards(tmp_path / "set", class_folders=class_folders)
    write_shards(root, "val", shards=1, images_per_shard=3, class_folders=class_folders)
    if not class_folders:
        (root / "classes.txt").write_text("cat\ndog\n", encoding="utf-8")
    data = ImageFolder(str(root), **OPTIONS)
    data.prepare_data()
    assert data.class_names == ["cat", "dog"]
    data.setup("fit")
    assert contents(data.sources["train"]) == [(i, i % 2) for i in range(10)]
    assert contents(data.sources["val"]) == contents(data.load("test")) == [(0, 0), (1, 1), (2, 0)]
    assert [len(batch["image"]) for batch in data.train_dataloader()] == [4, 4]


def test_tar_labels_without_names_are_named_by_their_numbers(tmp_path):
    assert ImageFolder(str(write_shards(tmp_path / "set"))).class_names == ["0", "1"]


def test_class_names_of_a_subclass_order_the_folders_in_tar_shards(tmp_path):
    class DogsFirst(ImageFolder):
        class_names = ["dog", "cat"]

    root = write_shards(tmp_path / "set", shards=1, class_folders=True)
    assert DogsFirst(str(root), val_size=0).load("train").labels == [1, 0, 1, 0, 1]


# Hugging Face data sets


def test_parquet_files(tmp_path, hf_cache):
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    shards = [("train", 0, [5, 6, 7], [1, 0, 1]), ("validation", 0, [9], [0])]
    path = str(write_parquet(tmp_path / "hub", features, shards))
    data = ImageFolder(path)
    data.prepare_data()
    assert data.class_names == ["cat", "dog"]
    assert contents(data.load("train")) == [(5, 1), (6, 0), (7, 1)]
    assert data.load("train").name(1) == f"{path}[1]"
    assert contents(data.load("val")) == contents(data.load("test")) == [(9, 0)]


def test_integer_labels_are_class_indices_of_a_subclass_with_names(tmp_path, hf_cache):
    class Named(ImageFolder):
        class_names = ["cat", "dog"]

    features = {"image": datasets.Image(), "label": datasets.Value("int64")}
    path = str(write_parquet(tmp_path / "hub", features, [("train", 0, [5, 6], [1, 0])]))
    assert Named(path, streaming=True).num_classes == Named(path).num_classes == 2
    assert contents(Named(path, val_size=0).load("train")) == [(5, 1), (6, 0)]


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("int64", [1, 0], "is plain integers without class names; make it a ClassLabel"),
        ("string", ["cat", "dog"], "is text, whose classes are unknown before the whole stream is read"),
    ],
)
def test_labels_of_a_stream_need_names(tmp_path, hf_cache, kind, values, message):
    features = {"image": datasets.Image(), "label": datasets.Value(kind)}
    path = str(write_parquet(tmp_path / "hub", features, [("train", 0, [5, 6], values)]))
    with pytest.raises(UserError, match=rf"data\.streaming: column 'label' of '{path}' {message}"):
        ImageFolder(path, streaming=True).num_classes  # noqa: B018


def test_relative_folder_with_the_name_of_a_builder_is_streamed(tmp_path, hf_cache, monkeypatch):
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    write_parquet(tmp_path / "parquet", features, [("train", 0, [5, 6], [1, 0])])
    monkeypatch.chdir(tmp_path)
    assert ImageFolder("parquet", streaming=True).class_names == ["cat", "dog"]


# prediction


def test_predict_path_is_a_folder_or_an_image(folder):
    for path, count in ((folder, 8), (folder / "val", 2), (folder / "val" / "cat" / "0.png", 1)):
        data = ImageFolder(str(folder), predict_path=str(path), **OPTIONS | {"batch_size": 8})
        data.setup("predict")
        (batch,) = data.predict_dataloader()
        assert batch["target"].tolist() == [-1] * count
    assert data.sample_name("predict", 0) == str(folder / "val" / "cat" / "0.png")


def test_predict_path_without_images_is_an_error(folder):
    for path in (None, str(folder / "nothing")):
        with pytest.raises(UserError, match=r"data\.predict_path: no image or folder .*"):
            ImageFolder(str(folder), predict_path=path).setup("predict")
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=r"data\.predict_path: no images in folder"):
        ImageFolder(str(folder), predict_path=str(folder / "empty")).setup("predict")
