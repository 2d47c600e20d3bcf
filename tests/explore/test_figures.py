import numpy as np
import pytest

from swin_lightning.explore.figures import distinct_colors, image_grid, sample_photo, write_photo_dataset
from tests.support.figures import INVALID_FORMULA, read_image, text_overlaps


def test_text_overlaps_finds_titles_that_are_too_wide():
    assert text_overlaps(image_grid([np.zeros((8, 8, 3))] * 2, ["a title that is much too wide for its image"] * 2))
    assert text_overlaps(image_grid([np.zeros((8, 8, 3))] * 2, ["one line\nof two"] * 2)) == []


def test_image_grid_shows_dollar_signs_as_text():
    with pytest.raises(ValueError, match="Unknown symbol"):
        image_grid([np.zeros((8, 8, 3))], [""]).suptitle(INVALID_FORMULA).figure.draw_without_rendering()
    image_grid([np.zeros((8, 8, 3))], [INVALID_FORMULA]).draw_without_rendering()


def test_distinct_colors():
    for count in (3, 8, 20):
        assert len(set(distinct_colors(count))) == count


def test_photo_dataset_splits_share_no_pixels(tmp_path):
    root = write_photo_dataset(tmp_path, side=64, stride=64)
    for split, columns in (("train", range(0, 363, 64)), ("val", range(426, 577, 64))):
        for name in ("china", "flower"):
            files = sorted((root / split / name).glob("*.jpg"))
            assert {int(file.stem[4:]) for file in files} == set(columns)  # left edge; photographs are 640 px wide
            assert read_image(files[0]).size == (64, 64)
    assert sample_photo("flower", 50).shape == (50, 50, 3)
