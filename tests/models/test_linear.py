"""Linear layers and MLPs by oneDNN: same outputs and gradients, only where they are faster, in plain modules."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

from swin_lightning.models import SwinTransformer
from swin_lightning.models import linear as linear_module
from swin_lightning.models.layers import Mlp
from swin_lightning.models.linear import linear, use_onednn


def pretend(monkeypatch, amd=False, intel=False, bfloat16=False):
    for name, value in {"is_amd_with_avx512": amd, "is_intel_with_amx": intel, "multiplies_bfloat16": bfloat16}.items():
        monkeypatch.setattr(linear_module, name, lambda value=value: value)


@pytest.fixture
def convolutions(monkeypatch):
    """Pretend to have an AMD CPU with AVX-512; returns the input shapes of convolutions."""
    shapes, original = [], F.conv2d
    pretend(monkeypatch, amd=True)
    monkeypatch.setattr(F, "conv2d", lambda x, *more: shapes.append(tuple(x.shape)) or original(x, *more))
    return shapes


def accelerated(**kwargs):
    layer = nn.Linear(6, 10, **kwargs)
    use_onednn(layer)
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "image"),
    [
        ((2, 14, 14, 6), (28, 6, 1, 14)),
        ((8, 49, 6), (28, 6, 1, 14)),
        ((400, 6), (16, 6, 1, 25)),
        ((128, 6), (16, 6, 1, 8)),
        ((127, 6), None),  # a prime number of tokens
        ((8, 6), None),
        ((0, 49, 6), None),
    ],
)
def test_outputs_and_gradients_match_linear(convolutions, shape, image, bias):
    layer = accelerated(bias=bias)
    x = torch.randn(shape, requires_grad=True)
    direction = torch.randn(*shape[:-1], 10)
    inputs = (x, *layer.parameters())
    y = layer(x)
    assert convolutions == ([image] if image else [])
    reference = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(y, reference)
    gradients, expected = (torch.autograd.grad(out, inputs, direction) for out in (y, reference))
    for actual, gradient in zip(gradients, expected, strict=True):
        torch.testing.assert_close(actual, gradient, atol=1e-4, rtol=1e-5)


def test_non_contiguous_input(convolutions):
    x = torch.randn(6, 16, 32).permute(1, 2, 0)
    weight = torch.randn(4, 6)
    torch.testing.assert_close(linear(x, weight, None), F.linear(x, weight))
    assert len(convolutions) == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated")
def test_other_dtypes_autocast_export_and_tracing_use_linear(convolutions):
    layer, x = accelerated(), torch.randn(512, 6)
    layer.double()(x.double())
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    graph = torch.export.export(layer, (x,)).graph
    assert "linear" in str(graph) and "conv" not in str(graph)
    traced = torch.jit.trace(layer, x, check_trace=False)
    assert "linear" in str(traced.graph) and "conv" not in str(traced.graph)
    layer.to("meta")(x.to("meta"))
    assert not convolutions


def test_other_cpus_use_linear(convolutions, monkeypatch):
    pretend(monkeypatch)
    layer = accelerated()
    layer(torch.randn(512, 6))
    assert not convolutions and "forward" not in vars(layer)


def test_modules_stay_plain(convolutions):
    model = SwinTransformer(img_size=16, patch_size=2, embed_dim=8, depths=(1, 1), num_heads=(1, 1), num_classes=2)
    keys, types = list(model.state_dict()), [type(module) for module in model.modules()]
    use_onednn(model)
    assert list(model.state_dict()) == keys and [type(module) for module in model.modules()] == types
    model(torch.randn(16, 3, 16, 16))
    assert len(convolutions) == 1 + 8 + 1  # patch embedding, layers of two blocks, patch merging; the head has 16 rows
    use_onednn(model, enable=False)
    model(torch.randn(16, 3, 16, 16))
    assert len(convolutions) == 11


def test_copies_use_their_own_parameters(convolutions):
    layer, x = accelerated(), torch.randn(512, 6)
    copied, before = copy.deepcopy(layer), layer(x)
    nn.init.zeros_(layer.weight)
    torch.testing.assert_close(copied(x), before)
    assert len(convolutions) == 2
    buffer = io.BytesIO()
    torch.save(copied, buffer)
    buffer.seek(0)
    for loaded in (pickle.loads(pickle.dumps(copied)), torch.load(buffer, weights_only=False)):
        torch.testing.assert_close(loaded(x), before)
    assert len(convolutions) == 2  # a pickled model is a plain one
    use_onednn(loaded)  # again
    loaded(x)
    assert len(convolutions) == 2 or "forward" in vars(loaded)


def test_changed_modules_are_left_alone(convolutions):
    x, calls = torch.randn(512, 6), []
    for change in (
        parametrizations.weight_norm,
        lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight.as_subclass(Subclass))),
    ):
        before, after = nn.Linear(6, 10), accelerated()
        for layer in (before, after):
            change(layer)
            use_onednn(layer)
            torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    assert not convolutions
    wrapped = nn.Linear(6, 10)
    wrapped.forward = lambda x: calls.append(x) or x
    use_onednn(wrapped)
    assert wrapped(x) is x and len(calls) == 1


class Subclass(torch.Tensor):
    """A tensor subclass, such as a quantized weight."""


def test_hooks_and_pruning_see_the_module(convolutions):
    layer, x, seen = accelerated(), torch.randn(512, 6), []
    layer.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    prune.l1_unstructured(layer, "weight", 0.5)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    assert seen == [(512, 10)] and (layer.weight == 0).float().mean() == 0.5


@pytest.mark.parametrize(("cpu", "shape", "gradients", "expected"), [
    ("amd", (112, 768, 768), True, True),
    ("intel", (25088, 96, 288), True, True), ("intel", (25088, 96, 384), False, True),
    ("intel", (25088, 384, 96), True, False), ("intel", (25088, 384, 96), False, True),
    ("intel", (6272, 96, 96), False, False), ("intel", (1568, 96, 384), False, False),
    ("intel", (25088, 192, 768), False, False), ("other", (25088, 96, 288), True, False),
])  # fmt: skip
def test_kernel_of_a_shape(cpu, shape, gradients, expected, monkeypatch):
    pretend(monkeypatch, amd=cpu == "amd", intel=cpu == "intel")
    assert linear_module.convolution_is_faster(*shape, gradients) == expected


@pytest.fixture
def bfloat16(monkeypatch):
    """Pretend to have an Intel CPU with AMX, on which outputs of 1000 elements and more are computed in one call."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN does not multiply bfloat16 on this CPU")
    pretend(monkeypatch, intel=True, bfloat16=True)
    monkeypatch.setattr(linear_module, "MIN_OUTPUT", 1000)
    monkeypatch.setattr(linear_module, "MIN_AMX_TOKENS", 50)
    torch.manual_seed(0)


