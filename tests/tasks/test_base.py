"""Task: freezing, weights, subclasses. Optimizers and schedules are in tests/test_optim.py."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from swin_lightning import SwinClassifier, Task
from swin_lightning.errors import UserError
from swin_lightning.models import SwinTransformer

SMALL = {"img_size": 16, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1), "window_size": 2}


def classifier(**kwargs):
    return SwinClassifier(SwinTransformer(**SMALL, drop_path_rate=0.5), num_classes=3, **kwargs)


def loader(batches=2):
    batch = {"image": torch.randn(4, 3, 16, 16), "target": torch.tensor([0, 1, 2, 0]), "index": torch.arange(4)}
    return DataLoader([batch] * batches, batch_size=None)


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_freeze_backbone_trains_the_head_alone(make_trainer):
    model = classifier(freeze="backbone", lr=0.1)
    assert trainable(model) == {"head.weight", "head.bias"}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make_trainer(max_epochs=2, limit_val_batches=1).fit(model, loader(), loader())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}


def test_frozen_modules_stay_in_evaluation_mode():
    model = classifier(freeze=["backbone.layers.0", "backbone.patch_embed"])
    assert not any(name.startswith(("backbone.layers.0.", "backbone.patch_embed.")) for name in trainable(model))
    assert "backbone.layers.1.blocks.0.mlp.fc1.weight" in trainable(model)
    for _ in range(2):
        assert not any(module.training for module in model.backbone.layers[0].modules())
        assert all(module.training for module in model.backbone.layers[1].modules())
        model.eval()
        assert not any(module.training for module in model.modules())
        model.train()
    images = torch.randn(2, 3, 16, 16)
    features = [model.backbone.layers[0](model.backbone.patch_embed(images))[0] for _ in range(2)]
    assert torch.equal(*features)  # no stochastic depth


def test_freeze_by_wildcard():
    model = classifier(freeze="*norm*")
    assert {name for name, _ in model.named_parameters()} - trainable(model) == {
        name for name, _ in model.named_parameters() if "norm" in name
    }


@pytest.mark.parametrize(
    ("freeze", "words"),
    [("backbon", "model.freeze 'backbon' matches no parameter; the modules are backbone, head"),
     (["backbone", "head"], "no parameter is trainable; check model.freeze")],
)  # fmt: skip
def test_freeze_that_cannot_be_meant(make_trainer, freeze, words):
    with pytest.raises(UserError, match=words):
        make_trainer().fit(classifier(freeze=freeze), loader())


class Autoencoder(Task):
    """A task without classes."""

    def __init__(self, backbone: nn.Module, width: int = 4, **task):
        super().__init__(backbone, **task)
        self.decoder = nn.Linear(backbone.num_features, width)

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.decoder(self.backbone(batch["image"])), batch["image"][:, 0, 0, :4])


def test_subclass_of_task_has_optimizer_schedule_and_freezing(make_trainer):
    model = Autoencoder(SwinTransformer(**SMALL), width=4, lr=0.1, weight_decay=0.2, layer_decay=0.5, freeze="decoder")
    trainer = make_trainer()
    trainer.fit(model, loader())  # without finish_init() of its own
    assert model.hparams["width"] == 4 and model.hparams["layer_decay"] == 0.5
    (optimizer,) = trainer.optimizers
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.2}
    assert not model.decoder.weight.requires_grad
    rates = {group["name"]: group["initial_lr"] for group in optimizer.param_groups}
    assert rates["layer0_decay"] == pytest.approx(0.1 * 0.5**3)  # patch embedding, two blocks, norm


def test_subclass_of_task_loads_backbone_weights(tmp_path):
    from swin_lightning.models.weights import save_weights

    source = SwinTransformer(**SMALL)
    save_weights(source, tmp_path / "backbone.pth")
    model = Autoencoder(SwinTransformer(**SMALL), weights=str(tmp_path / "backbone.pth"))
    model.finish_init()
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


def test_objects_are_not_stored_as_hyperparameters():
    model = classifier(optimizer=torch.optim.SGD, loss=nn.CrossEntropyLoss(), lr=0.3)
    assert model.hparams["lr"] == 0.3 and model.hparams["num_classes"] == 3
    assert not {"backbone", "optimizer", "loss"} & set(model.hparams)
