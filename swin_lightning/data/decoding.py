"""From an image file to RGB pixels: all of them, or only the rows, and only the scale, that a crop needs.

Most of a JPEG's decoding time goes into its entropy code, which has no index: rows above a crop have to be read,
but those below it cost nothing if the decoder stops there. libjpeg stops where the header says that the image ends,
so `Encoded.crop` hands over a copy whose header says so. Its pixels are those of the whole image, bit for bit.
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

END = b"\xff\xd9"  # of a JPEG
ORIENTATION = 0x0112  # of EXIF
BLOCK = 16  # rows that are stored together, at most in practice: data must go on after the last one that is decoded
MARGIN = 16  # rows decoded below a crop: colour may be stored at half the height, and is interpolated between rows


class Box(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: Array) -> Array:
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


class CorruptImageError(UserError):
    """A file that cannot be decoded; the message names it."""


class Encoded:
    """An image file that is decoded when it is known which part is needed; `np.asarray` decodes all of it.

    JPEGs go through OpenCV, whose pixels are PIL's (a test holds that); what is unusual in any way through PIL.

    Args:
        data: The file's bytes, or its path.
        name: What errors call it.
    """

    def __init__(self, data: bytes | Path, name: str) -> None:
        self.name = name
        self.data = data
        self._pixels: Array | None = None
        self._header: Header | None = None

    def size(self) -> tuple[int, int]:
        """Height and width of the upright image in pixels.

        Raises:
            CorruptImageError: If the file is no image or is damaged.
        """
        header = self._read()
        return (header.height, header.width) if header is not None else self.pixels().shape[:2]

    def pixels(self) -> Array:
        """The whole image, `H, W, 3` uint8 RGB, turned upright as its EXIF says.

        Raises:
            CorruptImageError: If the file is no image or is damaged.
        """
        if self._pixels is None:
            header = self._read()
            pixels = None if header is None else header.decode(header.height, scale=1)
            self._pixels = _decode_by_pil(self.data, self.name) if pixels is None else pixels
        return self._pixels

    def crop(self, box: Box, target: int) -> Array:
        """The pixels in a box, `height, width, 3` uint8 RGB, at 1/2, 1/4 or 1/8 of their scale where that suffices.

        Args:
            box: In pixels of the upright image.
            target: Side in pixels to which the crop will be resized. A scale suffices that leaves both sides at twice
                this length; the box is then rounded down to multiples of the scale. Resized from there, photographs at
                just twice the target differ from the whole image's box by 0.7, 0.9 and 1.1 grey levels in the mean.

        Raises:
            CorruptImageError: If the file is no image or is damaged.
        """
        header = self._read()
        if header is not None and self._pixels is None:
            scale = max(s for s in (1, 2, 4, 8) if s == 1 or min(box.height, box.width) >= 2 * target * s)
            pixels = header.decode(box.top + box.height, scale)
            if pixels is not None:
                return Box(*(length // scale for length in box)).of(pixels)
        return box.of(self.pixels())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.pixels(), dtype=dtype, copy=copy)

    def _read(self) -> "Header | None":
        """The header of a JPEG that OpenCV may decode; None for all that PIL has to see, and once it has."""
        if self._header is None and self._pixels is None:
            try:
                if isinstance(self.data, Path):
                    self.data = self.data.read_bytes()
                self._header = _jpeg_header(self.data)
            except (OSError, ValueError) as error:
                raise CorruptImageError(f"cannot read the image {self.name}: {error}; repair or remove it") from error
            if self._header is None:
                self._pixels = _decode_by_pil(self.data, self.name)
        return self._header


def decode(data: bytes | Path, name: str) -> Array:
    """Decode an image file to `H, W, 3` uint8 RGB, turned upright as its EXIF says.

    Raises:
        CorruptImageError: If the file is no image or is damaged.
    """
    return Encoded(data, name).pixels()


# helpers


@dataclass(frozen=True)
class Header:
    """What decoding a plain JPEG needs to know: three or one component of 8 bits, upright, whole."""

    data: bytes
    height: int
    width: int
    height_at: int  # where the header states its height, 2 bytes
    end: int  # of the compressed pixels
    can_stop: bool  # rows follow each other in one scan without restart markers

    def decode(self, rows: int, scale: int) -> Array | None:
        """The first rows at 1/scale of the size, `ceil(rows / scale), W, 3` or more; None where OpenCV cannot."""
        data: bytes | bytearray = self.data
        if self.can_stop and -(-(rows + MARGIN) // BLOCK) * BLOCK < self.height:
            # Without the end marker OpenCV sees compressed data that goes on, not some that it would warn of.
            data = bytearray(memoryview(self.data)[: self.end])
            data[self.height_at : self.height_at + 2] = (rows + MARGIN).to_bytes(2, "big")
        flags = {1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4}  # grey means no BGR
        flag = flags.get(scale, cv2.IMREAD_REDUCED_GRAYSCALE_8) | cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            return cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        except cv2.error:
            return None


def _jpeg_header(data: bytes) -> Header | None:
    """Read the markers of a JPEG; None if it is none, or one that needs PIL's care.

    Raises:
        ValueError: If the end is missing. PIL would take zeros in its place, which downloads leave, for pixels.
    """
    if data[:2] != b"\xff\xd8":
        return None
    frame, at, restarts, more = b"", 2, False, False
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if marker in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive
            kind, height_at, frame = marker, at + 5, body
        elif marker == 0xDD:
            restarts = body != b"\0\0"
        elif marker == 0xE2 and body[:4] == b"MPF\0":  # another image follows
            more = True
        elif marker == 0xE1 and _is_turned(data):  # EXIF or XMP
            return None
        elif marker == 0xDA:
            end = len(data) - 2 if data.endswith(END) and not more else data.find(END, at)  # a search takes its time
            if end < 0:
                raise UserError("the file is cut off")
            if len(frame) < 6 or frame[0] != 8 or frame[5] not in (1, 3):
                return None  # no image, 12 bits, CMYK
            height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
            can_stop = kind != 0xC2 and body[:1] == frame[5:6] and not restarts
            return Header(data, height, width, height_at, end, can_stop) if height and width else None
        at += 2 + length
    return None


def _is_turned(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return bool(image.getexif().get(ORIENTATION, 1) != 1)
    except Exception:  # whatever it is, PIL will say it again
        return True


def _decode_by_pil(data: bytes | Path, name: str) -> Array:
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            image.load()
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))  # a copy that may be written to, as torch wants
    except Exception as error:  # PIL raises nearly every kind for one or another broken file
        raise CorruptImageError(f"cannot read the image {name}: {error}; repair or remove it") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which PIL would clip to 8 instead of scaling
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise UserError(f"its values from {grey.min()} to {grey.max()} are no 16 bits of grey")
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UserError("floating-point pixels have no agreed range")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # a palette's transparency is dropped like any other
    return image.convert("RGB")
