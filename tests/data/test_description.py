"""What was read, in words. Whole lines are tested in `test_split_datamodule.py`."""

from collections import Counter
from pathlib import Path

import numpy as np

from swin_lightning.data.description import describe_classes, describe_split
from swin_lightning.data.readers import FileReader

LABELS = np.repeat([0, 1, 2], [60, 30, 10])


def test_imbalance_in_words():
    names = ["cat", "dog", "emu"]
    assert describe_classes(np.array([0, 0, 1, 1, 2]), names) == ""
    assert describe_classes(LABELS, names) == "classes are imbalanced: from 10 images ('emu') to 60 ('cat')"
    assert describe_classes(np.array([0, -1, 2]), names) == "1 of 3 classes have no image, such as 'dog'"


def test_line_of_a_training_split():
    reader = FileReader([Path("x")] * 6, [0, 0, 0, 0, 0, 1], Counter({"broken links": 2, "with the ending .txt": 1}))
    assert describe_split("train", reader, ["cat", "dog"]) == (
        "train: 6 images in 2 classes; classes are imbalanced: from 1 images ('dog') to 5 ('cat'); "
        "left out: 2 broken links, 1 with the ending .txt"
    )
    assert describe_split("train", iter([]), []) == "train: a stream"
