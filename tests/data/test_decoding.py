"""Image files to pixels: formats and broken files as in real data sets, partial and scaled decoding of JPEGs."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from swin_lightning.data.decoding import Box, CorruptImageError, LazyImage
from swin_lightning.data.transforms import resize_torch
from tests.support.images import encode


def decode(data):
    return LazyImage(data, "x").pixels()


# forty files: each is decoded to the right pixels or reported with its path

HEIGHT, WIDTH = 48, 64
RGB = np.zeros((HEIGHT, WIDTH, 3), np.uint8)  # four quadrants: red, green, blue, sand
RGB[:24, :32], RGB[:24, 32:] = (200, 30, 30), (30, 180, 40)
RGB[24:, :32], RGB[24:, 32:] = (30, 40, 190), (210, 180, 120)
GREY = np.repeat(np.array(Image.fromarray(RGB).convert("L"))[..., None], 3, -1)
PICTURE = Image.fromarray(RGB)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def stored(orientation):
    """The picture as a camera in this orientation stores it."""
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)
    return PICTURE if turn is None else PICTURE.transpose(Image.Transpose(turn))


def palette(transparent=None):
    image = PICTURE.quantize(8)
    return encode(image, "PNG", **({} if transparent is None else {"transparency": transparent}))


def with_alpha(mode):
    image = PICTURE.convert(mode)
    image.putalpha(128)
    return image


GREY16 = Image.fromarray(GREY[..., 0].astype(np.uint16) * 257)
JPEG, PNG = encode(PICTURE, "JPEG", quality=95, subsampling=0), encode(PICTURE, "PNG")
BIG = encode(Image.fromarray(np.random.default_rng(0).integers(256, size=(80, 80, 3), dtype=np.uint8)), "JPEG")

READABLE = {  # file name -> content, pixels, largest difference
    "plain.jpg": (JPEG, RGB, 30),
    "subsampled.jpg": (encode(PICTURE, "JPEG", quality=95), RGB, 90),
    "progressive.jpg": (encode(PICTURE, "JPEG", quality=95, progressive=True, subsampling=0), RGB, 30),
    "grey.jpg": (encode(PICTURE.convert("L"), "JPEG", quality=95), GREY, 30),
    "cmyk.jpg": (encode(PICTURE.convert("CMYK"), "JPEG", quality=95), RGB, 30),
    "cmyk.tif": (encode(PICTURE.convert("CMYK"), "TIFF"), RGB, 1),
    "jpeg_named.png": (JPEG, RGB, 30),
    "png_named.jpg": (PNG, RGB, 0),
    "webp_named.jpeg": (encode(PICTURE, "WEBP", lossless=True), RGB, 0),
    "gif_named.jpg": (encode(PICTURE, "GIF"), RGB, 0),
    "palette.png": (palette(), RGB, 0),
    "palette_transparent.png": (palette(0), RGB, 0),
    "palette_alphas.png": (palette(bytes([0, 100, 200, 255])), RGB, 0),
    "rgba.png": (encode(with_alpha("RGB"), "PNG"), RGB, 0),
    "rgba.webp": (encode(with_alpha("RGB"), "WEBP", lossless=True), RGB, 0),
    "grey_alpha.png": (encode(with_alpha("L"), "PNG"), GREY, 0),
    "grey.png": (encode(PICTURE.convert("L"), "PNG"), GREY, 0),
    "grey16.png": (encode(GREY16, "PNG"), GREY, 0),
    "grey16.tif": (encode(GREY16, "TIFF"), GREY, 0),
    "grey32.tif": (encode(Image.fromarray(GREY[..., 0].astype(np.int32) * 257), "TIFF"), GREY, 0),
    "one_bit.png": (encode(Image.fromarray(GREY[..., 0] > 110).convert("1"), "PNG"), (GREY > 110) * np.uint8(255), 0),
    **{
        f"orientation{o}.jpg": (encode(stored(o), "JPEG", quality=95, subsampling=0, exif=exif(o)), RGB, 30)
        for o in (1, 3, 6, 8)
    },
    "orientation2.png": (encode(stored(2), "PNG", exif=exif(2)), RGB, 0),
    "orientation6.webp": (encode(stored(6), "WEBP", lossless=True, exif=exif(6)), RGB, 0),
    "data_after_the_end.jpg": (JPEG + b"\0" * 500 + JPEG, RGB, 30),
}
BROKEN = {
    "empty.jpg": b"",
    "only_zeros.jpg": bytes(5000),
    "html.jpg": b"<html><body>404 not found</body></html>",
    "half.jpg": BIG[: len(BIG) // 2],
    "without_end_marker.jpg": BIG[:-2],
    "header_only.jpg": BIG[:200],
    "half_then_zeros.jpg": BIG[: len(BIG) // 2] + bytes(len(BIG) // 2),
    "third.jpg": BIG[: len(BIG) // 3],
    "half.png": encode(Image.fromarray(np.asarray(PICTURE) // 3 + 7), "PNG")[:120],
    "damaged.png": PNG[:60] + b"xxxx" + PNG[64:],
    "half.webp": encode(PICTURE, "WEBP")[:60],
    "float.tif": encode(Image.fromarray(GREY[..., 0].astype(np.float32)), "TIFF"),
}


def test_there_are_forty_files():
    assert len(READABLE) + len(BROKEN) == 40


@pytest.mark.parametrize("name", READABLE)
def test_file_is_decoded_to_the_right_rgb(tmp_path, name):
    content, expected, tolerance = READABLE[name]
    (tmp_path / name).write_bytes(content)
    for data in (content, tmp_path / name):
        pixels = np.asarray(LazyImage(data, name))
        assert pixels.shape == (HEIGHT, WIDTH, 3) and pixels.dtype == np.uint8
        difference = np.abs(pixels.astype(int) - expected)
        assert difference.max() <= tolerance
        assert difference.mean() <= tolerance / 10
    assert LazyImage(content, name).size() == (HEIGHT, WIDTH)
    assert np.array_equal(LazyImage(content, name).crop(Box(5, 7, 20, 40), 64), pixels[5:25, 7:47])


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("method", ["pixels", "size", "crop"])
def test_broken_file_is_an_error_with_its_path(tmp_path, name, method):
    path = tmp_path / name
    path.write_bytes(BROKEN[name])
    image = LazyImage(path, str(path))
    with pytest.raises(CorruptImageError, match=f"cannot read image {path}: .*; repair or remove the file"):
        image.crop(Box(0, 0, 8, 8), 224) if method == "crop" else getattr(image, method)()


def test_missing_file_is_an_error_with_its_path(tmp_path):
    with pytest.raises(CorruptImageError, match=f"cannot read image {tmp_path / 'missing.jpg'}"):
        LazyImage(tmp_path / "missing.jpg", str(tmp_path / "missing.jpg")).pixels()


# exact values


def test_greyscale_images_become_rgb():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(decode(encode(Image.fromarray(grey))), np.stack([grey] * 3, -1))


def test_palette_images_become_rgb():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    assert decode(encode(image)).tolist() == [[[10, 20, 30], [200, 100, 0]]]


def test_alpha_channel_is_dropped():
    assert decode(encode(Image.new("RGBA", (1, 1), (10, 20, 30, 128)))).tolist() == [[[10, 20, 30]]]


def test_cmyk_images_become_rgb():
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))  # cyan
    pixels = decode(encode(image, "JPEG", quality=100))
    assert pixels.shape == (8, 8, 3)
    assert pixels[0, 0].tolist() == pytest.approx([0, 255, 255], abs=3)


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_exif_orientation_is_applied(orientation, corner):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = 255  # the corner that is stored first
    decoded = decode(encode(Image.fromarray(pixels), exif=exif(orientation)))
    assert decoded.shape == ((4, 6, 3) if orientation in (1, 3) else (6, 4, 3))
    assert decoded[corner].tolist() == [255, 255, 255]
    assert decoded.sum() == 3 * 255


# partial decoding of JPEGs


def photograph(height=151, width=203):
    """Smooth shapes with some grain, which JPEG compression preserves well."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(256, size=(8, 10, 3), dtype=np.uint8)
    grain = rng.normal(0, 4, (height, width, 1))
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


