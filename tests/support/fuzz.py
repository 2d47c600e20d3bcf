"""Mutated configurations: seeded values, keys, files and combinations, and what the command line makes of each."""

import os
import random
import signal
from itertools import pairwise
from pathlib import Path

from swin_lightning.cli import main
from swin_lightning.errors import UserError
from tests.support.cli import CHECKPOINT_ENV, DIGITS, RUN_DIR_ENV

LIMIT = 20  # seconds
BASE = ["fit", "-c", DIGITS, "-c", "hardware/cpu", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1",
        "--trainer.limit_val_batches=1", "--trainer.logger=false", "--trainer.enable_progress_bar=false",
        "--test_after_fit=false"]  # fmt: skip
NUMBERS = [".nan", ".inf", "-.inf", "-1", "-0.5"]
WORDS = ["x", "null", "[]", "{}", "maybe", "💥", "a" * 300, "[1, [2]]"]


def each(options, values):
    """The same values for several options."""
    return {option: tuple(values) for option in options}


# option -> values that cannot be meant
MEANINGLESS = {
    **each(("model.lr", "model.lr_decay_epochs"), [*NUMBERS, *WORDS, "0"]),
    **each(("model.layer_decay", "model.lr_decay_rate", "model.lr_decay_share"), [*NUMBERS, *WORDS, "0", "2"]),
    **each(("model.min_lr", "model.warmup_lr"), [*NUMBERS, *WORDS, "1"]),
    **each(("model.warmup_epochs",), [*NUMBERS, *WORDS, "40", "1e6"]),
    **each(("model.weight_decay",), [*NUMBERS, *WORDS, "1e6"]),
    **each(("model.label_smoothing", "ema.decay"), [*NUMBERS, *WORDS, "1", "1.5"]),
    **each(("model.backbone.drop_path_rate", "model.backbone.drop_rate"), [*NUMBERS, *WORDS, "1", "1.5"]),
    **each(("data.hflip", "data.random_erasing", "data.mix_probability"), [*NUMBERS, *WORDS, "1.01", "255"]),
    **each(("data.mixup", "data.cutmix", "data.rotate"), [*NUMBERS, *WORDS, "1e9"]),
    **each(("data.batch_size", "data.image_size"), [*NUMBERS, *WORDS, "0", "1.5", "1000000"]),
    **each(("data.num_workers",), [*NUMBERS, "x", "[]", "1.5", "1000000"]),
    **each(("data.std",), ["[0, 0, 0]", "[255, 255, 255]", "[.nan, 1, 1]", "[1, 1]", "1", "x"]),
    **each(("data.mean",), ["[2, 0, 0]", "[-1, 0, 0]", "[.inf, 0, 0]", "[1, 1]", "1", "x"]),
    **each(("data.crop_scale",), ["[1, 0.5]", "[0, 0]", "[0.5, 5]", "[-1, 1]", "[0.5]", "0.5", "x"]),
    **each(("data.crop", "data.eval_crop", "data.on_bad_image", "non_finite.action"), WORDS),
    **each(("data.rand_augment",), ["rand-m99-inc1", "rand-m9", "x", "rand-m9-n0-inc1", "rand-m9-p5-inc1"]),
    **each(("trainer.max_steps", "trainer.accumulate_grad_batches"), ["0", "-5", "1.5", "x", "null", "[]"]),
    **each(("trainer.limit_train_batches", "trainer.val_check_interval"), ["0", "-1", "1.5", "x", "[]"]),
    **each(("trainer.log_every_n_steps", "trainer.check_val_every_n_epoch"), ["0", "-1", "1.5", "x", "[]"]),
    **each(("trainer.gradient_clip_val",), [*NUMBERS, "x", "[]"]),
    **each(("trainer.strategy", "trainer.accelerator", "trainer.precision"), ["x", "[]", "5", "dpp"]),
    **each(("trainer.max_time",), ["x", "00:00:00:00", "99999999999:00:00:00", "{hours: -1}", "{}", "{parsecs: 3}"]),
    **each(("trainer.devices",), ["0", "-5", "[0]", "x", "null", "100000"]),
    **each(("early_stopping.patience", "checkpoint.every_n_train_steps"), ["-1", "1.5", "x", "[]", "null"]),
    **each(("checkpoint.every_n_epochs",), ["0", "-1", "1.5", "x", "null"]),
    **each(("checkpoint.mode",), ["min", "x", "5"]),
    **each(("seed_everything",), ["-1", "1e30", "4294967296", "x", "null"]),
    **each(("model", "model.backbone", "model.optimizer", "model.lr_schedule", "data", "model.loss"),
                    ["x", "5", "os.system", "torch.nope", "torch.nn.Linear", "nowhere.Mine"]),
}  # fmt: skip
FILES = [
    "model: [", "- 1\n", "hello", "a: 1\na: 2\n", "trainer: 5\n", "model: [1]\n", "\0\1", "data:\n", "{" * 200,
    "ema: null\n", "model: &m {init_args: *m}\n", "model: {init_args: {lr: " + "9" * 5000 + "}}\n", "1.5: 3\n",
    "'': 1\n", "config: other.yaml\n", "model: {init_args: {num_classes: 5}}\n",
    "model: {init_args: {class_names: [a]}}\n",
    "model: {init_args: []}\n", "model: {class_path: swin_lightning.data.Digits}\n",
    "model: {init_args: " + "{a: " * 40 + "1" + "}" * 41 + "\n",
    "ckpt_path: []\n", "allow_classes: 5\n", "trainer: {callbacks: [5]}\n", "trainer: null\n",
    "model.optimizer: {class_path: torch.optim.SGD, init_args: {momentum: -1}}\n",
    "model.lr_schedule: {class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 0}}\n",
    "model: !!python/object/apply:os.mkdir [ran]\n", "model: {lr: {a: 1}}\n", "trainer: {max_epoch: 1}\n",
    "a: &a [1, 1, 1, 1]\n" + "".join(f"{n}: &{n} [{', '.join([f'*{o}'] * 9)}]\n" for o, n in pairwise("abcdefghi")),
]  # fmt: skip


def cases(count, seed):
    """Arguments of `count` runs, each with at least one thing that cannot be meant."""
    rng = random.Random(seed)
    options = sorted(MEANINGLESS)
    for number in range(count):
        kind = rng.choice(["value", "value", "value", "file value", "combination", "key", "file"])
        option = rng.choice(options)
        value = rng.choice(MEANINGLESS[option])
        if kind == "value":
            yield [f"--{option}={value}"]
        elif kind == "combination":
            other = rng.choice(options)
            yield [f"--{option}={value}", f"--{other}={rng.choice(MEANINGLESS[other])}"]
        elif kind == "key":
            place = rng.randrange(len(option))
            wrong = rng.choice([option.upper(), option[:place] + "q" + option[place:], option + ".q", f"zz.{option}"])
            yield [f"--{wrong}=1"]
        else:
            path = Path(f"case{number}.yaml")
            text = f"{option}: {value}\n" if kind == "file value" else rng.choice(FILES)
            path.write_text(text, encoding="utf-8")
            yield ["-c", str(path)]


class Hang(BaseException):
    """A case took longer than the limit."""


def outcome(arguments):
    """`refused` with its message, `ran`, `hang`, or `traceback` with the exception."""

    def stop(*_):
        raise Hang

    for name in (RUN_DIR_ENV, CHECKPOINT_ENV):
        os.environ.pop(name, None)
    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        main([*BASE, *arguments])
    except UserError as error:
        return "refused", str(error)
    except Hang:
        return "hang", ""
    except Exception as error:
        return "traceback", repr(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    return "ran", ""
