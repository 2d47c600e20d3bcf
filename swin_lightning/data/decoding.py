"""Decode image files to RGB: completely, or only the rows, at the scale, that a crop needs.

Most of the time to decode a JPEG is spent on its entropy-coded data, which has no index: rows above a crop have to be
decoded, rows below it do not if the decoder stops early. libjpeg stops at the height stated in the header, so
`LazyImage.crop` passes a copy of the file with a smaller height. The pixels are bit-identical to the full image's.

Files are not trusted: Pillow is given a list of formats, and sizes are compared with a limit before pixels are decoded.
"""

import io
import logging
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from swin_lightning.errors import UserError
from swin_lightning.ranges import Range

Array = np.ndarray

# without those that start a program (EPS) or are slow; Pillow reads MPO, a JPEG with further pictures, as a JPEG
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "TGA", "JPEG2000", "AVIF", "HEIF")
MAX_PIXELS = 100_000_000  # by default: more than cameras take, and below 1 GB of memory in every format
HARD_LIMIT = 178_956_970  # of Pillow
MaxPixels = Annotated[int, Range(ge=1, le=HARD_LIMIT)]
LARGE_DECODERS, SHARE = {"WEBP", "JPEG2000", "AVIF", "HEIF"}, 0.4  # they take 2.5 times the memory of the others
MAX_SCANS = 50  # of a progressive JPEG, each of which takes as long as an image; libjpeg writes about 10
STRIP_PIXELS = 2**20  # converted at once

END_OF_IMAGE = b"\xff\xd9"  # JPEG marker
FRAMES = (0xC0, 0xC1, 0xC2)  # markers of a header: baseline, extended, progressive
# markers of other headers, without a length, or fill bytes: libjpeg may read another header than the one found here
UNUSUAL = {*range(0xC3, 0xD0), *range(0xD0, 0xDA), 0x01, 0xFF} - {0xC4, 0xC8, 0xCC}
ORIENTATION = 0x0112  # EXIF tag
MCU_HEIGHT = (
    16  # rows that are coded together, at most in practice; the decoder expects data after the last MCU it reads
)
MARGIN = 16  # rows decoded below a crop: chroma may have half the height and is interpolated between rows

log = logging.getLogger(__name__)
# Pillow warns below the limit that is used here; above HARD_LIMIT it refuses
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Box(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, image: Array) -> Array:
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


class CorruptImageError(UserError):
    """An image file that cannot be decoded; the message names it."""


