"""Recorded attention against its definition, written token by token on the image; and maps made from it."""

import itertools

import pytest
import torch
from torch import nn

from swin_lightning.explore.attention_maps import position_bias, record_attention, swin_blocks, token_places
from swin_lightning.explore.saliency import grad_cam, principal_colours, rollout
from swin_lightning.models import SwinTransformer, SwinTransformerV2
from swin_lightning.models.swin import SwinTransformerBlock
from swin_lightning.models.swin_v2 import SwinTransformerBlockV2
from swin_lightning.tasks.classification import SwinClassifier

M = 4
# plain, padded on both axes, one axis clamped, both clamped, clamped and padded
SIZES = [(8, 8), (9, 11), (3, 10), (2, 3), (4, 13)]
SMALL = {"patch_size": 2, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": M, "init_std": 0.5}


def make_block(version, shift):
    block = {1: SwinTransformerBlock, 2: SwinTransformerBlockV2}[version](16, 2, window_size=M, shift_size=shift)
    for parameter in block.attn.parameters():
        nn.init.normal_(parameter, std=0.5)
    return block


def run(block, x):
    """The block's attention on a map, with the mask that its stage would give."""
    from swin_lightning.models.windows import fit_window, shifted_window_mask

    size = tuple(x.shape[1:3])
    with torch.no_grad(), record_attention(block) as record:
        block(x, shifted_window_mask(size, *fit_window(size, block.window_size, block.shift_size)))
    return record[""]


def by_definition(block, x):
    """Attention between all tokens of the image, `nH, H, W, H, W`, in the image's own coordinates."""
    _, H, W, C = x.shape
    attn, s = block.attn, block.shift_size
    sy, sx = (s if H > M else 0), (s if W > M else 0)
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
def test_the_map_of_every_token_is_its_attention_at_the_keys_places(version, shift, size):
    block = make_block(version, shift)
    x = torch.randn(1, *size, 16)
    attention = run(block, x)
    with torch.no_grad():
        expected = by_definition(block, x)
    for row, column in itertools.product(*map(range, size)):
        seen = attention.of_query(row, column)[0]
        torch.testing.assert_close(seen, expected[:, row, column], atol=1e-5, rtol=0)
        assert seen.sum(dim=(1, 2)) == pytest.approx(1.0, abs=1e-5)  # all of it on the image, nothing on pads
    torch.testing.assert_close(attention.received()[0], expected.sum(dim=(1, 2)), atol=1e-4, rtol=0)
    relevance = torch.rand(1, *size)
    handed = torch.einsum("yx,hyxab->ab", relevance[0], expected) / len(expected)
    torch.testing.assert_close(attention.trace_back(relevance)[0], handed, atol=1e-5, rtol=0)


def test_a_look_across_the_border_of_a_plain_window_lands_at_its_place():
    # rows and columns 2 to 5 share a shifted window; (3, 3) and (4, 4) are in different plain ones
    block = make_block(1, shift=2)
    block.norm1 = nn.Identity()
    for parameter in block.attn.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():  # the query reads channel 0, the key channel 1
        block.attn.qkv.weight[0, 0] = block.attn.qkv.weight[16, 1] = 1.0
    x = torch.zeros(1, 8, 8, 16)
    x[0, 3, 3, 0] = x[0, 4, 4, 1] = 8.0
    seen = run(block, x).of_query(3, 3)[0, 0]
    assert seen[4, 4] > 0.999 and seen.argmax() == 4 * 8 + 4
    assert torch.equal(seen.nonzero().min(dim=0).values, torch.tensor([2, 2]))
    assert torch.equal(seen.nonzero().max(dim=0).values, torch.tensor([5, 5]))
    block.shift_size = 0
    assert run(block, x).of_query(3, 3)[0, 0, 4:].sum() == 0  # without the shift it cannot look there


def test_pads_get_no_weight_and_every_real_row_sums_to_one():
    attention = run(make_block(1, shift=2), torch.randn(2, 9, 11, 16))
    pads = attention.places == -1
    assert pads.sum() == 12 * 12 - 9 * 11
    weights = attention.weights  # B, nW, nH, N, N
    real_to_pad = (~pads)[:, None, :, None] & pads[:, None, None, :]
    assert weights[real_to_pad.expand_as(weights)].abs().max() == 0
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))


def test_places_are_the_images_tokens_each_once():
    assert token_places((4, 4), (2, 2), (1, 1)).tolist() == [
        [5, 6, 9, 10],
        [7, 4, 11, 8],
        [13, 14, 1, 2],
        [15, 12, 3, 0],
    ]
    for size in SIZES:
        places = token_places(size, (min(M, size[0]), min(M, size[1])), (0, 0)).flatten()
        assert sorted(places[places >= 0].tolist()) == list(range(size[0] * size[1]))