@pytest.fixture
def fused(bfloat16):
    """An MLP in evaluation mode whose hidden layer has 1200 elements for 50 tokens."""
    mlp = Mlp(6, 24)
    use_onednn(mlp)
    return mlp.eval()


def reference(mlp, x):
    hidden = F.linear(x, mlp.fc1.weight, mlp.fc1.bias)
    return F.linear(F.gelu(hidden), mlp.fc2.weight, mlp.fc2.bias)


def flop(function, *args):
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return counter.get_total_flops(), {str(op) for op in counter.get_flop_counts()["Global"]}


FUSED = "mkldnn._linear_pointwise"


def test_gelu_is_fused_in_evaluation(fused):
    x = torch.randn(2, 5, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), reference(fused, x), atol=1e-6, rtol=1e-5)
        assert flop(fused, x) == (2 * 2 * 50 * 6 * 24, {FUSED, "aten.addmm"})  # hidden and output layer are counted
        with torch.autocast("cpu", torch.bfloat16):
            y = fused(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), reference(fused, x), atol=2e-2, rtol=2e-2)
    with torch.inference_mode():
        assert FUSED in flop(fused, x)[1]


def test_gelu_is_not_fused_where_it_would_be_noticed(fused, monkeypatch):
    x, seen = torch.randn(2, 5, 5, 6), []
    assert FUSED not in flop(fused, x)[1]  # with gradients
    with torch.no_grad():
        assert FUSED not in flop(fused.train(), x)[1]
        fused.eval()
        hook = fused.fc1.register_forward_hook(lambda module, args, out: seen.append(out))
        assert FUSED not in flop(fused, x)[1]
        torch.testing.assert_close(seen, [F.linear(x, fused.fc1.weight, fused.fc1.bias)])
        hook.remove()
        assert FUSED in flop(fused, x)[1] and FUSED not in flop(fused, x[:, 1:])[1]  # 50 tokens and 40
        assert FUSED not in flop(fused.double(), x.double())[1]
        fused.float()
        pretend(monkeypatch, bfloat16=True)  # AMD: float32 layers are convolutions
        assert FUSED not in flop(fused, x)[1]
        use_onednn(fused, enable=False)
        with torch.autocast("cpu", torch.bfloat16):
            assert FUSED not in flop(fused, x)[1] and "forward" not in vars(fused)


def autocast(dtype=torch.bfloat16):
    return torch.autocast("cpu", dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bias_is_added_in_the_kernel_in_bfloat16(bfloat16, dtype):
    layer, x = accelerated(), torch.randn(4, 25, 6, dtype=dtype)
    with torch.no_grad(), autocast():
        assert flop(layer, x) == (2 * 100 * 6 * 10, {FUSED})
        assert flop(layer, x[:3])[1] == {"aten.addmm"}
        y, expected = layer(x), F.linear(x, layer.weight, layer.bias)
    assert y.dtype == torch.bfloat16 and torch.equal(y, expected)
    layer.to(torch.bfloat16)
    x = torch.randn(25, 4, 6).bfloat16().transpose(0, 1)
    with torch.inference_mode():
        assert flop(layer, x)[1] == {FUSED}
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), atol=0.01, rtol=0.02)