@pytest.fixture
def decoded(monkeypatch):
    """Shapes of the images that OpenCV decodes."""
    shapes, imdecode = [], cv2.imdecode

    def record(*args):
        image = imdecode(*args)
        shapes.append(image.shape)
        return image

    monkeypatch.setattr(cv2, "imdecode", record)
    return shapes


VARIANTS = [
    {"subsampling": 0},
    {"subsampling": 1},
    {"subsampling": 2},
    {"subsampling": 2, "progressive": True},
    {"subsampling": 2, "restart_marker_rows": 1},
    {"subsampling": 2, "optimize": True, "quality": 30},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_full_and_partial_jpegs_have_the_pixels_of_pil(options, mode, capfd):
    data = encode(photograph().convert(mode), "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert LazyImage(data, "x").size() == (151, 203)
    assert np.array_equal(decode(data), expected)
    for box in (Box(0, 0, 40, 203), Box(17, 30, 83, 100), Box(100, 3, 51, 60), Box(5, 0, 1, 1), Box(0, 0, 151, 203)):
        assert np.array_equal(LazyImage(data, "x").crop(box, 224), box.crop(expected)), box
    assert capfd.readouterr().err == ""  # libjpeg would warn about unexpected data


def test_rows_below_a_crop_are_not_decoded(decoded):
    LazyImage(encode(photograph(), "JPEG"), "x").crop(Box(10, 10, 20, 30), 224)
    assert [shape[0] for shape in decoded] == [10 + 20 + 16]


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("height", [151, 160, 161])
def test_every_crop_is_decoded_once(subsampling, height, decoded):
    data = encode(photograph(height, 40), "JPEG", subsampling=subsampling)
    expected = decode(data)
    decoded.clear()
    for bottom in range(1, height + 1):
        assert np.array_equal(LazyImage(data, "x").crop(Box(0, 0, bottom, 30), 224), expected[:bottom, :30])
    assert len(decoded) == height


@pytest.mark.parametrize(("side", "scale"), [(127, 1), (128, 2), (255, 2), (256, 4), (512, 8)])
def test_large_crops_are_decoded_at_a_scale_that_leaves_twice_the_target(side, scale):
    pixels = LazyImage(encode(photograph(side, side), "JPEG"), "x").crop(Box(0, 0, side, side), 32)
    assert pixels.shape == (side // scale, side // scale, 3)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_reduced_scale_changes_resized_pixels_little(scale):
    data = encode(photograph(600, 700), "JPEG", quality=90)
    box = Box(64, 32, 512, 512)
    target = 256 // scale
    part = resize_torch(LazyImage(data, "x").crop(box, target), target)
    full = resize_torch(box.crop(decode(data)), target)
    assert np.abs(part.astype(int) - full).mean() < 1.5


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_box_of_a_rotated_jpeg_is_in_upright_pixels(orientation):
    data = encode(photograph(), "JPEG", exif=exif(orientation))
    upright = decode(data)
    assert LazyImage(data, "x").size() == upright.shape[:2] == ((151, 203) if orientation == 3 else (203, 151))
    assert np.array_equal(LazyImage(data, "x").crop(Box(20, 30, 50, 40), 224), upright[20:70, 30:70])


def patched(data, position, value):
    return data[:position] + value + data[position + len(value) :]


def test_size_is_read_before_pixels_and_bounded():
    start = JPEG.find(b"\xff\xc0")
    huge = patched(JPEG, start + 5, (32000).to_bytes(2, "big") * 2)
    with pytest.raises(CorruptImageError, match=r"its 32000 x 32000 pixels exceed data\.max_pixels 100000000"):
        LazyImage(huge, "x").size()
    for name in ("plain.jpg", "palette.png", "rgba.webp", "cmyk.tif", "cmyk.jpg"):
        content = READABLE[name][0]
        limit = HEIGHT * WIDTH * (3 if name.endswith("webp") else 1)
        assert LazyImage(content, name, limit).pixels().shape == RGB.shape
        with pytest.raises(CorruptImageError, match="exceed"):
            LazyImage(content, name, HEIGHT * WIDTH - 1).crop(Box(0, 0, 5, 5), 5)


def test_other_formats_are_not_tried(monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args: pytest.fail("Ghostscript was called"))
    for kind in ("EPS", "PDF", "ICO", "PCX", "SGI"):
        with pytest.raises(CorruptImageError) as error:
            decode(encode(PICTURE, kind))
        assert "no image of the formats JPEG, PNG, WEBP, TIFF, GIF, BMP, PPM, TGA, " in str(error.value)
        assert "BytesIO" not in str(error.value)


def test_tile_and_samples_of_a_tiff_are_bounded(tmp_path):
    content = encode(PICTURE, "TIFF", tiffinfo={322: 16, 323: 16}, compression="tiff_deflate")
    assert decode(content).shape == RGB.shape


def test_jpeg_with_two_headers_is_not_decoded_by_opencv():
    start = JPEG.find(b"\xff\xc0")
    length = int.from_bytes(JPEG[start + 2 : start + 4], "big") + 2
    frame = JPEG[start : start + length]
    huge = frame[:5] + (32000).to_bytes(2, "big") * 2 + frame[9:]
    for two in (JPEG[:start] + huge + JPEG[start:], JPEG[:start] + b"\xff" + huge + JPEG[start:]):
        with pytest.raises(CorruptImageError):
            decode(two)


def test_progressive_jpeg_with_many_scans_is_refused():
    content = encode(PICTURE, "JPEG", progressive=True)
    scan = content.find(b"\xff\xda")
    end = content.find(b"\xff", scan + 2 + int.from_bytes(content[scan + 2 : scan + 4], "big"))
    with pytest.raises(CorruptImageError, match="more than 50 scans"):
        decode(content[:end] + content[scan:end] * 60 + content[end:])


def test_only_the_first_page_is_used_and_said_once(caplog, monkeypatch):
    monkeypatch.setattr("swin_lightning.data.decoding._said", set())
    pages = encode(PICTURE, "TIFF", save_all=True, append_images=[PICTURE.rotate(90)])
    animation = encode(PICTURE, "GIF", save_all=True, append_images=[PICTURE.rotate(180)])
    for content in (pages, animation, pages):
        assert np.array_equal(LazyImage(content, "pages.tif").pixels(), decode(encode(PICTURE, "PNG")))
    assert [record.getMessage() for record in caplog.records] == [
        "image pages.tif has several pages; of each such image only the first one is used"
    ]


def test_strips_give_the_same_pixels(monkeypatch):
    expected = {name: decode(READABLE[name][0]) for name in READABLE}
    monkeypatch.setattr("swin_lightning.data.decoding.STRIP_PIXELS", 5 * WIDTH)
    for name, pixels in expected.items():
        assert np.array_equal(decode(READABLE[name][0]), pixels), name
