"""SwinClassifier: loss, metrics, weights, checkpoints."""

import logging

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassF1Score, MulticlassRecall

from swin_lightning.errors import UserError
from swin_lightning.models import SwinTransformer
from swin_lightning.models.weights import load_weights
from swin_lightning.tasks.base import ISOLATED
from swin_lightning.tasks.classification import SwinClassifier
from tests.support.golden import formula_input, formula_parameters, load_golden


class Backbone(nn.Module):
    """A backbone is any module with num_features."""

    num_features = 4

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 4)

    def forward(self, x):
        return self.layer(x.flatten(1))


def batch(targets, images=None):
    n = len(targets)
    images = torch.randn(n, 3, 2, 2) if images is None else images
    return {"image": images, "target": torch.as_tensor(targets), "index": torch.arange(n)}


def loader(*batches):
    return DataLoader(list(batches), batch_size=None)


def test_logits_and_probabilities_have_one_column_per_class():
    model = SwinClassifier(Backbone(), num_classes=7).eval()
    images = torch.randn(5, 3, 2, 2)
    assert model(images).shape == (5, 7)
    probabilities = model.predict_step(batch([0] * 5, images), 0)
    torch.testing.assert_close(probabilities, model(images).softmax(1))


# loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True])
def test_default_loss_of_indices_and_mixed_targets(smoothing, mixed):
    model = SwinClassifier(Backbone(), num_classes=3, label_smoothing=smoothing)
    images = torch.randn(2, 3, 2, 2)
    indices = torch.tensor([2, 0])
    probabilities = torch.tensor([[0.0, 0.3, 0.7], [0.5, 0.5, 0.0]]) if mixed else torch.eye(3)[indices]
    loss = model.training_step(batch(probabilities if mixed else indices, images), 0)
    wanted = probabilities * (1 - smoothing) + smoothing / 3
    expected = -(wanted * model(images).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, expected)


# evaluation


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_padding_samples_do_not_change_metrics(make_trainer, stage):
    model = SwinClassifier(Backbone(), num_classes=6)
    images, targets = torch.randn(10, 3, 2, 2), torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2, 3])
    plain = loader(batch(targets[:4], images[:4]), batch(targets[4:], images[4:]))
    repeated = loader(  # no sample of the third batch counts
        batch([*targets[:4], -1, -1], images[[0, 1, 2, 3, 9, 9]]),
        batch([-1, *targets[4:]], images[[0, 4, 5, 6, 7, 8, 9]]),
        batch([-1, -1], images[:2]),
    )
    run = getattr(make_trainer(), stage)
    (expected,) = run(model, plain, verbose=False)
    (found,) = run(model, repeated, verbose=False)
    assert found == pytest.approx(expected, rel=1e-6)

    prefix = "val" if stage == "validate" else "test"
    with torch.no_grad():
        logits = model(images)
    top5 = (logits.topk(5).indices == targets[:, None]).any(1)
    assert expected == pytest.approx(
        {
            f"{prefix}/loss": nn.functional.cross_entropy(logits, targets).item(),
            f"{prefix}/acc": (logits.argmax(1) == targets).float().mean().item(),
            f"{prefix}/acc5": top5.float().mean().item(),
            f"{prefix}/f1_macro": f1_score(targets, logits.argmax(1), average="macro"),
            f"{prefix}/acc_balanced": balanced_accuracy_score(targets, logits.argmax(1)),
        }
    )


def test_top5_of_two_classes_is_one(make_trainer):
    (result,) = make_trainer().validate(SwinClassifier(Backbone(), 2), loader(batch([0, 1, 1])), verbose=False)
    assert result["val/acc5"] == 1.0


def test_unlabelled_images_give_no_number(make_trainer):
    (result,) = make_trainer().test(SwinClassifier(Backbone(), 2), loader(batch([-1, -1])), verbose=False)
    assert len(result) == 5 and all(value != value for value in result.values())


