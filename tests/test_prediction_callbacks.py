"""Prediction sheet, confusion matrix and predictions.csv."""

import csv

import pytest
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from swin_lightning.loggers import CSVLogger
from swin_lightning.prediction_callbacks import PredictionReport, PredictionWriter, class_names, is_probability
from swin_lightning.prediction_file import PredictionFile
from swin_lightning.runs import RunFolder
from tests.support.modules import Labelled, Plain, loader

LOGITS = torch.tensor([[3.0, 1.0, 2.0], [0.0, 2.0, 1.0], [1.0, 0.0, 4.0], [2.0, 1.0, 0.0]])
TARGETS = torch.tensor([0, 2, -1, 1])  # one without a label


class Fixed(Labelled):
    """Returns LOGITS for every batch."""

    def evaluate(self, batch):
        return LOGITS.new_zeros(()), LOGITS[: len(batch["image"])]


class Images(LightningDataModule):
    """One batch of four images, as dicts."""

    def __init__(self, index=(2, 0, 1, -1)):
        super().__init__()
        images = torch.arange(4 * 3 * 8 * 8).view(4, 3, 8, 8) / 768
        self.items = [{"image": x, "target": t} for x, t in zip(images, TARGETS, strict=True)]
        if index is not None:
            self.items = [item | {"index": i} for item, i in zip(self.items, index, strict=True)]

    def test_dataloader(self):
        return DataLoader(self.items, batch_size=4)

    predict_dataloader = test_dataloader


class NamedImages(Images):
    def denormalize(self, images):
        return (images * 255).byte()

    def sample_name(self, split, index):
        return f"{split}/{index}.png"


class Sink(CSVLogger):
    """A logger that takes predictions and confusion matrices."""

    def __init__(self):
        super().__init__()
        self.predictions, self.confusion = [], None

    def log_predictions(self, samples):
        self.predictions = samples

    def log_confusion(self, counts, class_names):
        self.confusion = (counts.tolist(), class_names)


def report(make_trainer, tmp_path, module, data, **options):
    sink, run = Sink(), RunFolder(tmp_path / "run")
    make_trainer(callbacks=[PredictionReport(run, **options)], logger=sink).test(module, data, verbose=False)
    return sink, run


def test_report_shows_samples_and_counts_labelled_images(make_trainer, tmp_path):
    sink, run = report(make_trainer, tmp_path, Fixed(), NamedImages())
    assert [(p.label, p.prediction) for p in sink.predictions] == [("a", "a"), ("c", "b"), ("b", "a")]
    assert sink.predictions[0].probability == pytest.approx(LOGITS[0].softmax(0)[0].item())
    assert sink.predictions[0].image.shape == (8, 8, 3) and sink.predictions[0].image.dtype == "uint8"
    assert sink.confusion == ([[1, 0, 0], [1, 0, 0], [0, 1, 0]], ["a", "b", "c"])  # rows: labels
    assert run.prediction_sheet.is_file()


def test_report_of_fewer_samples_and_without_confusion_matrix(make_trainer, tmp_path):
    sink, _ = report(make_trainer, tmp_path, Fixed(), NamedImages(), samples=1, max_classes=2)
    assert len(sink.predictions) == 1 and sink.confusion is None


def test_report_without_images_still_has_a_confusion_matrix(make_trainer, tmp_path):
    sink, run = report(make_trainer, tmp_path, Fixed(), Images())
    assert sink.predictions == [] and not run.prediction_sheet.exists()
    assert sink.confusion[0] == [[1, 0, 0], [1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("module", [Fixed(class_names=None), Fixed(class_names=["a", "b"])])
def test_report_needs_the_class_names(module, make_trainer, tmp_path):
    sink, run = report(make_trainer, tmp_path, module, NamedImages())
    assert sink.predictions == [] and sink.confusion is None and not run.path.exists()


def predict(make_trainer, tmp_path, module, data, top_k=2):
    run = RunFolder(tmp_path / "run")
    make_trainer(callbacks=[PredictionWriter(PredictionFile(run.predictions), top_k)]).predict(module, data)
    if not run.predictions.is_file():
        return None
    with run.predictions.open(encoding="utf-8") as file:
        return list(csv.reader(file))


def test_predictions_are_sorted_by_index_and_unreadable_images_are_left_out(make_trainer, tmp_path, capsys):
    header, *rows = predict(make_trainer, tmp_path, Fixed(), NamedImages())
    assert header == ["path", "class_1", "probability_1", "class_2", "probability_2"]
    assert [row[0] for row in rows] == ["predict/0.png", "predict/1.png", "predict/2.png"]
    assert [(row[1], row[3]) for row in rows] == [("b", "c"), ("c", "a"), ("a", "c")]
    expected = LOGITS.softmax(dim=1).topk(2).values[[1, 2, 0]]
    torch.testing.assert_close(
        torch.tensor([[float(row[2]), float(row[4])] for row in rows]), expected, atol=1e-6, rtol=0
    )
    assert f"predictions: {tmp_path / 'run' / 'predictions.csv'}" in capsys.readouterr().out


def test_predictions_of_a_data_module_without_names_and_indices(make_trainer, tmp_path):
    module = Fixed(class_names=None)
    _, *rows = predict(make_trainer, tmp_path, module, Images(index=None), top_k=1)
    assert [row[:2] for row in rows] == [["0", "0"], ["1", "1"], ["2", "2"], ["3", "0"]]


def test_what_is_no_probability_is_not_written(make_trainer, tmp_path, capsys):
    assert predict(make_trainer, tmp_path, Plain("logits"), loader()) is None
    message = "predictions are not written: predict_step of Plain does not return class probabilities B, K\n"
    assert capsys.readouterr().out == message


@pytest.mark.parametrize(("outputs", "expected"), [
    (torch.full((2, 4), 0.25), True),
    (torch.full((2, 4), 0.25, dtype=torch.bfloat16), True),
    (torch.full((2, 4), 0.5), False),
    (torch.tensor([[1.5, -0.5]]), False),
    (torch.tensor([[float("nan"), 1.0]]), False),
    (torch.ones(2, 1, 3), False),
    (torch.ones(2, 1, dtype=torch.long), False),
    ({"probabilities": torch.ones(1, 1)}, False),
    (None, False),
])  # fmt: skip
def test_class_probabilities_are_recognised(outputs, expected):
    assert is_probability(outputs) is expected


def test_class_names_of_a_module():
    named, counted, neither = Labelled(), Labelled(class_names=None), Plain()
    counted.num_classes = 2
    assert class_names(named) == ["a", "b", "c"]
    assert class_names(counted) == ["0", "1"]
    assert class_names(neither) == []
