"""Weight decay, layer-wise learning rates and the schedule, by value."""

import math

import pytest
import torch
from lightning import Callback
from torch import nn
from torch.utils.data import DataLoader

from swin_lightning.models import SwinTransformer
from swin_lightning.optim import parameter_groups, warmup_cosine
from swin_lightning.tasks.classification import SwinClassifier


def tiny_classifier(**kwargs):
    backbone = SwinTransformer(img_size=16, embed_dim=8, depths=(2, 2), num_heads=(2, 2), window_size=2, ape=True)
    return SwinClassifier(backbone, num_classes=3, **kwargs)


def by_name(model, groups):
    """Parameter name -> its group, with each parameter in one group only."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = [(names[id(p)], group) for group in groups for p in group["params"]]
    assert len(found) == len(dict(found)) == len(names)
    return dict(found)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.1),  # start
        (5, 0.55),  # half of the warm-up
        (10, 1.0),  # its end is the peak
        (35, 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4))),
        (60, 0.6),  # half of the cosine
        (109, 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 0.99))),
        (110, 0.2),
        (500, 0.2),  # after the end it stays
    ],
)
def test_warmup_cosine_values(step, factor):
    assert warmup_cosine(step, total=110, warmup=10, start=0.1, end=0.2) == pytest.approx(factor)


def test_warmup_cosine_without_warmup_starts_at_the_peak():
    assert warmup_cosine(0, 10, 0, 0.1, 0.2) == 1.0
    assert warmup_cosine(10, 10, 0, 0.1, 0.2) == pytest.approx(0.2)


def test_warmup_cosine_survives_a_run_that_is_all_warmup():
    assert [warmup_cosine(step, 4, 4, 0.0, 0.1) for step in range(4)] == [0, 0.25, 0.5, 0.75]
    assert warmup_cosine(4, 4, 4, 0.0, 0.1) == 1.0


DECAYED = {
    "backbone.patch_embed.proj.weight",
    "backbone.layers.0.downsample.reduction.weight",
    "head.weight",
} | {
    f"backbone.layers.{stage}.blocks.{block}.{part}.weight"
    for stage in (0, 1)
    for block in (0, 1)
    for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
}


def test_the_matrices_decay_and_nothing_else():
    model = tiny_classifier()
    groups = by_name(model, parameter_groups(model, lr=0.1, weight_decay=0.05))
    assert {name for name, group in groups.items() if group["weight_decay"] == 0.05} == DECAYED
    rest = {name: group for name, group in groups.items() if name not in DECAYED}
    assert {group["weight_decay"] for group in rest.values()} == {0.0}
    for kind in ("relative_position_bias_table", "absolute_pos_embed", "norm1.weight", "qkv.bias", "head.bias"):
        assert any(name.endswith(kind) for name in rest), kind
    assert {group["lr"] for group in groups.values()} == {0.1}


# sum(depths) + 2 levels; patch merging with the last block of its stage, absolute_pos_embed with the head
OFFICIAL_LEVELS = {
    "backbone.patch_embed": 0,
    "backbone.layers.0.blocks.0": 1,
    "backbone.layers.0.blocks.1": 2,
    "backbone.layers.0.downsample": 2,
    "backbone.layers.1.blocks.0": 3,
    "backbone.layers.1.blocks.1": 4,
    "backbone.norm": 5,
    "backbone.absolute_pos_embed": 5,
    "head": 5,
}


def test_layer_decay_gives_the_official_learning_rates():
    model = tiny_classifier()
    layer_id = model.backbone.layer_id
    groups = parameter_groups(model, 0.1, 0.05, 0.5, lambda name: layer_id(name.removeprefix("backbone.")))
    for name, group in by_name(model, groups).items():
        level = next(level for prefix, level in OFFICIAL_LEVELS.items() if f"{name}.".startswith(f"{prefix}."))
        assert group["lr"] == pytest.approx(0.1 * 0.5 ** (5 - level)), name
        assert group["weight_decay"] == (0.05 if name in DECAYED else 0.0), name


def test_the_classifier_hands_layer_decay_to_its_optimizer():
    model = tiny_classifier(lr=0.1, layer_decay=0.5)
    groups = by_name(model, model.configure_optimizers()["optimizer"].param_groups)
    assert groups["backbone.patch_embed.proj.weight"]["initial_lr"] == pytest.approx(0.1 / 32)
    assert groups["backbone.layers.0.downsample.reduction.weight"]["initial_lr"] == pytest.approx(0.1 / 8)
    assert groups["head.weight"]["initial_lr"] == pytest.approx(0.1)


def test_layer_decay_needs_to_know_the_depth():
    with pytest.raises(ValueError, match=r"layer_decay 0\.9 .*layer_id"):
        parameter_groups(nn.Linear(2, 2), 0.1, 0.05, layer_decay=0.9)


def test_frozen_parameters_are_in_no_group():
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    (group,) = parameter_groups(model, 0.1, 0.05)
    assert [p is model.bias for p in group["params"]] == [True]


class Backbone(nn.Module):
    num_features = 4

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 4)

    def forward(self, x):
        return self.layer(x.flatten(1))

    def layer_id(self, name):
        return {"layer": 0, "head": 1}[name.split(".")[0]]


class UsedRates(Callback):
    """The learning rates with which each optimizer step is made."""

    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_a_run_uses_the_learning_rates_of_the_recipe(make_trainer, accumulate, layer_decay):
    # 2 epochs of 10 optimizer steps, the first 5 of them warm-up
    batch = {"image": torch.randn(2, 3, 2, 2), "target": torch.tensor([0, 1]), "index": torch.arange(2)}
    loader = DataLoader([batch] * 10 * accumulate, batch_size=None)
    used = UsedRates()
    model = SwinClassifier(
        Backbone(), 2, lr=0.1, warmup_epochs=0.5, warmup_lr=0.01, min_lr=0.02, layer_decay=layer_decay
    )
    make_trainer(max_epochs=2, accumulate_grad_batches=accumulate, callbacks=[used]).fit(model, loader)
    names = ("layer1_decay", "layer0_decay") if layer_decay != 1 else ("decay", "decay")
    head, stem = ([rates[name] for rates in used.rates] for name in names)
    assert len(head) == 20
    assert head[0] == pytest.approx(0.01)
    assert head[1] == pytest.approx(0.01 + 0.09 / 5)
    assert max(head) == head[5] == pytest.approx(0.1)
    assert head[-1] == pytest.approx(0.02 + 0.08 * 0.5 * (1 + math.cos(math.pi * 14 / 15)))
    assert stem == pytest.approx([layer_decay * rate for rate in head])


def test_max_steps_ends_the_cosine(make_trainer):
    batch = {"image": torch.randn(2, 3, 2, 2), "target": torch.tensor([0, 1]), "index": torch.arange(2)}
    used = UsedRates()
    model = SwinClassifier(Backbone(), 2, lr=0.1, min_lr=0.0)
    make_trainer(max_epochs=-1, max_steps=4, callbacks=[used]).fit(model, DataLoader([batch] * 3, batch_size=None))
    expected = [0.05 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert [rates["decay"] for rates in used.rates] == pytest.approx(expected)