def test_class_weights_of_the_data_weight_the_loss(make_trainer, caplog):
    weights = [1.0, 2.0, 3.0]
    model = SwinClassifier(Backbone(), 3, class_weights=weights, label_smoothing=0.3)
    images, targets = torch.randn(5, 3, 2, 2), torch.tensor([0, 1, 2, 2, 1])
    logits, tensor = model(images).detach(), torch.tensor(weights)
    expected = nn.functional.cross_entropy(logits, targets, tensor, label_smoothing=0.3)
    torch.testing.assert_close(model.training_step(batch(targets, images), 0).detach(), expected)
    (result,) = make_trainer().validate(model, loader(batch([*targets, -1], images[[0, 1, 2, 3, 4, 0]])), verbose=False)
    assert result["val/loss"] == pytest.approx(nn.functional.cross_entropy(logits, targets, tensor).item())
    assert "class_weights" not in model.state_dict() and "no effect" not in caplog.text
    SwinClassifier(Backbone(), 3, class_weights=weights, loss=nn.CrossEntropyLoss())
    assert "data.class_weights has no effect: model.loss is CrossEntropyLoss" in caplog.text


# loss and metrics of the user


def test_cross_entropy_with_class_weights_is_evaluated_without_smoothing(make_trainer):
    model = SwinClassifier(Backbone(), 3, loss=nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.3))
    images, targets = torch.randn(5, 3, 2, 2), torch.tensor([0, 1, 2, 2, 1])
    expected = model.loss(model(images), targets)
    torch.testing.assert_close(model.training_step(batch(targets, images), 0), expected)
    (result,) = make_trainer().validate(model, loader(batch([*targets, -1], images[[0, 1, 2, 3, 4, 0]])), verbose=False)
    with torch.no_grad():
        plain = nn.functional.cross_entropy(model(images), targets, model.loss.weight)
    assert result["val/loss"] == pytest.approx(plain.item(), rel=1e-6)


def test_bce_with_logits_gets_one_hot_targets(make_trainer):
    model = SwinClassifier(Backbone(), 3, loss=nn.BCEWithLogitsLoss())
    images, targets = torch.randn(2, 3, 2, 2), torch.tensor([2, 0])
    expected = nn.functional.binary_cross_entropy_with_logits(model(images), torch.eye(3)[targets])
    torch.testing.assert_close(model.training_step(batch(targets, images), 0), expected)
    (result,) = make_trainer().validate(model, loader(batch(targets, images)), verbose=False)
    assert result["val/loss"] == pytest.approx(expected.item())


def test_loss_of_log_probabilities_is_refused():
    with pytest.raises(UserError, match=r"model\.loss NLLLoss takes log-probabilities, not logits; use"):
        SwinClassifier(Backbone(), 3, loss=nn.NLLLoss())


def test_loss_may_be_a_function_and_label_smoothing_is_reported(caplog):
    with caplog.at_level(logging.WARNING):
        model = SwinClassifier(Backbone(), 3, loss=lambda logits, targets: logits.sum() * 0 + 7, label_smoothing=0.1)
    assert "model.label_smoothing 0.1 has no effect" in caplog.text
    assert model.training_step(batch([0, 1]), 0).item() == 7


def test_extra_metrics_ignore_padding_and_log_classes(make_trainer):
    metrics = {"f1": MulticlassF1Score(3, average="macro"), "recall": MulticlassRecall(3, average="none")}
    model = SwinClassifier(Backbone(), 3, metrics=metrics, class_names=["a", "b", "c"])
    images, targets = torch.randn(9, 3, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1])
    batches = (
        batch([*targets[:4], -1], images[[0, 1, 2, 3, 0]]),
        batch(targets[4:], images[4:]),
        batch([-1], images[:1]),
    )
    (result,) = make_trainer().test(model, loader(*batches), verbose=False)
    with torch.no_grad():
        predictions = model(images).argmax(1)
    for k, name in enumerate("abc"):
        recall = (predictions[targets == k] == k).float().mean()
        assert result[f"test/recall/{name}"] == pytest.approx(recall.item())
    f1 = [
        2 * ((predictions == k) & (targets == k)).sum() / ((predictions == k).sum() + (targets == k).sum())
        for k in range(3)
    ]
    assert result["test/f1"] == pytest.approx(torch.stack(f1).mean().item())


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"acc": MulticlassF1Score(3)}, "name 'acc'"),
        ({"a/b": MulticlassF1Score(3)}, "name 'a/b'"),
        ({"f1": MulticlassF1Score(2)}, "model.metrics.f1: MulticlassF1Score does not fit 3 classes"),
        ({"matrix": MulticlassConfusionMatrix(3)}, r"gives \(3, 3\); only a scalar"),
    ],
)
def test_metrics_that_do_not_fit_are_refused_at_construction(metrics, words):
    with pytest.raises(UserError, match=words):
        SwinClassifier(Backbone(), 3, metrics=metrics)


