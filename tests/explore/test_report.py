import re

import pytest
import torch
from torch import nn

from swin_lightning.cli import main
from swin_lightning.errors import UserError
from swin_lightning.explore.evaluation import Evaluation
from swin_lightning.explore.report import RunReport, compute_views, write_report
from swin_lightning.runs import RunFolder


def test_report_is_one_page_without_external_resources(run, tmp_path, capsys):
    main(["report", str(run), "--output", str(tmp_path / "page.html"), "--images", "100"])
    assert capsys.readouterr().out == f"report: {tmp_path / 'page.html'}\n"
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 9
    addresses = re.findall(r"(?:src|href|action|data|poster)\s*=\s*[\"']([^\"']*)", text) + re.findall(r"url\(", text)
    assert all(address.startswith("data:") for address in addresses)
    assert "<script" not in text and "@import" not in text
    assert re.findall("<h2>(.*)</h2>", text) == [
        "Training curves",
        "Classes",
        "Confusion matrix",
        "Most confident errors",
        "Calibration",
        "Attention",
        "Position bias and features",
        "Configuration",
    ]
    assert f"<h1>digits_swin_micro/{run.name}</h1>" in text
    assert "<tr><td>test</td><td>100</td>" in text  # split and number of images
    assert "swin_micro_patch4_window4_32" in text  # the configuration


def test_report_omits_what_a_model_does_not_have(run, log, loaded, tmp_path):
    labels, classes = torch.arange(202) % 101, 101  # no errors, and too many classes for a confusion matrix
    perfect = Evaluation(torch.eye(classes)[labels], labels, [f"class {k}" for k in range(classes)], torch.arange(202))
    linear = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, classes))
    views = compute_views(linear, loaded[1], perfect, "test")
    page = write_report(RunReport(RunFolder(run), log, "test", perfect, [], views))
    assert page == run / "report.html"
    text = page.read_text(encoding="utf-8")
    assert "<h2>Most confident errors</h2>\n<p>No errors.</p>" in text
    assert "<p>No attention maps: the model contains no Swin Transformer.</p>" in text
    assert text.count("data:image/png;base64,") == 2  # training curves and calibration
    assert "<th>label</th><th>prediction</th><th>images</th>" in text


def test_report_of_invalid_arguments(tmp_path):
    with pytest.raises(UserError, match=r"'nothing' is not a run folder: it has no config\.yaml"):
        main(["report", "nothing"])
    with pytest.raises(UserError, match="--images 0 must be at least 1"):
        main(["report", str(tmp_path), "--images", "0"])
