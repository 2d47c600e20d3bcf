"""Self-contained HTML pages: text, tables and images in one file without external resources."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
figure { margin: 1rem 0; } figcaption { opacity: 0.75; font-size: 0.9rem; }
img { max-width: 100%; background: white; border-radius: 4px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; text-align: left; white-space: nowrap; }
th { border-bottom: 2px solid; } td { border-bottom: 1px solid #8884; }
pre { overflow-x: auto; padding: 0.7rem; border: 1px solid #8884; border-radius: 4px; font-size: 0.85rem; }
"""


def save_page(path: str | Path, title: str, *parts: str) -> Path:
    """Write a page with a title and parts of HTML; returns its path."""
    path = Path(path)
    heading = html.escape(title)
    body = "\n".join(parts)
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<title>{heading}</title><style>{STYLE}</style></head>\n<body><h1>{heading}</h1>\n{body}\n</body></html>\n",
        encoding="utf-8",
    )
    return path


def section(title: str, *parts: str) -> str:
    """A heading followed by parts of HTML."""
    return "\n".join([f"<h2>{html.escape(title)}</h2>", *parts])


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def code(text: str) -> str:
    """Preformatted text, such as a file or a command line."""
    return f"<pre>{html.escape(text)}</pre>"


def picture(figure: Any, caption: str) -> str:
    """A matplotlib figure as an embedded PNG with a caption, which is also its alternative text; closes the figure."""
    import matplotlib.pyplot as plt

    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=144)
    plt.close(figure)
    data, text = base64.b64encode(file.getvalue()).decode(), html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of plain values; floats are rounded to four significant digits, None is an empty cell."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'


def _cell(value: object) -> str:
    return html.escape(f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value))
