"""From image files to pixels: of PIL, in part, at a smaller scale, and what is broken."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from swin_lightning.data.decoding import Box, Encoded, decode
from swin_lightning.data.transforms import bicubic_by_torch


def encoded(image, kind, **kwargs):
    file = io.BytesIO()
    image.save(file, kind, **kwargs)
    return file.getvalue()


def test_grey_images_become_rgb():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(decode(encoded(Image.fromarray(grey), "PNG"), "grey"), np.stack([grey] * 3, -1))


def test_palette_images_become_rgb():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    assert decode(encoded(image, "PNG"), "palette").tolist() == [[[10, 20, 30], [200, 100, 0]]]


def test_transparency_is_dropped():
    image = Image.new("RGBA", (1, 1), (10, 20, 30, 128))
    assert decode(encoded(image, "PNG"), "transparent").tolist() == [[[10, 20, 30]]]


def test_cmyk_images_become_rgb():
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))  # cyan
    pixels = decode(encoded(image, "JPEG", quality=100), "cmyk")
    assert pixels.shape == (8, 8, 3)
    assert pixels[0, 0].tolist() == pytest.approx([0, 255, 255], abs=3)


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_images_are_turned_upright(orientation, corner):
    stored = np.zeros((4, 6, 3), np.uint8)
    stored[0, 0] = 255  # the corner that the camera wrote first
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(encoded(Image.fromarray(stored), "PNG", exif=exif), "turned")
    assert pixels.shape == ((4, 6, 3) if orientation in (1, 3) else (6, 4, 3))
    assert pixels[corner].tolist() == [255, 255, 255]
    assert pixels.sum() == 3 * 255


# JPEGs in part


def photograph(height=151, width=203):
    """Smooth shapes with some grain, which a JPEG keeps well."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(256, size=(8, 10, 3), dtype=np.uint8)
    grain = rng.normal(0, 4, (height, width, 1))
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + grain, 0, 255).astype(np.uint8)


KINDS = [
    {"subsampling": 0},
    {"subsampling": 1},
    {"subsampling": 2},
    {"subsampling": 2, "progressive": True},
    {"subsampling": 2, "restart_marker_rows": 1},
    {"subsampling": 2, "optimize": True, "quality": 30},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("grey", [False, True])
def test_a_jpeg_is_pils_pixels_whole_and_in_part(kind, grey, capfd):
    image = Image.fromarray(photograph()).convert("L" if grey else "RGB")
    data = encoded(image, "JPEG", **kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert Encoded(data, "x").size() == (151, 203)
    assert np.array_equal(decode(data, "x"), expected)
    for box in (Box(0, 0, 40, 203), Box(17, 30, 83, 100), Box(100, 3, 51, 60), Box(5, 0, 1, 1), Box(0, 0, 151, 203)):
        assert np.array_equal(Encoded(data, "x").crop(box, 224), box.of(expected)), box
    assert capfd.readouterr().err == ""  # libjpeg would warn of data that it had not expected


def test_only_the_rows_of_a_crop_are_decoded(monkeypatch):
    rows, imdecode = [], cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda *a: rows.append(imdecode(*a)) or rows[-1])
    Encoded(encoded(Image.fromarray(photograph()), "JPEG"), "x").crop(Box(10, 10, 20, 30), 224)
    assert [r.shape[0] for r in rows] == [10 + 20 + 16]


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("height", [151, 160, 161])
def test_no_image_is_decoded_twice(subsampling, height, monkeypatch):
    data = encoded(Image.fromarray(photograph(height)), "JPEG", subsampling=subsampling)
    expected, tries, imdecode = decode(data, "x"), [], cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda *a: tries.append(a) or imdecode(*a))
    for bottom in range(1, height + 1):
        assert np.array_equal(Encoded(data, "x").crop(Box(0, 0, bottom, 50), 224), expected[:bottom, :50])
    assert len(tries) == height


@pytest.mark.parametrize(("side", "scale"), [(511, 1), (512, 2), (1023, 2), (1024, 4), (2048, 8)])
def test_large_crops_are_decoded_at_the_scale_that_leaves_twice_the_target(side, scale):
    data = encoded(Image.fromarray(photograph(side, side)), "JPEG")
    pixels = Encoded(data, "x").crop(Box(0, 0, side, side), 128)
    assert pixels.shape == (side // scale, side // scale, 3)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_smaller_scale_changes_little(scale):
    data = encoded(Image.fromarray(photograph(600, 700)), "JPEG", quality=90)
    box = Box(64, 32, 512, 512)
    target = 256 // scale
    part = bicubic_by_torch(Encoded(data, "x").crop(box, target), target)
    whole = bicubic_by_torch(box.of(decode(data, "x")), target)
    assert np.abs(part.astype(int) - whole).mean() < 1.5


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_turned_jpeg_is_cropped_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(photograph()), "JPEG", exif=exif)
    upright = decode(data, "x")
    assert Encoded(data, "x").size() == upright.shape[:2] == ((151, 203) if orientation == 3 else (203, 151))
    assert np.array_equal(Encoded(data, "x").crop(Box(20, 30, 50, 40), 224), upright[20:70, 30:70])
