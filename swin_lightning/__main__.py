"""The door: `swin-lightning` and `python -m swin_lightning`, which Lightning's launcher calls again for every rank.

It imports nothing heavy before it knows what is asked for.
"""

import os
import signal
import sys

from swin_lightning import __version__
from swin_lightning.allocator import reexec_with_allocator
from swin_lightning.commands import COMMANDS, load_command, overview
from swin_lightning.errors import UserError


def console() -> None:
    """The process's command; errors as one line on stderr, and exit code 2 for them."""
    command = sys.argv[1] if sys.argv[1:] else "--help"
    if command in ("-h", "--help"):
        print(overview())
    elif command == "--version":
        print(f"swin-lightning {__version__}")
    else:
        reexec_with_allocator()
        try:
            _run(command)
        except UserError as error:
            if os.environ.get("SWIN_LIGHTNING_DEBUG"):
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)


def _run(command: str) -> None:
    if command in COMMANDS:  # without Lightning
        load_command(command)(sys.argv[2:])
        return
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from swin_lightning.cli import main

    try:
        main()
    except SIGTERMException:
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    console()
