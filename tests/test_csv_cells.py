"""Cells that begin like a formula."""

import csv
import io

import pytest

from swin_lightning.csv_cells import escape_cell, unescape_cell


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+1", "-cmd|' /C calc'!A0", "\t=1", "\r=1", "'=1", "''@x"])
def test_formulas_are_escaped_and_read_back(text):
    assert escape_cell(text) == f"'{text}"
    file = io.StringIO()
    csv.writer(file).writerow([escape_cell(text), 0.5])
    row = next(csv.reader(io.StringIO(file.getvalue(), newline="")))
    assert [unescape_cell(cell) for cell in row] == [text, "0.5"]


@pytest.mark.parametrize("value", ["a=b", "photo.jpg", "", "'quoted'", -1, 0.5, None])
def test_other_values_stay(value):
    assert escape_cell(value) == value
    assert not isinstance(value, str) or unescape_cell(value) == value
