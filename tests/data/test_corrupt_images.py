"""Forty images as they lie about in real data sets: each becomes the right RGB, or is reported by its path."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from swin_lightning.data import ImageFolder
from swin_lightning.data.decoding import Box, CorruptImageError, Encoded
from swin_lightning.tasks.classification import SwinClassifier

HEIGHT, WIDTH = 48, 64
RGB = np.zeros((HEIGHT, WIDTH, 3), np.uint8)  # four fields: red, green, blue, sand
RGB[:24, :32], RGB[:24, 32:], RGB[24:, :32], RGB[24:, 32:] = (
    (200, 30, 30),
    (30, 180, 40),
    (30, 40, 190),
    (210, 180, 120),
)
GREY = np.repeat(np.array(Image.fromarray(RGB).convert("L"))[..., None], 3, -1)
PICTURE = Image.fromarray(RGB)


def file(image, kind, **kwargs):
    out = io.BytesIO()
    image.save(out, kind, **kwargs)
    return out.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def stored(orientation):
    """The picture as a camera in that position stores it."""
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)
    return PICTURE if turn is None else PICTURE.transpose(Image.Transpose(turn))


def palette(transparent=None):
    image = PICTURE.quantize(8)
    return file(image, "PNG", **({} if transparent is None else {"transparency": transparent}))


def alpha(mode):
    image = PICTURE.convert(mode)
    image.putalpha(128)
    return image


GREY16 = Image.fromarray(GREY[..., 0].astype(np.uint16) * 257)
JPEG, PNG = file(PICTURE, "JPEG", quality=95, subsampling=0), file(PICTURE, "PNG")
BIG = file(Image.fromarray(np.random.default_rng(0).integers(256, size=(80, 80, 3), dtype=np.uint8)), "JPEG")

READABLE = {  # name of the file -> content, pixels, largest difference
    "plain.jpg": (JPEG, RGB, 30),
    "subsampled.jpg": (file(PICTURE, "JPEG", quality=95), RGB, 90),
    "progressive.jpg": (file(PICTURE, "JPEG", quality=95, progressive=True, subsampling=0), RGB, 30),
    "grey.jpg": (file(PICTURE.convert("L"), "JPEG", quality=95), GREY, 30),
    "cmyk.jpg": (file(PICTURE.convert("CMYK"), "JPEG", quality=95), RGB, 30),
    "cmyk.tif": (file(PICTURE.convert("CMYK"), "TIFF"), RGB, 1),
    "jpeg_called.png": (JPEG, RGB, 30),
    "png_called.jpg": (PNG, RGB, 0),
    "webp_called.jpeg": (file(PICTURE, "WEBP", lossless=True), RGB, 0),
    "gif_called.jpg": (file(PICTURE, "GIF"), RGB, 0),
    "palette.png": (palette(), RGB, 0),
    "palette_transparent.png": (palette(0), RGB, 0),
    "palette_alphas.png": (palette(bytes([0, 100, 200, 255])), RGB, 0),
    "rgba.png": (file(alpha("RGB"), "PNG"), RGB, 0),
    "rgba.webp": (file(alpha("RGB"), "WEBP", lossless=True), RGB, 0),
    "grey_alpha.png": (file(alpha("L"), "PNG"), GREY, 0),
    "grey.png": (file(PICTURE.convert("L"), "PNG"), GREY, 0),
    "grey16.png": (file(GREY16, "PNG"), GREY, 0),
    "grey16.tif": (file(GREY16, "TIFF"), GREY, 0),
    "grey32.tif": (file(Image.fromarray(GREY[..., 0].astype(np.int32) * 257), "TIFF"), GREY, 0),
    "one_bit.png": (file(Image.fromarray(GREY[..., 0] > 110).convert("1"), "PNG"), (GREY > 110) * np.uint8(255), 0),
    **{
        f"turned{o}.jpg": (file(stored(o), "JPEG", quality=95, subsampling=0, exif=exif(o)), RGB, 30)
        for o in (1, 3, 6, 8)
    },
    "mirrored2.png": (file(stored(2), "PNG", exif=exif(2)), RGB, 0),
    "turned6.webp": (file(stored(6), "WEBP", lossless=True, exif=exif(6)), RGB, 0),
    "more_after_the_end.jpg": (JPEG + b"\0" * 500 + JPEG, RGB, 30),
}
BROKEN = {
    "empty.jpg": b"",
    "only_zeros.jpg": bytes(5000),
    "html.jpg": b"<html><body>404 not found</body></html>",
    "half.jpg": BIG[: len(BIG) // 2],
    "without_its_end.jpg": BIG[:-2],
    "header_only.jpg": BIG[:200],
    "half_then_zeros.jpg": BIG[: len(BIG) // 2] + bytes(len(BIG) // 2),
    "half_with_a_thumbnail.jpg": BIG[:4] + BIG[4 : len(BIG) // 3],
    "half.png": file(Image.fromarray(np.asarray(PICTURE) // 3 + 7), "PNG")[:120],
    "damaged.png": PNG[:60] + b"xxxx" + PNG[64:],
    "half.webp": file(PICTURE, "WEBP")[:60],
    "float.tif": file(Image.fromarray(GREY[..., 0].astype(np.float32)), "TIFF"),
}


def test_there_are_forty():
    assert len(READABLE) + len(BROKEN) == 40


@pytest.mark.parametrize("name", READABLE)
def test_it_becomes_the_right_rgb(tmp_path, name):
    content, expected, tolerance = READABLE[name]
    (tmp_path / name).write_bytes(content)
    for data in (content, tmp_path / name):
        pixels = np.asarray(Encoded(data, name))
        assert pixels.shape == (HEIGHT, WIDTH, 3) and pixels.dtype == np.uint8
        difference = np.abs(pixels.astype(int) - expected)
        assert difference.max() <= tolerance
        assert difference.mean() <= tolerance / 10
    assert Encoded(content, name).size() == (HEIGHT, WIDTH)
    assert np.array_equal(Encoded(content, name).crop(Box(5, 7, 20, 40), 64), pixels[5:25, 7:47])


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("part", ["pixels", "size", "crop"])
def test_it_is_reported_by_path(tmp_path, name, part):
    path = tmp_path / name
    path.write_bytes(BROKEN[name])
    image = Encoded(path, str(path))
    with pytest.raises(CorruptImageError, match=f"cannot read the image {path}: "):
        image.crop(Box(0, 0, 8, 8), 224) if part == "crop" else getattr(image, part)()


def test_a_file_that_is_gone_is_reported_by_path(tmp_path):
    with pytest.raises(CorruptImageError, match=f"cannot read the image {tmp_path / 'gone.jpg'}"):
        Encoded(tmp_path / "gone.jpg", str(tmp_path / "gone.jpg")).pixels()


# a data set with some of them


@pytest.fixture
def folder(tmp_path):
    """Eight images of two classes for training, two of them broken, and the same for validation."""
    for split in ("train", "val"):
        for label, name in enumerate(("dark", "light")):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for i in range(4):
                content = file(Image.new("RGB", (20, 20), (200 * label + i,) * 3), "PNG")
                (tmp_path / "set" / split / name / f"{i}.png").write_bytes(b"" if i == 3 else content)
    return tmp_path / "set"


OPTIONS = {"image_size": 8, "batch_size": 4, "crop": "none", "hflip": 0.0, "mean": (0, 0, 0), "std": (1, 1, 1)}


class Net(torch.nn.Module):
    num_features = 1

    def __init__(self):
        super().__init__()
        self.scale, self.seen = torch.nn.Parameter(torch.ones(1)), []

    def forward(self, x):
        self.seen += (x.mean((1, 2, 3)) * 255).round().int().tolist()
        return self.scale * x.mean((1, 2, 3))[:, None]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_image_stops_the_run_and_is_named(folder, make_trainer, num_workers):
    data = ImageFolder(str(folder), num_workers=num_workers, **OPTIONS)
    with pytest.raises(ValueError, match=r"cannot read the image .*3\.png"):
        make_trainer().fit(SwinClassifier(Net(), 2), data)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipped_images_are_counted_and_never_noise_under_a_label(folder, make_trainer, caplog, num_workers):
    seen = []

    class Watched(SwinClassifier):
        def training_step(self, batch, batch_idx):
            seen.extend(zip(batch["index"].tolist(), batch["target"].tolist(), strict=True))
            return super().training_step(batch, batch_idx)

    data = ImageFolder(str(folder), num_workers=num_workers, on_bad_image="skip", **OPTIONS)
    model = Watched(Net(), 2)
    trainer = make_trainer(limit_val_batches=0)
    trainer.fit(model, data)
    # 3 and 7 are broken: 4 and 0 stand in for them, under their own labels
    assert sorted(seen) == sorted([(0, 0), (1, 0), (2, 0), (4, 1), (4, 1), (5, 1), (6, 1), (0, 0)])
    assert sorted(model.backbone.seen) == sorted([0, 1, 2, 200, 200, 201, 202, 0])
    assert caplog.text.count("2 unreadable images were skipped") == 1
    for name in ("dark", "light"):
        assert str(folder / "train" / name / "3.png") in caplog.text
    caplog.clear()

    (result,) = make_trainer().validate(model, data, verbose=False)
    logits = model(torch.tensor([0, 1, 2, 200, 201, 202]).view(-1, 1, 1, 1).expand(-1, 3, 8, 8) / 255)
    targets = torch.tensor([0, 0, 0, 1, 1, 1])
    assert result["val/acc"] == pytest.approx((logits.argmax(1) == targets).float().mean().item())
    assert result["val/loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, targets).item(), abs=1e-4)
    assert "2 unreadable images were skipped" in caplog.text


def test_a_set_of_unreadable_images_is_an_error(folder, make_trainer):
    for path in folder.glob("train/*/*.png"):
        path.write_bytes(b"")
    data = ImageFolder(str(folder), num_workers=0, on_bad_image="skip", **OPTIONS)
    with pytest.raises(ValueError, match="all images after it cannot be read"):
        make_trainer().fit(SwinClassifier(Net(), 2), data)


def test_predictions_leave_out_what_cannot_be_read(folder, make_trainer, tmp_path):
    from swin_lightning.callbacks import PredictionWriter

    data = ImageFolder(str(folder), num_workers=0, on_bad_image="skip", predict_path=str(folder / "val"), **OPTIONS)
    trainer = make_trainer(callbacks=[PredictionWriter(tmp_path / "out")])
    trainer.predict(SwinClassifier(Net(), 2), data, return_predictions=False)
    rows = (tmp_path / "out" / "predictions.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == sorted(str(p) for p in folder.glob("val/*/[012].png"))
