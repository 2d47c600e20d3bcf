"""Errors caused by user input: one line with the offending value and what to do about it.

A `UserError` is raised where the mistake is known and printed by the entry point without a traceback. Every other
exception is a bug, of this package or of a library, and keeps its traceback.
"""

import argparse
import re
from typing import NoReturn


class UserError(ValueError):
    """A mistake in arguments, files or data that the user can fix. The message is a single line."""


class CommandParser(argparse.ArgumentParser):
    """Parser of a command without configuration files; a wrong argument is a `UserError`."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; run {self.prog} --help for options")


def user_error(error: BaseException) -> UserError | None:
    """The mistake behind an exception, or None for a bug.

    jsonargparse and Lightning wrap what a class raises, so the chain of causes is searched. Lightning's
    `MisconfigurationException` reports wrong arguments of the Trainer and counts as well, and so does a package that a
    class of the configuration needs and that is not installed.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause if str(cause) == summarize(cause) else UserError(summarize(cause))
        # by name: this module imports nothing heavy
        misconfigured = type(cause).__name__ == "MisconfigurationException"
        if misconfigured or (isinstance(cause, ModuleNotFoundError) and cause is not error):
            return UserError(summarize(cause))
        last = str(cause).strip().rpartition("\n")[2]
        if type(cause).__name__ == "ProcessRaisedException" and last.startswith(f"{UserError.__module__}.UserError: "):
            return UserError(last.partition(": ")[2])  # of a rank of ddp_spawn, which sends its traceback as text
        cause = cause.__cause__
    return None


def summarize(error: BaseException) -> str:
    """The message of an exception on one line; for an exception from a DataLoader worker, the original message."""
    text = str(error)
    if "in DataLoader worker process" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return collapse_whitespace(text)


def collapse_whitespace(message: str) -> str:
    """Replace every run of white space by one space."""
    return re.sub(r"\s+", " ", message).strip()