@pytest.mark.parametrize(("num_classes", "shown"), [(None, " is not given"), (0, " 0: expected an integer >= 1")])
def test_number_of_classes_is_required(num_classes, shown):
    with pytest.raises(UserError, match=f"model.num_classes{shown}"):
        SwinClassifier(Backbone(), num_classes)


# backbone


def test_head_of_the_backbone_is_replaced():
    backbone = SwinTransformer(num_classes=1000, embed_dim=8, depths=(1,), num_heads=(1,))
    model = SwinClassifier(backbone, num_classes=3)
    assert model(torch.randn(2, 3, 28, 28)).shape == (2, 3)
    assert [name for name, _ in model.named_parameters() if "head" in name] == ["head.weight", "head.bias"]


def test_gradient_checkpointing_is_enabled():
    backbone = SwinTransformer(embed_dim=8, depths=(1, 1), num_heads=(1, 1))
    SwinClassifier(backbone, 3, gradient_checkpointing=True)
    assert [layer.use_checkpoint for layer in backbone.layers] == [True, True]


def test_gradient_checkpointing_requires_support_of_the_backbone():
    with pytest.raises(ValueError, match="Backbone has no set_grad_checkpointing"):
        SwinClassifier(Backbone(), 3, gradient_checkpointing=True)


def test_compile_happens_once_and_keeps_parameter_names(monkeypatch):
    calls = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: calls.append((self, options)))
    model = SwinClassifier(Backbone(), 3, compile=True)
    names = list(model.state_dict())
    assert calls == []
    model.setup("fit")
    model.setup("test")
    assert calls == [(model.backbone, {"mode": None, "dynamic": False, **ISOLATED})]
    assert list(model.state_dict()) == names


# weights

GOLDEN = load_golden("cifar_32")


def official_file(path, **changes):
    """A checkpoint as the official repository saves it, with garbage in the buffers."""
    state = formula_parameters(GOLDEN["parameters"])
    state |= {name: torch.full(shape, 10**6) for name, shape in GOLDEN["buffers"].items()}
    state |= {name.replace("__", "."): value for name, value in changes.items()}
    torch.save({"model": {name: value for name, value in state.items() if value is not None}, "epoch": 299}, path)
    return str(path)


def golden_classifier(num_classes=10, **kwargs):
    return SwinClassifier(SwinTransformer(**GOLDEN["config"] | {"num_classes": 0}), num_classes, **kwargs)


def test_official_weights_give_the_official_logits(tmp_path):
    model = golden_classifier(weights=official_file(tmp_path / "official.pth")).eval()
    with torch.no_grad():
        logits = model(formula_input(32, 32))
    torch.testing.assert_close(logits, torch.tensor(GOLDEN["logits_first16"]), atol=1e-4, rtol=0)


