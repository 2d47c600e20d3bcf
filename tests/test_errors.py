"""Errors by type: user mistakes in one line, everything else unchanged."""

import sys

import pytest
from lightning import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, Dataset

from swin_lightning.__main__ import console
from swin_lightning.errors import CommandParser, UserError, shorten, summarize, user_error
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


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ValueError("loaded state dict has a different number of parameter groups"), "start from its parameters with"),
        (RuntimeError("SparseAdam does not support dense gradients"), "use torch.optim.AdamW"),
        (RuntimeError("Early stopping conditioned on metric `zz` which is not available."), "set monitor of Early"),
    ],
)
def test_mistakes_that_libraries_find_during_the_run_come_with_a_remedy(error, remedy):
    assert remedy in str(user_error(error))


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


@pytest.mark.slow
def test_console_lets_a_bug_through(monkeypatch):
    bug = "--trainer.callbacks+=tests.test_errors.Buggy"
    monkeypatch.setattr(sys, "argv", ["swin-lightning", "fit", "-c", DIGITS, *SHORT, bug])
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is shorter") as caught:
        console()
    assert type(caught.value) is ValueError  # Python prints the traceback and exits with 1


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), "--trainer.accumulate_grad_batches"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "--model.gradient_checkpointing true"),
        (MemoryError(), "--data.batch_size"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible"), "--shm-size"),
        (RuntimeError("unable to open shared memory object </torch_1> in read-write mode"), "--data.num_workers"),
        (RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly"), "lower --data.num_workers"),
        (OSError(24, "Too many open files"), "ulimit -n"),
        (RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:1"), "connection to another rank was lost"),
        (PermissionError(13, "Permission denied", "runs"), "runs: Permission denied"),
        (NotADirectoryError(20, "Not a directory", "runs/x"), "runs/x: Not a directory"),
        (OSError(36, "File name too long", "a" * 300), "a...: File name too long"),
        (OSError(28, "No space left on device", "runs/x"), "runs/x: No space left"),
    ],
)
def test_what_the_machine_lacks_is_one_line_with_a_remedy(error, remedy):
    message = str(user_error(error))
    assert remedy in message and "\n" not in message


def test_mistake_in_the_chain_of_causes_comes_before_its_consequences():
    error = RuntimeError("Connection closed by peer")
    error.__cause__ = UserError("rank 1: cannot read image 7")
    assert str(user_error(error)) == "rank 1: cannot read image 7"
    mistake = UserError("once")
    mistake.__cause__ = mistake  # `raise error from error`
    assert user_error(mistake) is mistake


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), FileNotFoundError(2, "No such file", "x"), OSError("x")]
)
def test_bugs_are_not_mistakes(error):
    assert user_error(error) is None


def test_values_are_shortened():
    assert shorten([1] * 1000) == f"[{'1, ' * 25}1..."
    assert (shorten(True), shorten(None), shorten("a\nb"), shorten("")) == ("true", "null", "a b", "''")
