"""Cells of CSV files that a spreadsheet program would take for a formula.

File names and class names come from others. A cell that begins like a formula gets an apostrophe, which spreadsheet
programs show or drop but never execute (OWASP, "CSV injection").
"""

from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r")


def escape_cell(value: Any) -> Any:
    """A value as a cell: text that begins like a formula gets an apostrophe; numbers stay as they are."""
    return f"'{value}" if isinstance(value, str) and value.lstrip("'").startswith(FORMULA) else value


def unescape_cell(cell: str) -> str:
    """The inverse of `escape_cell`."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA) else cell
