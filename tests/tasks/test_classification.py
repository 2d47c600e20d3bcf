"""SwinClassifier: loss, metrics, weights, checkpoints."""

import logging

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from swin_lightning.models import SwinTransformer
from swin_lightning.models.weights import load_weights
from swin_lightning.tasks.classification import SwinClassifier
from tests.support.golden import formula_input, formula_parameters, load_golden


class Backbone(nn.Module):
    """Any module with num_features is a backbone."""

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


def test_logits_and_probabilities_have_one_column_a_class():
    model = SwinClassifier(Backbone(), num_classes=7).eval()
    images = torch.randn(5, 3, 2, 2)
    assert model(images).shape == (5, 7)
    probabilities = model.predict_step(batch([0] * 5, images), 0)
    torch.testing.assert_close(probabilities, model(images).softmax(1))


# loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_follows_the_target(smoothing, mixed):
    model = SwinClassifier(Backbone(), num_classes=3, label_smoothing=smoothing)
    images = torch.randn(2, 3, 2, 2)
    indices = torch.tensor([2, 0])
    probabilities = torch.tensor([[0.0, 0.3, 0.7], [0.5, 0.5, 0.0]]) if mixed else torch.eye(3)[indices]
    loss = model.training_step(batch(probabilities if mixed else indices, images), 0)
    wanted = probabilities * (1 - smoothing) + smoothing / 3
    expected = -(wanted * model(images).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, expected)


# evaluation


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_repeated_samples_change_no_metric(make_trainer, stage):
    model = SwinClassifier(Backbone(), num_classes=6)
    images, targets = torch.randn(10, 3, 2, 2), torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2, 3])
    plain = loader(batch(targets[:4], images[:4]), batch(targets[4:], images[4:]))
    repeated = loader(  # in the third batch nothing counts
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
        }
    )


def test_two_classes_have_a_top_five_that_is_always_right(make_trainer):
    (result,) = make_trainer().validate(SwinClassifier(Backbone(), 2), loader(batch([0, 1, 1])), verbose=False)
    assert result["val/acc5"] == 1.0


# backbone


def test_the_head_of_a_backbone_gives_way_to_the_classifiers():
    backbone = SwinTransformer(num_classes=1000, embed_dim=8, depths=(1,), num_heads=(1,))
    model = SwinClassifier(backbone, num_classes=3)
    assert model(torch.randn(2, 3, 28, 28)).shape == (2, 3)
    assert [name for name, _ in model.named_parameters() if "head" in name] == ["head.weight", "head.bias"]


def test_gradient_checkpointing_is_switched_on():
    backbone = SwinTransformer(embed_dim=8, depths=(1, 1), num_heads=(1, 1))
    SwinClassifier(backbone, 3, gradient_checkpointing=True)
    assert [layer.use_checkpoint for layer in backbone.layers] == [True, True]


def test_gradient_checkpointing_needs_a_backbone_that_can():
    with pytest.raises(ValueError, match="Backbone has no set_grad_checkpointing"):
        SwinClassifier(Backbone(), 3, gradient_checkpointing=True)


def test_compiling_keeps_the_names_of_the_parameters():
    model = SwinClassifier(Backbone(), 3, compile=True)
    names = list(model.state_dict())
    assert model.backbone._compiled_call_impl is None
    model.setup("fit")
    assert model.backbone._compiled_call_impl is not None
    assert list(model.state_dict()) == names
    assert not any("_orig_mod" in name for name in names)


# weights

GOLDEN = load_golden("cifar_32")


def official_file(path, **changes):
    """A checkpoint as the official repository saves it, with buffers whose content must not matter."""
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


def test_a_head_of_other_classes_is_new_and_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        model = golden_classifier(num_classes=4, weights=official_file(tmp_path / "official.pth"))
    assert "checkpoint has 10 classes; initialised a new 4-class head" in caplog.text
    state = formula_parameters(GOLDEN["parameters"])
    own = dict(model.backbone.named_parameters())
    assert all(torch.equal(value, own[name]) for name, value in state.items() if not name.startswith("head."))
    assert model.head.weight.shape == (4, 192)
    assert 0.015 < model.head.weight.std() < 0.025  # not zero, as the official code would leave it
    assert (model.head.bias == 0).all()


def test_a_file_without_head_leaves_ours(tmp_path, caplog):
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
def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(tmp_path, changes, message):
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
def test_what_is_no_checkpoint_is_refused(tmp_path, write, message, suffix):
    path = tmp_path / f"weights{suffix}"
    write(path)
    with pytest.raises(ValueError, match=message) as error:
        SwinClassifier(Backbone(), 3, weights=str(path))
    assert str(path) in str(error.value)


class Config(dict):
    """As the yacs node in official training checkpoints: loading it would run code."""


def make_object():
    return Config(lr=0.1)


def test_a_damaged_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00not json")
    with pytest.raises(ValueError, match=str(path)):
        SwinClassifier(Backbone(), 3, weights=str(path))


# Lightning's checkpoints


def test_a_saved_checkpoint_loads_with_its_hyperparameters(tmp_path, make_trainer):
    model = SwinClassifier(Backbone(), num_classes=3, lr=0.3, label_smoothing=0.2, class_names=["a", "b", "c"])
    trainer = make_trainer()
    trainer.fit(model, loader(batch([0, 1, 2])), loader(batch([2, 1, 0])))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = SwinClassifier.load_from_checkpoint(tmp_path / "last.ckpt", backbone=Backbone())
    assert (loaded.lr, loaded.label_smoothing, loaded.num_classes) == (0.3, 0.2, 3)
    assert loaded.class_names == ["a", "b", "c"]
    images = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(loaded(images), model(images), atol=0, rtol=0)


def test_a_saved_checkpoint_serves_as_weights(tmp_path, make_trainer):
    model = SwinClassifier(Backbone(), num_classes=3)
    trainer = make_trainer()
    trainer.fit(model, loader(batch([0, 1, 2])), loader(batch([2, 1, 0])))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = SwinClassifier(Backbone(), num_classes=3, weights=str(tmp_path / "last.ckpt"))
    images = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(loaded(images), model(images), atol=0, rtol=0)


def test_a_checkpoint_of_a_run_from_weights_needs_the_file_no_more(tmp_path, make_trainer):
    path = official_file(tmp_path / "official.pth")
    model = golden_classifier(weights=path)
    trainer = make_trainer()
    trainer.fit(model, loader(batch([0, 1], formula_input(32, 32))))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "official.pth").unlink()
    backbone = SwinTransformer(**GOLDEN["config"] | {"num_classes": 0})
    loaded = SwinClassifier.load_from_checkpoint(tmp_path / "last.ckpt", backbone=backbone)
    assert torch.equal(loaded.head.weight, model.head.weight)


def test_the_checkpoint_is_plain_values_and_tensors(tmp_path, make_trainer):
    model = SwinClassifier(Backbone(), num_classes=3)
    trainer = make_trainer()
    trainer.fit(model, loader(batch([0, 1, 2])))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)  # nobody needs to trust it
    assert "backbone" not in content["hyper_parameters"]
