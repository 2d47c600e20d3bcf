"""Transforms for training and evaluation, and RandAugment's policy."""

import random

import numpy as np
import pytest
from PIL import Image

from swin_lightning.data.rand_augment import RAND_AUGMENT_OPS
from swin_lightning.data.transforms import (
    RandAugment,
    RandomResizedCrop,
    Transform,
    eval_transform,
    resize_torch,
    train_transform,
)
from swin_lightning.errors import UserError
from tests.support.images import noise


def gradient(height, width):
    """The red channel is the column, the green channel the row."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
    return image


# evaluation


@pytest.mark.parametrize("size", [(64, 64), (50, 200), (200, 50), (33, 40), (300, 300)])
@pytest.mark.parametrize("crop", ["center", "squash"])
@pytest.mark.parametrize("image_size", [32, 56])
def test_evaluation_images_have_the_image_size(size, crop, image_size):
    pixels = eval_transform(image_size, crop)(noise(*size), (0, 0, 0))
    assert pixels.shape == (image_size, image_size, 3)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize(
    ("size", "top", "left"),
    [((64, 64), 4, 4), ((64, 96), 4, 20), ((96, 64), 20, 4)],  # the shorter side is 64 = 56 * 256 / 224 already
)
def test_center_crop_is_central(size, top, left):
    image = gradient(*size)
    pixels = eval_transform(56)(image, (0, 0, 0))
    assert np.array_equal(pixels, image[top : top + 56, left : left + 56])


@pytest.mark.parametrize("factor", [2, 3])
def test_center_crop_of_a_larger_image_is_resized(factor):
    # a column of the resized image is the mean of `factor` columns of the original
    image = gradient(32 * factor, 48 * factor)
    pixels = eval_transform(28)(image, (0, 0, 0)).astype(float)
    columns = (np.arange(10, 38) + 0.5) * factor - 0.5
    rows = (np.arange(2, 30) + 0.5) * factor - 0.5
    assert np.abs(pixels[..., 0] - columns).max() <= 1
    assert np.abs(pixels[..., 1] - rows[:, None]).max() <= 1


def test_squash_keeps_the_full_image():
    pixels = eval_transform(16, "squash")(gradient(64, 128), (0, 0, 0)).astype(float)
    assert np.abs(pixels[..., 0] - ((np.arange(16) + 0.5) * 8 - 0.5)).max() <= 1
    assert np.abs(pixels[..., 1] - ((np.arange(16) + 0.5) * 4 - 0.5)[:, None]).max() <= 1


def test_crop_ratio_1_at_the_image_size_changes_no_pixel():
    image = noise(32, 32)
    assert np.array_equal(eval_transform(32, crop_ratio=1.0)(image, (0, 0, 0)), image)


@pytest.mark.parametrize(("image_size", "side"), [(224, 256), (256, 292), (192, 219)])
def test_shorter_side_is_that_of_the_official_protocol(image_size, side):
    image = noise(side, side)
    pixels = eval_transform(image_size)(image, (0, 0, 0))
    offset = round((side - image_size) / 2)  # the image has this size already: no resize
    assert np.array_equal(pixels, image[offset : offset + image_size, offset : offset + image_size])


def test_downscaling_is_antialiased():
    # stripes of one pixel average to grey; without antialiasing they would be black or white
    image = np.zeros((128, 128, 3), np.uint8)
    image[:, ::2] = 255
    pixels = eval_transform(32, "squash")(image, (0, 0, 0)).astype(float)
    assert np.abs(pixels - 127.5).max() < 10


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (120, 90), (300, 301)])
@pytest.mark.parametrize(("image_size", "side"), [(224, 256), (256, 292)])
def test_center_crop_has_the_pixels_of_pil(size, image_size, side):
    image, (height, width) = Image.fromarray(noise(*size)), size
    if width < height:
        height, width = int(side * height / width), side
    else:
        height, width = side, int(side * width / height)
    top, left = (round((length - image_size) / 2.0) for length in (height, width))
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    expected = resized.crop((left, top, left + image_size, top + image_size))
    assert np.array_equal(eval_transform(image_size)(noise(*size), (0, 0, 0)), np.asarray(expected))


@pytest.mark.parametrize("size", [(500, 400), (100, 80)])
def test_squash_has_the_pixels_of_pil(size):
    columns = Image.fromarray(noise(*size)).resize((384, size[0]), Image.Resampling.BICUBIC)  # first in Pillow below 13
    expected = columns.resize((384, 384), Image.Resampling.BICUBIC)
    assert np.array_equal(eval_transform(384, "squash")(noise(*size), (0, 0, 0)), np.asarray(expected))


@pytest.mark.parametrize("crop_ratio", [0.0, 1.1])
def test_crop_ratio_outside_0_to_1_is_an_error(crop_ratio):
    with pytest.raises(UserError, match=f"data.eval_crop_ratio {crop_ratio}: expected a number > 0 and <= 1"):
        eval_transform(224, crop_ratio=crop_ratio)


# training


@pytest.mark.parametrize(("height", "width"), [(101, 200), (60, 40), (20, 30), (56, 56), (300, 57)])
def test_resize_torch_equals_pil_up_to_rounding(height, width):
    # not contiguous, like a crop; values away from 0 and 255, where the two clip between the axes in different order
    image = (noise(height + 7, width + 9) // 2 + 64)[3:-4, 4:-5]
    expected = np.asarray(Image.fromarray(image).resize((56, 56), Image.Resampling.BICUBIC)).astype(int)
    difference = np.abs(resize_torch(image, 56) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.3


def test_random_crop_is_the_resized_box():
    crop, image = RandomResizedCrop(56, (0.1, 0.9)), noise(200, 300)
    for seed in range(20):
        box = crop.box(200, 300, random.Random(seed))
        assert np.array_equal(crop(image, random.Random(seed)), resize_torch(box.crop(image), 56))


def test_random_boxes_have_the_requested_area_and_aspect_ratio():
    crop = RandomResizedCrop(56, (0.2, 0.6))
    boxes = [crop.box(400, 500, random.Random(seed)) for seed in range(500)]
    assert all(b.top >= 0 and b.left >= 0 and b.top + b.height <= 400 and b.left + b.width <= 500 for b in boxes)
    areas = np.array([box.height * box.width / (400 * 500) for box in boxes])
    ratios = np.array([box.width / box.height for box in boxes])
    assert (areas.min(), areas.max()) == pytest.approx((0.2, 0.6), abs=0.01)
    assert areas.mean() == pytest.approx(0.4, abs=0.02)
    assert (ratios.min(), ratios.max()) == pytest.approx((3 / 4, 4 / 3), abs=0.03)
    assert np.log(ratios).mean() == pytest.approx(0, abs=0.03)
    assert {min(b.top for b in boxes), min(b.left for b in boxes)} == {0}
    # no box fits: the largest possible one in the centre
    assert crop.box(10, 1000, random.Random(0)) == (0, 493, 10, 13)


@pytest.mark.parametrize("crop", ["random_resized", "pad", "none"])
def test_training_pixels_are_a_function_of_the_seed(crop):
    transform = train_transform(24, crop, rotate=10.0, rand_augment="rand-m9-mstd0.5-inc1")
    image = noise()
    pixels = [transform(image, (0, 0, index)) for index in (0, 0, 1, 2, 3)]
    assert {p.shape for p in pixels} == {(24, 24, 3)}
    assert np.array_equal(pixels[0], pixels[1])
    assert len({p.tobytes() for p in pixels}) == 4


def test_augmentation_does_not_depend_on_earlier_images():
    transform = train_transform(24, rand_augment="rand-m9-mstd0.5-inc1")
    expected = transform(noise(), (7, 3, 1))
    for index in range(5):
        transform(noise(), (7, 3, 2 + index))
    np.random.seed(5)
    assert np.array_equal(transform(noise(), (7, 3, 1)), expected)


def test_pad_shifts_by_at_most_an_eighth():
    transform = train_transform(32, "pad", hflip=0.0)
    image = gradient(32, 32) + 1  # black is the padding
    offsets = set()
    for index in range(150):
        pixels = transform(image, (0, 0, index)).astype(int)
        dy, dx = (pixels[16, 16, channel] - 17 for channel in (1, 0))
        offsets.add((dy, dx))
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
        assert np.array_equal(pixels, padded[4 + dy : 36 + dy, 4 + dx : 36 + dx])
    assert {min(o) for o in zip(*offsets, strict=True)} == {-4}
    assert {max(o) for o in zip(*offsets, strict=True)} == {4}


@pytest.mark.parametrize("hflip", [0.0, 0.5, 1.0])
def test_hflip_is_the_probability_of_mirrored_images(hflip):
    transform, image = train_transform(16, "none", hflip=hflip), gradient(16, 16)
    mirrored = []
    for index in range(200):
        pixels = transform(image, (0, 0, index))
        mirrored.append(np.array_equal(pixels, image[:, ::-1]))
        assert mirrored[-1] or np.array_equal(pixels, image)
    assert np.mean(mirrored) == pytest.approx(hflip, abs=0.1 if hflip == 0.5 else 0)


def test_rotation_stays_within_the_maximum_angle():
    # a bright spot far from the centre shows the angle
    image = np.zeros((65, 65, 3), np.uint8)
    image[32, 57:62] = 255
    transform = train_transform(65, "none", hflip=0.0, rotate=10.0)
    angles = []
    for index in range(60):
        weights = transform(image, (0, 0, index))[..., 0].astype(float)
        y, x = ((weights * axis).sum() / weights.sum() - 32 for axis in np.mgrid[:65, :65])
        angles.append(np.degrees(np.arctan2(y, x)))
    assert 8 < max(angles) < 10.5
    assert -10.5 < min(angles) < -8


def test_random_resized_crop_keeps_the_requested_share_of_the_area():
    transform, image = train_transform(32, crop_scale=(0.25, 0.5), hflip=0.0), gradient(200, 200)
    shares = []
    for index in range(100):
        pixels = transform(image, (0, 0, index)).astype(float)
        width, height = (np.ptp(pixels[..., channel]) * 32 / 31 for channel in (0, 1))
        shares.append(width * height / 200**2)
    assert 0.23 < min(shares) < 0.3
    assert 0.45 < max(shares) < 0.53


# RandAugment


def test_operations_are_applied_in_order():
    image = noise()
    once = RandAugment(fill=(1, 2, 3)).apply(image, [("Posterize", 1, 0.9)])
    twice = RandAugment(fill=(1, 2, 3)).apply(image, [("Posterize", 1, 0.9), ("Rotate", -1, 0.9)])
    assert np.array_equal(twice, RandAugment(fill=(1, 2, 3)).apply(once, [("Rotate", -1, 0.9)]))


@pytest.mark.parametrize(
    ("name", "magnitude", "std", "layers", "probability"),
    [
        ("rand-m9-mstd0.5-inc1", 9, 0.5, 2, 0.5),
        ("rand-m7-inc1", 7, 0, 2, 0.5),
        ("rand-n3-m5-mstd1-p1.0-inc1", 5, 1, 3, 1),
        ("rand-inc1", 10, 0, 2, 0.5),  # timm's defaults
    ],
)
def test_policies_are_parsed_in_timms_notation(name, magnitude, std, layers, probability):
    policy = RandAugment.from_name(name, fill=(1, 2, 3))
    assert (policy.magnitude, policy.magnitude_std) == (magnitude, std)
    assert (policy.num_layers, policy.op_probability, policy.fill) == (layers, probability, (1, 2, 3))


@pytest.mark.parametrize(
    "name", ["rand-m9-mstd0.5", "auto-m9-inc1", "rand-m9-w0-inc1", "rand-mx-inc1", "rand-m-inc1", "rand-n2.5-inc1", ""]
)
def test_unknown_policies_are_an_error(name):
    with pytest.raises(UserError, match=f"unknown data.rand_augment '{name}'; expected"):
        RandAugment.from_name(name)


def drawn(n=1000, **kwargs):
    augment = RandAugment(**kwargs)
    Transform([augment])(noise(4, 4), (0, 0, 0))  # seeds the generator
    return [augment.get_params()["drawn"] for _ in range(n)]


def test_operations_are_drawn_with_probability_magnitude_and_sign():
    draws = drawn(magnitude=5.0, magnitude_std=0.5, num_layers=2, op_probability=0.5)
    operations = [operation for draw in draws for operation in draw]
    assert len(operations) == pytest.approx(1000, abs=120)
    assert {len(draw) for draw in draws} == {0, 1, 2}
    names, signs, levels = zip(*operations, strict=True)
    assert set(names) == set(RAND_AUGMENT_OPS)
    assert np.mean(signs) == pytest.approx(0, abs=0.15)
    assert set(signs) == {-1, 1}
    assert np.mean(levels) == pytest.approx(0.5, abs=0.01)
    assert np.std(levels) == pytest.approx(0.05, abs=0.01)


def test_magnitudes_stay_between_0_and_10():
    levels = [level for draw in drawn(magnitude=9.0, magnitude_std=5.0, op_probability=1.0) for _, _, level in draw]
    assert (min(levels), max(levels)) == (0, 1)
