"""Entry point of `swin-lightning` and `python -m swin_lightning`, which Lightning also starts for every rank.

Exit codes: 0, 2 for an error of the user, 1 for any other error, 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP
(the terminal was closed), 141 if the reader of the output has gone. Heavy imports are deferred until the command is
known.
"""

import os
import select
import signal
import sys
import traceback

from swin_lightning import __version__
from swin_lightning.allocator import reexec_with_allocator
from swin_lightning.commands import COMMANDS, check_command, load_command, overview
from swin_lightning.errors import user_error

DEBUG_ENV = "SWIN_LIGHTNING_DEBUG"  # print the traceback of a user's mistake too


def console() -> None:
    """Run the command of this process."""
    try:
        try:
            _run(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _stdout_is_closed():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or flushing at exit prints an error
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        mistake = user_error(error)
        if mistake is None:
            raise
        if os.environ.get(DEBUG_ENV):
            traceback.print_exc()
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)


def _run(argv: list[str]) -> None:
    command = argv[0] if argv else "--help"
    if command in ("-h", "--help"):
        print(overview())
        return
    if command == "--version":
        print(f"swin-lightning {__version__}")
        return
    check_command(command)
    reexec_with_allocator()
    if command in COMMANDS:  # without Lightning
        sys.path.append(os.getcwd())  # classes in files of the working directory can be named, as in cli.main
        load_command(command)(argv[1:])
        return
    from swin_lightning.cli import main

    main()


def _stdout_is_closed() -> bool:
    """Whether the reader of stdout has gone, as in `swin-lightning models | head -1`."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # errors are reported in any case
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


if __name__ == "__main__":
    console()
