import dataclasses
import re

import pytest
import torch
from torch import nn

from swin_lightning.cli import main
from swin_lightning.errors import UserError
from swin_lightning.explore.evaluation import Evaluation
from swin_lightning.explore.report import RunReport, compute_views, write_report
from swin_lightning.runs import RunFolder


@pytest.fixture
def plain_report(run, log, evaluation):
    """A report without attention maps, which is fast to write."""
    return RunReport(RunFolder(run), log, "test", evaluation, [], None)


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


def test_report_of_a_model_without_errors(plain_report, tmp_path):
    labels = plain_report.evaluation.labels
    perfect = Evaluation(torch.eye(10)[labels], labels, [str(k) for k in range(10)], torch.arange(len(labels)))
    page = write_report(dataclasses.replace(plain_report, evaluation=perfect), tmp_path / "page.html")
    text = page.read_text(encoding="utf-8")
    assert "<h2>Most confident errors</h2>\n<p>No errors.</p>" in text and text.count("data:image/png;base64,") == 3


def test_report_of_another_backbone_has_no_attention_maps(plain_report, loaded):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 10))
    assert compute_views(model, loaded[1], plain_report.evaluation, "test") is None
    page = write_report(plain_report)
    assert page == plain_report.run.report
    assert "No attention maps: the model contains no Swin Transformer." in page.read_text(encoding="utf-8")


def test_report_omits_the_confusion_matrix_of_many_classes(plain_report, tmp_path):
    names = [f"class {k}" for k in range(101)]
    many = Evaluation(torch.rand(200, 101), torch.arange(200) % 101, names, torch.arange(200))
    text = write_report(dataclasses.replace(plain_report, evaluation=many), tmp_path / "page.html").read_text("utf-8")
    assert text.count("data:image/png;base64,") == 2 and "<th>prediction</th>" in text


def test_report_of_invalid_arguments(tmp_path):
    with pytest.raises(UserError, match=r"'nothing' is not a run folder: it has no config\.yaml"):
        main(["report", "nothing"])
    with pytest.raises(UserError, match="--images 0 must be at least 1"):
        main(["report", str(tmp_path), "--images", "0"])
