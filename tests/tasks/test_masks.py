"""Masks: their number, their distribution, and what they depend on."""

import pytest
import torch

from swin_lightning.tasks.masks import block_masks


def masks(indices, seed=0, epoch=0, rows=6, columns=6, ratio=0.6):
    return block_masks(torch.as_tensor(indices), seed, epoch, rows, columns, ratio)


@pytest.mark.parametrize(("rows", "columns", "ratio", "count"), [(6, 6, 0.6, 22), (4, 2, 0.5, 4), (3, 5, 0.01, 1)])
def test_number_of_masked_blocks_is_rounded_up_as_in_the_official_code(rows, columns, ratio, count):
    drawn = masks(range(50), rows=rows, columns=columns, ratio=ratio)
    assert drawn.shape == (50, rows, columns) and drawn.dtype == torch.bool
    assert drawn.sum(dim=(1, 2)).unique().tolist() == [count]


def test_mask_is_a_function_of_seed_epoch_and_index_alone():
    all_at_once = masks(range(100), seed=3, epoch=7)
    assert torch.equal(masks([42, 7, 99], seed=3, epoch=7), all_at_once[[42, 7, 99]])
    for other in (masks(range(100), seed=4, epoch=7), masks(range(100), seed=3, epoch=8), all_at_once.roll(1, 0)):
        same = (other == all_at_once).float().mean()
        assert same == pytest.approx((22 / 36) ** 2 + (14 / 36) ** 2, abs=0.03)  # as for independent masks


def test_every_block_is_masked_equally_often_and_independently():
    drawn = masks(range(20_000), seed=2**40 + 1).flatten(1).double()
    assert drawn.mean(dim=0).tolist() == pytest.approx([22 / 36] * 36, abs=4 * 0.49 / 20_000**0.5)
    correlation = torch.corrcoef(drawn.T) - torch.eye(36)
    # 22 of 36 without replacement
    assert correlation[~torch.eye(36, dtype=torch.bool)].tolist() == pytest.approx([-1 / 35] * 36 * 35, abs=0.04)
    following = (drawn[1:] * drawn[:-1]).mean(dim=0)  # masks of neighbouring indices
    assert following.tolist() == pytest.approx([(22 / 36) ** 2] * 36, abs=0.02)


def test_masks_are_the_same_on_every_machine():
    drawn = masks([0, 123456], rows=3, columns=4, seed=1, epoch=2).flatten(1).int().tolist()
    assert ["".join(map(str, row)) for row in drawn] == ["101111100110", "110110011110"]
