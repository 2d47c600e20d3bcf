"""Swin V2: cosine attention, continuous position bias, post-norm."""

import math

import pytest
import torch
from torch import nn

from swin_lightning.errors import UserError
from swin_lightning.models import SwinTransformerV2
from swin_lightning.models.swin_v2 import WindowAttentionV2, log_spaced_coords
from swin_lightning.models.windows import shifted_window_mask
from tests.support.golden import formula_parameters

SMALL = {"img_size": 64, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}


def attention(window_size: int = 4, **kwargs: object) -> WindowAttentionV2:
    """Window attention with pseudo-random parameters."""
    module = WindowAttentionV2(24, window_size, num_heads=3, **kwargs).eval()
    for name, parameter in module.named_parameters():
        parameter.data = formula_parameters({name: parameter.shape})[name]
    return module


def reference(module: WindowAttentionV2, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Attention weights by equation 2 of the paper in float64, one pair of tokens at a time."""
    w = {name: p.double() for name, p in module.named_parameters()}
    M = module.window_size[0]
    q, k, _ = (x.double() @ w["qkv.weight"].T).split(24, dim=-1)
    q = q + w["q_bias"]
    rows = torch.empty(len(x), 3, M * M, M * M, dtype=torch.float64)
    for h in range(3):
        scale = min(math.exp(w["logit_scale"][h].item()), 100)
        for i in range(M * M):
            for j in range(M * M):
                d = [(a - b) * 8 / (M - 1) for a, b in zip(divmod(i, M), divmod(j, M), strict=True)]
                d = torch.tensor([math.copysign(math.log2(abs(v) + 1) / 3, v) for v in d], dtype=torch.float64)
                hidden = (w["cpb_mlp.0.weight"] @ d + w["cpb_mlp.0.bias"]).relu()
                bias = 16 * (w["cpb_mlp.2.weight"][h] @ hidden).sigmoid()
                cosine = nn.functional.cosine_similarity(q[:, i, 8 * h : 8 * h + 8], k[:, j, 8 * h : 8 * h + 8])
                rows[:, h, i, j] = cosine * scale + bias
    if mask is not None:
        rows = rows.masked_fill(~mask[:, None], float("-inf"))
    return rows.softmax(dim=-1)


def test_attention_matches_equation_2_of_the_paper():
    module, x = attention(3), torch.randn(2, 9, 24)
    torch.testing.assert_close(module.attention_weights(x, (3, 3)).double(), reference(module, x), atol=1e-5, rtol=0)
    mask = shifted_window_mask((6, 3), (3, 3), (1, 0))
    torch.testing.assert_close(
        module.attention_weights(x, (3, 3), mask).double(), reference(module, x, mask), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(module(x, (3, 3), mask), module.forward_eager(x, (3, 3), mask), atol=1e-5, rtol=0)


def test_scale_is_at_most_100():
    module = attention()
    module.logit_scale.data.fill_(9.0)
    q, k, _ = module.project_qkv(torch.randn(2, 16, 24))
    torch.testing.assert_close(q.norm(dim=-1), torch.full((2, 3, 16), 100.0))
    torch.testing.assert_close(k.norm(dim=-1), torch.ones(2, 3, 16))


def test_attention_stays_in_float32_under_autocast():
    """Rounding scores near 100 to bfloat16 gives errors of 0.25, and of 20 % in the attention weights."""
    module = attention()
    module.logit_scale.data.fill_(math.log(100))
    qkv = torch.randn(8, 16, 72).bfloat16()
    module.qkv, module.q_bias, module.v_bias = nn.Linear(24, 72, bias=False), None, None
    dtypes = {}

    def recording_sdpa(q, k, v, attn_mask, **options):
        dtypes.update(q=q.dtype, k=k.dtype, v=v.dtype, attn_mask=attn_mask.dtype)
        return original(q, k, v, attn_mask=attn_mask, **options)

    original = nn.functional.scaled_dot_product_attention
    linear = nn.functional.linear
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr(nn.functional, "scaled_dot_product_attention", recording_sdpa)
        patch.setattr(nn.functional, "linear", lambda x, w, b=None: qkv if w is module.qkv.weight else linear(x, w, b))
        weights = module.attention_weights(torch.zeros(8, 16, 24), (4, 4))
        bias = module.relative_position_bias((4, 4))
        with torch.no_grad():
            module(torch.zeros(8, 16, 24), (4, 4))
    q, k, _ = qkv.double().unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
    cosine = nn.functional.normalize(q, dim=-1) @ nn.functional.normalize(k, dim=-1).transpose(-1, -2)
    exact = module.double().relative_position_bias((4, 4))
    torch.testing.assert_close(bias.double(), exact, atol=1e-5, rtol=0)
    torch.testing.assert_close(weights.double(), (100 * cosine + exact).softmax(-1), atol=1e-4, rtol=0)
    assert set(dtypes.values()) == {torch.float32}


@pytest.mark.parametrize("window", [(4, 4), (3, 4), (2, 5), (1, 1)])
def test_clamped_window_uses_the_centre_of_the_table(window):
    module = attention(5)
    full = module.relative_position_bias((5, 5)).view(3, 5, 5, 5, 5)
    h, w = window
    expected = full[:, :h, :w, :h, :w].reshape(3, h * w, h * w)
    torch.testing.assert_close(module.relative_position_bias(window), expected)
    torch.testing.assert_close(full[:, 1, 1, 2, 3], full[:, 2, 0, 3, 2])  # depends on the offset only


def test_coordinates_are_normalised_by_the_pretrained_window():
    larger, trained = log_spaced_coords(16, 8).view(31, 31, 2), log_spaced_coords(8, 8).view(15, 15, 2)
    torch.testing.assert_close(larger[8:23, 8:23], trained)
    assert trained[7, 14].tolist() == pytest.approx([0, math.log2(9) / 3])
    assert trained[14, 7].tolist() == pytest.approx([math.log2(9) / 3, 0])


def test_pretrained_window_is_clamped_to_the_feature_map():
    """At 64 pixels feature maps have sides 16 and 8; with window 16, weights are trained with windows 16 and 8."""
    model = SwinTransformerV2(**{**SMALL, "window_size": 16})
    assert [layer.blocks[0].attn.trained_window for layer in model.layers] == [(16, 16), (8, 8)]
    model = SwinTransformerV2(**{**SMALL, "window_size": 16}, pretrained_window_sizes=(12, 6))
    assert [layer.blocks[1].attn.trained_window for layer in model.layers] == [(12, 12), (6, 6)]
    module = attention(4)
    before = module.bias_table()
    module.trained_window = (8, 8)
    assert not torch.allclose(module.bias_table(), before)
    assert not [name for name in model.state_dict() if "coords" in name or "index" in name]


@pytest.mark.parametrize(
    "options", [{"window_size": 8}, {"window_size": 1}, {"window_size": 8, "pretrained_window_sizes": (1, 1, 1, 1)}]
)
def test_finite_for_feature_maps_of_one_token(options):
    torch.manual_seed(0)
    model = SwinTransformerV2(img_size=32, embed_dim=24, num_heads=(2, 4, 8, 16), drop_path_rate=0, **options)
    for size in ((32, 32), (40, 36)):
        features = model(torch.randn(2, 3, *size))
        features.sum().backward()
        assert features.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_with_padded_windows(dtype):
    """Keys of padding are zero, since keys have no bias: the cosine must not become 0 / 0 in half precision."""
    model = SwinTransformerV2(**SMALL).eval()
    for block in (block for layer in model.layers for block in layer.blocks):
        nn.init.ones_(block.norm1.weight)
        nn.init.ones_(block.norm2.weight)
    images = torch.randn(2, 3, 50, 62)  # feature maps of 13 x 16 and 7 x 8, windows of 4
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", dtype):
            autocast = model(images)
        half = model.to(dtype)(images.to(dtype))
    tolerance = 64 * torch.finfo(dtype).eps
    torch.testing.assert_close(autocast.float(), exact, atol=tolerance, rtol=0)
    torch.testing.assert_close(half.float(), exact, atol=tolerance, rtol=0)


def test_blocks_are_initialised_as_identity():
    model = SwinTransformerV2(**SMALL)
    for layer in model.layers:
        for block in layer.blocks:
            assert not any(p.any() for norm in (block.norm1, block.norm2) for p in norm.parameters())
            x = torch.randn(2, 8, 8, block.norm1.normalized_shape[0])
            assert torch.equal(block(x), x)
    assert model.layers[0].downsample.norm.weight.eq(1).all()
    assert model.layers[0].downsample.norm.normalized_shape == (48,)


def test_initialisation():
    attn = SwinTransformerV2(**SMALL).layers[0].blocks[0].attn
    assert attn.logit_scale.flatten().tolist() == pytest.approx([math.log(10)] * 2)
    assert not attn.q_bias.any()
    assert not attn.v_bias.any()
    assert attn.qkv.bias is None
    assert [tuple(p.shape) for p in attn.cpb_mlp.parameters()] == [(512, 2), (512,), (2, 512)]
    assert SwinTransformerV2(**SMALL, qkv_bias=False).layers[0].blocks[0].attn.q_bias is None


def test_interface_of_v1():
    model = SwinTransformerV2(**SMALL).eval()
    maps = model.feature_maps(torch.randn(2, 3, 50, 64))
    assert [tuple(m.shape) for m in maps] == [(2, 24, 13, 16), (2, 48, 7, 8)]
    assert model.num_features == 48
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 48)
    assert SwinTransformerV2(**SMALL, num_classes=5)(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    assert model.layer_id("layers.1.blocks.1.attn.cpb_mlp.0.weight") == 4
    model.train().set_grad_checkpointing()
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    with pytest.raises(
        UserError, match=r"pretrained_window_sizes \[8\] must have one value per stage of depths \[2, 2\]"
    ):
        SwinTransformerV2(**SMALL, pretrained_window_sizes=(8,))
