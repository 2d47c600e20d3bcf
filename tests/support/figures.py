"""Checks of matplotlib figures."""

import itertools

import pytest
from matplotlib.text import Text
from PIL import Image

INVALID_FORMULA = r"$\no{$"  # matplotlib raises ValueError if it parses this as a formula


def text_overlaps(figure):
    """Pairs of texts that overlap, and texts that extend beyond the figure."""
    drawn = {}

    def record_extent(text, renderer):
        if text.get_visible() and text.get_text().strip():
            drawn[text] = text.get_window_extent(renderer).shrunk(0.9, 0.9)

    figure.draw_without_rendering()  # runs the layout engine, which is not needed twice
    figure.set_layout_engine("none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", record_extent)
        figure.draw_without_rendering()
    boxes = [(text.get_text(), box) for text, box in drawn.items()]
    pairs = [(a, b) for (a, A), (b, B) in itertools.combinations(boxes, 2) if A.overlaps(B)]
    edge = figure.bbox
    return pairs + [text for text, b in boxes if b.x0 < 0 or b.y0 < 0 or b.x1 > edge.x1 or b.y1 > edge.y1]


def read_image(path):
    """An image file, loaded and closed."""
    with Image.open(path) as image:
        return image.convert("RGB")
