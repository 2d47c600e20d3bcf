"""Other implementations with our weights; a subclass of our own model stands for the official repository."""

import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import reference_models

MODEL = "swin_micro_patch4_window4_32"


@pytest.fixture(scope="module")
def own():
    return reference_models.build_own(MODEL, 10, 0.0)


@pytest.fixture
def reference(own, tmp_path):
    """Build the reference of a file whose SwinTransformer is ours with this body."""

    def build(body):
        path = tmp_path / "official.py"
        path.write_text(
            f"from swin_lightning.models.swin import SwinTransformer as Base\nclass SwinTransformer(Base):\n    {body}"
        )
        return reference_models.build_reference("official", own, 0.0, str(path))

    return build


def test_every_parameter_of_the_own_model_is_random(own):
    assert all(parameter.std() > 0.01 for parameter in own.parameters())


def test_own_model_is_the_same_in_every_call(own):
    again = reference_models.build_own(MODEL, 10, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), again.parameters(), strict=True))


def test_reference_has_our_weights(own, reference):
    images = torch.randn(2, 3, 32, 32)
    assert reference_models.max_difference(reference("pass"), own, images) == 0.0


@pytest.mark.parametrize("factor", ["1.001", "float('nan')"])
def test_reference_with_other_logits_is_user_error(own, reference, factor):
    model = reference(f"def forward(self, x):\n        return {factor} * super().forward(x)")
    difference = reference_models.max_difference(model, own, torch.randn(2, 3, 32, 32))
    with pytest.raises(ValueError, match="official: logits differ by"):
        reference_models.check_difference("official", difference)


@pytest.mark.parametrize(("precision", "factor", "same"), [
    ("32", 1 + 3e-7, True), ("32", 1 + 3e-6, False), ("bf16", 1 + 2**-6, True), ("bf16", 1 + 2**-4, False),
])  # fmt: skip
def test_differences_are_relative_to_large_logits(precision, factor, same):
    logits = torch.tensor([[0.5, -16.0]])
    difference = reference_models.logit_difference(logits * factor, logits)
    if same:
        assert reference_models.check_difference("timm", difference, precision) == pytest.approx(factor - 1, rel=0.5)
    else:
        with pytest.raises(ValueError, match="timm: logits differ by"):
            reference_models.check_difference("timm", difference, precision)


def test_reference_with_other_parameters_is_user_error(reference):
    body = "def __init__(self, **k):\n        super().__init__(**k)\n        self.extra = self.norm.__class__(2)"
    with pytest.raises(ValueError, match=r"official: missing or unexpected keys in the exported weights: .*extra"):
        reference(body)


def test_missing_project_is_import_error(own, tmp_path):
    with pytest.raises(ImportError, match="needs --official FILE"):
        reference_models.build_reference("official", own, 0.0)
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ImportError, match="does not define SwinTransformer"):
        reference_models.build_reference("official", own, 0.0, str(tmp_path / "empty.py"))


def test_vit_has_the_nearest_number_of_macs(own, monkeypatch):
    fake_timm = SimpleNamespace(create_model=lambda name, num_classes: (name, num_classes))
    monkeypatch.setitem(sys.modules, "timm", fake_timm)
    classifier = SimpleNamespace(backbone=SimpleNamespace(img_size=(224, 224)), head=SimpleNamespace(out_features=7))
    assert reference_models.build_vit(classifier, 4.5e9)[1] == ("vit_small_patch16_224", 7)
    assert reference_models.build_vit(classifier, 15.4e9)[1] == ("vit_base_patch16_224", 7)
    assert reference_models.build_vit(classifier, 9e9) is None  # none within a third
    assert reference_models.build_vit(own, 4.5e9) is None  # images of 32 px
