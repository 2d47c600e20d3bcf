"""Compilers and exporters see one graph, whatever the mode and the size of the image."""

import copy

import pytest
import torch

from swin_lightning.cli import main
from swin_lightning.models import SwinTransformer, SwinTransformerV2
from tests.support.cli import DIGITS, SHORT, metrics
from tests.support.golden import formula_input

SIZES = {"embed_dim": 8, "depths": (2,), "num_heads": (2,), "window_size": 4, "num_classes": 3}


@pytest.fixture(params=[SwinTransformer, SwinTransformerV2])
def model(request):
    torch._dynamo.reset()
    own = request.param(img_size=32, drop_path_rate=0.5, **SIZES)
    for parameter in own.parameters():  # V2 starts with branches of zero
        torch.nn.init.normal_(parameter, std=0.1)
    return own


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_is_one_graph_and_learns_the_same(model, checkpointing):
    model.set_grad_checkpointing(checkpointing)
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.0  # the compiled draw is another one
    compiled = copy.deepcopy(model)
    compiled.compile(backend="aot_eager", fullgraph=True)
    for own in (model, compiled):
        own.train()(formula_input(32, 32)).square().sum().backward()
    for ours, theirs in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)


def test_the_graph_drops_samples_too(model):
    model.compile(backend="eager", fullgraph=True)
    x = formula_input(32, 32)[:1].expand(64, -1, -1, -1)
    assert len(model.train()(x).detach().unique(dim=0)) == 4  # of one image, with and without each of two branches


def test_fifty_steps_of_stochastic_depth_and_the_evaluation_between_are_two_graphs(model):
    graphs = []
    model.compile(backend=lambda graph, _: graphs.append(graph) or graph.forward, fullgraph=True)
    x = formula_input(32, 32)
    for step in range(50):
        model.train()(x)
        if step == 24:
            model.eval()(x)
    assert len(graphs) == 2


@pytest.mark.parametrize(("value", "mode"), [("true", None), ("reduce-overhead", "reduce-overhead")])
def test_the_switch_takes_modes(value, mode, monkeypatch):
    modes = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: modes.append(options))
    main(["fit", "-c", DIGITS, *SHORT, f"--model.compile={value}", "--test_after_fit=false"])
    assert modes == [{"mode": mode, "dynamic": False}]


@pytest.mark.slow  # compilers are, where sizes change
def test_evaluation_takes_images_of_any_size(model):
    compiled = copy.deepcopy(model).eval()
    compiled.compile(backend="eager", fullgraph=True)
    with torch.no_grad():
        for size in ((32, 32), (36, 44), (20, 64)):
            x = formula_input(*size)
            torch.testing.assert_close(compiled(x), model.eval()(x), atol=1e-5, rtol=1e-5)


def test_an_exported_model_answers_for_any_number_of_images(model):
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model.eval(), (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: batch},)).module()
    for number in (1, 2, 5):
        x = torch.randn(number, 3, 32, 32)
        torch.testing.assert_close(exported(x), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # compiles twice, minutes on a CPU
def test_a_compiled_run_averages_recomputes_and_goes_on(capsys):
    torch._dynamo.reset()  # it remembers which sizes have changed
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
