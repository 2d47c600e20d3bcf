"""What a data module yields and a task takes. Data and tasks import this file, never each other."""

from typing import TypedDict

from torch import Tensor

IGNORE_INDEX = -1  # target of a sample without a label, and of padding samples: it counts in no loss and no metric


class Batch(TypedDict):
    """A batch of classified images, as `ImageDataModule` yields it.

    Attributes:
        image: Normalised images, `B, 3, H, W` float.
        target: Class indices, `B`, or class probabilities, `B, K` (mixup, CutMix).
        index: Indices in the data set, `B`; -1 for images that could not be read and for padding samples.
    """

    image: Tensor
    target: Tensor
    index: Tensor
