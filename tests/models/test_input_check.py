"""Images that a model cannot take: the message says what was expected."""

import pytest
import torch

from swin_lightning import SwinClassifier
from swin_lightning.models import SwinTransformer, SwinTransformerV2
from swin_lightning.models.features import FeaturePyramid
from tests.support.checkpoints import BACKBONE

IMAGES = torch.zeros(2, 3, 32, 32)
WRONG = {
    "uint8": (IMAGES.byte(), "floating-point numbers, got torch.uint8"),
    "int64": (IMAGES.long(), "got torch.int64"),
    "float64": (IMAGES.double(), "of torch.float32 as the model, got torch.float64"),
    "float16": (IMAGES.half(), "of torch.float32 as the model, got torch.float16"),
    "complex": (IMAGES.to(torch.complex64), "got torch.complex64"),
    "sparse": (IMAGES.to_sparse(), "dense tensor"),
    "one image": (IMAGES[0], r"expected normalised images B, 3, height, width, got shape \(3, 32, 32\)"),
    "grey": (IMAGES[:, :1], r"got shape \(2, 1, 32, 32\)"),
    "channels last": (IMAGES.permute(0, 2, 3, 1), "permute images B, height, width, C"),
    "five dimensions": (IMAGES[None], r"got shape \(1, 2, 3, 32, 32\)"),
    "no images": (IMAGES[:0], r"without an empty dimension, got shape \(0, 3, 32, 32\)"),
    "no rows": (IMAGES[:, :, :0], "without an empty dimension"),
    "array": (IMAGES.numpy(), "got a ndarray"),
}


@pytest.fixture(scope="module")
def models():
    backbone = SwinTransformer(**BACKBONE)
    pyramid = FeaturePyramid(SwinTransformer(**BACKBONE))
    return SwinClassifier(backbone, 3), SwinTransformerV2(**BACKBONE, num_classes=3), pyramid


@pytest.mark.parametrize("name", WRONG)
def test_wrong_images_are_refused(models, name):
    images, message = WRONG[name]
    for model in models:
        with pytest.raises(ValueError, match=message):
            model(images)


def test_right_images_are_taken(models):
    model = models[0].eval()
    with torch.no_grad():
        expected = model(IMAGES)
        assert torch.equal(model(IMAGES.contiguous(memory_format=torch.channels_last)), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert model(IMAGES.bfloat16()).shape == (2, 3)
            with pytest.raises(ValueError, match=r"got torch\.float64"):
                model(IMAGES.double())
        meta = SwinClassifier(SwinTransformer(**BACKBONE), 3).to("meta")
        assert meta(IMAGES.to("meta")).shape == (2, 3)


def test_check_is_no_part_of_an_exported_program(models):
    program = torch.export.export(
        models[1].eval(), (IMAGES,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    ).module()
    with torch.no_grad():
        assert program(IMAGES[:1]).shape == (1, 3)
