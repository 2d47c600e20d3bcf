"""Texts in figures do not overlap."""

import pandas as pd
import pytest
import torch

from swin_lightning.explore.figures import sample_photo
from swin_lightning.explore.receptive_field import receptive_fields
from swin_lightning.explore.window_figures import (
    cost_figure,
    mask_figure,
    receptive_field_figure,
    relative_index_figure,
    shift_figure,
    windows_figure,
)
from swin_lightning.models import SwinTransformer
from swin_lightning.models.windows import relative_position_index, shifted_window_mask
from tests.support.figures import text_overlaps
from tests.support.small_swin import SMALL


@pytest.fixture(scope="module")
def photo():
    return sample_photo("flower", 224)


def test_windows_figure(photo):
    assert text_overlaps(windows_figure(photo, 16, 7, 3)) == []


def test_shift_figure(photo):
    assert text_overlaps(shift_figure(photo, 16, 7, 3)) == []


def test_mask_figure():
    names = ["upper left window", "upper right window", "lower left window", "lower right window"]
    figure = mask_figure(shifted_window_mask((14, 14), (7, 7), (3, 3)), names)
    assert text_overlaps(figure) == []
    # columns 0 to 3 and 4 to 6 of the right window are separate regions: (28^2 + 21^2) / 49^2 of the pairs
    assert [ax.get_title().split("\n")[1] for ax in figure.axes] == [
        f"{share} of pairs allowed" for share in ("100 %", "51 %", "51 %", "26 %")
    ]


def test_relative_index_figure():
    assert text_overlaps(relative_index_figure(3, relative_position_index(3))) == []


def test_cost_figure():
    rows = [(side, kind, 0.01 * side**2, 1e-4 * side**3) for side in (56, 112, 168) for kind in ("global", "window")]
    figure = cost_figure(pd.DataFrame(rows, columns=["side", "kind", "megabytes", "milliseconds"]))
    assert text_overlaps(figure) == []
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "global attention",
        "window attention",
    ]


def test_receptive_field_figure(photo):
    fields = receptive_fields(SwinTransformer(**SMALL).eval(), torch.randn(1, 3, 24, 24))
    figure = receptive_field_figure(fields, photo[:24, :24])
    assert text_overlaps(figure) == []
    titles = [ax.get_title() for ax in figure.axes[: len(fields)]]
    assert titles[0] == "patch embedding\n2 x 2 px" and titles[3].startswith("merging after stage 1\n")
