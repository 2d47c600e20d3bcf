"""Labels of the ImageNet-1K validation images; see test_imagenet.py for the whole data set."""

import pytest

from swin_lightning.data.imagenet_devkit import validation_labels
from swin_lightning.errors import UserError
from tests.data.test_imagenet import WORDNET_IDS, devkit_archive

CLASSES = sorted(WORDNET_IDS)


def test_label_follows_the_number_in_the_name(tmp_path):
    devkit_archive(tmp_path)
    names = ["val/ILSVRC2012_val_00000003.JPEG", "ILSVRC2012_val_00000002.JPEG"]
    assert validation_labels(tmp_path, names, CLASSES) == [CLASSES.index("n01443537"), CLASSES.index("n15075141")]


@pytest.mark.parametrize("name", ["ILSVRC2012_val_00000005.JPEG", "ILSVRC2012_val_00000000.JPEG", "cat.JPEG"])
def test_image_without_ground_truth_is_an_error(name, tmp_path):
    devkit_archive(tmp_path)
    with pytest.raises(UserError, match=rf"'{name}' is none of the 4 validation images"):
        validation_labels(tmp_path, [name], CLASSES)


def test_number_without_a_class_is_an_error(tmp_path):
    devkit_archive(tmp_path)
    with pytest.raises(UserError, match=r"cannot read ILSVRC2012_validation_ground_truth.txt and meta.mat"):
        validation_labels(tmp_path, [], CLASSES[:2])
