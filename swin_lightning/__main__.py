"""The door: `swin-lightning` and `python -m swin_lightning`, which Lightning's launcher calls again for every rank.

It imports nothing heavy before it knows what is asked for.
"""

import os
import signal
import sys

from swin_lightning import __version__
from swin_lightning.commands import overview
from swin_lightning.errors import UserError


def console() -> None:
    """`cli.main` with the process's arguments, errors as one line on stderr, and exit code 2 for them."""
    if not sys.argv[1:] or sys.argv[1] in ("-h", "--help"):
        print(overview())
        return
    if sys.argv[1] == "--version":
        print(f"swin-lightning {__version__}")
        return
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from swin_lightning.cli import main

    try:
        main()
    except UserError as error:
        if os.environ.get("SWIN_LIGHTNING_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except SIGTERMException:
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    console()
