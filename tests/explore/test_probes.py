"""Probes: against plain computations, and on the features of a run."""

import re

import numpy as np
import pandas as pd
import pytest

from swin_lightning.cli import main
from swin_lightning.errors import UserError
from swin_lightning.explore.features import Features
from swin_lightning.explore.probes import knn_accuracy, linear_accuracy


def make(values, labels, classes=3):
    names = [str(i) for i in range(len(labels))]
    return Features(np.asarray(values, np.float32), np.asarray(labels), names, [str(k) for k in range(classes)])


def clusters(seed, count=60, noise=0.4):
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    centres = np.eye(3, 8)[labels]
    return make(centres + noise * rng.standard_normal((count, 8)), labels)


def test_neighbours_vote_by_similarity_as_in_a_plain_loop():
    train, test = clusters(0, noise=0.8), clusters(1, noise=0.8)
    correct = 0
    for x, wanted in zip(test.values, test.labels, strict=True):
        similarity = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in train.values]
        nearest = np.argsort(similarity)[-7:]
        votes = [sum(np.exp(similarity[i] / 0.3) for i in nearest if train.labels[i] == k) for k in range(3)]
        correct += int(np.argmax(votes) == wanted)
    assert 0.5 < correct / 60 < 1
    assert knn_accuracy(train, test, 7, 0.3) == pytest.approx(correct / 60)
    assert knn_accuracy(train, train, 1) == 1.0
    assert knn_accuracy(train, test, 1000, 100.0) == pytest.approx(  # all vote equally: the largest class
        (test.labels == np.bincount(train.labels).argmax()).mean(), abs=0.1
    )


def test_linear_probe_separates_what_is_linear_and_chooses_its_penalty_on_validation():
    train, test = clusters(0, 200), clusters(1, 200)
    accuracy, penalty = linear_accuracy(train, test)
    assert accuracy > 0.85 and penalty == 1.0
    rng = np.random.default_rng(0)
    shuffled = make(train.values[:, :1] * 0 + rng.standard_normal((200, 150)), train.labels)
    chosen = linear_accuracy(shuffled, test=make(rng.standard_normal((60, 150)), test.labels[:60]),
                             val=make(rng.standard_normal((200, 150)), np.zeros(200, int)))  # fmt: skip
    assert chosen[1] in (0.01, 0.1, 1.0, 10.0, 100.0)
    ring = make(np.c_[train.values, 1e3 * rng.standard_normal((200, 1))], train.labels)
    assert linear_accuracy(ring, ring)[0] > 0.85  # features of another scale do not matter


def test_unlabelled_images_do_not_count():
    train, test = clusters(0), clusters(1)
    partly = make(np.r_[test.values, test.values], np.r_[test.labels, -np.ones(60, int)])
    assert knn_accuracy(train, partly) == knn_accuracy(train, test)
    assert linear_accuracy(train, partly)[0] == linear_accuracy(train, test)[0]
    with pytest.raises(UserError, match="no labels"):
        knn_accuracy(train, make(test.values, -np.ones(60, int)))


def test_command_prints_both_accuracies(capsys):
    parts = {"train": clusters(0, 200), "val": clusters(2), "test": clusters(1, 200)}
    pd.concat([part.table(split) for split, part in parts.items()]).to_parquet("f.parquet")
    main(["probe", "f.parquet"])
    nearest, linear = map(float, re.findall(r"test/\w+_acc (0\.\d+)", capsys.readouterr().out))
    assert nearest == pytest.approx(knn_accuracy(parts["train"], parts["test"]), abs=1e-4)
    assert linear == pytest.approx(linear_accuracy(parts["train"], parts["test"], parts["val"])[0], abs=1e-4)
    with pytest.raises(UserError, match="--neighbours 0 must be above 0"):
        main(["probe", "f.parquet", "--neighbours", "0"])
    with pytest.raises(UserError, match="no split 'predict'; they have test, train, val"):
        main(["probe", "f.parquet", "--split", "predict"])
