"""Predictor: the probabilities of `test`, from a checkpoint alone, for any kind of image."""

import numpy as np
import pytest
import torch
from PIL import Image

from swin_lightning.batch import Preprocessing, find_preprocessing
from swin_lightning.data import ImageFolder
from swin_lightning.errors import UserError
from swin_lightning.inference import Predictor
from swin_lightning.tasks import SwinClassifier
from tests.support.classifier import DATA, train_classifier


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_classifier(tmp_path_factory.mktemp("predictor"))


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor(trained[0].best, "cpu")


def rows(predictions):
    return torch.stack([prediction.probabilities for prediction in predictions])


def test_probabilities_are_those_of_the_test(trained):
    run, paths, expected = trained
    assert len(expected.unique(dim=0)) == 6
    predictions = Predictor(run.best, device="cpu", batch_size=2)(paths)
    torch.testing.assert_close(rows(predictions), expected, atol=1e-6, rtol=0)
    assert [prediction.name for prediction in predictions] == [str(path) for path in paths]
    assert predictions[0].classes == ["cat", "dog", "eel"]
    best = expected[0].argmax().item()
    assert predictions[0].top(1) == [(["cat", "dog", "eel"][best], pytest.approx(expected[0, best].item()))]
    assert len(predictions[0].top(5)) == 3


def test_run_folder_and_folder_of_images(trained):
    run, paths, expected = trained
    predictions = Predictor(str(run.path), "cpu")(str(paths[0].parents[1]))
    torch.testing.assert_close(rows(predictions), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["str", "bytes", "pil", "array", "rgba", "tensor", "float tensor"])
def test_kinds_of_images(trained, predictor, kind):
    _, paths, expected = trained
    with Image.open(paths[1]) as opened:
        pixels = np.array(opened)
    image = {
        "str": str(paths[1]),
        "bytes": paths[1].read_bytes(),
        "pil": Image.fromarray(pixels),
        "array": pixels,
        "rgba": np.dstack([pixels, pixels[:, :, 0]]),
        "tensor": torch.from_numpy(pixels).permute(2, 0, 1),
        "float tensor": torch.from_numpy(pixels).permute(2, 0, 1) / 255,
    }[kind]
    for images, count in ((image, 1), ([image, image], 2), (iter([image] * 3), 3)):
        predictions = predictor(images)
        torch.testing.assert_close(rows(predictions), expected[[1] * count], atol=1e-6, rtol=0)


def test_batches_and_grey_images(predictor):
    grey = np.random.default_rng(0).integers(256, size=(2, 30, 30), dtype=np.uint8)
    expected = rows(predictor([Image.fromarray(image) for image in grey]))
    batch = np.stack([grey] * 3, axis=-1)  # 2, 30, 30, 3
    for images in (batch, torch.from_numpy(batch).permute(0, 3, 1, 2), list(grey), torch.from_numpy(grey)[:, None]):
        torch.testing.assert_close(rows(predictor(images)), expected)
    assert predictor([]) == []


@pytest.mark.parametrize(("image", "message"), [
    (np.zeros((4, 4, 3), np.float32), "an array of float32 and shape (4, 4, 3); expected uint8 of H, W, 3"),
    (np.zeros((4, 4, 5), np.uint8), "shape (4, 4, 5)"),
    (torch.full((3, 4, 4), 2.0), "a float tensor must have values in [0, 1]"),
    (3, "cannot predict a int"),
    (Image.fromarray(np.zeros((4, 4), np.float32)), "cannot read image 0: floating-point pixels are not supported"),
    ("nothing.png", "cannot read image nothing.png: "),
    (b"no image", "cannot read image 0: "),
])  # fmt: skip
def test_what_is_no_image(predictor, image, message):
    with pytest.raises(UserError) as error:
        predictor([image])
    assert message in str(error.value)


def test_precision_is_that_of_the_trainer(trained):
    run, paths, expected = trained
    found = rows(Predictor(run.best, "cpu", "bf16-mixed")(paths))
    assert found.dtype == torch.float32 and 0 < (found - expected).abs().max() < 0.02
    found = rows(Predictor(run.best, "cpu", "bf16-true")(paths))
    assert 0 < (found - expected).abs().max() < 0.02


@pytest.mark.parametrize(("options", "message"), [
    ({"device": "cuda:99"}, "device 'cuda:99' is not available"),
    ({"device": "nonsense"}, "device 'nonsense' is not available"),
    ({"device": "cpu", "precision": "8"}, "precision '8' is unknown; choose one of 32-true, bf16-mixed"),
    ({"device": "cpu", "batch_size": 0}, "batch_size 0 must be at least 1"),
])  # fmt: skip
def test_options_that_do_not_exist(trained, options, message):
    with pytest.raises(UserError, match=message):
        Predictor(trained[0].best, **options)


class OwnTransform(ImageFolder):
    def eval_transform(self):
        return super().eval_transform()


def test_checkpoint_without_preprocessing(trained, tmp_path):
    content = torch.load(trained[0].best, weights_only=True)
    stored = find_preprocessing(content)
    assert stored == Preprocessing(24, "center", 0.75, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    assert ImageFolder("data", **DATA).preprocessing() == stored
    assert OwnTransform("data", **DATA).state_dict() == {}
    del content["ImageFolder"]
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(UserError, match=r"old.ckpt' does not state its preprocessing \(.*predict -c EXPERIMENT"):
        Predictor(tmp_path / "old.ckpt", "cpu")
    squash = Preprocessing(24, "squash", 1.0, stored.mean, stored.std)
    assert Predictor(tmp_path / "old.ckpt", "cpu", preprocessing=squash).preprocessing == squash


def test_checkpoint_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match=r"checkpoint 'x.ckpt': no such file; give a .ckpt file or a run folder"):
        Predictor("x.ckpt")
    with pytest.raises(UserError, match="is not a run folder"):
        Predictor(tmp_path)


class OwnClassifier(SwinClassifier):
    """Says that every image shows the last class."""

    def predict_step(self, batch, batch_idx):
        return torch.eye(self.num_classes)[[-1] * len(batch["image"])]


def test_class_of_the_user_is_built_if_it_is_allowed(trained):
    content = torch.load(trained[0].best, weights_only=True)
    content["hyper_parameters"]["_class_path"] = "tests.test_inference.OwnClassifier"
    torch.save(content, "own.ckpt")
    with pytest.raises(UserError, match="add --allow_classes"):
        Predictor("own.ckpt", "cpu")
    predictor = Predictor("own.ckpt", "cpu", allow=["tests.test_inference.OwnClassifier"])
    assert predictor(trained[1][0])[0].top(1) == [("eel", 1.0)]
