"""Errors by type: user mistakes in one line, everything else unchanged."""

import sys

import pytest
from lightning import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, Dataset

from swin_lightning.__main__ import console
from swin_lightning.errors import CommandParser, UserError, summarize, user_error
from tests.support.cli import DIGITS, SHORT


def raised(error, cause=None):
    try:
        raise error from cause
    except Exception as caught:
        return caught


def test_user_error_is_found_behind_the_exceptions_of_libraries():
    mistake = UserError("data.path: no folder 'x'")
    assert user_error(mistake) is mistake
    assert user_error(raised(ValueError("wrapped"), raised(RuntimeError("wrapped"), mistake))) is mistake
    assert str(user_error(MisconfigurationException("max_epochs\n  is wrong"))) == "max_epochs is wrong"


def test_missing_package_of_a_configured_class_is_the_users_to_install():
    missing = ModuleNotFoundError("Neither `tensorboard` nor `tensorboardX` is available. Try `pip install`ing either.")
    assert str(user_error(raised(ValueError("does not validate"), missing))) == str(missing)
    assert user_error(missing) is None  # an import of this package


@pytest.mark.parametrize(
    "bug", [ValueError("zip() argument 2 is shorter"), AssertionError("x"), KeyError("x"), OSError()]
)
def test_other_exceptions_are_bugs(bug):
    assert user_error(bug) is None
    assert user_error(raised(bug, ValueError("a library's"))) is None


class Corrupt(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise UserError("image 'x.png' cannot be decoded")


def test_user_error_keeps_its_type_and_message_in_loader_processes():
    with pytest.raises(UserError) as caught:
        next(iter(DataLoader(Corrupt(), num_workers=1)))
    assert summarize(caught.value) == "image 'x.png' cannot be decoded"
    assert str(user_error(caught.value)) == "image 'x.png' cannot be decoded"


def test_command_parser_raises_user_errors():
    parser = CommandParser("swin-lightning models")
    with pytest.raises(
        UserError, match="swin-lightning models: unrecognized arguments: --x; run swin-lightning models"
    ):
        parser.parse_args(["--x"])


class Buggy(Callback):
    def on_train_start(self, *_):
        list(zip([1], [], strict=True))


def test_console_lets_a_bug_through(monkeypatch):
    bug = "--trainer.callbacks+=tests.test_errors.Buggy"
    monkeypatch.setattr(sys, "argv", ["swin-lightning", "fit", "-c", DIGITS, *SHORT, bug])
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is shorter") as caught:
        console()
    assert type(caught.value) is ValueError  # Python prints the traceback and exits with 1
