"""The file with predictions: complete rows are kept, whatever follows them is not."""

import csv

import pandas as pd
import pytest

from swin_lightning.errors import UserError
from swin_lightning.prediction_file import PredictionFile, columns_of

COLUMNS = columns_of(2)
ROWS = [
    ["a.png", "cat", "0.900000", "dog", "0.100000"],
    ['two\nlines, "quoted".png', "dog, small", "0.700000", "cat", "0.300000"],
    ["caf\udce9.png", "猫", "0.600000", "cat", "0.400000"],  # a file name in Latin-1
    ["d.png", "1", "1.000000", "2", "0.000000"],
]


def read(path):
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


@pytest.fixture
def written(tmp_path):
    file = PredictionFile(tmp_path / "predictions.csv")
    file.append(COLUMNS, ROWS[:2])
    file.append(COLUMNS, ROWS[2:])
    return file


def test_columns():
    assert COLUMNS == ["path", "class_1", "probability_1", "class_2", "probability_2"]


def test_rows_are_appended_and_read_again(written):
    assert read(written.path) == [COLUMNS, *ROWS]
    assert list(written.resume(COLUMNS)) == ROWS
    written.finish()
    assert read(written.path) == [COLUMNS, *ROWS]


def test_every_torn_file_keeps_its_complete_rows(written):
    content = written.path.read_bytes()
    ends, file = [], PredictionFile(written.path.with_name("parts.csv"))
    for rows in ([], *([row] for row in ROWS)):
        file.append(COLUMNS, rows)
        ends.append(file.path.stat().st_size)
    for size in range(0, len(content) + 1, 3):
        written.path.write_bytes(content[:size])
        complete = sum(end <= size for end in ends) - 1
        assert list(written.resume(COLUMNS)) == ROWS[: max(complete, 0)], size
        assert written.path.read_bytes() == (content[: ends[complete]] if complete >= 0 else b"")
        written.append(COLUMNS, ROWS[max(complete, 0) :])
        assert written.path.read_bytes() == content


@pytest.mark.parametrize("damage", [b"\0" * 40, b"\0\0\r\n", b"e.png,cat,0.9\r\n", b"e.png,cat,high,dog,0.1\r\n"])
def test_rows_behind_a_damaged_one_are_removed(written, damage):
    content = written.path.read_bytes()
    written.path.write_bytes(content + damage + b"f.png,cat,0.9,dog,0.1\r\n")
    assert list(written.resume(COLUMNS)) == ROWS
    assert written.path.read_bytes() == content


@pytest.mark.parametrize("name", ["predictions.csv", "predictions.parquet"])
def test_file_of_something_else_is_kept(tmp_path, name):
    file = PredictionFile(tmp_path / name)
    if file.is_parquet:
        pd.DataFrame({"path": ["a.png"], "label": [1]}).to_parquet(file.path)
    else:
        file.path.write_text("path,label\na.png,1\n", encoding="utf-8")
    before = file.path.read_bytes()
    with pytest.raises(UserError, match=r"exists with the columns path, label instead of path, class_1, probability_1"):
        list(file.resume(COLUMNS))
    assert file.path.read_bytes() == before


def test_parquet_has_the_rows_of_csv_and_is_continued(tmp_path):
    file = PredictionFile(tmp_path / "predictions.parquet")
    file.append(COLUMNS, ROWS[:1])
    assert not file.path.exists() and list(PredictionFile(file.path).resume(COLUMNS)) == ROWS[:1]
    file.append(COLUMNS, ROWS[1:2])
    file.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.parquet"]
    table = pd.read_parquet(file.path)
    assert table.columns.tolist() == COLUMNS and table["probability_1"].tolist() == [0.9, 0.7]
    assert list(file.resume(COLUMNS)) == ROWS[:2]
    file.append(COLUMNS, ROWS[2:])
    file.finish()
    assert pd.read_parquet(file.path)["class_1"].tolist() == ["cat", "dog, small", "猫", "1"]
    assert pd.read_parquet(file.path)["path"].tolist()[2] == "caf\ufffd.png"


def test_damaged_parquet(tmp_path):
    file = PredictionFile(tmp_path / "predictions.parquet")
    file.path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"predictions.parquet' is no parquet file"):
        list(file.resume(COLUMNS))


def test_suffix_and_lock(tmp_path):
    with pytest.raises(UserError, match=r"--output 'x.json' must end with .csv or .parquet"):
        PredictionFile("x.json")
    file = PredictionFile(tmp_path / "new" / "predictions.csv")
    with file.lock(), pytest.raises(UserError, match="another process writes this file"), file.lock():
        pass
    assert list((tmp_path / "new").iterdir()) == []
