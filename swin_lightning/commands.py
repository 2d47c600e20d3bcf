"""Commands by name. Their modules are imported only when a command is run."""

import difflib
import importlib
import re
from collections.abc import Callable

from swin_lightning.errors import UserError

TRAINER_COMMANDS = {
    "fit": "train an experiment, then test its best checkpoint",
    "validate": "evaluate a checkpoint or weights on the validation images",
    "test": "evaluate a checkpoint or weights on the test images",
    "predict": "classify images with a checkpoint",
}  # subcommands of LightningCLI, see cli.py

COMMANDS = {
    "experiments": ("swin_lightning.experiment_files", "list the experiments, overlays and sweeps by name"),
    "models": ("swin_lightning.models.flops", "list all models with parameters, MACs and published accuracy"),
    "sweep": ("swin_lightning.sweep", "run a hyperparameter sweep, with or without W&B"),
    "report": ("swin_lightning.explore.report", "write an HTML report of a run: results, errors, attention maps"),
    "features": ("swin_lightning.explore.features", "write the features of a data set by the backbone of a run"),
    "probe": ("swin_lightning.explore.probes", "nearest neighbours and linear probe on features"),
    "results": ("swin_lightning.explore.leaderboard", "table of measured results, and recording of runs"),
    "export": (
        "swin_lightning.export",
        "convert a checkpoint to ONNX, a torch.export program or another weight format",
    ),
    "demo": (
        "swin_lightning.explore.demo",
        "open a local page: classify images, see attention, compare checkpoints",
    ),
    "benchmark": ("swin_lightning.benchmark", "measure the speed of training, of the data pipeline and of inference"),
    "schema": ("swin_lightning.schema", "print the JSON schema of experiments, for editors"),
    "completion": ("swin_lightning.completion", "print a completion script for bash or zsh"),
}  # name -> module with a function of that name, and description


def load_command(name: str) -> Callable[[list[str]], None]:
    """Import the function of a command; it takes the command-line arguments."""
    module = COMMANDS[name][0] if name in COMMANDS else f"swin_lightning.{name}"  # predict, see names_experiment
    command: Callable[[list[str]], None] = getattr(importlib.import_module(module), name)
    return command


def overview() -> str:
    """The text of `swin-lightning --help`."""
    descriptions = [*TRAINER_COMMANDS.items(), *((name, text) for name, (_, text) in COMMANDS.items())]
    return "\n".join(
        [
            "usage: swin-lightning COMMAND ...; run `swin-lightning COMMAND --help` for options",
            "",
            *(f"  {name:10}  {text}" for name, text in descriptions),
            "",
            "example: swin-lightning fit -c digits_swin_micro",
        ]
    )


def check_command(name: str) -> None:
    """Raise a `UserError` for a command that does not exist."""
    names = [*TRAINER_COMMANDS, *COMMANDS]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(names)}"
        raise UserError(f"unknown command {name!r}; {hint}")


def asks_for_help(argument: str) -> bool:
    """Whether an argument of a trainer command is `-h`, `--help`, or the help of a class such as `--model.help`."""
    return re.fullmatch(r"-h|--help|--[\w.]+\.help(=.*)?", argument) is not None


def names_experiment(arguments: list[str]) -> bool:
    """Whether `predict` gets a configuration (`-c`, or dotted options) instead of a checkpoint and images."""
    return any(re.match(r"-c$|--(config|print_config|ckpt_path)\b|--[\w]+\.", argument) for argument in arguments)
