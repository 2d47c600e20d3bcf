"""What was read of a data set, in words: images, classes, imbalance, what was left out."""

from collections.abc import Sequence

import numpy as np

from swin_lightning.batch import IGNORE_INDEX
from swin_lightning.data.layouts import summarize_left_out
from swin_lightning.data.readers import Reader, labels_of, left_out_of

Array = np.ndarray


def describe_split(split: str, source: Reader, class_names: Sequence[str]) -> str:
    """One line on a split: images, classes, how it was drawn, imbalance, what was left out and why."""
    if not hasattr(source, "__len__"):
        return f"{split}: a stream"
    parts = [f"{split}: {len(source)} images"]
    if split != "predict" and hasattr(source, "labels"):
        labels = labels_of(source)
        labels = labels[labels != IGNORE_INDEX]
        if len(labels):
            parts[0] += f" in {len(np.unique(labels))} classes"
        else:
            parts[0] += " without labels: predictions will be written, and no accuracy computed"
        if origin := getattr(source, "origin", ""):
            parts[0] += f" ({origin})"
        if split == "train" and (imbalance := describe_classes(labels, class_names)):
            parts.append(imbalance)
    if left_out := summarize_left_out(left_out_of(source)):
        parts.append(f"left out: {left_out}")
    return "; ".join(parts)


def describe_classes(labels: Array, class_names: Sequence[str], imbalance: float = 3.0) -> str:
    """Say that classes have very different numbers of images, or none; an empty text otherwise.

    Args:
        labels: Class indices `N`.
        class_names: Names of the K classes.
        imbalance: Ratio of the largest to the smallest class from which on it is said.
    """
    counts = np.bincount(labels[labels >= 0], minlength=len(class_names))
    least, most = int(counts.argmin()), int(counts.argmax())
    if counts[least] and counts[most] < imbalance * counts[least]:
        return ""
    if not counts[least]:
        return f"{int((counts == 0).sum())} of {len(counts)} classes have no image, such as {class_names[least]!r}"
    return (
        f"classes are imbalanced: from {counts[least]} images ({class_names[least]!r}) to {counts[most]} "
        f"({class_names[most]!r})"
    )
