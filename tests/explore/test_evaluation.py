import shutil
import sys
import textwrap

import pytest
import torch
import yaml
from torch import nn

from swin_lightning.errors import UserError
from swin_lightning.explore.evaluation import Evaluation, evaluate, load_run, load_samples, to_numpy
from swin_lightning.runs import RunFolder


@pytest.fixture
def small():
    rows = [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.5, 0.1, 0.4], [0.1, 0.1, 0.8]]
    return Evaluation(torch.tensor(rows), torch.tensor([0, 0, 2, 2, 2]), ["a", "b", "c"], torch.arange(10, 15))


def test_confusion_matrix_has_true_rows_and_predicted_columns(small):
    assert small.confusion_matrix().tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]
    assert small.accuracy == pytest.approx(0.4)


def test_confused_pairs_are_sorted_by_frequency(small):
    assert small.confused_pairs().values.tolist() == [["a", "b", 1], ["c", "a", 1], ["c", "b", 1]]
    labels, predictions = torch.tensor([0, 1, 1, 2, 2]), torch.tensor([1, 2, 2, 2, 0])
    pairs = Evaluation(torch.eye(3)[predictions], labels, ["a", "b", "c"], torch.arange(5)).confused_pairs()
    assert pairs.values.tolist() == [["b", "c", 2], ["a", "b", 1], ["c", "a", 1]]


def test_errors_are_sorted_by_confidence(small):
    assert small.errors().tolist() == [2, 1, 3]  # 80, 70 and 50 %


def test_balanced_sample_alternates_between_classes(small):
    assert small.balanced_sample(4).tolist() == [0, 2, 1, 3]  # a, c, a, c


def test_calibration_error_matches_its_definition():
    probabilities = (2 * torch.randn(500, 3)).softmax(dim=1)
    probabilities[:20] = torch.tensor([1.0, 0.0, 0.0])  # belongs to the last bin
    labels = torch.randint(3, (500,))
    evaluation = Evaluation(probabilities, labels, list("abc"), torch.arange(500))
    confidence, correct = probabilities.max(dim=1).values, (probabilities.argmax(dim=1) == labels).float()
    rows = []
    for k in range(10):
        inside = (confidence >= k / 10) & ((confidence < (k + 1) / 10) | (k == 9))
        if inside.any():
            rows.append([float(confidence[inside].mean()), float(correct[inside].mean()), int(inside.sum())])
    for row, expected in zip(evaluation.calibration_bins().values.tolist(), rows, strict=True):
        assert row == pytest.approx(expected, abs=1e-6)
    error = sum(images * abs(mean - accuracy) for mean, accuracy, images in rows) / 500
    assert evaluation.calibration_error() == pytest.approx(error, abs=1e-6)


def test_evaluation_of_a_run_matches_its_logged_accuracy(loaded, evaluation, log):
    model, data = loaded
    assert not model.training
    assert evaluation.accuracy == pytest.approx(log.last("test/acc"))
    assert len(evaluation.labels) == 360
    subset = evaluate(model, data, "val", limit=10)
    assert subset.indices.tolist() == [0, 20, 40, 60, 80, 99, 119, 139, 159, 179]
    images, labels = load_samples(data, "val", subset.indices)
    assert torch.equal(labels, subset.labels) and images.shape == (10, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(data.normalize(images)).softmax(dim=1), subset.probabilities)
    arrays = to_numpy(images)
    assert len(arrays) == 10 and (arrays[3][5, 7] == images[3, :, 5, 7].numpy()).all()


def test_evaluation_of_unsuitable_models_and_splits(loaded, monkeypatch):
    model, data = loaded
    with pytest.raises(UserError, match="Identity does not return logits of the 10 classes"):
        evaluate(nn.Identity(), data)
    monkeypatch.setitem(data.sources, "val", [])
    with pytest.raises(UserError, match="split 'val' has no labelled image"):
        evaluate(model, data, "val")
    monkeypatch.setitem(data.sources, "val", iter([]))
    with pytest.raises(UserError, match=r"data\.streaming: the val split is a stream and cannot be indexed"):
        load_samples(data, "val", [0])


@pytest.fixture
def edited_run(run, tmp_path, monkeypatch):
    """A function that copies the run and changes its configuration; the configuration may name classes of `user`."""
    code = """
        import lightning, swin_lightning
        class Classifier(swin_lightning.SwinClassifier): pass
        class Data(lightning.LightningDataModule): num_classes = 10
    """
    (tmp_path / "user.py").write_text(textwrap.dedent(code), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "user", raising=False)

    def edit(change):
        folder = RunFolder(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("wandb")))
        config = folder.read_config()
        change(config)
        folder.config.write_text(yaml.safe_dump(config), encoding="utf-8")
        return folder.path

    return edit


def test_load_run_works_without_the_pretrained_weights(edited_run, loaded):
    path = edited_run(lambda config: config["model"]["init_args"].update(weights="deleted.safetensors"))
    assert torch.equal(load_run(path)[0].head.weight, loaded[0].head.weight)


def test_load_run_builds_classes_of_the_user(edited_run):
    path = edited_run(lambda config: config["model"].update(class_path="user.Classifier"))
    with pytest.raises(UserError, match=r"class user\.Classifier is not one of swin_lightning; .* --allow_classes"):
        load_run(path)
    assert "user" not in sys.modules
    model, _ = load_run(path, "user.Classifier")
    assert type(model).__name__ == "Classifier"


def test_load_run_rejects_other_data_modules(edited_run):
    path = edited_run(lambda config: config.update(data={"class_path": "user.Data"}))
    with pytest.raises(UserError, match="Data is not a subclass of ImageDataModule"):
        load_run(path, ["user"])


def test_load_run_rejects_other_folders(tmp_path):
    with pytest.raises(UserError, match=r"'nothing' is not a run folder: it has no config\.yaml"):
        load_run("nothing")
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(UserError, match=r"has no checkpoints/best\.ckpt and no checkpoints/last\.ckpt"):
        load_run(tmp_path)