class LazyImage:
    """An image file that is decoded once it is known which part is needed; `np.asarray` decodes all of it.

    Plain JPEGs are decoded by OpenCV, with the same pixels as PIL; all other files by PIL.

    Args:
        data: Content of the file, or its path.
        name: Name of the image in error messages.
        max_pixels: Largest number of pixels that is decoded.
    """

    def __init__(self, data: bytes | Path, name: str, max_pixels: int = MAX_PIXELS) -> None:
        self.name = name
        self.data = data
        self.max_pixels = max_pixels
        self._pixels: Array | None = None
        self._header: JpegHeader | None = None

    def size(self) -> tuple[int, int]:
        """Height and width in pixels, after the EXIF orientation is applied.

        Raises:
            CorruptImageError: If the file is not an image of a supported format, is damaged or too large.
        """
        header = self._read_header()
        return (header.height, header.width) if header is not None else self.pixels().shape[:2]

    def pixels(self) -> Array:
        """The full image, `H, W, 3` uint8 RGB, with the EXIF orientation applied.

        Raises:
            CorruptImageError: If the file is not an image or is damaged.
        """
        header = self._read_header()  # decodes what is not a plain JPEG
        if self._pixels is None:
            pixels = None if header is None else header.decode(header.height, scale=1)
            self._pixels = _decode_pil(self.data, self.name, self.max_pixels) if pixels is None else pixels
        return self._pixels

    def crop(self, box: Box, target: int) -> Array:
        """The pixels in a box, `height, width, 3` uint8 RGB, decoded at 1/2, 1/4 or 1/8 scale where that suffices.

        Args:
            box: Crop in pixels of the full image, after the EXIF orientation is applied.
            target: Side length in pixels to which the crop will be resized. A reduced scale is used if both sides of
                the crop are still at least twice as long; the box is then rounded down to multiples of the scale.
                After resizing, photographs at just twice the target differ from full-scale decoding by 0.7 (1/2), 0.9
                (1/4) and 1.1 (1/8) grey levels on average.

        Raises:
            CorruptImageError: If the file is not an image or is damaged.
        """
        header = self._read_header()
        if header is not None and self._pixels is None:
            scale = max(s for s in (1, 2, 4, 8) if s == 1 or min(box.height, box.width) >= 2 * target * s)
            pixels = header.decode(box.top + box.height, scale)
            if pixels is not None:
                return Box(*(length // scale for length in box)).crop(pixels)
        return box.crop(self.pixels())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.pixels(), dtype=dtype, copy=copy)

    def _read_header(self) -> "JpegHeader | None":
        """The header of a JPEG that OpenCV can decode; None for other files, which are decoded by PIL at once."""
        if self._header is None and self._pixels is None:
            try:
                if isinstance(self.data, Path):
                    self.data = self.data.read_bytes()
                self._header = _parse_jpeg_header(self.data)
                if self._header is not None:
                    check_size(self._header.width, self._header.height, self.max_pixels)
            except (OSError, ValueError) as error:
                raise _corrupt(self.name, error) from error
            if self._header is None:
                self._pixels = _decode_pil(self.data, self.name, self.max_pixels)
        return self._header


@cache
def image_formats() -> tuple[str, ...]:
    """The formats of image files that are read: those of `FORMATS` that the installed Pillow decodes."""
    try:
        from pillow_heif import register_heif_opener  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        pass
    else:
        register_heif_opener()
    Image.init()  # loads all plugins
    return tuple(name for name in FORMATS if name in Image.OPEN)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Compare the size that a file states with the limit.

    Raises:
        ValueError: If the image is larger.
    """
    if width * height > max_pixels:
        raise ValueError(f"its {width} x {height} pixels exceed data.max_pixels {max_pixels}")


def pil_pixels(image: Image.Image) -> Array:
    """The pixels of an opened image, `H, W, 3` uint8 RGB, with the EXIF orientation applied.

    Raises:
        ValueError: If the pixels are floating-point numbers or exceed 16 bits.
    """
    return _upright(_rgb_pixels(image), image.getexif().get(ORIENTATION, 1))


# helpers


@dataclass(frozen=True)
class JpegHeader:
    """A plain JPEG: complete, not rotated by EXIF, one or three components of 8 bits.

    Attributes:
        data: Content of the file.
        height: In pixels.
        width: In pixels.
        height_offset: Byte offset of the height (2 bytes) in the file.
        end: Byte offset of the end of the compressed pixels.
        can_stop: Whether decoding can stop early: a single sequential scan without restart markers.
    """

    data: bytes
    height: int
    width: int
    height_offset: int
    end: int
    can_stop: bool

    def decode(self, rows: int, scale: int) -> Array | None:
        """The first `rows` rows at 1/scale of the size, `>= ceil(rows / scale), W, 3`; None if OpenCV cannot decode."""
        data: bytes | bytearray = self.data
        if self.can_stop and -(-(rows + MARGIN) // MCU_HEIGHT) * MCU_HEIGHT < self.height:
            # Without the end marker libjpeg does not warn about the compressed data that follows the last row.
            data = bytearray(memoryview(self.data)[: self.end])
            data[self.height_offset : self.height_offset + 2] = (rows + MARGIN).to_bytes(2, "big")
        # IMREAD_REDUCED_GRAYSCALE_N with IMREAD_COLOR_RGB means reduced RGB
        flags = {1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4}
        flag = flags.get(scale, cv2.IMREAD_REDUCED_GRAYSCALE_8) | cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            return cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        except cv2.error:
            return None


def _parse_jpeg_header(data: bytes) -> JpegHeader | None:
    """Parse the markers of a JPEG; None if it is not a JPEG or not a plain one.

    Raises:
        ValueError: If the end of the file is missing. PIL would decode the zeros of an incomplete download as pixels.
    """
    if data[:2] != b"\xff\xd8":
        return None
    frame, at, restarts, multiple = b"", 2, False, False
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if length < 2 or marker in UNUSUAL or (marker in FRAMES and frame):
            return None
        if marker in FRAMES:
            kind, height_offset, frame = marker, at + 5, body
        elif marker == 0xDD:
            restarts = body != b"\0\0"
        elif marker == 0xE2 and body[:4] == b"MPF\0":  # multi-picture format: another image follows
            multiple = True
        elif marker == 0xE1 and _has_orientation(data):  # EXIF or XMP
            return None
        elif marker == 0xDA:  # start of scan
            ends_here = data.endswith(END_OF_IMAGE) and not multiple
            end = len(data) - 2 if ends_here else data.find(END_OF_IMAGE, at)  # find() is slow
            if end < 0:
                raise ValueError("the file is truncated")
            if len(frame) < 6 or frame[0] != 8 or frame[5] not in (1, 3):
                return None  # no frame, 12 bits, CMYK
            if kind == 0xC2 and data.count(b"\xff\xda") > MAX_SCANS:
                raise ValueError(f"it has more than {MAX_SCANS} scans")
            height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
            can_stop = kind != 0xC2 and body[:1] == frame[5:6] and not restarts
            return JpegHeader(data, height, width, height_offset, end, can_stop) if height and width else None
        at += 2 + length
    return None


def _has_orientation(data: bytes) -> bool:
    """Whether EXIF rotates or mirrors the image."""
    try:
        with Image.open(io.BytesIO(data), formats=image_formats()) as image:
            return bool(image.getexif().get(ORIENTATION, 1) != 1)
    except Exception:  # PIL will raise it again when it decodes the file
        return True


def _decode_pil(data: bytes | Path, name: str, max_pixels: int) -> Array:
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=image_formats()) as image:
            check_size(*image.size, int(max_pixels * SHARE) if image.format in LARGE_DECODERS else max_pixels)
            if image.format == "TIFF":
                _check_tiff(image, max_pixels)
            if getattr(image, "is_animated", False) and image.format != "MPO":
                _say_once(f"image {name} has several pages; of each such image only the first one is used")
            image.load()
            pixels, orientation = _rgb_pixels(image), image.getexif().get(ORIENTATION, 1)
        del image  # its memory is needed below
        return _upright(pixels, orientation)
    except UnidentifiedImageError as error:  # its message shows an object of Python
        raise _corrupt(
            name, ValueError(f"no image of the formats {', '.join(image_formats())}, or a damaged one")
        ) from error
    except Image.DecompressionBombError as error:
        raise _corrupt(name, ValueError(f"it has more than {HARD_LIMIT} pixels")) from error
    except Exception as error:  # PIL raises exceptions of many types for broken files
        raise _corrupt(name, error) from error


def _check_tiff(image: Any, max_pixels: int) -> None:
    """A TIFF states the size of its tiles, which are decoded as a whole, and how many samples a pixel has."""
    tags = image.tag_v2
    width, height = (max(int(tags.get(tag, 0)), size) for tag, size in zip((322, 323), image.size, strict=True))
    bits = tags.get(258, (1,))  # per sample
    check_size(width, height, max_pixels)
    if width * height * int(tags.get(277, 1)) * max(bits) / 8 > 4 * max_pixels:
        raise ValueError(f"its {width} x {height} pixels of {max(bits)} bits exceed data.max_pixels {max_pixels}")


def _rgb_pixels(image: Image.Image) -> Array:
    """Pixels `H, W, 3` uint8, converted in strips: Pillow's image takes 4 bytes per pixel, and every copy as many."""
    width, height = image.size
    rows = max(1, STRIP_PIXELS // max(width, 1))
    if rows >= height:
        return np.array(_to_rgb(image))  # a copy: torch.from_numpy needs writable memory
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = np.asarray(_to_rgb(image.crop((0, top, width, bottom))))
    return pixels


def _upright(pixels: Array, orientation: Any) -> Array:
    """Apply an EXIF orientation, see EXIF 2.3, section 4.6.4 (tag 274)."""
    turned = {
        2: lambda: pixels[:, ::-1],
        3: lambda: pixels[::-1, ::-1],
        4: lambda: pixels[::-1],
        5: lambda: pixels.transpose(1, 0, 2),
        6: lambda: np.rot90(pixels, -1),
        7: lambda: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: lambda: np.rot90(pixels),
    }.get(orientation)
    return pixels if turned is None else np.ascontiguousarray(turned())


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit greyscale, which PIL would clip to 8 bits instead of scaling
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise ValueError(f"greyscale values from {grey.min()} to {grey.max()} exceed 16 bits")
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels are not supported")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # drop a palette's transparency as in other images
    return image if image.mode == "RGB" else image.convert("RGB")


def _corrupt(name: str, error: Exception) -> CorruptImageError:
    return CorruptImageError(f"cannot read image {name}: {error}; repair or remove the file")


_said: set[str] = set()


def _say_once(message: str) -> None:
    """Log a warning once in this process."""
    if not _said:
        _said.add(message)
        log.warning(message)
