"""ImageNet's class order."""

import pytest

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
