"""The models in tools that look for `nn.Linear`, hook, wrap, trace, quantize, shard or materialise modules.

The rows of the table of tools in docs/checkpoints.md. Tools that are not installed are skipped: `pip install
swin_lightning[test-tools,export]`.
"""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from swin_lightning.models import SwinTransformer, SwinTransformerV2
from swin_lightning.models import linear as linear_module
from swin_lightning.models.features import FeaturePyramid
from swin_lightning.models.flops import count_params_and_macs
from swin_lightning.models.linear import use_onednn
from tests.support.cli import ROOT

SMALL = {"img_size": 32, "patch_size": 2, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
LAYERS = {1: 17 + 1, 2: 17 + 1 + 8}  # linear layers: 4 per block, patch merging, head; 2 per block for V2's bias

pytestmark = pytest.mark.filterwarnings("ignore")  # of the tools


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def model(request, monkeypatch):
    """V1 and V2 with random parameters, as a task prepares them on a CPU where oneDNN is faster."""
    monkeypatch.setattr(linear_module, "is_amd_with_avx512", lambda: True)
    return build(request.param)


def build(version, **options):
    torch.manual_seed(0)
    classes = {1: SwinTransformer, 2: SwinTransformerV2}
    model = classes[version](**{**SMALL, "num_classes": 5, "drop_path_rate": 0.0, **options})
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif parameter.ndim == 1 or "bias_table" in name:
            nn.init.normal_(parameter, std=0.2)
        elif parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    use_onednn(model)
    return model.eval()


IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def linear_layers(model):
    return [module for module in model.modules() if type(module) is nn.Linear]


def relative_error(actual, expected):
    return float((actual - expected).norm() / expected.norm())


def own_macs(version):
    """Of the linear layers and the patch embedding: our count without the two products of attention.

    In V2 the network of the position bias is added, which depends on the window only and which published counts leave
    out: 225 offsets, 2 x 512 and 512 x heads weights, as often as there are blocks.
    """
    _, macs = count_params_and_macs(lambda num_classes: build(version, num_classes=num_classes), 5, 32)
    attention = sum(2 * 2 * side**2 * 16 * dim for side, dim in ((16, 24), (8, 48)))  # 2 blocks, 2 products, N = 16
    table = sum(2 * 49 * 512 * (2 + heads) for heads in (2, 4)) if version == 2 else 0  # 2 blocks, offsets of 4 x 4
    return macs - attention + table


def test_every_linear_layer_is_called_as_a_module(model):
    layers, calls = linear_layers(model), []
    for layer in layers:
        layer.register_forward_hook(lambda module, *_: calls.append(module))
    model(IMAGES)
    assert set(calls) == set(layers)
    version = 2 if isinstance(model, SwinTransformerV2) else 1
    assert len(layers) == LAYERS[version]


def test_ptflops(model):
    ptflops = pytest.importorskip("ptflops")
    version = 2 if isinstance(model, SwinTransformerV2) else 1
    options = {"as_strings": False, "print_per_layer_stat": False, "backend": "pytorch"}
    macs, params = ptflops.get_model_complexity_info(model, (3, 32, 32), **options)
    assert macs == pytest.approx(count_params_and_macs(lambda num_classes: build(version), 5, 32)[1], rel=0.25)
    assert params == sum(p.numel() for p in model.parameters())


def test_thop(model):
    thop = pytest.importorskip("thop")
    version = 2 if isinstance(model, SwinTransformerV2) else 1
    macs, _ = thop.profile(model, (IMAGES[:1],), verbose=False)
    assert macs == pytest.approx(own_macs(version), rel=0.03)  # it counts norms too


def test_fvcore(model):
    fvcore = pytest.importorskip("fvcore.nn")
    version = 2 if isinstance(model, SwinTransformerV2) else 1
    counter = fvcore.FlopCountAnalysis(model, IMAGES[:1])
    counter.unsupported_ops_warnings(False)
    counter.uncalled_modules_warnings(False)
    by_operator = counter.by_operator()
    assert by_operator["linear"] + by_operator["conv"] == own_macs(version)


def test_dynamic_quantization(model):
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert not linear_layers(quantized)
    assert relative_error(quantized(IMAGES), model(IMAGES)) < 0.1


def test_torchao_int8_weights(model):
    quantization = pytest.importorskip("torchao.quantization")
    quantized = copy.deepcopy(model)
    quantization.quantize_(quantized, quantization.Int8WeightOnlyConfig())
    assert all(type(layer.weight) is not nn.Parameter for layer in linear_layers(quantized))
    with torch.no_grad():
        assert 0 < relative_error(quantized(IMAGES), model(IMAGES)) < 0.05


def test_peft_lora(model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["qkv", "proj", "fc1", "fc2"], init_lora_weights=False)
    config.exclude_modules = r"patch_embed\..*"
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    logits = adapted(IMAGES)
    assert relative_error(logits, model(IMAGES)) > 0.01
    logits.square().sum().backward()
    adapters = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(adapters) == 2 * 4 * 4 and all(p.grad.any() for p in adapters.values())
    merged = adapted.merge_and_unload()
    assert len(linear_layers(merged)) == len(linear_layers(model))
    torch.testing.assert_close(merged(IMAGES), logits, atol=1e-5, rtol=1e-4)


def test_pruning(model):
    layers = [(layer, "weight") for layer in linear_layers(model)]
    expected = model(IMAGES)
    prune.global_unstructured(layers, prune.L1Unstructured, amount=0.3)
    pruned = model(IMAGES)
    assert relative_error(pruned, expected) > 0.01
    for layer, name in layers:
        prune.remove(layer, name)
    torch.testing.assert_close(model(IMAGES), pruned)
    assert sum(float((layer.weight == 0).sum()) for layer, _ in layers) > 0


def test_parametrizations(model):
    expected = model(IMAGES)
    for layer in linear_layers(model):
        parametrizations.weight_norm(layer)
    torch.testing.assert_close(model(IMAGES), expected)
    model(IMAGES).sum().backward()
    norms = [p.grad for name, p in model.named_parameters() if name.endswith("original0")]
    assert len(norms) == len([m for m in model.modules() if hasattr(m, "parametrizations")]) and all(
        g is not None for g in norms
    )


def test_captum(model):
    attr = pytest.importorskip("captum.attr")
    gradients = attr.IntegratedGradients(model).attribute(IMAGES, torch.zeros_like(IMAGES), target=1, n_steps=32)
    with torch.no_grad():
        difference = (model(IMAGES) - model(torch.zeros_like(IMAGES)))[:, 1]
    torch.testing.assert_close(gradients.sum((1, 2, 3)).float(), difference, atol=0.1, rtol=0.1)
    layer = attr.LayerActivation(model, model.layers[1].blocks[0].attn.qkv).attribute(IMAGES)
    assert layer.shape[-1] == 3 * 48 and layer.any()


def test_grad_cam(model):
    module = pytest.importorskip("pytorch_grad_cam", exc_type=ImportError)
    with module.GradCAM(model, [model.layers[-1].blocks[-1].norm1], reshape_transform=_map_of_windows) as cam:
        maps = cam(IMAGES, None)
    assert maps.shape == (4, 32, 32) and maps.any()


def _map_of_windows(x):
    return x.permute(0, 3, 1, 2)


def test_torch_func(model):
    parameters = dict(model.named_parameters())

    def loss(parameters, image):
        return torch.func.functional_call(model, parameters, (image[None],)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, IMAGES[:2])
    for i in (0, 1):
        single = torch.func.grad(loss)(parameters, IMAGES[i])
        for name, value in single.items():
            torch.testing.assert_close(per_sample[name][i], value, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("size", [(32, 32), (30, 44)])
def test_jit_trace_of_one_image_takes_any_batch(model, size):
    images = torch.randn(3, 3, *size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, images[:1])
    assert len(traced(images[:0])) == 0  # the model itself refuses an empty batch
    for batch in (images, torch.cat([images] * 2)):
        torch.testing.assert_close(traced(batch), model(batch), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_onnx_with_dynamic_batch(model, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    with torch.no_grad():
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        program = torch.onnx.export(model, (IMAGES[:2],), dynamo=True, dynamic_shapes=shapes, verbose=False)
        program.save(tmp_path / "w.onnx")
        session = runtime.InferenceSession(tmp_path / "w.onnx")
        for batch in (IMAGES, IMAGES[:1]):
            (logits,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
            torch.testing.assert_close(torch.from_numpy(logits), model(batch), atol=1e-5, rtol=1e-4)


def test_accelerate_big_model_loading(model, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    version = 2 if isinstance(model, SwinTransformerV2) else 1
    torch.save(model.state_dict(), tmp_path / "w.bin")
    for buffers in (False, True):
        with accelerate.init_empty_weights(include_buffers=buffers):
            empty = build_empty(version)
        loaded = accelerate.load_checkpoint_and_dispatch(empty, str(tmp_path / "w.bin"), device_map={"": "cpu"})
        torch.testing.assert_close(loaded.eval()(IMAGES), model(IMAGES))


def build_empty(version):
    return {1: SwinTransformer, 2: SwinTransformerV2}[version](**SMALL, num_classes=5)


@pytest.mark.parametrize("assign", [False, True])
def test_meta_device(model, assign):
    version = 2 if isinstance(model, SwinTransformerV2) else 1
    with torch.device("meta"):
        empty = build_empty(version)
    if not assign:
        empty.to_empty(device="cpu")
        for tensor in (*empty.parameters(), *empty.buffers()):
            tensor.data.fill_(float("nan") if tensor.is_floating_point() else 77)
    empty.load_state_dict(model.state_dict(), strict=True, assign=assign)
    torch.testing.assert_close(empty.eval()(IMAGES), model(IMAGES))


def test_deepcopy_and_pickle(model):
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(copied(IMAGES), model(IMAGES))
        nn.init.zeros_(copied.head.weight)
        assert model.head.weight.any()


def test_documented_tools_are_the_tested_ones():
    text = (ROOT / "docs/checkpoints.md").read_text(encoding="utf-8")
    rows = [row.split("|") for row in text.split("<!-- tools -->")[1].split("\n\n")[0].strip().splitlines()[2:]]
    tests = {row[-2].strip().strip("`") for row in rows}
    assert tests <= {name for name in globals() if name.startswith("test_")} and len(rows) >= 12


def test_reset_parameters_after_to_empty():
    for version in (1, 2):
        with torch.device("meta"):
            empty = {1: SwinTransformer, 2: SwinTransformerV2}[version](**SMALL, num_classes=5, ape=True, init_std=0.1)
        empty.to_empty(device="cpu")
        for parameter in empty.parameters():
            parameter.data.fill_(float("nan"))
        empty.reset_parameters()
        new = {1: SwinTransformer, 2: SwinTransformerV2}[version](**SMALL, num_classes=5, ape=True, init_std=0.1)
        for (name, a), b in zip(empty.named_parameters(), new.parameters(), strict=True):
            assert float(a.mean()) == pytest.approx(float(b.mean()), abs=0.1), name
            assert float(a.std(correction=0)) == pytest.approx(float(b.std(correction=0)), rel=0.3, abs=0.01), name


def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)


@pytest.mark.parametrize("version", [1, 2])
def test_fsdp2_from_the_meta_device(version, tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    process_group(tmp_path)
    try:
        with torch.device("meta"):
            model = build_empty(version)
        options = {
            "mesh": init_device_mesh("cpu", (1,)),
            "mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32),
        }
        for layer in model.layers:
            for block in layer.blocks:
                fully_shard(block, **options)
        fully_shard(model, **options)
        model.to_empty(device="cpu")
        model.reset_parameters()
        model.train()(IMAGES).float().square().sum().backward()
        assert all(p.grad is not None and p.grad.full_tensor().isfinite().all() for p in model.parameters())
    finally:
        torch.distributed.destroy_process_group()


def test_ddp_of_a_feature_pyramid(tmp_path):
    from torch.nn.parallel import DistributedDataParallel

    process_group(tmp_path)
    try:
        model = DistributedDataParallel(FeaturePyramid(build_empty(1), (0,)))
        for _ in range(3):  # an unused parameter is an error at the second step
            sum(x.square().sum() for x in model(IMAGES)).backward()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_in_half_precision(model, dtype):
    with torch.no_grad():
        expected = model(IMAGES)
        half = model.to(dtype)(IMAGES.to(dtype))
    assert half.dtype == dtype and relative_error(half.float(), expected) < 0.1
