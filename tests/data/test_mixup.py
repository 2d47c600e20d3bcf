"""Mixup and CutMix."""

import numpy as np
import pytest
import torch

from swin_lightning.data.mixup import MixupCutmix

TARGETS = torch.tensor([0, 1, 2, 3])


def constant_images(size=(8, 10)):
    """Image b has the value b, so that a pixel shows which image it is from."""
    return torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, *size).clone()


def mix(seed, images=None, **mixing):
    images = constant_images() if images is None else images
    return MixupCutmix(**mixing)(images, TARGETS, 5, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(5))
def test_mixup_averages_images_and_labels_with_the_same_weight(seed):
    images = torch.randn(4, 3, 8, 10)
    mixed, targets = mix(seed, images, mixup=0.8)
    ratio = targets[0, 0].item()
    assert 0 < ratio < 1
    torch.testing.assert_close(mixed, images * ratio + images[[3, 2, 1, 0]] * (1 - ratio))
    expected = torch.zeros(4, 5)
    for b in range(4):
        expected[b, b] += ratio
        expected[b, 3 - b] += 1 - ratio
    torch.testing.assert_close(targets, expected)


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_pastes_one_box_and_weights_labels_by_its_area(seed):
    images = constant_images()
    mixed, targets = mix(seed, images, cutmix=1.0)
    pasted = mixed != images  # every image differs from its partner
    rows, columns = pasted[0, 0].any(1).nonzero(), pasted[0, 0].any(0).nonzero()
    box = torch.zeros(8, 10, dtype=torch.bool)
    if len(rows):
        box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    assert (pasted == box).all()  # the same rectangle in all images and channels
    assert torch.equal(mixed, torch.where(box, images.flip(0), images))
    share = box.float().mean().item()
    expected = torch.zeros(4, 5)
    for b in range(4):
        expected[b, b] += 1 - share
        expected[b, 3 - b] += share
    torch.testing.assert_close(targets, expected)


def test_cutmix_does_not_modify_its_input():
    images = constant_images()
    mix(0, images, cutmix=1.0)
    assert torch.equal(images, constant_images())


def test_mixup_ratio_has_a_beta_distribution():
    for alpha in (0.2, 1.0):
        ratios = np.array([mix(seed, mixup=alpha)[1][0, 0].item() for seed in range(400)])
        assert ratios.mean() == pytest.approx(0.5, abs=0.1)
        # variance of Beta(a, a): 1 / (4 (2a + 1))
        assert ratios.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.2)


def is_cut(seed, **mixing):
    mixed, _ = mix(seed, **mixing)
    return bool(((mixed == 0) | (mixed == 3))[0].all())


def test_mixed_targets_sum_to_one():
    for seed in range(10):
        targets = mix(seed, mixup=0.8, cutmix=1.0)[1]
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        assert (targets >= 0).all()


@pytest.mark.parametrize(("switch", "share"), [(0.0, 0.0), (0.25, 0.25), (1.0, 1.0)])
def test_switch_is_the_probability_of_cutmix(switch, share):
    cuts = [is_cut(seed, mixup=1.0, cutmix=1.0, switch=switch) for seed in range(300)]
    assert np.mean(cuts) == pytest.approx(share, abs=0.08 if 0 < share < 1 else 0)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_probability_is_the_probability_of_mixing(probability):
    results = [mix(seed, mixup=1.0, probability=probability) for seed in range(300)]
    mixed = [targets.ndim == 2 for _, targets in results]
    assert np.mean(mixed) == pytest.approx(probability, abs=0.08 if 0 < probability < 1 else 0)
    for (images, targets), changed in zip(results, mixed, strict=True):
        if not changed:  # targets are still class indices
            assert torch.equal(targets, TARGETS)
            assert torch.equal(images, constant_images())


def test_nothing_is_mixed_by_default():
    images, targets = mix(0)
    assert torch.equal(images, constant_images())
    assert targets is TARGETS


def test_mixing_is_a_function_of_the_generator():
    assert torch.equal(mix(3, mixup=0.8, cutmix=1.0)[0], mix(3, mixup=0.8, cutmix=1.0)[0])
    assert not torch.equal(mix(3, mixup=0.8)[0], mix(4, mixup=0.8)[0])
