"""Decode image files to RGB: completely, or only the rows, at the scale, that a crop needs.

Most of the time to decode a JPEG is spent on its entropy-coded data, which has no index: rows above a crop have to be
decoded, rows below it do not if the decoder stops early. libjpeg stops at the height stated in the header, so
`LazyImage.crop` passes a copy of the file with a smaller height. The pixels are bit-identical to the full image's.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from swin_lightning.errors import UserError

Array = np.ndarray

END_OF_IMAGE = b"\xff\xd9"  # JPEG marker
ORIENTATION = 0x0112  # EXIF tag
MCU_HEIGHT = (
    16  # rows that are coded together, at most in practice; the decoder expects data after the last MCU it reads
)
MARGIN = 16  # rows decoded below a crop: chroma may have half the height and is interpolated between rows


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
    """

    def __init__(self, data: bytes | Path, name: str) -> None:
        self.name = name
        self.data = data
        self._pixels: Array | None = None
        self._header: JpegHeader | None = None

    def size(self) -> tuple[int, int]:
        """Height and width in pixels, after the EXIF orientation is applied.

        Raises:
            CorruptImageError: If the file is not an image or is damaged.
        """
        header = self._read_header()
        return (header.height, header.width) if header is not None else self.pixels().shape[:2]

    def pixels(self) -> Array:
        """The full image, `H, W, 3` uint8 RGB, with the EXIF orientation applied.

        Raises:
            CorruptImageError: If the file is not an image or is damaged.
        """
        if self._pixels is None:
            header = self._read_header()
            pixels = None if header is None else header.decode(header.height, scale=1)
            self._pixels = _decode_pil(self.data, self.name) if pixels is None else pixels
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
            except (OSError, ValueError) as error:
                raise _corrupt(self.name, error) from error
            if self._header is None:
                self._pixels = _decode_pil(self.data, self.name)
        return self._header


def pil_pixels(image: Image.Image) -> Array:
    """The pixels of an opened image, `H, W, 3` uint8 RGB, with the EXIF orientation applied.

    Raises:
        ValueError: If the pixels are floating-point numbers or exceed 16 bits.
    """
    return np.array(_to_rgb(ImageOps.exif_transpose(image)))  # a copy: torch.from_numpy needs writable memory


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
        if marker in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive
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
            height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
            can_stop = kind != 0xC2 and body[:1] == frame[5:6] and not restarts
            return JpegHeader(data, height, width, height_offset, end, can_stop) if height and width else None
        at += 2 + length
    return None


def _has_orientation(data: bytes) -> bool:
    """Whether EXIF rotates or mirrors the image."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return bool(image.getexif().get(ORIENTATION, 1) != 1)
    except Exception:  # PIL will raise it again when it decodes the file
        return True


def _decode_pil(data: bytes | Path, name: str) -> Array:
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            image.load()
            return pil_pixels(image)
    except Exception as error:  # PIL raises exceptions of many types for broken files
        raise _corrupt(name, error) from error


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
    return image.convert("RGB")


def _corrupt(name: str, error: Exception) -> CorruptImageError:
    return CorruptImageError(f"cannot read image {name}: {error}; repair or remove the file")
