"""Commands by name. Their modules are imported only when a command is run."""

import importlib
from collections.abc import Callable

TRAINER_COMMANDS = {
    "fit": "train an experiment, then test its best checkpoint",
    "validate": "evaluate a checkpoint or weights on the validation images",
    "test": "evaluate a checkpoint or weights on the test images",
    "predict": "classify your own images",
}  # subcommands of LightningCLI, see cli.py

COMMANDS = {
    "models": ("swin_lightning.models.flops", "list all models with parameters, MACs and published accuracy"),
    "sweep": ("swin_lightning.sweep", "run a hyperparameter sweep, with or without W&B"),
    "report": ("swin_lightning.explore.report", "write an HTML report of a run: results, errors, attention maps"),
    "export": ("swin_lightning.export", "convert a checkpoint to another weight format or a torch.export program"),
    "benchmark": ("swin_lightning.benchmark", "measure training and data loading speed"),
}  # name -> module with a function of that name, and description


def load_command(name: str) -> Callable[[list[str]], None]:
    """Import the function of a command; it takes the command-line arguments."""
    command: Callable[[list[str]], None] = getattr(importlib.import_module(COMMANDS[name][0]), name)
    return command


def overview() -> str:
    """The text of `swin-lightning --help`."""
    lines = [
        f"  {name:10} {text}" for name, text in [*TRAINER_COMMANDS.items(), *((n, c[1]) for n, c in COMMANDS.items())]
    ]
    return "\n".join(
        [
            "usage: swin-lightning COMMAND ...; run `swin-lightning COMMAND --help` for options",
            "",
            *lines,
            "",
            "example: swin-lightning fit -c experiments/digits_swin_micro.yaml",
        ]
    )
