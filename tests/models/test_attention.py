"""Window attention with windows that are not square; the other properties are tested in test_swin.py."""

import pytest
import torch

from swin_lightning.errors import UserError
from swin_lightning.models import SwinTransformer, SwinTransformerV2
from swin_lightning.models.attention import WindowAttention
from swin_lightning.models.swin_v2 import WindowAttentionV2
from swin_lightning.models.windows import relative_position_index
from tests.support.golden import randomize


@pytest.mark.parametrize("version", [WindowAttention, WindowAttentionV2])
@pytest.mark.parametrize("window", [(3, 5), (5, 2), (4, 4)])
def test_bias_is_the_row_of_the_table_for_each_offset(version, window):
    attention = randomize(version(8, window, 2))
    table, bias = attention.bias_table(), attention.relative_position_bias(window)
    assert table.shape == ((2 * window[0] - 1) * (2 * window[1] - 1), 2)
    assert torch.equal(bias, table[relative_position_index(window)].permute(2, 0, 1))
    (h, w), n = window, (2, 2)  # a clamped window
    full = bias.view(2, h, w, h, w)[:, : n[0], : n[1], : n[0], : n[1]].reshape(2, 4, 4)
    assert torch.equal(attention.relative_position_bias(n), full)


@pytest.mark.parametrize("version", [SwinTransformer, SwinTransformerV2])
def test_transposed_image_in_a_transposed_model(version):
    """Windows, patches and position embeddings of height and width swapped give the transposed feature map."""
    sizes = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2), "ape": True}
    model = randomize(version(img_size=(32, 48), patch_size=(2, 4), window_size=(4, 3), **sizes), 0.3)
    swapped = version(img_size=(48, 32), patch_size=(4, 2), window_size=(3, 4), **sizes).eval()
    state = model.state_dict()
    for name, value in state.items():
        if name.endswith("bias_table"):
            state[name] = value.view(7, 5, -1).transpose(0, 1).reshape(35, -1)
        elif name == "absolute_pos_embed":
            state[name] = value.view(1, 16, 12, 8).transpose(1, 2).reshape(1, 192, 8)
        elif name == "patch_embed.proj.weight":
            state[name] = value.transpose(2, 3)
        elif name.endswith("cpb_mlp.0.weight"):
            state[name] = value.flip(1)
        elif "downsample" in name and (value.shape[-1] == 32):  # neighbours (0, 0), (1, 0), (0, 1), (1, 1)
            state[name] = value.unflatten(-1, (4, 8))[..., [0, 2, 1, 3], :].flatten(-2)
    swapped.load_state_dict(state)
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        maps, other = model.feature_maps(images), swapped.feature_maps(images.transpose(2, 3))
    for a, b in zip(maps, other, strict=True):
        torch.testing.assert_close(a, b.transpose(2, 3), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options", [{"window_size": 0}, {"patch_size": (2, 2, 2)}, {"img_size": -3}, {"window_size": (4, 0)}]
)
def test_invalid_sizes(options):
    with pytest.raises(UserError, match=r"expected an integer >= 1 and <= 16384 or a list of 2 values"):
        SwinTransformer(**options)
