"""Parameter groups and learning-rate schedules."""

import math
import warnings
from functools import partial

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

from swin_lightning.errors import UserError
from swin_lightning.models import SwinTransformer
from swin_lightning.optim import Muon, lr_factor, parameter_groups
from swin_lightning.tasks.classification import SwinClassifier

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 brought Muon")


def tiny_classifier(**kwargs):
    backbone = SwinTransformer(img_size=16, embed_dim=8, depths=(2, 2), num_heads=(2, 2), window_size=2, ape=True)
    return SwinClassifier(backbone, num_classes=3, **kwargs)


def by_name(model, groups):
    """Parameter name -> group; every parameter is in exactly one group."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = [(names[id(p)], group) for group in groups for p in group["params"]]
    assert len(found) == len(dict(found)) == len(names)
    return dict(found)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.1),  # start of the warm-up
        (5, 0.55),  # half of the warm-up
        (10, 1.0),  # peak
        (35, 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4))),
        (60, 0.6),  # half of the cosine
        (109, 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 0.99))),
        (110, 0.2),  # end
        (500, 0.2),  # constant after the end
    ],
)
def test_cosine_schedule_values(step, factor):
    assert lr_factor("cosine", step, total=110, warmup=10, start=0.1, end=0.2) == pytest.approx(factor)


def test_cosine_without_warmup_starts_at_the_peak():
    assert lr_factor("cosine", 0, 10, 0, 0.1, 0.2) == 1.0
    assert lr_factor("cosine", 10, 10, 0, 0.1, 0.2) == pytest.approx(0.2)


def test_run_shorter_than_its_warmup():
    assert [lr_factor("cosine", step, 4, 4, 0.0, 0.1) for step in range(4)] == [0, 0.25, 0.5, 0.75]
    assert lr_factor("cosine", 4, 4, 4, 0.0, 0.1) == 1.0


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", {10: 1.0, 60: 0.6, 110: 0.2, 200: 0.2}),
        ("constant", {10: 1.0, 60: 1.0, 110: 1.0}),
        ("step", {10: 1.0, 49: 1.0, 50: 0.1, 99: 0.1, 100: 0.01}),  # every 50 steps
        ("wsd", {10: 1.0, 82: 1.0, 82.5: 1.0, 96.25: 0.6, 110: 0.2}),  # the last quarter decays
    ],
)
def test_schedule_values_after_the_warmup(schedule, expected):
    options = {"total": 110, "warmup": 10, "start": 0.1, "end": 0.2, "decay_every": 50, "decay_share": 0.25}
    assert lr_factor(schedule, 5, **options) == pytest.approx(0.55)
    assert {step: lr_factor(schedule, step, **options) for step in expected} == pytest.approx(expected)


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


def test_only_matrices_have_weight_decay():
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


def test_classifier_optimizer_uses_layer_decay():
    model = tiny_classifier(lr=0.1, layer_decay=0.5)
    groups = by_name(model, model.configure_optimizers()["optimizer"].param_groups)
    assert groups["backbone.patch_embed.proj.weight"]["initial_lr"] == pytest.approx(0.1 / 32)
    assert groups["backbone.layers.0.downsample.reduction.weight"]["initial_lr"] == pytest.approx(0.1 / 8)
    assert groups["head.weight"]["initial_lr"] == pytest.approx(0.1)


def test_layer_decay_requires_layer_id():
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
    """Record the learning rates of every optimizer step."""

    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_learning_rates_of_a_run(make_trainer, accumulate, layer_decay):
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


def test_cosine_ends_at_max_steps(make_trainer):
    batch = {"image": torch.randn(2, 3, 2, 2), "target": torch.tensor([0, 1]), "index": torch.arange(2)}
    used = UsedRates()
    model = SwinClassifier(Backbone(), 2, lr=0.1, min_lr=0.0)
    make_trainer(max_epochs=-1, max_steps=4, callbacks=[used]).fit(model, DataLoader([batch] * 3, batch_size=None))
    expected = [0.05 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert [rates["decay"] for rates in used.rates] == pytest.approx(expected)


def run_rates(make_trainer, trainer_options, batches=6, more=(), **model_options):
    """Learning rates of the first group in a run, one per optimizer step."""
    batch = {"image": torch.randn(2, 3, 2, 2), "target": torch.tensor([0, 1]), "index": torch.arange(2)}
    used = UsedRates()
    model = SwinClassifier(Backbone(), 2, lr=0.1, min_lr=0.0, **model_options)
    make_trainer(callbacks=[used, *more], **trainer_options).fit(model, DataLoader([batch] * batches, batch_size=None))
    return [rates["decay"] for rates in used.rates]


def test_shorter_of_max_epochs_and_max_steps_ends_the_schedule(make_trainer):
    rates = run_rates(make_trainer, {"max_epochs": 2, "max_steps": 1000})
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 12)) for step in range(12)])
    rates = run_rates(make_trainer, {"max_epochs": 1000, "max_steps": 4})
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 4)) for step in range(4)])


@pytest.mark.parametrize(("options", "steps"), [
    ({"max_epochs": 3, "limit_train_batches": 2}, 6),
    ({"max_epochs": 2, "limit_train_batches": 0.5}, 6),
    ({"max_epochs": -1, "max_steps": 5, "limit_train_batches": 2}, 5),
    ({"max_epochs": 2, "max_steps": -1, "max_time": {"hours": 5}}, 12),
    ({"max_epochs": 2, "max_steps": 7, "max_time": {"hours": 5}}, 7),
    ({"max_epochs": 3, "limit_train_batches": 5, "accumulate_grad_batches": 2}, 9),
    ({"max_epochs": 3, "overfit_batches": 1}, 3),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_the_shortest_limit_ends_the_schedule(options, steps, make_trainer):
    rates = run_rates(make_trainer, options)
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)])


@pytest.mark.filterwarnings("ignore:When using `Trainer.accumulate_grad_batches")
def test_schedule_with_accumulation_that_changes_between_epochs(make_trainer):
    scheduler = GradientAccumulationScheduler({0: 1, 1: 3})  # 6 + 2 + 2 steps
    rates = run_rates(make_trainer, {"max_epochs": 3}, lr_schedule="linear", more=[scheduler])
    assert rates == pytest.approx([0.1 * (1 - step / 10) for step in range(10)])
    rates = run_rates(
        make_trainer, {"max_epochs": 3}, lr_schedule="linear", warmup_epochs=1.5, warmup_lr=0.01, more=[scheduler]
    )
    assert rates[:8] == pytest.approx([0.01 + 0.09 * step / 7 for step in range(8)])  # 6 steps and half of 2


def test_max_time_alone_ends_the_schedule(make_trainer):
    rates = run_rates(make_trainer, {"max_epochs": -1, "max_time": {"seconds": 1}}, batches=20)
    assert rates[0] == 0.1 and rates == sorted(rates, reverse=True)
    assert 0.02 < rates[len(rates) // 2] < 0.09 and rates[-1] < 0.02  # over the whole run, on a busy machine as well


def test_schedule_without_an_end_is_refused(make_trainer):
    with pytest.raises(UserError, match="lr_schedule cosine needs an end of the run"):
        run_rates(make_trainer, {"max_epochs": -1})
    assert run_rates(make_trainer, {"max_epochs": 1}, batches=3, lr_schedule="constant") == [0.1] * 3


def test_schedule_by_name_per_epoch(make_trainer):
    rates = run_rates(make_trainer, {"max_epochs": 4}, batches=2, lr_schedule="linear", lr_interval="epoch")
    assert rates == pytest.approx([0.1, 0.1, 0.075, 0.075, 0.05, 0.05, 0.025, 0.025])


def test_scheduler_class_steps_per_epoch_or_per_step(make_trainer):
    step_lr = partial(StepLR, step_size=1, gamma=0.5)
    rates = run_rates(make_trainer, {"max_epochs": 2}, batches=2, lr_schedule=step_lr)
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.05])
    rates = run_rates(make_trainer, {"max_epochs": 2}, batches=2, lr_schedule=step_lr, lr_interval="step")
    assert rates == pytest.approx([0.1, 0.05, 0.025, 0.0125])


def test_scheduler_class_with_warmup(make_trainer):
    step_lr = partial(StepLR, step_size=2, gamma=0.5)
    rates = run_rates(
        make_trainer, {"max_epochs": 4}, batches=2, lr_schedule=step_lr, warmup_epochs=1.5, warmup_lr=0.01
    )
    assert rates == pytest.approx([0.01, 0.04, 0.07, 0.1, 0.05, 0.05, 0.05, 0.05])


def test_reduce_on_plateau_follows_the_validation_loss(make_trainer):
    batch = {"image": torch.zeros(2, 3, 2, 2), "target": torch.tensor([0, 1]), "index": torch.arange(2)}
    loader = DataLoader([batch] * 2, batch_size=None)
    used = UsedRates()
    plateau = partial(ReduceLROnPlateau, factor=0.1, patience=0, threshold=10.0)
    model = SwinClassifier(Backbone(), 2, lr=0.1, lr_schedule=plateau)
    make_trainer(max_epochs=3, callbacks=[used]).fit(model, loader, loader)
    assert [rates["decay"] for rates in used.rates] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


# optimizers


def test_default_optimizer_is_fused_adamw():
    optimizer = tiny_classifier().configure_optimizers()["optimizer"]
    assert type(optimizer) is AdamW
    assert {group["fused"] for group in optimizer.param_groups} == {True}
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.999)}


def test_optimizer_class_gets_our_parameter_groups():
    model = tiny_classifier(lr=0.1, weight_decay=0.3, layer_decay=0.5, optimizer=partial(SGD, momentum=0.9))
    optimizer = model.configure_optimizers()["optimizer"]
    assert type(optimizer) is SGD
    groups = by_name(model, optimizer.param_groups)
    assert {group["momentum"] for group in groups.values()} == {0.9}
    for name, group in groups.items():
        assert group["weight_decay"] == (0.3 if name in DECAYED else 0.0), name
    assert groups["head.weight"]["initial_lr"] == pytest.approx(0.1)
    assert groups["backbone.patch_embed.proj.weight"]["initial_lr"] == pytest.approx(0.1 / 32)


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (partial(SGD, momentum=-1.0), "model.optimizer: Invalid momentum value: -1.0"),
        (partial(SGD, weight_decay=0.7), "model.optimizer.weight_decay 0.7 has no effect; set model.weight_decay"),
        (lambda params, momentum: SGD(params, momentum=momentum), "SGD must take (params, lr, ...)"),
        (partial(SGD, speed=3), "unexpected keyword argument 'speed'"),
    ],
)
def test_optimizer_options_that_do_not_fit(optimizer, words):
    with pytest.raises(UserError) as caught:
        tiny_classifier(lr=0.2, optimizer=optimizer).configure_optimizers()
    assert words in str(caught.value)


# callbacks of Lightning that change the optimizer


def test_learning_rate_finder_moves_the_whole_schedule(make_trainer):
    batch = {"image": torch.randn(2, 3, 2, 2), "target": torch.tensor([0, 1]), "index": torch.arange(2)}
    used = UsedRates()
    model = SwinClassifier(Backbone(), 2, lr=0.1, min_lr=0.0, layer_decay=0.5)
    finder = LearningRateFinder(min_lr=1e-3, max_lr=1.0, num_training_steps=20)
    make_trainer(max_epochs=2, callbacks=[finder, used]).fit(model, DataLoader([batch] * 30, batch_size=None))
    found = finder.optimal_lr.suggestion()
    assert model.lr == found != 0.1
    rates = used.rates[-60:]  # the others are of the search
    expected = [found * 0.5 * (1 + math.cos(math.pi * step / 60)) for step in range(60)]
    assert [row["layer1_decay"] for row in rates] == pytest.approx(expected)
    assert [row["layer0_decay"] for row in rates] == pytest.approx([0.5 * rate for rate in expected])


def test_backbone_finetuning_adds_its_group_beside_the_schedule(make_trainer):
    batch = {"image": torch.randn(2, 3, 2, 2), "target": torch.tensor([0, 1]), "index": torch.arange(2)}
    seen = []

    class Groups(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append(
                [(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
            )

    model = SwinClassifier(Backbone(), 2, lr=0.1, min_lr=0.0, weight_decay=0.3)
    finetuning = BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.01, should_align=False)
    make_trainer(max_epochs=2, callbacks=[finetuning, Groups()]).fit(model, DataLoader([batch] * 2, batch_size=None))
    head = [0.05 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert [[row[:2] for row in rows] for rows in seen] == [
        [(pytest.approx(head[0]), 0.3), (pytest.approx(head[0]), 0.0)],
        [(pytest.approx(head[1]), 0.3), (pytest.approx(head[1]), 0.0)],
        [(pytest.approx(head[2]), 0.3), (pytest.approx(head[2]), 0.0), (0.01, 0.3)],
        [(pytest.approx(head[3]), 0.3), (pytest.approx(head[3]), 0.0), (0.01, 0.3)],
    ]


def test_stochastic_weight_averaging_runs_with_the_schedule(make_trainer):
    used = UsedRates()
    batch = {"image": torch.randn(2, 3, 2, 2), "target": torch.tensor([0, 1]), "index": torch.arange(2)}
    model = SwinClassifier(Backbone(), 2, lr=0.1, min_lr=0.1)
    swa = StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=2, annealing_epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SWA says that it works per epoch
        make_trainer(max_epochs=4, callbacks=[swa, used]).fit(model, DataLoader([batch] * 2, batch_size=None))
    rates = [row["decay"] for row in used.rates]
    assert rates[:2] == [0.1, 0.1] and rates[-1] == pytest.approx(0.02)


@needs_muon
def test_muon_equals_the_two_optimizers_of_torch():
    model, reference = tiny_classifier().double().eval(), tiny_classifier().double().eval()  # without drop path
    reference.load_state_dict(model.state_dict())
    optimizer = Muon(parameter_groups(model, 0.01, 0.1), 0.01)
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert groups.keys() == {"decay_muon", "decay", "no_decay"}
    assert all(p.ndim == 2 for p in groups["decay_muon"]["params"])
    assert [p.shape for p in groups["decay"]["params"]] == [(8, 3, 4, 4)]  # the patch embedding
    assert {p.ndim for p in groups["no_decay"]["params"]} == {1, 2, 3}  # norms and biases, bias tables, positions
    found = by_name(model, optimizer.param_groups)
    parts = [
        (torch.optim.Muon, ["decay_muon"], {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.1}),
        (AdamW, ["decay"], {"weight_decay": 0.1}),
        (AdamW, ["no_decay"], {"weight_decay": 0.0}),
    ]
    parts = [
        kind([p for name, p in reference.named_parameters() if found[name]["name"] in names], lr=0.01, **options)
        for kind, names, options in parts
    ]
    for step in range(3):
        for part in (optimizer, *parts):
            part.zero_grad()
        for module in (model, reference):
            images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(step)).double()
            module(images).square().sum().backward()
        for part in (optimizer, *parts):
            part.step()
        if step == 1:  # a resumed run
            again = Muon(parameter_groups(model, 0.5, 0.5), 0.5)
            again.load_state_dict(optimizer.state_dict())
            optimizer = again
    for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=lambda text, name=name: f"{name}: {text}")


@needs_muon
def test_muon_without_weight_decay_is_still_muon():
    groups = Muon(parameter_groups(tiny_classifier(), 0.01, 0.0), 0.01).param_groups
    assert {group["name"]: group["muon"] for group in groups} == {"decay_muon": True, "decay": False, "no_decay": False}


@needs_muon
def test_muon_takes_parameters_without_groups():
    layer = nn.Linear(4, 3)
    optimizer = Muon(layer.parameters(), lr=0.1)
    assert [(len(group["params"]), group["muon"]) for group in optimizer.param_groups] == [(1, True), (1, False)]
    loss = optimizer.step(lambda: layer(torch.ones(2, 4)).sum())
    assert loss.requires_grad


def test_muon_of_an_older_torch(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(UserError, match=r"needs torch 2\.9 or later"):
        Muon(nn.Linear(2, 2).parameters())
