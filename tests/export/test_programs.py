"""Programs: torch.export, TorchScript and ONNX, with and without preprocessing, of both versions."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from swin_lightning.export.programs import Network, write_program
from swin_lightning.inference import Predictor
from swin_lightning.program_files import Program, ProgramInfo
from tests.support.checkpoint import CLASSES, PREPROCESSING, write_checkpoint

RGB = np.array([[0, 20, 190], [190, 0, 20], [20, 190, 0]], dtype=np.uint8)
INFO = ProgramInfo(CLASSES, (24, 24), PREPROCESSING)
RUN = """
import sys, torch
for version in (1, 2):
    model = torch.export.load(f"{version}.pt2").module()
    for images, logits in torch.load(f"{version}.pt", weights_only=True):
        torch.testing.assert_close(model(images), logits, atol=1e-5, rtol=0)
assert "swin_lightning" not in sys.modules
"""


@pytest.mark.slow
def test_pt2_gives_the_same_logits_in_a_process_without_swin_lightning(tmp_path):
    for version in (1, 2):
        model = write_checkpoint(tmp_path / "a.ckpt", version).train()
        write_program(model, tmp_path / f"{version}.pt2", INFO)
        assert model.training and model.backbone.training
        model.eval()
        with torch.no_grad():
            pairs = [(x, model(x)) for x in (torch.randn(n, 3, 24, 24) for n in (1, 3))]
        torch.save(pairs, f"{version}.pt")
    subprocess.run([sys.executable, "-c", RUN], check=True)


@pytest.mark.parametrize(
    ("suffix", "version"),
    [
        (".pt", 1),
        pytest.param(".pt2", 1, marks=pytest.mark.slow),
        pytest.param(".onnx", 1, marks=pytest.mark.slow),
        pytest.param(".pt", 2, marks=pytest.mark.slow),
        pytest.param(".onnx", 2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("includes_preprocessing", [False, True], ids=["network", "with preprocessing"])
def test_predictor_gives_the_probabilities_of_the_checkpoint(tmp_path, suffix, version, includes_preprocessing):
    if suffix == ".onnx":
        pytest.importorskip("onnxscript"), pytest.importorskip("onnxruntime")
    classifier = write_checkpoint(tmp_path / "a.ckpt", version)
    info = replace(INFO, includes_preprocessing=includes_preprocessing)
    write_program(classifier, tmp_path / f"a{suffix}", info)
    predictor = Predictor(tmp_path / f"a{suffix}")
    assert predictor.program.info == info and predictor.preprocessing == PREPROCESSING
    rng = np.random.default_rng(0)
    sizes = ((30, 50), (3, 4), (200, 90))
    images = [rng.integers(60, size=(*size, 3), dtype=np.uint8) + shade for size, shade in zip(sizes, RGB, strict=True)]
    expected = Predictor(tmp_path / "a.ckpt", "cpu")(images)
    actual = predictor(images)
    assert [a.classes for a in actual] == [CLASSES] * 3 and [a.name for a in actual] == ["0", "1", "2"]
    rows = [torch.stack([a.probabilities for a in predictions]) for predictions in (actual, expected)]
    assert rows[1].std(dim=0).max() > 0.01  # the images differ
    torch.testing.assert_close(*rows, atol=1e-6, rtol=0)


def test_half_precision_network(tmp_path):
    classifier = write_checkpoint(tmp_path / "a.ckpt")
    images = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        full, half = Network(classifier)(images), Network(classifier, half=True)(images)
    assert half.dtype == torch.float32 and 0 < (half - full).abs().max() < 0.01
    assert {p.dtype for p in classifier.parameters()} == {torch.float32}  # a copy was converted


def test_images_with_other_channels(tmp_path):
    classifier = write_checkpoint(tmp_path / "a.ckpt", in_chans=1)
    write_program(classifier, tmp_path / "a.pt", ProgramInfo(CLASSES, (24, 24), None))
    images = torch.randn(2, 1, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(Program(tmp_path / "a.pt")(images), classifier(images))
