"""The whole configuration against the ranges of its classes."""

from pathlib import Path

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
        *(
            ("trainer.max_time", value)
            for value in ("00:00:00:00", "00:99:00:00", "99999999999:00:00:00", "{hours: -1}")
        ),
        *(("trainer.max_time", value) for value in ("{}", "{parsecs: 3}", "{hours: 99999999999999}")),
        ("trainer.max_epochs", "9" * 30),
        ("trainer.max_steps", "9" * 30),
        ("seed_everything", "-1"),
    ],
)
def test_meaningless_values_are_refused(option, value):
    with pytest.raises(UserError, match=rf"^{option} .*: expected "):
        load(["-c", "digits_swin_micro", f"--{option}={value}"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {init_args: {num_classes: 5}}", "model.num_classes 5: the data module gives it"),
        ("model: {init_args: {class_names: [a]}}", r"model.class_names \['a'\]: the data module gives it"),
        ("model: {class_path: swin_lightning.SwinClassifier, dict_kwargs: {zz: 1}}", "unknown option model.zz in"),
        ("model.lr_schedule: {class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 0}}",
         "model.lr_schedule.step_size 0: expected an integer >= 1"),
        ("model.lr_schedule: {class_path: torch.optim.lr_scheduler.ExponentialLR, init_args: {gamma: -5}}",
         "model.lr_schedule.gamma -5.0: expected a number > 0 and <= 2"),
        ("model.optimizer: {class_path: torch.optim.SGD, init_args: {momentum: -1}}",
         "model.optimizer.momentum -1.0: expected a number >= 0 and < 1"),
        ("model.optimizer: {class_path: torch.optim.AdamW, init_args: {betas: [2, 3]}}",
         "model.optimizer.betas .*: expected a list of 2 values, each a number >= 0 and < 1"),
        ("config: other.yaml", "config: a file cannot name another one; give -c several times"),
        ("1.5: 3", "key '1.5': expected an option"),
        ("'': 3", "key '': expected an option"),
        ("model..lr: 3", "key 'model..lr': expected an option"),
        ("ckpt_path: []", r"ckpt_path \[\]: expected text or null"),
        ("allow_classes: 5", "allow_classes 5: expected text"),
        ("model: {init_args: {lr_schedule: {class_path: torch.nn.Linear}}}",
         "model.lr_schedule torch.nn.Linear: not a class of this kind"),
    ],
)  # fmt: skip
def test_meaningless_files_are_refused(text, message):
    Path("wrong.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"^(wrong.yaml:1: )?{message}"):
        load(["-c", "digits_swin_micro", "-c", "wrong.yaml"])


def test_empty_files_and_joined_options_are_accepted():
    Path("empty.yaml").write_text("{}")
    Path("some.yaml").write_text("model.lr: 0.25\n")
    assert load(["-cdigits_swin_micro", "-c", "empty.yaml", "-c=some.yaml"]).model.init_args.lr == 0.25
    with pytest.raises(UserError, match="null character"):
        load(["-c", "digits_swin_micro", "--ckpt_path=a\0b"])


def test_useful_values_are_accepted():
    load(["-c", "digits_swin_micro", "--model.layer_decay=0.7", "--data.mixup=0.8", "--trainer.limit_val_batches=0",
          "--trainer.max_epochs=-1", "--trainer.max_time=00:01:00:00", "--trainer.devices=2", "--data.rotate=180",
          "--trainer.val_check_interval=0.5", "--ema.decay=0.9999", "--trainer.precision=bf16-mixed",
          "--trainer.strategy=ddp_find_unused_parameters_true", "--data.crop_scale=[1, 1]"])  # fmt: skip
