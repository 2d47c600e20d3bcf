"""Scores by class and their means, against scikit-learn; the table in the run folder."""

import csv

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_recall_fscore_support

from swin_lightning.class_counts import ClassCounts, class_rows, class_scores, mean_scores, write_class_table

RNG = np.random.default_rng(0)
TARGETS, PREDICTIONS = RNG.integers(0, 4, 60), RNG.integers(0, 5, 60)  # class 4 has no image, class 5 nothing


@pytest.fixture
def counts():
    metric = ClassCounts(6)
    for part in (slice(0, 25), slice(25, 60)):
        targets = torch.cat([torch.from_numpy(TARGETS[part]), torch.tensor([-1, -1])])  # without labels
        metric.update(torch.cat([torch.from_numpy(PREDICTIONS[part]), torch.tensor([0, 3])]), targets)
    return metric.compute()


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_scores_are_those_of_scikit_learn(counts):
    scores = class_scores(counts)
    expected = precision_recall_fscore_support(TARGETS, PREDICTIONS, labels=range(6), zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "images"), expected, strict=True):
        np.testing.assert_allclose(scores[name].numpy(), values, rtol=1e-12)
    means = mean_scores(counts)
    assert float(means["f1_macro"]) == pytest.approx(f1_score(TARGETS, PREDICTIONS, average="macro"))
    assert float(means["acc_balanced"]) == pytest.approx(balanced_accuracy_score(TARGETS, PREDICTIONS))


def test_means_without_images_are_not_numbers():
    assert all(value.isnan() for value in mean_scores(torch.zeros(3, 4, dtype=torch.long)).values())


def test_table_of_classes(counts, tmp_path):
    rows = class_rows(torch.tensor([[4, 0], [3, 1], [3, 0]]), ["cat", "dog"])
    assert rows[0] == {"class": "cat", "precision": 1.0, "recall": 0.75, "f1": pytest.approx(6 / 7), "images": 4}
    write_class_table(rows, tmp_path / "run" / "classes.csv")
    with (tmp_path / "run" / "classes.csv").open(newline="", encoding="utf-8") as file:
        assert next(csv.DictReader(file)) == {
            "class": "cat", "precision": "1.0000", "recall": "0.7500", "f1": "0.8571", "images": "4",
        }  # fmt: skip
