"""Swin V1 against official outputs and a reference attention without shift, and its properties."""

import copy
import itertools
import math

import pytest
import torch
from torch.overrides import TorchFunctionMode

from swin_lightning.errors import UserError
from swin_lightning.models import SwinTransformer
from swin_lightning.models.attention import WindowAttention
from swin_lightning.models.layers import Mlp
from swin_lightning.models.swin import BasicLayer
from swin_lightning.models.swin_v2 import WindowAttentionV2
from swin_lightning.models.windows import fit_window, padded_size, shifted_window_mask, window_partition
from tests.support.golden import formula_input, formula_parameters, load_golden, randomize


def tiny_swin(**kwargs):
    """Two stages of two blocks: the second of each is shifted."""
    sizes = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4, "mlp_ratio": 2.0}
    return SwinTransformer(**(sizes | kwargs))


def stage(dim=8, depth=2, window=4, heads=2):
    layer = BasicLayer(dim, depth, heads, window, drop_path=[0.0] * depth, downsample=False, mlp_ratio=1.0)
    return randomize(layer).double()


# official implementation


def test_logits_match_official_implementation():  # Swin-T: tests/models/test_weight_formats.py
    golden = load_golden("cifar_32")
    model = SwinTransformer(**golden["config"]).eval()
    model.load_state_dict(formula_parameters(golden["parameters"]), strict=True)
    with torch.no_grad():
        logits = model(formula_input(*golden["input_size"]))
    expected = torch.tensor(golden["logits_first16"])
    torch.testing.assert_close(logits[:, :16], expected, atol=1e-4, rtol=0)


# reference attention: regions of the map one by one, without shift, padding and mask


def axis_regions(n, window, shift):
    """Intervals into which (shifted) windows divide an axis of n tokens."""
    if n <= window:
        return [range(n)]
    cuts = [0, *range(shift or window, n, window), n]
    return [range(a, b) for a, b in itertools.pairwise(cuts)]


def regions(size, window, shift):
    pieces = (axis_regions(n, window, shift) for n in size)
    return [(slice(y.start, y.stop), slice(x.start, x.stop)) for y, x in itertools.product(*pieces)]


def attend_by_region(attn, x, shift):
    """x: B, H, W, C. The bias of an offset (dy, dx) of query minus key is row (dy + M - 1)(2M - 1) + dx + M - 1."""
    M, C, out = attn.window_size[0], x.shape[-1], torch.empty_like(x)
    for ys, xs in regions(x.shape[1:3], M, shift):
        region = x[:, ys, xs]
        h, w = region.shape[1:3]
        q, k, v = (
            (region.flatten(1, 2) @ attn.qkv.weight[i * C : (i + 1) * C].T + attn.qkv.bias[i * C : (i + 1) * C])
            .unflatten(-1, (attn.num_heads, -1))
            .transpose(1, 2)
            for i in range(3)
        )
        row, column = torch.arange(h * w) // w, torch.arange(h * w) % w
        dy, dx = row[:, None] - row, column[:, None] - column
        bias = attn.relative_position_bias_table[(dy + M - 1) * (2 * M - 1) + dx + M - 1].permute(2, 0, 1)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + bias).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).reshape(region.shape)
        out[:, ys, xs] = mixed @ attn.proj.weight.T + attn.proj.bias
    return out


