import numpy as np

from swin_lightning.run_figures import Prediction, learning_curves, prediction_sheet
from tests.support.figures import INVALID_FORMULA, read_image


def test_learning_curves_of_metrics_csv(tmp_path):
    rows = ["epoch,step,train/loss,val/loss,val/acc,test/acc", "0,4,2.3,,,", "0,9,,2.1,0.25,", "0,10,,,,0.5"]
    (tmp_path / "metrics.csv").write_text("\n".join(rows), encoding="utf-8")
    assert learning_curves(tmp_path) == tmp_path / "curves.png"
    assert read_image(tmp_path / "curves.png").size == (1080, 408)


def test_learning_curves_without_metrics(tmp_path):
    assert learning_curves(tmp_path) is None
    (tmp_path / "metrics.csv").write_text("epoch,step,train/lr\n0,4,0.1\n", encoding="utf-8")
    assert learning_curves(tmp_path) is None
    assert not (tmp_path / "curves.png").exists()


def test_prediction_sheet_marks_errors_in_red(tmp_path):
    image = np.full((8, 8, 3), 255, np.uint8)
    right, wrong = Prediction(image, "cat", "cat", 0.9), Prediction(image, "dog", "cat", 0.6)

    def has_red(path):
        r, g, b = np.asarray(read_image(path)).astype(int).reshape(-1, 3).T
        return bool(((r > 150) & (g < 100) & (b < 100)).any())

    assert not has_red(prediction_sheet([right] * 9, tmp_path / "right.png"))
    assert has_red(prediction_sheet([right, wrong], tmp_path / "wrong.png"))
    assert read_image(tmp_path / "right.png").size == (1200, 384)  # 2 rows of 8


def test_prediction_sheet_shows_dollar_signs_as_text(tmp_path):
    prediction = Prediction(np.zeros((8, 8, 3), np.uint8), INVALID_FORMULA, "$", 0.5)
    assert prediction_sheet([prediction], tmp_path / "sheet.png").is_file()


def test_prediction_sheet_without_predictions(tmp_path):
    assert prediction_sheet([], tmp_path / "sheet.png") is None
