"""Errors caused by user input or the machine: one line with the offending value and what to do about it.

A `UserError` is raised where the mistake is known and printed by the entry point without a traceback. Every other
exception is a bug, of this package or of a library, and keeps its traceback.
"""

import argparse
import errno
import re
from typing import Any, NoReturn

SHOWN = 80  # characters of a value in a message


class UserError(ValueError):
    """A mistake in arguments, files or data that the user can fix. The message is a single line."""


class CommandParser(argparse.ArgumentParser):
    """Parser of a command without configuration files; a wrong argument is a `UserError`."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; run {self.prog} --help for options")


def add_allow_option(parser: argparse.ArgumentParser) -> None:
    """Add `--allow_classes` to a command that builds the model of a checkpoint, see `checkpoint_classes`."""
    parser.add_argument(
        "--allow_classes",
        default="",
        metavar="CLASSES",
        help="classes or modules, separated by commas, that the file may name besides those of swin_lightning",
    )


# What a library's message says about the machine -> what to do. They are RuntimeErrors of torch, known by their text.
REMEDIES = {
    r"out of memory|can't allocate memory|cannot allocate memory|unable to allocate": (
        "out of memory: use more accumulated batches (--trainer.accumulate_grad_batches; the global batch size stays), "
        "--model.gradient_checkpointing true, a smaller --data.batch_size, or fewer --data.num_workers"
    ),
    r"bus error|shared memory|torch_shm_manager|shm_open": (
        "no shared memory left for the data loader: lower --data.num_workers (0 needs none), or enlarge /dev/shm "
        "(docker run --shm-size)"
    ),
    "early stopping conditioned on metric": "trainer.callbacks: set monitor of EarlyStopping to a logged metric",
    r"does not support dense gradients": "model.optimizer is for sparse gradients only: use torch.optim.AdamW",
    r"too many open files": "too many open files: lower --data.num_workers, or raise the limit (ulimit -n)",
    r"dataloader worker .* (exited unexpectedly|killed by signal)": (
        "a worker of the data loader was killed, as by the system when memory runs out: lower --data.num_workers"
    ),
    r"connection (closed|reset) by peer|connection refused|nccl.*(remote|unhandled)|gloo.*(timed out|broken pipe)": (
        "the connection to another rank was lost: its process was killed or its machine failed; see its output"
    ),
}
# a ValueError of torch
OTHER_GROUPS = re.compile("loaded state dict (has a different number of|contains a) parameter group")
# errors of files that belong to the machine and not to the program
ENVIRONMENT = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.EMFILE),
    *(errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOTDIR),
}


def user_error(error: BaseException) -> UserError | None:
    """The mistake behind an exception, or None for a bug.

    jsonargparse and Lightning wrap what a class raises, so the chain of causes is searched. Lightning's
    `MisconfigurationException` reports wrong arguments of the Trainer and counts as well, and so do a package that a
    class of the configuration needs and that is not installed, a file that cannot be written or read, and a machine
    that runs out of something.
    """
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:  # `raise error from error` is a cycle
        causes.append(cause)
        cause = cause.__cause__
    for cause in causes:
        if isinstance(cause, UserError):
            return cause if str(cause) == summarize(cause) else UserError(summarize(cause))
    for cause in causes:
        # by name: this module imports nothing heavy
        misconfigured = type(cause).__name__ == "MisconfigurationException"
        if isinstance(cause, ModuleNotFoundError) and cause is not error:
            return UserError(_missing_module(cause))
        if misconfigured:
            return UserError(summarize(cause))
        if isinstance(cause, ValueError) and (missing := _missing_package(str(cause))):
            return UserError(missing)
        if isinstance(cause, ValueError) and OTHER_GROUPS.match(str(cause)):
            return UserError(
                "the checkpoint cannot be resumed: its optimizer has other parameter groups than this configuration; "
                "use the model.layer_decay, model.freeze and backbone of its run, or start from its parameters with "
                "--model.weights"
            )
        last = str(cause).strip().rpartition("\n")[2]
        if type(cause).__name__ == "ProcessRaisedException" and last.startswith(f"{UserError.__module__}.UserError: "):
            return UserError(last.partition(": ")[2])  # of a rank of ddp_spawn, which sends its traceback as text
        if isinstance(cause, OSError) and cause.errno in ENVIRONMENT and cause.filename is not None:
            return UserError(f"{shorten(str(cause.filename), 200)}: {cause.strerror}")
        if isinstance(cause, RuntimeError | MemoryError | OSError) and (remedy := _remedy(cause)):
            return UserError(remedy)
    return None


def summarize(error: BaseException) -> str:
    """The message of an exception on one line; for an exception from a DataLoader worker, the original message."""
    text = str(error)
    if "in DataLoader worker process" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return collapse_whitespace(text)


def shorten(value: Any, most: int = SHOWN) -> str:
    """A value as in YAML, or a message, on one line and at most `most` characters of it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, tuple):
        value = list(value)
    plain = (isinstance(value, str) and value) or isinstance(value, BaseException)
    text = collapse_whitespace(str(value) if plain else repr(value))
    return text if len(text) <= most else f"{text[: most - 3]}..."


def collapse_whitespace(message: str) -> str:
    """Replace every run of white space by one space."""
    return re.sub(r"\s+", " ", message).strip()


def _missing_module(error: ModuleNotFoundError) -> str:
    """What a library says about a package that it needs; some repeat themselves."""
    text = summarize(error)
    command = re.search(r"`(pip install [^`]+)`", text)
    needs = re.search(r"Requirement '([^']+)'", text)
    if command is None or needs is None:
        return text
    return f"the configuration needs the package {needs[1]}, which is not installed: {command[1].replace(' -U', '')}"


def _missing_package(message: str) -> str | None:
    """A class that cannot be built without a package, in jsonargparse's text about the alternatives of a type.

    It has the messages of the exceptions, not the exceptions. Lightning's say how to install a package.
    """
    problem = re.search(
        r"Problem with given class_path '([\w.]+)':(.*?)(?=\n  - |\nGiven value|\Z)", message, re.DOTALL
    )
    hints = (
        re.findall(r"pip install (?:-U )?['\"]?([\w.\[\]-]+)|No module named '([\w.]+)", problem[2]) if problem else []
    )
    if problem is None or not hints:
        return None
    return f"{problem[1]} needs a package that is not installed: pip install {''.join(hints[-1])}"


def _remedy(error: BaseException) -> str | None:
    if isinstance(error, MemoryError):
        return next(iter(REMEDIES.values()))
    text = str(error)
    found = (remedy for pattern, remedy in REMEDIES.items() if re.search(pattern, text, re.IGNORECASE))
    first = next(found, None)
    if first is None:
        return None
    lines = collapse_whitespace(text)
    return f"{first} ({lines[:160]}{'...' if len(lines) > 160 else ''})"