def test_head_of_another_size_is_reinitialised_and_logged(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        model = golden_classifier(num_classes=4, weights=official_file(tmp_path / "official.pth"))
    assert "checkpoint has 10 classes; initialised a new 4-class head" in caplog.text
    state = formula_parameters(GOLDEN["parameters"])
    own = dict(model.backbone.named_parameters())
    assert all(torch.equal(value, own[name]) for name, value in state.items() if not name.startswith("head."))
    assert model.head.weight.shape == (4, 192)
    assert 0.015 < model.head.weight.std() < 0.025  # the official code would leave zeros
    assert (model.head.bias == 0).all()


def test_weights_without_head_keep_the_new_head(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        golden_classifier(weights=official_file(tmp_path / "official.pth", head__weight=None, head__bias=None))
    assert "no classifier in checkpoint; initialised a new 10-class head" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm__weight": None}, r"missing norm\.weight"),
        ({"layers__0__extra": torch.zeros(2)}, r"unexpected layers\.0\.extra"),
        (
            {"layers__1__blocks__0__attn__relative_position_bias_table": torch.zeros(169, 6)},
            r"layers\.1\.blocks\.0\.attn\.relative_position_bias_table has shape \(169, 6\), "
            r"expected \(49, 6\)",
        ),
    ],
)
def test_mismatched_weights_are_an_error_and_load_nothing(tmp_path, changes, message):
    model = golden_classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = official_file(tmp_path / "official.pth", **changes)
    with pytest.raises(ValueError, match=message) as error:
        load_weights(model, path)
    assert path in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match=message):
        golden_classifier(weights=path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_text("not a checkpoint"), "is not a checkpoint file or is corrupt"),
        (lambda path: path.write_bytes(b""), "is not a checkpoint file or is corrupt"),
        (lambda path: torch.save([1, 2], path), "contains a list instead of a dict"),
        (lambda path: torch.save({"epoch": 3}, path), "contains no parameters"),
        (lambda path: torch.save({"model": {}, "config": make_object()}, path), "contains pickled Python objects"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
def test_files_that_are_not_checkpoints_are_refused(tmp_path, write, message, suffix):
    path = tmp_path / f"weights{suffix}"
    write(path)
    with pytest.raises(ValueError, match=message) as error:
        SwinClassifier(Backbone(), 3, weights=str(path))
    assert str(path) in str(error.value)


class Config(dict):
    """Stands for the yacs CfgNode in official training checkpoints: unpickling it would run code."""


def make_object():
    return Config(lr=0.1)


def test_corrupt_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00not json")
    with pytest.raises(ValueError, match=str(path)):
        SwinClassifier(Backbone(), 3, weights=str(path))


# Lightning's checkpoints


def test_checkpoint_loads_with_its_hyperparameters(tmp_path, make_trainer):
    model = SwinClassifier(Backbone(), num_classes=3, lr=0.3, label_smoothing=0.2, class_names=["a", "b", "c"])
    trainer = make_trainer()
    trainer.fit(model, loader(batch([0, 1, 2])), loader(batch([2, 1, 0])))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = SwinClassifier.load_from_checkpoint(tmp_path / "last.ckpt", backbone=Backbone())
    assert (loaded.lr, loaded.label_smoothing, loaded.num_classes) == (0.3, 0.2, 3)
    assert loaded.class_names == ["a", "b", "c"]
    images = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(loaded(images), model(images), atol=0, rtol=0)


def test_checkpoint_serves_as_weights(tmp_path, make_trainer):
    model = SwinClassifier(Backbone(), num_classes=3)
    trainer = make_trainer()
    trainer.fit(model, loader(batch([0, 1, 2])), loader(batch([2, 1, 0])))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = SwinClassifier(Backbone(), num_classes=3, weights=str(tmp_path / "last.ckpt"))
    images = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(loaded(images), model(images), atol=0, rtol=0)


def test_checkpoint_does_not_need_the_weights_file(tmp_path, make_trainer):
    path = official_file(tmp_path / "official.pth")
    model = golden_classifier(weights=path)
    trainer = make_trainer()
    trainer.fit(model, loader(batch([0, 1], formula_input(32, 32))))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "official.pth").unlink()
    backbone = SwinTransformer(**GOLDEN["config"] | {"num_classes": 0})
    loaded = SwinClassifier.load_from_checkpoint(tmp_path / "last.ckpt", backbone=backbone)
    assert torch.equal(loaded.head.weight, model.head.weight)


def test_checkpoint_holds_plain_values_and_tensors(tmp_path, make_trainer):
    model = SwinClassifier(Backbone(), num_classes=3)
    trainer = make_trainer()
    trainer.fit(model, loader(batch([0, 1, 2])))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)  # loads without unpickling objects
    assert "backbone" not in content["hyper_parameters"]
