"""The whole configuration against the ranges of its classes."""

import pytest

from swin_lightning.config import load
from swin_lightning.errors import UserError


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("model.lr", value) for value in ("0", "-1", ".nan", ".inf", "1e9")),
        *(("model.weight_decay", value) for value in ("-0.1", ".nan")),
        *(("model.layer_decay", value) for value in ("0", "2", "-0.5")),
        *(("model.label_smoothing", value) for value in ("-0.1", "1")),
        *(("model.backbone.drop_path_rate", value) for value in ("1.0", "-0.5", ".nan")),
        *(("data.crop_scale", value) for value in ("[1, 0.5]", "[0, 0]", "[0.5, 5]", "[-1, 1]")),
        *(("data.std", value) for value in ("[0, 0, 0]", "[255, 255, 255]", "[.inf, 1, 1]")),
        *(("data.hflip", value) for value in ("-1", "2")),
        *(("data.eval_batch_size", value) for value in ("0", "-1")),
        ("data.mean", "[255, 255, 255]"),
        ("data.mixup", ".nan"),
        ("data.rotate", "1e9"),
        ("ema.decay", "1"),
        ("early_stopping.patience", "-1"),
        ("checkpoint.every_n_epochs", "0"),
        ("trainer.max_steps", "0"),
        ("trainer.limit_train_batches", "0"),
        ("trainer.gradient_clip_val", "-1"),
        ("trainer.log_every_n_steps", "0"),
        ("trainer.max_time", "00:00:00:00"),
        ("seed_everything", "-1"),
    ],
)
def test_meaningless_values_are_refused(option, value):
    with pytest.raises(UserError, match=rf"^{option} .*: expected "):
        load(["-c", "digits_swin_micro", f"--{option}={value}"])


def test_useful_values_are_accepted():
    load(["-c", "digits_swin_micro", "--model.layer_decay=0.7", "--data.mixup=0.8", "--trainer.limit_val_batches=0",
          "--trainer.max_epochs=-1", "--trainer.max_time=00:01:00:00", "--trainer.devices=2", "--data.rotate=180",
          "--trainer.val_check_interval=0.5", "--ema.decay=0.9999", "--trainer.precision=bf16-mixed",
          "--trainer.strategy=ddp_find_unused_parameters_true", "--data.crop_scale=[1, 1]"])  # fmt: skip
