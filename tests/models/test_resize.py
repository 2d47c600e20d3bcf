"""Interpolation of relative position bias tables and absolute position embeddings."""

import pytest
import torch

from swin_lightning.models.resize import centre_bias_table, resize_bias_table, resize_position_embedding


@pytest.fixture
def gaussian():
    """Bias table of window 7 with a Gaussian of the offset, `169, 1`."""
    axis = torch.arange(-6.0, 7.0)
    return torch.exp(-(axis[:, None] ** 2 + axis**2) / 8).reshape(-1, 1)


@pytest.mark.parametrize(("mode", "neighbour"), [("bicubic", 0.97), ("geometric", 0.88)])
def test_bias_table(mode, neighbour, gaussian):
    """Offset 1 has exp(-1/8) = 0.88 originally: bicubic widens the Gaussian, geometric keeps small offsets."""
    resized = resize_bias_table(gaussian, 12, mode).view(23, 23)
    assert resized[11, 11].item() == pytest.approx(1, abs=0.005)
    assert resized[11, 12].item() == pytest.approx(neighbour, abs=0.005)
    assert torch.equal(resize_bias_table(gaussian, 7, mode), gaussian)


def test_geometric_interpolation_of_cubic_polynomials_is_exact():
    """A not-a-knot spline reproduces them; for a smaller window nothing is stretched and the centre is cropped."""
    axis = torch.arange(-6.0, 7.0)
    table = (axis[:, None] ** 3 / 100 + axis**2).reshape(-1, 1)
    expected = table.view(13, 13)[2:11, 2:11].reshape(-1, 1)
    torch.testing.assert_close(resize_bias_table(table, 5, "geometric"), expected, atol=1e-4, rtol=0)


def test_centre_bias_table(gaussian):
    cropped = centre_bias_table(gaussian, 7, 5)
    assert torch.equal(cropped.view(9, 9), gaussian.view(13, 13)[2:11, 2:11])
    padded = centre_bias_table(cropped, 5, 7).view(13, 13)
    assert torch.equal(padded[2:11, 2:11], cropped.view(9, 9))
    assert (padded[:, 0] == padded[:, 2]).all() and (padded[0] == padded[2]).all()


def test_position_embedding():
    ramp = torch.arange(4.0).repeat(4, 1)  # 4 x 4 map, increasing from left to right
    resized = resize_position_embedding(ramp.view(1, 16, 1), 8).view(8, 8)
    torch.testing.assert_close(resized, resized[:1].expand(8, 8))
    assert (resized[0].diff() > 0).all() and resized[0].mean() == pytest.approx(1.5)
    assert torch.equal(resize_position_embedding(ramp.view(1, 16, 1), 4).view(4, 4), ramp)
    torch.testing.assert_close(resize_position_embedding(ramp.view(1, 16, 1), (6, 8)).view(6, 8), resized[:6])


def test_windows_that_are_not_square(gaussian):
    wide = resize_bias_table(gaussian, (7, 12)).view(13, 23)
    torch.testing.assert_close(wide[6], resize_bias_table(gaussian, 12).view(23, 23)[11], atol=1e-3, rtol=0)
    torch.testing.assert_close(wide[:, 11], gaussian.view(13, 13)[:, 6], atol=0.005, rtol=0)
    assert torch.equal(resize_bias_table(gaussian, (5, 7), "geometric").view(9, 13), gaussian.view(13, 13)[2:11])
    padded = centre_bias_table(gaussian, 7, (5, 9)).view(9, 17)
    assert torch.equal(padded[:, 2:15], gaussian.view(13, 13)[2:11])
    assert torch.equal(centre_bias_table(padded.reshape(-1, 1), (5, 9), (5, 7)).view(9, 13), padded[:, 2:15])
