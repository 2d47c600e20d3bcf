import base64
import re

import numpy as np
from matplotlib.figure import Figure

from swin_lightning.html_page import code, paragraph, picture, save_page, section, table
from tests.support.figures import read_image


def test_text_is_escaped(tmp_path):
    text = "<b> & \u201cquotes\u201d"
    page = save_page(tmp_path / "page.html", text, section(text, paragraph(text), code(text)), table([text], [[text]]))
    content = page.read_text(encoding="utf-8")
    assert text not in content
    assert content.count("&lt;b&gt; &amp; \u201cquotes\u201d") == 7  # title and heading, section, 2 texts, 2 cells
    assert '<meta charset="utf-8">' in content


def test_table_cells():
    html = table(["a", "b", "c"], [[0.123456, None, 3]])
    assert re.findall("<td>(.*?)</td>", html) == ["0.1235", "", "3"]


def test_picture_is_an_embedded_png(tmp_path):
    figure = Figure(figsize=(2, 1))
    figure.subplots().imshow(np.zeros((2, 2)))
    html = picture(figure, "a caption with <tags>")
    (data,) = re.findall(r'src="data:image/png;base64,([^"]*)"', html)
    (tmp_path / "figure.png").write_bytes(base64.b64decode(data))
    assert read_image(tmp_path / "figure.png").size == (288, 144)
    assert html.count("a caption with &lt;tags&gt;") == 2  # caption and alternative text
