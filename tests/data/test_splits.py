"""Held-out images and folds: stratified, with whole groups, functions of the seed."""

import numpy as np
import pytest

from swin_lightning.data.splits import folds, hold_out, number_held_out
from swin_lightning.errors import UserError

LABELS = np.repeat([0, 1, 2], [60, 30, 10])
GROUPS = np.arange(100) % 20  # every group has images of all parts


def test_held_out_images_are_stratified_and_a_function_of_the_seed():
    kept, held = hold_out(LABELS, 0.2, seed=3)
    assert np.array_equal(np.union1d(kept, held), np.arange(100)) and len(held) == 20
    assert np.bincount(LABELS[held]).tolist() == [12, 6, 2]
    assert np.array_equal(hold_out(LABELS, 0.2, seed=3)[1], held)
    assert not np.array_equal(hold_out(LABELS, 0.2, seed=4)[1], held)
    assert np.bincount(LABELS[hold_out(LABELS, 10, seed=0)[1]]).tolist() == [6, 3, 1]


def test_a_share_means_at_least_one_image_per_class_and_a_number_itself():
    assert number_held_out(0.01, 100, 6, "x") == 6
    assert number_held_out(12, 100, 6, "x") == 12
    for size in (0.0, 1.0, 1.5, -0.1):
        with pytest.raises(UserError, match=f"x {size} must be a share between 0 and 1, or a whole number of images"):
            number_held_out(size, 100, 6, "x")
    for size in (0, 5, 95, 0.99):
        with pytest.raises(UserError, match=f"x {size}: .* of 100 images cannot be held out"):
            number_held_out(size, 100, 6, "x")


def test_the_only_image_of_a_class_is_kept():
    labels = np.array([0] * 8 + [1] + [2] * 8)
    for seed in range(5):
        assert 8 in hold_out(labels, 0.25, seed)[0]
    with pytest.raises(UserError, match="no class has two images or more"):
        hold_out(np.arange(4), 0.25, 0)


def test_groups_are_held_out_as_a_whole():
    kept, held = hold_out(LABELS, 0.2, 0, GROUPS)
    assert not set(GROUPS[kept]) & set(GROUPS[held])
    assert len(held) == 20
    with pytest.raises(UserError, match="all images are of one group"):
        hold_out(LABELS, 0.2, 0, np.zeros(100))


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_folds_are_equal_parts_with_the_shares_of_the_classes(groups):
    parts = folds(LABELS, 5, 0, groups)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(100))
    assert [len(part) for part in parts] == [20] * 5
    assert all(np.array_equal(part, again) for part, again in zip(parts, folds(LABELS, 5, 0, groups), strict=True))
    if groups is None:
        assert [np.bincount(LABELS[part]).tolist() for part in parts] == [[12, 6, 2]] * 5
    else:
        assert sum(len(set(groups[part])) for part in parts) == 20


def test_too_many_folds_are_an_error():
    with pytest.raises(UserError, match=r"data\.folds 9: no class has more than 8 images; use at most 8 folds"):
        folds(np.array([0] * 8 + [1] * 3), 9, 0)
    with pytest.raises(UserError, match=r"data\.folds 30: there are only 20 groups"):
        folds(LABELS, 30, 0, GROUPS)
