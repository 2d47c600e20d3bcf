"""Hold out validation and test images, and divide images into folds: stratified by class, or with whole groups.

The draws are those of scikit-learn, functions of the labels, the groups and a seed.
"""

import warnings

import numpy as np

from swin_lightning.errors import UserError

Array = np.ndarray


def number_held_out(size: float, images: int, classes: int, option: str, of: int | None = None) -> int:
    """The number of images that a share in (0, 1) or a number means; a share is at least one image per class.

    Args:
        size: Share (float) or number (int).
        images: Images to choose from.
        classes: Their number of classes.
        option: Name of the option in error messages.
        of: Images of which `size` is a share; `images` by default.

    Raises:
        UserError: If there are not enough images, or the number is smaller than that of the classes.
    """
    if isinstance(size, float) and not 0 < size < 1:
        raise UserError(f"{option} {size} must be a share between 0 and 1, or a whole number of images")
    number = size if isinstance(size, int) else max(round(size * (of or images)), classes)
    if not classes <= number <= images - classes:
        raise UserError(
            f"{option} {size}: {number} of {images} images cannot be held out; both parts need at least one image for "
            f"each of the {classes} classes"
        )
    return int(number)


def hold_out(
    labels: Array,
    size: float,
    seed: int,
    groups: Array | None = None,
    option: str = "data.val_size",
    of: int | None = None,
) -> tuple[Array, Array]:
    """Divide images into two parts.

    Args:
        labels: Class indices `N`.
        size: Share (float) or number (int) of the images in the second part. With groups it is met as closely as whole
            groups allow.
        seed: Seed of the draw.
        groups: Group of each image, `N`; images of a group stay together.
        option: Name of the option in error messages.
        of: Images of which `size` is a share; all by default.

    Returns:
        Sorted positions of the images that are kept and of those held out. The only image of a class is kept.

    Raises:
        UserError: If the images, classes or groups are too few.
    """
    from sklearn.model_selection import train_test_split

    if groups is not None:
        number = number_held_out(size, len(labels), 1, option, of)
        held = folds(labels, max(2, round(len(labels) / number)), seed, groups, option)[0]
        return np.setdiff1d(np.arange(len(labels)), held), held
    counts = np.bincount(labels)
    drawn = np.flatnonzero(counts[labels] > 1)
    classes = len(np.unique(labels[drawn]))
    if not classes:
        raise UserError(f"{option} {size}: no class has two images or more; there is nothing to hold out")
    number = number_held_out(size, len(drawn), classes, option, of)
    _, held = train_test_split(drawn, test_size=number, random_state=seed, stratify=labels[drawn])
    held = np.sort(held)
    return np.setdiff1d(np.arange(len(labels)), held), held


def folds(labels: Array, count: int, seed: int, groups: Array | None = None, option: str = "data.folds") -> list[Array]:
    """Divide images into folds of equal size, as far as possible with the same shares of the classes.

    Args:
        labels: Class indices `N`.
        count: Number of folds, at least 2.
        seed: Seed of the draw.
        groups: Group of each image, `N`; images of a group are in the same fold.
        option: Name of the option in error messages.

    Returns:
        Sorted positions of the images of each fold.

    Raises:
        UserError: If no class has as many images as there are folds, or there are fewer groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    largest = int(np.bincount(labels).max())
    if groups is None and largest < count:
        raise UserError(f"{option} {count}: no class has more than {largest} images; use at most {largest} folds")
    if groups is not None:
        found = len(np.unique(groups))
        if found < 2:
            raise UserError(f"{option}: all images are of one group; at least two groups are needed")
        if option == "data.folds" and found < count:
            raise UserError(f"{option} {count}: there are only {found} groups; use at most {found} folds")
        count = min(count, found)
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    else:
        splitter = StratifiedKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer images than folds is in some folds only
        return [held for _, held in splitter.split(np.zeros(len(labels)), labels, groups)]