@pytest.mark.parametrize("network", [SwinTransformer, SwinTransformerV2])
def test_recording_changes_nothing(network):
    model = SwinClassifier(network(img_size=24, drop_path_rate=0.3, drop_rate=0.1, **SMALL), num_classes=3).train()
    images = torch.randn(4, 3, 24, 20)

    def step(watch):
        torch.manual_seed(1)
        model.zero_grad()
        if watch:
            with record_attention(model) as record:
                loss = model(images).square().sum()
            assert [b.size for b in record.values()] == [(12, 10), (12, 10), (6, 5), (6, 5)]
        else:
            loss = model(images).square().sum()
        loss.backward()
        return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()]), torch.rand(1)

    before, watched = step(False), step(True)
    assert all(torch.equal(a, b) for a, b in zip(before, watched, strict=True))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_hooks_go_when_the_model_fails_and_blocks_can_be_chosen():
    model = SwinTransformer(**SMALL)
    with pytest.raises(RuntimeError), record_attention(model):
        model(torch.randn(1, 4, 24, 24))
    assert not any(m._forward_pre_hooks for m in model.modules())
    with torch.no_grad(), record_attention(model, [-1, 0]) as record:
        model(torch.randn(1, 3, 24, 24))
    assert list(record) == ["layers.0.blocks.0", "layers.1.blocks.1"]
    with pytest.raises(ValueError, match=r"block 4: the model has 4 blocks, 0 to 3"), record_attention(model, [4]):
        pass
    with pytest.raises(ValueError, match="Linear has no Swin Transformer block"):
        swin_blocks(nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"token \(12, 0\) lies outside of the 12 x 12 map of layers.0.blocks.0"):
        record["layers.0.blocks.0"].of_query(12, 0)


def test_a_compiled_model_can_be_watched():
    model = SwinTransformer(**SMALL).eval()
    model.compile(backend="eager")
    images = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        expected = model(images)
        with record_attention(model) as record:
            torch.testing.assert_close(model(images), expected)
    assert len(record) == 4


def test_distances_of_a_token_that_looks_at_itself_are_zero_and_of_an_even_look_the_mean():
    block = make_block(1, shift=0)
    for parameter in block.attn.parameters():
        nn.init.zeros_(parameter)
    at = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
    expected = torch.cdist(at, at).mean()
    assert run(block, torch.randn(1, 8, 8, 16)).distances() == pytest.approx([float(expected)] * 2, abs=1e-5)
    table = block.attn.relative_position_bias_table
    with torch.no_grad():
        table[len(table) // 2, 0] = 100.0  # head 0: offset zero
    assert run(block, torch.randn(1, 8, 8, 16)).distances() == pytest.approx([0.0, float(expected)], abs=1e-5)


@pytest.mark.parametrize("version", [1, 2])
def test_the_bias_picture_has_the_query_in_the_middle(version):
    attn = make_block(version, 0).attn
    pairs, picture = attn.relative_position_bias((M, M)), position_bias(attn)
    assert picture.shape == (2, 2 * M - 1, 2 * M - 1)
    for (a, (ya, xa)), (b, (yb, xb)) in itertools.product(enumerate(itertools.product(range(M), repeat=2)), repeat=2):
        assert torch.equal(picture[:, M - 1 + yb - ya, M - 1 + xb - xa], pairs[:, a, b])


@pytest.mark.parametrize("size", [(24, 24), (22, 26)])
@pytest.mark.parametrize("network", [SwinTransformer, SwinTransformerV2])
def test_rollout_keeps_all_relevance_on_the_image(network, size):
    maps = rollout(SwinClassifier(network(**SMALL), num_classes=3), torch.randn(2, 3, *size))
    assert maps.shape == (2, size[0] // 2, size[1] // 2)
    assert maps.min() > 0
    assert maps.sum(dim=(1, 2)) == pytest.approx([1.0, 1.0], abs=1e-5)


def test_rollout_of_one_even_window_is_even_and_follows_a_bright_key():
    model = SwinTransformer(**SMALL | {"depths": (1,), "num_heads": (1,)})
    for parameter in model.layers.parameters():
        nn.init.zeros_(parameter)
    images = torch.zeros(1, 3, 8, 8)
    assert rollout(model, images).flatten().tolist() == pytest.approx([1 / 16] * 16)
    table = model.layers[0].blocks[0].attn.relative_position_bias_table
    with torch.no_grad():
        table[(0 - 1 + M - 1) * (2 * M - 1) + M - 1] = 100.0  # every token looks at the one below, the last row evenly
    maps = rollout(model, images)[0]
    # half from itself, half from the one above; the last row's half goes to the 16 tokens alike
    expected = torch.tensor([0.5, 1.0, 1.0, 1.0]) / 16 + 0.5 * 4 / 16 / 16
    torch.testing.assert_close(maps, expected[:, None].expand(4, 4))


@pytest.mark.parametrize("network", [SwinTransformer, SwinTransformerV2])
def test_grad_cam_is_the_features_dotted_with_the_mean_gradient(network):
    model = SwinClassifier(network(**SMALL), num_classes=3).eval()
    images, classes = torch.randn(2, 3, 16, 16), torch.tensor([2, 0])
    with torch.no_grad():
        features = model.backbone.forward_intermediates(images)[-1]
    features.requires_grad_()
    logits = model.head(model.backbone.norm(features).mean(dim=(1, 2)))
    (logits[0, 2] + logits[1, 0]).backward()
    for i in range(2):
        weights = features.grad[i].mean(dim=(0, 1))
        expected = (features[i] @ weights).clamp(min=0)
        torch.testing.assert_close(grad_cam(model, images, classes)[i], expected.detach())
    model.zero_grad()
    assert torch.equal(grad_cam(model, images), grad_cam(model, images, logits.argmax(dim=1)))
    assert grad_cam(model, images, stage=0).shape == (2, 8, 8)
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_principal_colours_separate_what_differs_most():
    features = torch.zeros(5, 4, 4)
    features[0, :2] = 10.0  # the upper half differs in one channel
    features[1, :, :1] = 1.0
    colours = principal_colours(features)
    assert colours.shape == (4, 4, 3) and colours.min() == 0 and colours.max() == 1
    assert (colours[:2, :, 0].mean() - colours[2:, :, 0].mean()).abs() > 0.9
