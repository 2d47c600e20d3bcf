"""Recorded attention against its definition, computed token by token in image coordinates."""

import itertools
import pickle

import pytest
import torch
from torch import nn

from swin_lightning.explore.attention_maps import (
    record_attention,
    relative_position_bias,
    swin_blocks,
    window_token_index,
)
from swin_lightning.models import SwinTransformer, SwinTransformerV2
from swin_lightning.models.swin import SwinTransformerBlock
from swin_lightning.models.swin_v2 import SwinTransformerBlockV2
from swin_lightning.models.windows import fit_window, shifted_window_mask
from swin_lightning.tasks.classification import SwinClassifier
from tests.support.small_swin import SMALL

M = SMALL["window_size"]
# no padding, padded on both axes, one axis clamped, both clamped, clamped and padded
SIZES = [(8, 8), (9, 11), (3, 10), (2, 3), (4, 13)]


def make_block(version, shift):
    block = {1: SwinTransformerBlock, 2: SwinTransformerBlockV2}[version](16, 2, window_size=M, shift_size=shift)
    for parameter in block.attn.parameters():
        nn.init.normal_(parameter, std=0.5)
    return block


def attention_of(block, x):
    """Attention of the block for a token map, with the mask that its stage would pass."""
    size = tuple(x.shape[1:3])
    with torch.no_grad(), record_attention(block) as record:
        block(x, shifted_window_mask(size, *fit_window(size, block.window_size, block.shift_size)))
    return record[""]


def by_definition(block, x):
    """Attention between all tokens of the map in image coordinates, `nH, H, W, H, W`."""
    _, H, W, C = x.shape
    attn, (sy, sx) = block.attn, block.shift_size
    sy, sx = (sy if H > M else 0), (sx if W > M else 0)
    h, w = min(M, H), min(M, W)
    tokens = (x if isinstance(block, SwinTransformerBlockV2) else block.norm1(x)).view(1, H * W, C)
    q, k, _ = attn.project_qkv(tokens)
    scores = (attn.scale * q @ k.transpose(-2, -1))[0]  # nH, H*W, H*W
    table = attn.bias_table()
    padded = (-(-H // h) * h, -(-W // w) * w)
    for (a, (ya, xa)), (b, (yb, xb)) in itertools.product(enumerate(itertools.product(range(H), range(W))), repeat=2):
        window_a = ((ya - sy) % padded[0] // h, (xa - sx) % padded[1] // w)
        window_b = ((yb - sy) % padded[0] // h, (xb - sx) % padded[1] // w)
        seam = (ya < sy) != (yb < sy) or (xa < sx) != (xb < sx)
        if window_a != window_b or seam:
            scores[:, a, b] = float("-inf")
        else:
            scores[:, a, b] += table[(ya - yb + M - 1) * (2 * M - 1) + xa - xb + M - 1]
    return scores.softmax(dim=-1).view(-1, H, W, H, W)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", SIZES)
def test_attention_in_image_coordinates_matches_definition(version, shift, size):
    block = make_block(version, shift)
    x = torch.randn(1, *size, 16)
    attention = attention_of(block, x)
    with torch.no_grad():
        expected = by_definition(block, x)
    for row, column in itertools.product(*map(range, size)):
        weights = attention.attention_from(row, column)[0]
        torch.testing.assert_close(weights, expected[:, row, column], atol=1e-5, rtol=0)
        assert weights.sum(dim=(1, 2)) == pytest.approx(1.0, abs=1e-5)  # none on padding
    torch.testing.assert_close(attention.attention_received()[0], expected.sum(dim=(1, 2)), atol=1e-4, rtol=0)
    relevance = torch.rand(1, *size)
    propagated = torch.einsum("yx,hyxab->ab", relevance[0], expected) / len(expected)
    torch.testing.assert_close(attention.propagate(relevance)[0], propagated, atol=1e-5, rtol=0)


def test_shifted_attention_across_a_regular_window_border():
    # rows and columns 2 to 5 form a shifted window; (3, 3) and (4, 4) are in different regular windows
    block = make_block(1, shift=2)
    block.norm1 = nn.Identity()
    for parameter in block.attn.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():  # queries are channel 0, keys are channel 1
        block.attn.qkv.weight[0, 0] = block.attn.qkv.weight[16, 1] = 1.0
    x = torch.zeros(1, 8, 8, 16)
    x[0, 3, 3, 0] = x[0, 4, 4, 1] = 8.0
    weights = attention_of(block, x).attention_from(3, 3)[0, 0]
    assert weights[4, 4] > 0.999 and weights.argmax() == 4 * 8 + 4
    assert torch.equal(weights.nonzero().min(dim=0).values, torch.tensor([2, 2]))
    assert torch.equal(weights.nonzero().max(dim=0).values, torch.tensor([5, 5]))
    block.shift_size = 0
    assert attention_of(block, x).attention_from(3, 3)[0, 0, 4:].sum() == 0  # not reachable without the shift


def test_padding_receives_no_attention():
    attention = attention_of(make_block(1, shift=2), torch.randn(2, 9, 11, 16))
    padding = attention.token_index == -1
    assert padding.sum() == 12 * 12 - 9 * 11
    weights = attention.weights  # B, nW, nH, N, N
    to_padding = (~padding)[:, None, :, None] & padding[:, None, None, :]
    assert weights[to_padding.expand_as(weights)].abs().max() == 0
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))


def test_window_token_index_contains_each_token_once():
    assert window_token_index((4, 4), (2, 2), (1, 1)).tolist() == [
        [5, 6, 9, 10],
        [7, 4, 11, 8],
        [13, 14, 1, 2],
        [15, 12, 3, 0],
    ]
    for size in SIZES:
        index = window_token_index(size, (min(M, size[0]), min(M, size[1])), (0, 0)).flatten()
        assert sorted(index[index >= 0].tolist()) == list(range(size[0] * size[1]))


@pytest.mark.parametrize("network", [SwinTransformer, SwinTransformerV2])
def test_recording_changes_no_output_gradient_or_random_state(network):
    model = SwinClassifier(network(img_size=24, drop_path_rate=0.3, drop_rate=0.1, **SMALL), num_classes=3).train()
    images = torch.randn(4, 3, 24, 20)

    def step(recording):
        torch.manual_seed(1)
        model.zero_grad()
        if recording:
            with record_attention(model) as record:
                loss = model(images).square().sum()
            assert [b.size for b in record.values()] == [(12, 10), (12, 10), (6, 5), (6, 5)]
        else:
            loss = model(images).square().sum()
        loss.backward()
        return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()]), torch.rand(1)

    plain, recorded = step(False), step(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))
    pickle.dumps(model)  # fails if a hook, which is a local function, was not removed


