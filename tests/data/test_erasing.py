"""Random erasing: boxes, noise, and independence of the batch."""

import numpy as np
import pytest
import torch

from swin_lightning.data.erasing import erase, gaussian, random_boxes, uniform


def erased(probability, n=64, side=32, seed=0, epoch=0, first=0):
    images = torch.full((n, 3, side, side), 9.0)  # far outside of the noise
    boxes = random_boxes(torch.arange(first, first + n), images.shape[-2:], probability, seed, epoch)
    out = erase(images, boxes)
    assert (images == 9).all()
    assert boxes.pixels == out.ne(9).sum() / 3
    return out, out != 9


def test_erasing_probability_0_erases_no_image_and_1_every_image():
    assert not erased(0.0)[1].any()
    assert erased(1.0)[1].flatten(1).any(1).all()


def test_erasing_probability_is_the_share_of_erased_images():
    assert erased(0.25, n=800, side=8)[1].flatten(1).any(1).float().mean().item() == pytest.approx(0.25, abs=0.06)


def test_erased_boxes_have_2_to_33_percent_of_the_area():
    _, changed = erased(1.0, n=200)
    shares, aspects = [], []
    for image in changed:
        rows, columns = image[0].any(1).nonzero(), image[0].any(0).nonzero()
        (y0, y1), (x0, x1) = ((int(edge.min()), int(edge.max()) + 1) for edge in (rows, columns))
        assert image[:, y0:y1, x0:x1].all()  # in all channels
        assert image.sum() == 3 * (y1 - y0) * (x1 - x0)
        shares.append((y1 - y0) * (x1 - x0) / 32**2)
        aspects.append((y1 - y0) / (x1 - x0))
    # side lengths are rounded to pixels
    assert 0.01 < min(shares) < 0.06
    assert 0.28 < max(shares) < 0.36
    assert 0.2 < min(aspects) < 0.4
    assert 2.5 < max(aspects) < 5
    assert len(set(shares)) > 50  # a separate box per image


def test_boxes_reach_every_part_of_an_image():
    counts = erased(1.0, n=400)[1][:, 0].float().mean(0)
    assert min(counts[0].mean(), counts[-1].mean(), counts[:, 0].mean(), counts[:, -1].mean()) > 0.01
    torch.testing.assert_close(counts, counts.flip(0), atol=0.12, rtol=0)
    torch.testing.assert_close(counts, counts.flip(1), atol=0.12, rtol=0)


def test_erased_pixels_are_gaussian_noise():
    out, changed = erased(1.0, n=200)
    noise = out[changed]
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    for threshold, share in ((1.0, 0.3173), (2.0, 0.0455), (3.0, 0.0027)):  # beyond it on either side
        assert (noise.abs() > threshold).float().mean().item() == pytest.approx(share, rel=0.25)


def test_noise_has_no_correlation_between_pixels_channels_or_images():
    counter, keys = torch.arange(3 * 64 * 64), torch.from_numpy(uniform(np.arange(50), 1, 0, 0)) * 2**32
    noise = gaussian(counter, keys.long()).view(50, 3, 64, 64)
    for other in (noise.roll(1, 3), noise.roll(1, 2), noise.roll(1, 1), noise.roll(1, 0), noise.roll(2, 3)):
        assert (noise * other).mean().abs() < 0.01  # 4 standard deviations are 0.005


def test_uniform_numbers_are_uniform_and_uncorrelated():
    draws = uniform(np.arange(20000), 6, seed=0, epoch=3)
    assert draws.shape == (20000, 6) and draws.min() >= 0 and draws.max() < 1
    np.testing.assert_allclose(np.histogram(draws, 10, (0, 1))[0] / draws.size, 0.1, atol=0.004)
    pairs = np.concatenate([draws[:-1], draws[1:]], axis=1)  # of neighbouring indices as well
    correlation = np.corrcoef(pairs.T) - np.eye(12)
    assert abs(correlation).max() < 0.03


def test_an_image_is_erased_the_same_way_in_any_batch():
    whole = erased(0.5, n=48)[0]
    parts = [erased(0.5, n=n, first=first)[0] for n, first in ((1, 0), (7, 1), (40, 8))]
    assert torch.equal(torch.cat(parts), whole)
    order = torch.randperm(48)
    images = torch.full((48, 3, 32, 32), 9.0)
    assert torch.equal(erase(images, random_boxes(order, (32, 32), 0.5, 0, 0)), whole[order])


def test_erasing_is_a_function_of_seed_epoch_and_index():
    assert torch.equal(erased(0.5)[0], erased(0.5)[0])
    for other in ({"seed": 1}, {"epoch": 1}, {"first": 64}):
        assert not torch.equal(erased(0.5)[0], erased(0.5, **other)[0])


def test_noise_does_not_depend_on_the_platform():
    expected = [0.06481853872537613, 0.0874892994761467, -0.4159111976623535]
    assert gaussian(torch.tensor([0, 1, 150527]), torch.tensor([12345])).tolist() == pytest.approx(expected, abs=1e-6)
    expected = [0.9932473793496326, 0.598340923847766, 0.6507559279910454, 0.36973277734881316]
    assert uniform(np.array([0, 1281166]), 2, 7, 299).ravel().tolist() == pytest.approx(expected, abs=1e-12)
