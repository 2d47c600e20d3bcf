"""torch.compile and torch.export: one graph per mode and image size."""

import copy

import pytest
import torch

from swin_lightning.cli import main
from swin_lightning.models import SwinTransformer, SwinTransformerV2
from swin_lightning.tasks import SimMIM
from swin_lightning.tasks.base import ISOLATED
from tests.support.cli import DIGITS, SHORT, metrics
from tests.support.golden import formula_input

SIZES = {"embed_dim": 8, "depths": (2,), "num_heads": (2,), "window_size": 4, "num_classes": 3}


@pytest.fixture(params=[SwinTransformer, SwinTransformerV2])
def model(request):
    torch.compiler.reset()
    own = request.param(img_size=32, drop_path_rate=0.5, **SIZES)
    for parameter in own.parameters():  # residual branches of V2 are initialised to zero
        torch.nn.init.normal_(parameter, std=0.1)
    return own


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_training_is_one_graph_with_the_same_gradients(model, checkpointing):
    model.set_grad_checkpointing(checkpointing)
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.0  # compiled and eager code draw different random numbers
    compiled = copy.deepcopy(model)
    compiled.compile(backend="aot_eager", fullgraph=True)
    for own in (model, compiled):
        own.train()(formula_input(32, 32)).square().sum().backward()
    for ours, theirs in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)


def test_compiled_drop_path_drops_samples(model):
    model.compile(backend="eager", fullgraph=True)
    x = formula_input(32, 32)[:1].expand(64, -1, -1, -1)
    assert len(model.train()(x).detach().unique(dim=0)) == 4  # one image, with and without each of two branches


@pytest.mark.slow
def test_stochastic_depth_does_not_recompile(model):
    graphs = []
    model.compile(backend=lambda graph, _: graphs.append(graph) or graph.forward, fullgraph=True)
    x = formula_input(32, 32)
    for step in range(50):
        model.train()(x)
        if step == 24:
            model.eval()(x)
    assert len(graphs) == 2


@pytest.mark.parametrize(("value", "mode"), [("true", None), ("reduce-overhead", "reduce-overhead")])
def test_compile_option_selects_the_mode(value, mode, monkeypatch):
    modes = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: modes.append(options))
    main(["fit", "-c", DIGITS, *SHORT, f"--model.compile={value}"])
    assert modes == [{"mode": mode, "dynamic": False, **ISOLATED}]


@pytest.mark.slow
@pytest.mark.skipif(not ISOLATED, reason="an option of later versions of torch")
def test_parts_of_a_model_have_their_own_limit_of_recompilations(monkeypatch):
    graphs = []
    compile_module = torch.nn.Module.compile

    def compile_with_counter(module, mode, **options):
        compile_module(module, backend=lambda graph, _: graphs.append(graph) or graph.forward, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_with_counter)
    backbone = SwinTransformer(16, 2, embed_dim=4, depths=(1, 1, 1), num_heads=(1, 1, 1), window_size=2)
    model = SimMIM(backbone, mask_patch_size=8, compile=True)
    model.setup("fit")
    for size in (1, 2, 3):
        images = torch.zeros(size, 3, 16, 16)
        model(images, torch.zeros(size, 8, 8, dtype=torch.bool))
    assert len(graphs) == 3 * len(model.compiled_modules())  # torch's limit is 8 for all stages together


@pytest.mark.slow  # compiles once per size
def test_compiled_evaluation_of_several_image_sizes(model):
    compiled = copy.deepcopy(model).eval()
    compiled.compile(backend="eager", fullgraph=True)
    with torch.no_grad():
        for size in ((32, 32), (36, 44), (20, 64)):
            x = formula_input(*size)
            torch.testing.assert_close(compiled(x), model.eval()(x), atol=1e-5, rtol=1e-5)


def test_exported_model_has_a_dynamic_batch_size(model):
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model.eval(), (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: batch},)).module()
    for number in (1, 2, 5):
        x = torch.randn(number, 3, 32, 32)
        torch.testing.assert_close(exported(x), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # compiles twice, minutes on a CPU
def test_compiled_run_with_ema_checkpointing_and_resume(capsys):
    torch.compiler.reset()  # dynamo remembers which sizes have changed
    args = [
        "fit",
        "-c",
        DIGITS,
        *SHORT,
        "--model.compile=true",
        "--ema.decay=0.9",
        "--model.gradient_checkpointing=true",
    ]
    main(args)
    assert capsys.readouterr().out.count("first step ") == 1
    resumed = main([*args, "--trainer.max_epochs=2", "--ckpt_path=last"])
    assert resumed.trainer.global_step == 6 and len(metrics(resumed.run_dir, "val/acc")) == 2