MAP_SIZES = sorted(
    {(1, 1), (1, 21), (21, 1), (21, 21), (7, 7), (8, 8), (12, 12), (14, 14), (16, 16), (7, 14), (14, 6), (4, 9)}
    | {(1 + 5 * i % 21, 1 + 8 * (i // 3) % 21) for i in range(51)}
)


assert len(MAP_SIZES) == 60


@pytest.mark.parametrize("window", [4, 7])
@pytest.mark.parametrize("size", MAP_SIZES)
def test_blocks_match_attention_by_region(size, window):
    blocks = stage(window=window)
    x = expected = torch.randn(2, *size, 8, dtype=torch.float64)
    with torch.no_grad():
        for block, shift in zip(blocks.blocks, (0, window // 2), strict=True):
            expected = expected + attend_by_region(block.attn, block.norm1(expected), shift)
            expected = expected + block.mlp(block.norm2(expected))
        actual, _ = blocks(x)
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-9)


ATTENTION_CASES = [((8, 8), 4, 0), ((8, 8), 4, 2), ((10, 13), 7, 3), ((3, 5), 7, 3), ((5, 16), 7, 3)]


def windows_and_mask(size, window_size, shift, images=2):
    window, shifts = fit_window(size, window_size, shift)
    x = torch.randn(images, *padded_size(size, window), 8)
    return window_partition(x, window), window, shifted_window_mask(size, window, shifts), shifts


@pytest.mark.parametrize(("size", "window_size", "shift"), ATTENTION_CASES)
def test_forward_matches_forward_eager(size, window_size, shift):
    attn = randomize(WindowAttention(8, window_size, 2))
    x, window, mask, _ = windows_and_mask(size, window_size, shift)
    torch.testing.assert_close(attn(x, window, mask), attn.forward_eager(x, window, mask), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("size", "window_size", "shift"), ATTENTION_CASES)
def test_attention_weights_sum_to_one_and_are_zero_for_padding(size, window_size, shift):
    attn = randomize(WindowAttention(8, window_size, 2))
    x, window, mask, shifts = windows_and_mask(size, window_size, shift)
    weights = attn.attention_weights(x, window, mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    H, W = padded_size(size, window)
    real = torch.zeros(1, H, W, 1)
    real[:, : size[0], : size[1]] = 1
    real = window_partition(real.roll((-shifts[0], -shifts[1]), (1, 2)), window).squeeze(-1).bool()
    real = real.repeat(2, 1)  # B*nW, N
    query, key = real[:, None, :, None], ~real[:, None, None, :]
    assert (weights.masked_select(query & key) == 0).all()  # exactly zero: -inf, not -100


def test_mask_is_effective_for_large_scores():
    attn = randomize(WindowAttention(8, 4, 2))
    x, window, mask, _ = windows_and_mask((8, 8), 4, 2)
    weights = attn.attention_weights(100 * x, window, mask)
    hidden = ~mask.repeat(2, 1, 1)[:, None].expand_as(weights)
    assert hidden.any()
    assert (weights[hidden] == 0).all()


# connectivity


@pytest.mark.parametrize("window", [4, 7])
@pytest.mark.parametrize("size", [(12, 12), (16, 16), (10, 13)])
@pytest.mark.parametrize("blocks", [1, 2])
def test_a_token_influences_exactly_the_tokens_of_its_windows(blocks, size, window):
    H, W = size
    layer = stage(window=window)
    base = torch.randn(1, H, W, 8, dtype=torch.float64)
    changed = base.repeat(H * W, 1, 1, 1)
    index = torch.arange(H * W)
    changed[index, index // W, index % W] += torch.randn(8, dtype=torch.float64)
    shift = window // 2
    with torch.no_grad():
        if blocks == 1:  # the shifted block alone
            mask = shifted_window_mask(size, *fit_window(size, window, shift))
            before, after = (layer.blocks[1](x, mask) for x in (base, changed))
        else:
            before, after = (layer(x)[0] for x in (base, changed))
    reached = (after - before).abs().amax(-1) > 1e-10  # H*W changed, H, W

    allowed = torch.zeros(H, W, H, W, dtype=torch.bool)  # source, target
    for ys, xs in regions(size, window, shift):
        allowed[ys, xs, ys, xs] = True
    if blocks == 2:
        first = torch.zeros_like(allowed)
        for ys, xs in regions(size, window, 0):
            first[ys, xs, ys, xs] = True
        allowed = (first.view(H * W, -1).double() @ allowed.view(H * W, -1).double() > 0).view(H, W, H, W)
    assert torch.equal(reached.view(H, W, H, W), allowed)
    if blocks == 1:  # opposite edges are not connected, also where the map is padded
        reached = reached.view(H, W, H, W)
        assert not reached[0, :, -1].any()
        assert not reached[-1, :, 0].any()
        assert not reached[:, 0, :, -1].any()
        assert not reached[:, -1, :, 0].any()


# memory


class AllocatedBytes(TorchFunctionMode):
    """Sums up the bytes of all tensors that torch functions return; on the meta device nothing is allocated."""

    def __init__(self):
        super().__init__()
        self.largest = self.total = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in (out if isinstance(out, tuple) else [out]) if isinstance(t, torch.Tensor)]
        sizes = [t.numel() * t.element_size() for t in tensors]
        self.largest, self.total = max([self.largest, *sizes]), self.total + sum(sizes)
        return out


def attention_bytes(side, window_size, shift, eager):
    """Bytes for attention on a map of side x side tokens."""
    with torch.device("meta"):
        attn = WindowAttention(8, window_size, 2).eval()
        window, shifts = fit_window((side, side), window_size, shift)
        x = torch.empty((side // window[0]) * (side // window[1]), window[0] * window[1], 8)
        mask = shifted_window_mask((side, side), window, shifts, x.device)
        with torch.no_grad(), AllocatedBytes() as count:
            (attn.forward_eager if eager else attn)(x, window, mask)
    return count


@pytest.mark.parametrize("eager", [False, True])
def test_memory_is_linear_in_the_map_for_windows_and_quadratic_for_global_attention(eager):
    sides = (14, 28, 56, 112)
    shifted = [attention_bytes(side, 7, 3, eager) for side in sides]
    for side, count in zip(sides, shifted, strict=True):
        assert count.largest * sides[0] ** 2 == shifted[0].largest * side**2
    steps = [b.total - a.total for a, b in itertools.pairwise(shifted)]  # differences, without the constant bias table
    assert steps == [steps[0], 4 * steps[0], 16 * steps[0]]
    full = [attention_bytes(side, side, 0, eager) for side in sides]
    for smaller, larger in itertools.pairwise(full):
        assert larger.largest / smaller.largest == pytest.approx(16, rel=0.02)


# network


@pytest.mark.parametrize("size", [(64, 64), (33, 65), (1, 1), (50, 31), (97, 40)])
def test_feature_maps_are_nchw_at_strides_4_8_16_32(size):
    model = tiny_swin(depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    maps = model.feature_maps(torch.randn(2, 3, *size))
    for channels, stride, x in zip((8, 16, 32, 64), (4, 8, 16, 32), maps, strict=True):
        assert x.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))


def test_feature_maps_are_stage_outputs_before_merging_and_norm():
    model = randomize(tiny_swin())
    images = torch.randn(2, 3, 37, 50)
    first, last = (x.permute(0, 2, 3, 1) for x in model.feature_maps(images))
    stage_output, merged = model.layers[0](model.patch_embed(images))
    torch.testing.assert_close(first, stage_output)
    torch.testing.assert_close(last, model.layers[1](model.layers[0].downsample(first))[0])
    assert merged.shape[1:3] == last.shape[1:3]
    pooled = torch.nn.functional.layer_norm(last, (16,), model.norm.weight, model.norm.bias).mean((1, 2))
    torch.testing.assert_close(model.forward_features(images), pooled)
    torch.testing.assert_close(model(images), pooled)  # no head


@pytest.mark.parametrize("size", [(4, 4), (9, 70), (23, 23), (40, 16)])
def test_other_input_sizes_do_not_modify_the_model(size):
    model = randomize(tiny_swin(num_classes=3))
    images, state = torch.randn(1, 3, 64, 64), copy.deepcopy(model.state_dict())
    before = model(images)
    assert model(torch.randn(2, 3, *size)).isfinite().all()
    assert torch.equal(model(images), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(block.window_size == (4, 4) for layer in model.layers for block in layer.blocks)


def test_images_are_zero_padded_to_the_patch_size():
    model = randomize(tiny_swin())
    images = torch.randn(1, 3, 30, 33)
    padded = torch.zeros(1, 3, 32, 36)
    padded[..., :30, :33] = images
    torch.testing.assert_close(model(images), model(padded))


def test_gradient_checkpointing_preserves_gradients():
    plain = tiny_swin(drop_path_rate=0.3)
    recomputed = copy.deepcopy(plain)
    recomputed.set_grad_checkpointing()
    calls = []
    for model in (plain, recomputed):
        model.layers[0].blocks[0].norm1.register_forward_hook(lambda *_, model=model: calls.append(model))
        torch.manual_seed(1)  # same samples dropped
        model.train()(formula_input(32, 32)).square().sum().backward()
    assert [model is recomputed for model in calls] == [False, True, True]
    assert not any(m.recompute_gelu for m in recomputed.modules() if isinstance(m, Mlp))
    for a, b in zip(plain.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize(("depths", "rate"), [((2, 2), 0.3), ((1, 3, 2), 0.5), ((2, 2), 0.0)])
def test_drop_path_increases_linearly_from_zero(depths, rate):
    model = tiny_swin(depths=depths, num_heads=[2] * len(depths), drop_path_rate=rate)
    found = [block.drop_path.p for layer in model.layers for block in layer.blocks]
    assert found == pytest.approx([rate * i / (sum(depths) - 1) for i in range(sum(depths))])


def test_initialisation_matches_official_implementation():
    model = tiny_swin(embed_dim=32, num_classes=10)
    for name, value in model.named_parameters():
        if name.endswith("relative_position_bias_table") or ("norm" not in name and value.ndim == 2):
            assert value.std().item() == pytest.approx(0.02, rel=0.25), name
        elif "norm" in name:
            assert (value == (1 if name.endswith("weight") else 0)).all(), name
        elif value.ndim == 1 and "patch_embed" not in name:
            assert (value == 0).all(), name


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"depths": (2, 2), "num_heads": (2, 2, 2)},
            r"depths \[2, 2\] and num_heads \[2, 2, 2\] must have the same length",
        ),
        ({"embed_dim": 8, "num_heads": (3, 2)}, "num_heads 3 does not divide 8 channels"),
        ({"embed_dim": 9, "num_heads": (3, 4)}, "num_heads 4 does not divide 18 channels"),
    ],
)
def test_inconsistent_sizes_raise(kwargs, message):
    with pytest.raises(UserError, match=message):
        tiny_swin(**kwargs)


def test_bfloat16_autocast_is_close_to_float32():
    model, images = randomize(tiny_swin(num_classes=5)), torch.randn(2, 3, 40, 40)
    exact = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = model(images)
    assert autocast.dtype == torch.bfloat16
    assert autocast.isfinite().all()
    assert (autocast.float() - exact).norm() < 0.1 * exact.norm()


def test_training_works_after_inference_mode():
    model = tiny_swin(num_classes=5)
    with torch.inference_mode():  # a cached mask or index would be an inference tensor
        model.eval()(torch.randn(1, 3, 40, 40))
    model.train()(torch.randn(1, 3, 40, 40)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_deepcopy_is_equal_and_independent():
    model = randomize(tiny_swin())
    copied, images = copy.deepcopy(model), torch.randn(1, 3, 20, 20)
    before = model(images)
    assert torch.equal(copied(images), before)
    torch.nn.init.zeros_(copied.norm.weight)
    assert torch.equal(model(images), before)
    assert not torch.equal(copied(images), before)


def test_absolute_position_embedding_is_row_major():
    model = randomize(tiny_swin(img_size=16, ape=True))
    grid = model.absolute_pos_embed.view(1, 4, 4, 8)
    images = torch.randn(1, 3, 16, 16)
    expected = model.layers[0](model.patch_embed(images) + grid)[0]
    torch.testing.assert_close(model.forward_intermediates(images)[0], expected)


@pytest.mark.parametrize("version", [WindowAttention, WindowAttentionV2])
def test_attention_is_the_same_with_and_without_bias_gradient(version):
    # explicit attention on CPU if the bias requires a gradient, SDPA otherwise
    module = randomize(version(8, 4, 2))
    x, mask = torch.randn(8, 16, 8), shifted_window_mask((8, 8), (4, 4), (2, 2))
    expected = module.forward_eager(x, (4, 4), mask)
    assert expected.requires_grad
    torch.testing.assert_close(module(x, (4, 4), mask), expected)
    with torch.no_grad():
        torch.testing.assert_close(module(x, (4, 4), mask), expected)
