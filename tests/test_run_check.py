"""Relations between options that make a run meaningless although each is in range."""

from types import SimpleNamespace

import pytest

from swin_lightning import SwinClassifier
from swin_lightning.data import Digits
from swin_lightning.errors import UserError
from swin_lightning.models import SwinTransformer
from swin_lightning.run_check import check_run, is_shortened

SMALL = {"img_size": 16, "embed_dim": 8, "depths": (2,), "num_heads": (2,), "window_size": 4}
OPTIONS = {
    "max_epochs": 10, "min_epochs": None, "max_steps": -1, "min_steps": None, "fast_dev_run": False,
    "overfit_batches": 0.0, "limit_train_batches": None, "accumulate_grad_batches": 1, "val_check_interval": None,
    "check_val_every_n_epoch": 1,
}  # fmt: skip


def model(warmup_epochs=0.0, num_classes=10, **backbone):
    return SwinClassifier(SwinTransformer(**(SMALL | backbone)), num_classes, warmup_epochs=warmup_epochs)


def digits(**arguments):
    data = Digits(image_size=16, **({"batch_size": 32} | arguments))
    data.sources["train"] = range(100)
    return data


def options(**changed):
    return SimpleNamespace(**(OPTIONS | changed))


def test_a_sensible_run_passes():
    check_run(options(), model(warmup_epochs=3), digits())
    check_run(options(val_check_interval=3, accumulate_grad_batches=2), model(), digits())
    check_run(options(val_check_interval=300, check_val_every_n_epoch=None), model(), digits())


@pytest.mark.parametrize(
    ("changed", "backbone", "data", "message"),
    [
        ({"min_epochs": 20}, {}, {}, "trainer.min_epochs 20 is above trainer.max_epochs 10"),
        ({}, {"in_chans": 4}, {}, "model.backbone.in_chans 4: the images have 3 channels"),
        ({}, {"patch_size": 32}, {}, r"model.backbone.patch_size \[32, 32\] is larger than the images of 16 x 16"),
        (
            {},
            {"window_size": 5},
            {},
            r"model.backbone.window_size \[5, 5\] is larger than the first feature map, 4 x 4",
        ),
        ({}, {"img_size": 32, "ape": True}, {}, r"model.backbone.img_size \[32, 32\] must be data.image_size 16"),
        ({}, {}, {"batch_size": 101}, "data.batch_size 101 is larger than the training set of 100 images"),
        ({}, {}, {"num_workers": 10_000}, "data.num_workers 10000: expected at most"),
        ({"val_check_interval": 4}, {}, {}, "trainer.val_check_interval 4: an epoch has 3 batches"),
    ],
)
def test_meaningless_runs_are_refused(changed, backbone, data, message):
    with pytest.raises(UserError, match=message):
        check_run(options(**changed), model(**backbone), digits(**data))


def test_one_class_is_no_classification():
    with pytest.raises(UserError, match=r"model.num_classes 1: a classifier needs at least two classes"):
        check_run(options(), model(num_classes=1))


@pytest.mark.parametrize(
    ("warmup", "planned", "changed", "refused"),
    [
        (10, None, {}, True),
        (9.5, None, {}, False),
        (10, None, {"max_epochs": 4}, False),  # tried out
        (10, None, {"limit_train_batches": 3}, False),
        (10, 40, {"max_epochs": 2}, False),  # the experiment has more
        (50, 40, {"max_epochs": 1, "limit_train_batches": 3}, True),
        (10, None, {"max_epochs": -1}, False),
    ],
)
def test_warmup_ends_within_the_planned_run(warmup, planned, changed, refused):
    module = model(warmup_epochs=warmup)
    module.planned_epochs = planned
    if refused:
        with pytest.raises(UserError, match=f"model.warmup_epochs {warmup}: the run has"):
            check_run(options(**changed), module)
    else:
        check_run(options(**changed), module)


def test_a_trainer_in_python_checks_too(make_trainer):
    with pytest.raises(UserError, match=r"model.warmup_epochs 7: the run has 6 epochs"):
        make_trainer(max_epochs=6).fit(model(warmup_epochs=7), digits())
    assert not is_shortened(make_trainer(max_epochs=2)) and is_shortened(make_trainer(max_epochs=2, max_steps=5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 1e-4, "min_lr": 1e-3}, "model.min_lr 0.001 is above model.lr 0.0001"),
        ({"lr": 1e-7, "min_lr": 0, "warmup_epochs": 1}, "model.warmup_lr 1e-06 is above model.lr 1e-07"),
        ({"lr": 0.1, "weight_decay": 10}, "model.weight_decay 10: AdamW multiplies the weights by 1 - lr"),
    ],
)
def test_learning_rates_fit_together(arguments, message):
    with pytest.raises(UserError, match=message):
        SwinClassifier(SwinTransformer(**SMALL), 10, **arguments)
    SwinClassifier(SwinTransformer(**SMALL), 10, lr=1e-4, min_lr=1e-3, lr_schedule="constant")


def test_a_network_larger_than_the_memory_is_refused_at_once():
    with pytest.raises(UserError, match=r"billion parameters need \d+ GiB and this machine has"):
        SwinTransformer(embed_dim=16384, depths=(1000,), num_heads=(2,))
