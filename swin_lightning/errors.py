"""Mistakes of the user, each as one line that names the value and the cure."""

import re
import traceback
from pathlib import Path


class UserError(Exception):
    """A mistake that the user can cure; its message is one line."""


def is_ours(error: BaseException) -> bool:
    """Whether an error was raised on purpose: by this package, also in a loader's process, or by Lightning."""
    if type(error).__name__ == "MisconfigurationException" or "in DataLoader worker process" in str(error):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parent)


def one_line(error: BaseException) -> str:
    """An error's message in one line; of an error in a loader's process, what it was there."""
    text = str(error)
    if "in DataLoader worker process" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return squeeze(text)


def squeeze(message: str) -> str:
    """Every run of white space as one space."""
    return re.sub(r"\s+", " ", message).strip()
