"""All commands by name, and the two that stand here: `swin-lightning models` and `swin-lightning export`."""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from swin_lightning.errors import CommandParser, UserError

if TYPE_CHECKING:
    pass

TRAINER_COMMANDS = {
    "fit": "train an experiment, then test its best checkpoint",
    "validate": "measure a checkpoint or weights on the validation images",
    "test": "the same on the test images",
    "predict": "classify images of your own",
}  # what Lightning's command line does, see cli.py

COMMANDS = {
    "models": ("swin_lightning.commands", "all named models with parameters, MACs and published accuracy"),
    "sweep": ("swin_lightning.sweep", "run a sweep file, with or without W&B's server"),
    "report": ("swin_lightning.explore.report", "a run's results and what its model looks at, on one HTML page"),
    "export": ("swin_lightning.commands", "write a run's weights for this or another project"),
    "benchmark": ("swin_lightning.benchmark", "measure speed beside other projects"),
}  # name -> module with a function of that name, and what it does


def load_command(name: str) -> Callable[[list[str]], None]:
    """The function of a command, which takes its arguments; only now is its module imported."""
    command: Callable[[list[str]], None] = getattr(importlib.import_module(COMMANDS[name][0]), name)
    return command


def overview() -> str:
    """The answer to `swin-lightning --help`."""
    lines = [
        f"  {name:10} {text}" for name, text in [*TRAINER_COMMANDS.items(), *((n, c[1]) for n, c in COMMANDS.items())]
    ]
    return "\n".join(
        [
            "usage: swin-lightning COMMAND ...; swin-lightning COMMAND --help tells its options",
            "",
            *lines,
            "",
            "start: swin-lightning fit -c experiments/digits_swin_micro.yaml",
        ]
    )


def models(args: list[str]) -> None:
    """Print the named models with counted and published figures."""
    parser = CommandParser("swin-lightning models", description=models.__doc__)
    parser.parse_args(args)
    from swin_lightning.models.flops import table

    for line in table():
        print(line, flush=True)


def export(args: list[str]) -> None:
    """Write a run's checkpoint for this or another project, or as a program that needs torch alone.

    Averaged weights where the run kept them. A program of the format pt2 takes normalised float32 images B, 3, S, S:
    torch.export.load(FILE).module()(images) gives logits. torch.compile takes it, and freezes its weights where
    torch._inductor.config.freezing is set.
    """
    from swin_lightning.export import export_pt2
    from swin_lightning.models.weight_formats import WRITTEN
    from swin_lightning.models.weights import save_weights
    from swin_lightning.tasks.classification import load_classifier

    parser = CommandParser("swin-lightning export", description=export.__doc__)
    parser.add_argument("checkpoint", metavar="CKPT", help="a .ckpt of a run")
    parser.add_argument(
        "--format", choices=[*WRITTEN, "pt2"], default="swin_lightning", help="whose names and layout; pt2: a program"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="a .safetensors or .pth file; .pt2 for pt2")
    parser.add_argument("--size", type=int, help="side of a program's images; the model's own if not given")
    options = parser.parse_args(args)
    if options.size is not None and options.format != "pt2":
        raise UserError(f"--size {options.size} has no meaning for --format {options.format}; leave it out")
    classifier = load_classifier(options.checkpoint)
    if options.format == "pt2":
        export_pt2(classifier, options.output, options.size)
    else:
        save_weights(classifier, options.output, options.format)
    print(f"wrote {options.output}: {options.format} format")
