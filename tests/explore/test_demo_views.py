"""Pictures of the demo page."""

import numpy as np
import pytest
import torch

from swin_lightning.explore.demo_views import attention_picture, grad_cam_picture, network_view, stage_attention
from swin_lightning.inference import Predictor
from tests.support.checkpoint import write_checkpoint

PIXELS = torch.randint(256, (3, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def predictor(tmp_path):
    write_checkpoint(tmp_path / "a.ckpt", depths=[4, 3], num_heads=[2, 4], window_size=2)
    return Predictor(tmp_path / "a.ckpt", "cpu", "32-true")


def test_network_view_is_enlarged_by_a_whole_factor():
    view = network_view(PIXELS)
    assert view.shape == (384, 384, 3)
    np.testing.assert_array_equal(view[16 * 3 + 5, 16 * 7], PIXELS[:, 3, 7])


def test_last_regular_and_shifted_block_of_each_stage(predictor):
    stages = stage_attention(predictor, PIXELS)
    names = [[block.name.removeprefix("backbone.layers.") for block in stage] for stage in stages]
    assert names == [["0.blocks.2", "0.blocks.3"], ["1.blocks.1", "1.blocks.2"]]
    assert [[block.size for block in stage] for stage in stages] == [[(6, 6)] * 2, [(3, 3)] * 2]


def test_pictures_depend_on_the_place_and_the_image(predictor):
    first, other = (attention_picture(predictor, PIXELS, place) for place in ((0.1, 0.1), (0.9, 1.0)))
    assert first.dtype == np.uint8 and first.shape[2] == 3 and (first.shape != other.shape or (first != other).any())
    cams = [grad_cam_picture(predictor, pixels) for pixels in (PIXELS, 255 - PIXELS)]
    assert cams[0].shape == cams[1].shape and (cams[0] != cams[1]).mean() > 0.1