def test_hooks_are_removed_if_the_model_fails():
    model = SwinTransformer(**SMALL)
    with pytest.raises(ValueError, match="expected normalised images"), record_attention(model):
        model(torch.randn(1, 4, 24, 24))
    pickle.dumps(model)


def test_blocks_are_selected_by_index():
    model = SwinTransformer(**SMALL)
    with torch.no_grad(), record_attention(model, [-1, 0]) as record:
        model(torch.randn(1, 3, 24, 24))
    assert list(record) == ["layers.0.blocks.0", "layers.1.blocks.1"]
    with pytest.raises(ValueError, match=r"block 4: the model has 4 blocks, 0 to 3"), record_attention(model, [4]):
        pass
    with pytest.raises(ValueError, match="Linear has no Swin Transformer block"):
        swin_blocks(nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"token \(12, 0\) is outside the 12 x 12 map of layers.0.blocks.0"):
        record["layers.0.blocks.0"].attention_from(12, 0)


@pytest.mark.slow
def test_recording_a_compiled_model():
    model = SwinTransformer(**SMALL | {"depths": (2,), "num_heads": (2,)}).eval()
    model.compile(backend="eager")
    images = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        expected = model(images)
        with record_attention(model) as record:
            torch.testing.assert_close(model(images), expected)
    assert len(record) == 2


def test_mean_distance_of_uniform_attention_and_of_attention_to_itself():
    block = make_block(1, shift=0)
    for parameter in block.attn.parameters():
        nn.init.zeros_(parameter)
    position = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
    expected = torch.cdist(position, position).mean()
    assert attention_of(block, torch.randn(1, 8, 8, 16)).mean_distance() == pytest.approx(
        [float(expected)] * 2, abs=1e-5
    )
    table = block.attn.relative_position_bias_table
    with torch.no_grad():
        table[len(table) // 2, 0] = 100.0  # head 0: offset zero
    assert attention_of(block, torch.randn(1, 8, 8, 16)).mean_distance() == pytest.approx(
        [0.0, float(expected)], abs=1e-5
    )


@pytest.mark.parametrize("version", [1, 2])
def test_relative_position_bias_has_offset_zero_in_the_centre(version):
    attn = make_block(version, 0).attn
    pairs, table = attn.relative_position_bias((M, M)), relative_position_bias(attn)
    assert table.shape == (2, 2 * M - 1, 2 * M - 1)
    for (a, (ya, xa)), (b, (yb, xb)) in itertools.product(enumerate(itertools.product(range(M), repeat=2)), repeat=2):
        assert torch.equal(table[:, M - 1 + yb - ya, M - 1 + xb - xa], pairs[:, a, b])


def test_recorded_blocks_do_not_use_the_operator_on_maps():
    """The operator takes maps, of which hooks could not compute the attention weights of windows."""
    model = SwinTransformer(img_size=32, embed_dim=8, depths=(2,), num_heads=(2,), window_size=4)
    first, second = (block.attn for block in model.layers[0].blocks)
    with record_attention(model, [0]):
        assert not first.allow_fused and second.allow_fused
    assert first.allow_fused
