"""RandAugment's operations against PIL, as in timm."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from swin_lightning.data.rand_augment import RAND_AUGMENT_OPS
from tests.support.images import noise

FILL = (124, 116, 104)


def affine(image, *matrix):
    return image.transform((56, 40), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL)


def point(image, function):
    return image.point([function(i) for i in range(256)] * 3)


# expected results at magnitude 9 of 10 for images of 56 x 40 pixels: positive and negative sign
EXPECTED = {
    "AutoContrast": (ImageOps.autocontrast,) * 2,
    "Equalize": (ImageOps.equalize,) * 2,
    "Invert": (ImageOps.invert,) * 2,
    "Rotate": (
        lambda image: image.rotate(27, resample=Image.Resampling.BICUBIC, fillcolor=FILL),
        lambda image: image.rotate(-27, resample=Image.Resampling.BICUBIC, fillcolor=FILL),
    ),
    "Posterize": (lambda image: ImageOps.posterize(image, 1),) * 2,  # 4 - int(3.6)
    "Solarize": (lambda image: ImageOps.solarize(image, 26),) * 2,  # 256 - int(230.4)
    "SolarizeAdd": (lambda image: point(image, lambda i: min(255, i + 99) if i < 128 else i),) * 2,
    "Color": (
        lambda image: ImageEnhance.Color(image).enhance(1.81),
        lambda image: ImageEnhance.Color(image).enhance(0.19),
    ),
    "Contrast": (
        lambda image: ImageEnhance.Contrast(image).enhance(1.81),
        lambda image: ImageEnhance.Contrast(image).enhance(0.19),
    ),
    "Brightness": (
        lambda image: ImageEnhance.Brightness(image).enhance(1.81),
        lambda image: ImageEnhance.Brightness(image).enhance(0.19),
    ),
    "Sharpness": (
        lambda image: ImageEnhance.Sharpness(image).enhance(1.81),
        lambda image: ImageEnhance.Sharpness(image).enhance(0.19),
    ),
    "ShearX": (lambda image: affine(image, 1, 0.27, 0, 0, 1, 0), lambda image: affine(image, 1, -0.27, 0, 0, 1, 0)),
    "ShearY": (lambda image: affine(image, 1, 0, 0, 0.27, 1, 0), lambda image: affine(image, 1, 0, 0, -0.27, 1, 0)),
    # 0.45 of the side length at magnitude 10
    "TranslateX": (
        lambda image: affine(image, 1, 0, 0.405 * 56, 0, 1, 0),
        lambda image: affine(image, 1, 0, -0.405 * 56, 0, 1, 0),
    ),
    "TranslateY": (
        lambda image: affine(image, 1, 0, 0, 0, 1, 0.405 * 40),
        lambda image: affine(image, 1, 0, 0, 0, 1, -0.405 * 40),
    ),
}


def test_operations_are_the_fifteen_of_timm():
    assert sorted(RAND_AUGMENT_OPS) == sorted(EXPECTED)
    assert len(EXPECTED) == 15


@pytest.mark.parametrize("name", sorted(EXPECTED))
@pytest.mark.parametrize("sign", [1, -1])
def test_operation_equals_pil(name, sign):
    image = (noise() * 0.8 + 20).astype(np.uint8)  # less than the full range, for autocontrast
    if name == "Rotate":  # another cubic kernel: similar for smooth images such as photographs
        image = cv2.GaussianBlur(image, (7, 7), 2)
    expected = np.asarray(EXPECTED[name][sign < 0](Image.fromarray(image)))
    actual = RAND_AUGMENT_OPS[name](image, sign, 0.9, FILL)
    difference = np.abs(actual.astype(int) - expected)
    if name == "Rotate":
        assert np.median(difference) == 0
        assert difference.mean() < 1.5
    else:
        assert difference.max() <= 1  # rounding of the factor
        assert (difference == 0).mean() > 0.99
    assert not np.array_equal(actual, image)


@pytest.mark.parametrize("name", ["TranslateX", "TranslateY", "ShearX", "ShearY"])
@pytest.mark.parametrize("level", [0.0, 0.01, 0.04, 0.31, 0.5, 1.0])
def test_translations_and_shears_equal_pil_up_to_the_border(name, level):
    image = noise()
    for sign in (1, -1):
        strength = sign * level
        matrix = {
            "TranslateX": (1, 0, 0.45 * strength * 56, 0, 1, 0),
            "TranslateY": (1, 0, 0, 0, 1, 0.45 * strength * 40),
            "ShearX": (1, 0.3 * strength, 0, 0, 1, 0),
            "ShearY": (1, 0, 0, 0.3 * strength, 1, 0),
        }[name]
        difference = np.abs(
            RAND_AUGMENT_OPS[name](image, sign, level, FILL).astype(int) - affine(Image.fromarray(image), *matrix)
        )
        assert difference.max() <= 1
        assert (difference == 0).mean() > 0.98


@pytest.mark.parametrize("name", ["Posterize", "Solarize"])
def test_maximum_magnitude_is_valid(name):
    actual = RAND_AUGMENT_OPS[name](noise(), 1, 1.0, FILL)
    # Posterize keeps 0 bits; Solarize's threshold is 0
    assert np.array_equal(actual, np.zeros_like(noise()) if name == "Posterize" else 255 - noise())
