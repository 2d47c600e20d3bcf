"""`swin-lightning benchmark`: speed measured beside other projects on this machine."""

import importlib

from swin_lightning.errors import UserError

SUBJECTS = ("model", "data")


def benchmark(args: list[str]) -> None:
    """Measure this project's speed beside others: `model` or `data`, each with its own --help."""
    if not args or args[0] not in SUBJECTS:
        raise UserError(f"swin-lightning benchmark: choose what to measure: {' or '.join(SUBJECTS)}")
    importlib.import_module(f"swin_lightning.benchmark.{args[0]}").main(args[1:])
