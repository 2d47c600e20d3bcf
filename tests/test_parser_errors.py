"""Messages of the parser: key, value, what is allowed, and what was meant."""

import pytest

from swin_lightning.config import load
from swin_lightning.errors import UserError
from swin_lightning.parser_errors import SYNONYMS, explain, known_options, nearest


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ('Parser key "trainer.max_epochs":\n  Expected a <class \'int\'>. Got value: x',
         "trainer.max_epochs x: expected an integer >= 0 and <= 1000000 or -1 or null"),
        ("unrecognized arguments: --model.lrr=3", "unknown option model.lrr; did you mean model.lr?"),
        ("unrecognized arguments: --EPOCHS=3", "unknown option EPOCHS; did you mean trainer.max_epochs?"),
        ("unrecognized arguments: --Max_Epochs=3", "unknown option Max_Epochs; did you mean trainer.max_epochs?"),
        ("unrecognized arguments: --qqq.zzzz=3", "unknown option qqq.zzzz; see swin-lightning fit --help"),
    ],
)  # fmt: skip
def test_messages_of_jsonargparse(message, line):
    assert explain(message) == line


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("model=''", "model '': expected the path of a class, such as swin_lightning.SwinClassifier"),
        ("model.lr.q=1", "model.lr 1: expected a number > 0 and <= 1000; the default is 0.001"),
        ("model.lr=abc", "model.lr abc: expected a number > 0 and <= 1000; the default is 0.001"),
        ("data.crop=x", "data.crop x: expected one of random_resized, pad, none; the default is random_resized"),
        ("data.num_workers=-1", "data.num_workers -1: expected an integer >= 0 or null"),
        ("seed_everything=x", "seed_everything x: expected an integer >= 0 and < 4294967296; the default is 0"),
        ("model.optimizer=torch.optim.Adammm", "model.optimizer torch.optim.Adammm: expected the path of a class "
         "(module 'torch.optim' has no attribute 'Adammm'); did you mean torch.optim.Adam?"),
        ("model.optimizer=torch.nn.Linear", "model.optimizer torch.nn.Linear: not a class of this kind; expected one "
         "such as torch.optim.SGD"),
        ("model.optimizer.lrr=5", "unknown option model.optimizer.lrr; name the class that has it first, such as "
         "--model.optimizer torch.optim.SGD"),
        ("model.backbone.embed_dim=3", "unknown option model.backbone.embed_dim: swin_micro_patch4_window4_32 has no "
         "such argument; SwinTransformer has it (--model.backbone SwinTransformer)"),
        ("model.loss.label_smoothing=2", "model.loss.label_smoothing 2: name the class that has it first, such as "
         "--model.loss torch.nn.CrossEntropyLoss"),
        ("model.loss={class_path: torch.nn.CrossEntropyLoss, init_args: {label_smoothing: 2}}",
         "model.loss.label_smoothing 2.0: expected a number >= 0 and < 1; the default is 0.0"),
        ("checkpoint=3", "checkpoint 3: expected a mapping of its options, such as --checkpoint.NAME=VALUE"),
        ("trainer.devices=[0]", "trainer.devices [0]: on a CPU it is the number of processes; expected an integer >= 1,"
         " or auto"),
        ("trainer.strategy=dpp", "trainer.strategy dpp: expected one of auto, ddp, ddp_spawn, ddp_notebook, fsdp2 or a "
         "class path with its arguments; the default is auto"),
        ("data=ImageFolder", "missing data.path; set it, as --data.path=VALUE"),
    ],
)  # fmt: skip
def test_wrong_values_are_one_line(argument, message):
    with pytest.raises(UserError) as caught:
        load(["-c", "digits_swin_micro", "-c", "hardware/cpu", f"--{argument}"])
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("word", "option"),
    [
        ("lr", "model.lr"),
        ("MODEL.LR", "model.lr"),
        ("epochs", "trainer.max_epochs"),
        ("trainer.gpus", "trainer.devices"),
        ("batch-size", "data.batch_size"),
        ("trainer.lr", "model.lr"),
        ("trainer.max_epoch", "trainer.max_epochs"),
    ],
)
def test_nearest_option(word, option):
    assert nearest(word, known_options()) == option


def test_synonyms_name_options():
    assert set(SYNONYMS.values()) <= known_options()


def test_long_values_are_cut():
    with pytest.raises(UserError, match=r"^model.class_names \[0, 1, .{60,70}\.\.\.: expected a list, each item text"):
        load(["-c", "digits_swin_micro", f"--model.class_names={list(range(10_000))}"])