def test_wrong_number_of_channels_has_the_message_of_torch(bfloat16, fused):
    for layer, x in ((accelerated(), torch.randn(300, 7)), (fused, torch.randn(300, 7)), (fused, torch.randn(1800))):
        with (
            torch.no_grad(),
            autocast(),
            pytest.raises(RuntimeError, match=r"shapes cannot be multiplied|size mismatch"),
        ):
            layer(x)


def test_layer_without_input_channels_is_left_alone(bfloat16):
    with pytest.warns(UserWarning, match="no-op"):
        layer = nn.Linear(0, 10)
    use_onednn(layer)
    assert torch.equal(layer(torch.ones(5, 0)), layer.bias.expand(5, 10))


def test_no_gradient_is_lost(bfloat16):
    layer, x = accelerated(), torch.randn(4, 25, 6)
    layer.weight.requires_grad_(False)  # fine-tuning of biases alone
    with autocast():
        assert flop(layer, x)[1] == {"aten.addmm"}
        layer(x).sum().backward()
    assert torch.equal(layer.bias.grad, torch.full((10,), 100.0))


def test_layers_without_a_faster_kernel_use_linear(bfloat16, monkeypatch):
    layer, x = accelerated(), torch.randn(4, 25, 6)
    with torch.no_grad():
        assert flop(layer, x)[1] == {"aten.addmm"}  # float32
        with autocast(torch.float16):
            assert flop(layer, x)[1] == {"aten.addmm"}
        with autocast():
            assert flop(accelerated(bias=False), x)[1] == {"aten.mm"}
            assert flop(layer, x[:, :0])[1] <= {"aten.addmm"}
            single = nn.Linear(6, 1000)
            use_onednn(single)
            assert FUSED not in flop(single, x[0, 0])[1] and FUSED in flop(single, x[0, :1])[1]
            pretend(monkeypatch, intel=True)
            assert flop(layer, x)[1] == {"aten.addmm"}


def test_float32_gelu_is_fused_for_many_tokens_only(fused, monkeypatch):
    monkeypatch.setattr(linear_module, "MIN_AMX_TOKENS", 51)
    x = torch.randn(51, 6)
    with torch.no_grad():
        assert FUSED in flop(fused, x)[1] and FUSED not in flop(fused, x[1:])[1]
        with autocast():
            assert FUSED in flop(fused, x[1:])[1]


@pytest.mark.parametrize(("dtype", "enabled"), [(torch.bfloat16, False), (torch.float64, True)])
def test_dtypes_that_linear_refuses_are_refused(fused, dtype, enabled):
    x = torch.randn(200, 6, dtype=dtype)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        for module in (accelerated(), fused):
            with pytest.raises(RuntimeError, match="dtype"):
                module(x)


def test_transforms_of_torch_func(bfloat16, fused):
    layer, x = accelerated(), torch.randn(3, 200, 6).bfloat16()
    layer.to(torch.bfloat16), fused.to(torch.bfloat16)
    functions = [(layer, lambda x: F.linear(x, layer.weight, layer.bias)), (fused, lambda x: reference(fused, x))]
    with torch.no_grad():
        assert FUSED in flop(layer, x)[1] & flop(fused, x)[1]
        for module, expected in functions:
            for transform in (
                torch.func.vmap,
                inner_derivative,
                lambda f: torch.func.jvp(inner_derivative(f), (x,), (x,)),
            ):
                found, wanted = transform(module), transform(expected)
                if callable(found):
                    found, wanted = found(x), wanted(x)
                torch.testing.assert_close(found, wanted, atol=0.05, rtol=0.05)


def inner_derivative(function):
    return lambda x: torch.func.jvp(lambda x: function(x).square(), (x,), (torch.ones_like(x),))[1]


def forward_mode(function, x, dx):
    with forward_ad.dual_level():
        return tuple(forward_ad.unpack_dual(function(forward_ad.make_dual(x, dx))))


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("derivative", [forward_mode, lambda function, x, dx: torch.func.jvp(function, (x,), (dx,))])
def test_no_derivative_is_lost(bfloat16, fused, derivative, context):
    layer, x, dx = accelerated(), torch.randn(4, 25, 6), torch.randn(4, 25, 6)
    with context(), autocast():
        for function, expected in (
            (layer, lambda x: F.linear(x, layer.weight, layer.bias)),
            (fused, lambda x: reference(fused, x)),
        ):
            found, wanted = derivative(function, x, dx), derivative(expected, x, dx)
            assert wanted[1].abs().max() > 0.1
            for actual, value in zip(found, wanted, strict=True):
                torch.testing.assert_close(actual, value, atol=0.05, rtol=0.05)
