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
    cropped = centre_bias_table(gaussian, 5)
    assert torch.equal(cropped.view(9, 9), gaussian.view(13, 13)[2:11, 2:11])
    padded = centre_bias_table(cropped, 7).view(13, 13)
    assert torch.equal(padded[2:11, 2:11], cropped.view(9, 9))
    assert (padded[:, 0] == padded[:, 2]).all() and (padded[0] == padded[2]).all()


def test_position_embedding():
    ramp = torch.arange(4.0).repeat(4, 1)  # 4 x 4 map, increasing from left to right
    resized = resize_position_embedding(ramp.view(1, 16, 1), 64).view(8, 8)
    torch.testing.assert_close(resized, resized[:1].expand(8, 8))
    assert (resized[0].diff() > 0).all() and resized[0].mean() == pytest.approx(1.5)
    assert torch.equal(resize_position_embedding(ramp.view(1, 16, 1), 16).view(4, 4), ramp)
