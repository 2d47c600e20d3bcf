"""ImageNet's class order, and the files of the challenge."""

import gzip
import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from swin_lightning.data import ImageNet
from swin_lightning.errors import UserError
from tests.support.images import grey_png, write_image, write_shards, write_tar


def test_classes_are_in_the_order_of_the_challenge(tmp_path):
    write_image(tmp_path / "train" / "n15075141" / "0.png")
    data = ImageNet(str(tmp_path), val_size=0)
    assert (data.num_classes, len(set(data.folder_names))) == (1000, 1000)
    assert data.folder_names == sorted(data.folder_names)
    assert (data.folder_names[0], data.class_names[0]) == ("n01440764", "tench")
    assert data.folder_names[999] == "n15075141"
    assert list(data.load("train").labels) == [999]


def test_folder_outside_the_challenge_is_an_error(tmp_path):
    write_image(tmp_path / "train" / "n02084071" / "0.png")  # a dog, but not a class of the challenge
    with pytest.raises(UserError, match="n02084071' is not one of the 1000 known classes"):
        ImageNet(str(tmp_path), val_size=0).load("train")


def test_tar_shards_have_class_indices_or_wordnet_ids(tmp_path):
    root = write_shards(tmp_path / "set", shards=1, images_per_shard=2)
    assert ImageNet(str(root), val_size=0).load("train").labels == [0, 1]
    write_tar(root / "train-000001.tar", {"n15075141/x.png": grey_png(3)})
    assert ImageNet(str(root), val_size=0).load("train").labels == [0, 1, 999]


WORDNET_IDS = ("n15075141", "n01440764", "n01443537")  # in the challenge's own order, unlike that of the indices
TRAINING = {"n01440764": (10, 11), "n15075141": (20,)}  # grey values
VALIDATION = (30, 40, 50, 60)
TRUTH = (2, 1, 3, 2)


def tar_bytes(files):
    """Content of a tar file."""
    with tempfile.TemporaryDirectory() as folder:
        return write_tar(Path(folder) / "x.tar", files).read_bytes()


def training_tar(root):
    """A tar file of a tar file per class, as the challenge has it."""
    classes = {w: tar_bytes({f"{w}_{v}.JPEG": grey_png(v) for v in values}) for w, values in TRAINING.items()}
    write_tar(root / "ILSVRC2012_img_train.tar", {f"{wordnet_id}.tar": files for wordnet_id, files in classes.items()})


def training_folders(root):
    for wordnet_id, values in TRAINING.items():
        for value in values:
            write_image(root / "train" / wordnet_id / f"{wordnet_id}_{value}.JPEG", value)


def validation_tar(root):
    files = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": grey_png(v) for i, v in enumerate(VALIDATION)}
    write_tar(root / "ILSVRC2012_img_val.tar", dict(reversed(files.items())))


def validation_folder(root):
    for i, value in enumerate(VALIDATION):
        write_image(root / "val" / f"ILSVRC2012_val_{i + 1:08d}.JPEG", value)


def devkit_files():
    dtype = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    rows = [(i + 1, wordnet_id, "a word", 0) for i, wordnet_id in enumerate(WORDNET_IDS)]
    file = io.BytesIO()
    savemat(file, {"synsets": np.array([*rows, (1001, "n00001740", "an entity", 2)], dtype)[:, None]})
    return {"meta.mat": file.getvalue(), "ILSVRC2012_validation_ground_truth.txt": "\n".join(map(str, TRUTH)).encode()}


def devkit_archive(root):
    files = {f"ILSVRC2012_devkit_t12/data/{name}": content for name, content in devkit_files().items()}
    plain = write_tar(root / "devkit", files)
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()


def devkit_folder(root):
    folder = root / "ILSVRC2012_devkit_t12" / "data"
    folder.mkdir(parents=True)
    for name, content in devkit_files().items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("training", [training_tar, training_folders])
@pytest.mark.parametrize("validation", [validation_tar, validation_folder])
@pytest.mark.parametrize("devkit", [devkit_archive, devkit_folder])
def test_files_of_the_challenge_are_read_in_place(training, validation, devkit, tmp_path):
    for write in (training, validation, devkit):
        write(tmp_path)
    data = ImageNet(str(tmp_path))
    data.prepare_data()
    data.setup("fit")
    train, val = data.sources["train"], data.sources["val"]
    assert [(int(np.asarray(image)[0, 0, 0]), label) for image, label in train] == [(10, 0), (11, 0), (20, 999)]
    pixels = {val.name(i)[-13:]: (int(np.asarray(val[i][0])[0, 0, 0]), val[i][1]) for i in range(len(val))}
    assert pixels == {"00000001.JPEG": (30, 0), "00000002.JPEG": (40, 999), "00000003.JPEG": (50, 1),
                      "00000004.JPEG": (60, 0)}  # fmt: skip
    assert data.sources["test"] is val
    assert "n01440764/n01440764_10.JPEG" in train.name(0)


def test_damaged_or_missing_files_of_the_challenge_are_errors(tmp_path):
    training_tar(tmp_path)
    validation_tar(tmp_path)
    with pytest.raises(UserError, match=r"data\.streaming: the files of the challenge are read in place"):
        ImageNet(str(tmp_path), streaming=True)
    with pytest.raises(UserError, match=r"put ILSVRC2012_devkit_t12.tar.gz of image-net.org, or .* beside them"):
        ImageNet(str(tmp_path)).load("val")
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(gzip.compress(b"x" * 2000)[:-9])
    with pytest.raises(UserError, match=r"cannot read .*devkit_t12.tar.gz.*; download it again"):
        ImageNet(str(tmp_path)).load("val")
    devkit_folder(tmp_path)
    meta = tmp_path / "ILSVRC2012_devkit_t12" / "data" / "meta.mat"
    meta.write_bytes(meta.read_bytes()[:200])
    with pytest.raises(UserError, match=r"cannot read ILSVRC2012_validation_ground_truth.txt and meta.mat"):
        ImageNet(str(tmp_path)).load("val")
    write_tar(tmp_path / "ILSVRC2012_img_train.tar", {"n01440764.tar": b"x" * 2000})
    with pytest.raises(UserError, match=r"img_train.tar: n01440764.tar in it has no images"):
        ImageNet(str(tmp_path)).load("train")
