"""`swin-lightning export`: torch.export programs run with PyTorch only; arguments."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from swin_lightning import SwinClassifier
from swin_lightning.errors import UserError
from swin_lightning.export import export, export_pt2
from swin_lightning.models import SwinTransformer, SwinTransformerV2
from swin_lightning.models.weights import load_weights
from tests.support.golden import randomize

SIZES = {"img_size": 32, "embed_dim": 8, "depths": (2, 1), "num_heads": (2, 4), "window_size": 4}
RUN = """
import sys, torch
for version in (1, 2):
    model = torch.export.load(f"{version}.pt2").module()
    for images, logits in torch.load(f"{version}.pt", weights_only=True):
        torch.testing.assert_close(model(images), logits, atol=1e-5, rtol=0)
assert "swin_lightning" not in sys.modules
"""


class Classifier(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(16, 3)


@pytest.mark.slow
def test_pt2_gives_the_same_logits_in_a_process_without_swin_lightning():
    for version, build in ((1, SwinTransformer), (2, SwinTransformerV2)):
        model = randomize(Classifier(build(drop_path_rate=0.5, **SIZES)), std=0.1).train()
        export_pt2(model, f"{version}.pt2")
        assert model.training and model.backbone.training
        model.eval()
        with torch.no_grad():
            pairs = [(x, model.head(model.backbone(x))) for x in (torch.randn(n, 3, 32, 32) for n in (1, 3))]
        torch.save(pairs, f"{version}.pt")
    subprocess.run([sys.executable, "-c", RUN], check=True)


@pytest.mark.parametrize(
    ("path", "size", "message"),
    [
        ("a.pth", 32, r"'a.pth' must end with .pt2"),
        ("a.pt2", 0, "image size 0 must be a positive integer"),
        ("a.pt2", [8, 8, 8], "height and width"),
    ],
)
def test_invalid_arguments_of_export_pt2(path, size, message):
    with pytest.raises(UserError, match=message):
        export_pt2(Classifier(SwinTransformer(**SIZES)), path, size)


@pytest.fixture
def classifier(monkeypatch):
    """The classifier that any checkpoint contains."""
    model = SwinClassifier(SwinTransformer(**SIZES), num_classes=3)
    monkeypatch.setattr("swin_lightning.tasks.classification.load_classifier", lambda path, allow: model)
    return model


def test_command_writes_weights(classifier, capsys):
    export(["best.ckpt", "--format", "timm", "--output", "out/w.safetensors"])
    assert capsys.readouterr().out == "wrote out/w.safetensors (timm format)\n"
    loaded = Classifier(SwinTransformer(**SIZES))
    load_weights(loaded, "out/w.safetensors")
    assert torch.equal(loaded.head.weight, classifier.head.weight)
    assert torch.equal(loaded.backbone.norm.weight, classifier.backbone.norm.weight)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--output", "w.pth", "--size", "3"], "--size 3 is only valid with --format pt2, not swin_lightning"),
        (["--output", "w.bin"], r"'w.bin' must end with .safetensors or .pth"),
        (["--format", "onnx", "--output", "w.pth"], "swin-lightning export: argument --format: invalid choice: 'onnx'"),
        ([], "arguments are required: --output"),
    ],
)
def test_invalid_arguments_of_the_command(classifier, args, message):
    with pytest.raises(UserError, match=message):
        export(["best.ckpt", *args])
