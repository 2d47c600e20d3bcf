"""Texts in figures do not overlap, and class names are shown as they are."""

import numpy as np
import pytest
import torch

from swin_lightning.explore.evaluation import Evaluation
from swin_lightning.explore.result_figures import (
    calibration_figure,
    confusion_figure,
    curves_figure,
    predictions_figure,
)
from swin_lightning.explore.runs import RunLog
from tests.support.figures import INVALID_FORMULA, text_overlaps


@pytest.fixture
def dollars():
    """An evaluation whose class names matplotlib cannot parse as formulas."""
    return Evaluation(torch.eye(2)[[1, 0]], torch.tensor([0, 1]), [INVALID_FORMULA, "$"], torch.arange(2))


def test_curves_figure(log):
    figure = curves_figure([log, RunLog("digits_swin_micro/another-run", log.config, log.metrics)])
    assert text_overlaps(figure) == []
    steps, accuracy = figure.axes[2].get_lines()[0].get_data()
    assert steps.tolist() == [3, 6]  # 2 epochs of 3 steps
    assert accuracy[-1] == pytest.approx(100 * log.last("val/acc"))
    curves_figure([log, log], names=[INVALID_FORMULA, "b"]).draw_without_rendering()


def test_confusion_figure(evaluation, dollars):
    assert text_overlaps(confusion_figure(evaluation)) == []
    names = [f"a rather long class name, {k}" for k in range(60)]
    many = Evaluation(torch.rand(200, 60), torch.arange(200) % 60, names, torch.arange(200))
    assert text_overlaps(confusion_figure(many)) == []
    confusion_figure(dollars).draw_without_rendering()


def test_calibration_figure(evaluation):
    figure = calibration_figure(evaluation)
    assert text_overlaps(figure) == []
    assert figure.axes[0].get_title() == f"expected calibration error {100 * evaluation.calibration_error():.1f} %"


def test_predictions_figure(dollars):
    images = [np.zeros((8, 8, 3), np.uint8)] * 8
    names = ["tench, Tinca tinca", "a class name that is long"]
    evaluation = Evaluation(torch.tensor([[0.25, 0.75]] * 8), torch.zeros(8, dtype=int), names, torch.arange(8))
    figure = predictions_figure(evaluation, evaluation.errors(), images)
    assert text_overlaps(figure) == []
    assert figure.axes[0].get_title() == "a class name t (75 %)\nlabel tench (25 %)"
    predictions_figure(dollars, dollars.errors(), images[:2]).draw_without_rendering()
