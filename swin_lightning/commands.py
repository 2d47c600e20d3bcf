"""The commands that train nothing: `swin-lightning models` and `swin-lightning export`."""

import argparse
import warnings
from collections.abc import Callable
from typing import NoReturn

from swin_lightning.classifier import SwinClassifier
from swin_lightning.models.checkpoints import read_checkpoint, save_weights
from swin_lightning.models.formats import WRITTEN
from swin_lightning.models.summary import table


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}; see {self.prog} --help")


def models(args: list[str]) -> None:
    """Print the named models with counted and published figures."""
    parser = _Parser("swin-lightning models", description=models.__doc__)
    parser.parse_args(args)
    for line in table():
        print(line, flush=True)


def export(args: list[str]) -> None:
    """Write the weights of a run's checkpoint for this or another project (averaged ones where the run kept them)."""
    parser = _Parser("swin-lightning export", description=export.__doc__)
    parser.add_argument("checkpoint", metavar="CKPT", help="a .ckpt of a run")
    parser.add_argument("--format", choices=list(WRITTEN), default="swin_lightning", help="whose names and layout")
    parser.add_argument("--output", required=True, metavar="FILE", help="a .safetensors or .pth file")
    options = parser.parse_args(args)
    save_weights(load_classifier(options.checkpoint), options.output, options.format)
    print(f"wrote {options.output}: {options.format} format")


def load_classifier(path: str) -> SwinClassifier:
    """The classifier of a run's checkpoint, on the CPU.

    Raises:
        ValueError: If the file is no checkpoint of a run, or does not know its backbone.
    """
    hparams = read_checkpoint(path).get("hyper_parameters")
    if not isinstance(hparams, dict) or "backbone" not in hparams:
        raise ValueError(
            f"checkpoint {path!r} does not tell its model, as those of `swin-lightning fit` do; for weights, build the "
            "model in Python with weights=PATH and call models.checkpoints.save_weights"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attribute 'backbone' is an instance")  # how it is kept is intended
        return SwinClassifier.load_from_checkpoint(path, map_location="cpu", weights_only=True)


COMMANDS: dict[str, Callable[[list[str]], None]] = {"models": models, "export": export}
