"""Options shared by the benchmarks, and their entry point."""

import argparse
import os
import sys
from collections.abc import Callable

import torch

from swin_lightning import allocator
from swin_lightning.errors import CommandParser, UserError
from swin_lightning.models.registry import list_models


def build_parser(name: str, description: str | None) -> CommandParser:
    """Parser of `python -m benchmarks.NAME` with the options that the benchmarks of computation share."""
    parser = CommandParser(f"python -m benchmarks.{name}", description=description, allow_abbrev=False)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", choices=["32", "bf16"], default="32", help="bf16: autocast")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, help="number of measurements of each case")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="number of CPU threads")
    return parser


def add_model_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="swin_tiny_patch4_window7_224", help="a name from `swin-lightning models`")


def parse(parser: CommandParser, args: list[str]) -> argparse.Namespace:
    """Parse and check the shared options, and set the number of threads.

    Raises:
        UserError: For unknown or wrong options.
    """
    options = parser.parse_args(args)
    for name in ("batch_size", "rounds", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} must be at least 1")
    if "model" in options and options.model not in list_models():
        raise UserError(f"--model {options.model}: unknown model; `swin-lightning models` lists the names")
    torch.set_num_threads(options.threads)
    return options


def run(main: Callable[[list[str]], None]) -> None:
    """Run a benchmark as `swin-lightning` runs its commands: tuned allocator, user errors as one line, exit code 2."""
    added = allocator.settings(os.environ)
    if added:  # takes effect when a process starts
        os.environ.update(added)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
