"""The file with predictions, `.csv` or `.parquet`: it grows by whole rows and is continued after a kill.

Columns: `path`, most probable class, its probability, next class, ... Rows are appended to the CSV file itself. A
parquet file is readable only when it is complete, so its rows are first kept as CSV in `<name>.part`.
"""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from swin_lightning.csv_cells import escape_cell, unescape_cell
from swin_lightning.errors import UserError

SUFFIXES = (".csv", ".parquet")
ROW_GROUP = 10_000  # rows that are in memory while a parquet file is written

Row = list[str]


class PredictionFile:
    """A file with predictions.

    Args:
        path: A `.csv` or `.parquet` file; its folder is created when rows are written.

    Raises:
        UserError: If the path has another suffix.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in SUFFIXES:
            raise UserError(f"--output {str(path)!r} must end with {' or '.join(SUFFIXES)}")
        self.is_parquet = self.path.suffix.lower() == ".parquet"
        self.rows_path = self.path.with_name(f"{self.path.name}.part") if self.is_parquet else self.path

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only process that writes the file.

        Raises:
            UserError: If another one does.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            with lock.acquire(timeout=0):
                yield
                Path(lock.lock_file).unlink(missing_ok=True)
        except Timeout:
            raise UserError(f"--output {str(self.path)!r}: another process writes this file") from None

    def resume(self, columns: Sequence[str]) -> Iterator[Row]:
        """The rows that an earlier run has written. What follows the last complete row is removed at the end.

        Raises:
            UserError: If the file has other columns, such as those of another program.
        """
        if self.is_parquet and self.path.is_file() and not self.rows_path.is_file():
            self._from_parquet(columns)
        if not self.rows_path.is_file() or not self.rows_path.stat().st_size:
            return
        with self.rows_path.open("rb") as file:
            header = _encode(",".join(columns)) + b"\r\n"
            if not header.startswith(file.read(len(header))):
                file.seek(0)
                raise self._is_another(columns, next(_CompleteRows(file), []))
            file.seek(0)
            rows = _CompleteRows(file)
            next(rows, None)
            yield from rows.of_predictions(len(columns))
        with self.rows_path.open("rb+") as file:
            file.truncate(rows.end)

    def append(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write whole rows, with the header if there is none yet."""
        text = io.StringIO()
        writer = csv.writer(text)
        if not self.rows_path.is_file() or not self.rows_path.stat().st_size:
            self.rows_path.parent.mkdir(parents=True, exist_ok=True)
            writer.writerow(columns)
        writer.writerows(map(escape_cell, row) for row in rows)
        with self.rows_path.open("ab") as file:
            file.write(_encode(text.getvalue()))

    def finish(self) -> None:
        """Make a parquet file of the rows; a CSV file is complete already."""
        if not self.is_parquet or not self.rows_path.is_file():
            return
        import pyarrow as pa
        from pyarrow import parquet

        part = self.path.with_name(f".{self.path.name}.part")
        with self.rows_path.open("rb") as file:
            rows = _CompleteRows(file)
            columns = next(rows)
            types = [pa.float64() if name.startswith("probability_") else pa.string() for name in columns]
            schema = pa.schema(list(zip(columns, types, strict=True)))
            with parquet.ParquetWriter(part, schema) as writer:
                while group := list(islice(rows, ROW_GROUP)):
                    values = [
                        [float(v) if kind == pa.float64() else _encode(v).decode("utf-8", "replace") for v in column]
                        for kind, column in zip(types, zip(*group, strict=True), strict=True)
                    ]
                    arrays = [pa.array(column, kind) for column, kind in zip(values, types, strict=True)]
                    writer.write_batch(pa.record_batch(arrays, schema=schema))
        os.replace(part, self.path)
        self.rows_path.unlink()

    # helpers

    def _from_parquet(self, columns: Sequence[str]) -> None:
        """The rows of a complete parquet file, to be continued."""
        import pyarrow as pa
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(self.path) as file:
                if file.schema_arrow.names != list(columns):
                    raise self._is_another(columns, file.schema_arrow.names)
                for group in file.iter_batches(ROW_GROUP):
                    cells = (
                        (v if isinstance(v, str) else f"{v:.6f}" for v in row.values()) for row in group.to_pylist()
                    )
                    self.append(columns, map(list, cells))
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"--output {str(self.path)!r} is no parquet file ({error}); remove it") from error

    def _is_another(self, columns: Sequence[str], found: Sequence[str]) -> UserError:
        return UserError(
            f"--output {str(self.path)!r} exists with the columns {', '.join(found[:7]) or 'of no table'} instead of "
            f"{', '.join(columns[:3])}, ...; give another file or remove it"
        )


def columns_of(k: int) -> list[str]:
    """The columns for the k most probable classes."""
    return ["path", *(name for i in range(1, k + 1) for name in (f"class_{i}", f"probability_{i}"))]


# helpers


class _CompleteRows(Iterator[Row]):
    """The rows of an opened CSV file up to the first that is incomplete.

    Attributes:
        end: Offset in bytes behind the last row that was read.
    """

    def __init__(self, file: Any) -> None:
        self._file, self._offset, self._line = file, 0, b""
        self._reader = csv.reader(self._lines(), strict=True)
        self.end = 0

    def __next__(self) -> Row:
        try:
            row = next(self._reader)
        except csv.Error:  # the end is missing within quotes
            raise StopIteration from None
        if not self._line.endswith(b"\n"):
            raise StopIteration
        self.end = self._offset
        return list(map(unescape_cell, row))

    def of_predictions(self, length: int) -> Iterator[Row]:
        """The further rows up to the first that is no prediction."""
        end = self.end
        for row in self:
            if len(row) != length or "\0" in row[0] or not all(map(_is_probability, row[2::2])):
                break
            end = self.end
            yield row
        self.end = end

    def _lines(self) -> Iterator[str]:
        for line in self._file:
            self._line = line
            self._offset += len(line)
            yield line.decode("utf-8", "surrogateescape")


def _is_probability(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


def _encode(text: str) -> bytes:
    """UTF-8; bytes of file names that are not UTF-8 are kept."""
    return text.encode("utf-8", "surrogateescape")
