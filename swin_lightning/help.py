"""`swin-lightning fit --help`: the options of an experiment on one page, and `--model.help CLASS`: those of a class."""

import difflib
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jsonargparse import Namespace

from swin_lightning import config, options
from swin_lightning.commands import TRAINER_COMMANDS, asks_for_help
from swin_lightning.config_check import GROUPS
from swin_lightning.errors import UserError
from swin_lightning.options import (
    LINKED,
    class_arguments,
    type_text,
    value_text,
)
from swin_lightning.signatures import Parameter, first_sentence, parameters

WIDTH = 120
INDENT = 6 * " "
EXAMPLES = {
    "fit": "-c digits_swin_micro -c hardware/cpu --model.lr 1e-3",
    "validate": "-c digits_swin_micro --ckpt_path best",
    "test": "-c digits_swin_micro --ckpt_path best",
    "predict": "-c digits_swin_micro --ckpt_path best --data.predict_path FOLDER",
}
GENERAL = {
    "-c": ("path or name", "Experiment or overlay, such as digits_swin_micro or hardware/gpu; may be repeated."),
    "--ckpt_path": ("path", "Checkpoint of a run, or `last` or `best` of the experiment. `fit` resumes that run."),
    "--experiment": ("str", "Name of the folder under runs/; by default that of the first experiment."),
    "--seed_everything": ("int >= 0", "Seed of the data and the network."),
    "--test_after_fit": ("bool", "Test the best checkpoint at the end of `fit`."),
    "--print_config": ("", "Print the configuration and exit."),
}
TRAINER = (
    "accelerator devices num_nodes strategy precision max_epochs max_steps max_time accumulate_grad_batches "
    "gradient_clip_val limit_train_batches limit_val_batches limit_test_batches overfit_batches fast_dev_run "
    "check_val_every_n_epoch log_every_n_steps logger callbacks deterministic profiler"
).split()  # the others are listed by name
FOOTER = """
More options:
  --model.help [CLASS], --data.help [CLASS], --model.backbone.help [CLASS] and so on print all options of one class in
  full, such as --model.optimizer.help torch.optim.SGD or --trainer.logger.help swin_lightning.loggers.WandbLogger.
  Values are YAML: true, null, [1, 2]. A plus sign appends to a list: --trainer.callbacks+ CLASS.
"""
SHORT_NAMES = (
    "swin_lightning.tasks swin_lightning.data swin_lightning.models swin_lightning.losses swin_lightning.loggers "
    "swin_lightning.callbacks lightning.pytorch.callbacks lightning.pytorch.loggers torch.optim "
    "torch.optim.lr_scheduler torch.nn torchmetrics.classification"
).split()  # where a class without a module is looked up


def print_help(argv: Sequence[str]) -> None:
    """Print the help of a trainer command.

    Args:
        argv: The command and its arguments, among them `-h`, `--help` or `--KEY.help`.

    Raises:
        UserError: For an experiment, option or class that does not exist.
    """
    command, arguments = argv[0], list(argv[1:])
    position = next(place for place, argument in enumerate(arguments) if asks_for_help(argument))
    flag, _, class_path = arguments.pop(position).partition("=")
    about_class = re.fullmatch(r"--([\w.]+)\.help", flag)
    if about_class and not class_path and position < len(arguments) and not arguments[position].startswith("-"):
        class_path = arguments.pop(position)
    rest = [
        argument for argument in arguments if not asks_for_help(argument) and not argument.startswith("--print_config")
    ]
    lines = class_help(about_class[1], class_path, rest) if about_class else help_page(command, rest)
    print("\n".join(lines))


# the page


def help_page(command: str, arguments: Sequence[str]) -> Iterator[str]:
    """Lines of `swin-lightning COMMAND --help` with these other arguments."""
    values = options.effective_config(arguments, command)
    experiment = config.experiment_name([command, *arguments])
    yield f"usage: swin-lightning {command} -c EXPERIMENT [-c OVERLAY ...] [--OPTION VALUE ...]"
    yield f"example: swin-lightning {command} {EXAMPLES[command]}"
    yield f"\n{TRAINER_COMMANDS[command].capitalize()}."
    source = "Defaults; add -c EXPERIMENT for its options and values" if experiment == "unnamed" else experiment
    yield f"Options with type, value and meaning. Values: {source}."
    yield "\nGeneral:"
    yield from table([(name, kind, general_value(name, values), text) for name, (kind, text) in GENERAL.items()])
    yield from class_section("model", values.model)
    model = class_arguments(values.model)
    if "backbone" in model:
        yield from class_section("model.backbone", model["backbone"], "swin_lightning.models.SwinTransformer")
    yield from class_section("data", values.data, "swin_lightning.data.ImageDataModule")
    for group in ("checkpoint", "ema", "early_stopping", "non_finite"):
        yield f"\n{group}:"
        yield from table(rows(group, GROUPS[group], vars(values[group])))
    yield "\ntrainer:"
    known = parameters(GROUPS["trainer"])
    changed = [name for name, parameter in known.items() if values.trainer[name] != parameter.default]
    shown = {name: values.trainer[name] for name in known if name in TRAINER or name in changed}
    yield from table(rows("trainer", GROUPS["trainer"], shown))
    others = "Also --trainer." + ", ".join(name for name in known if name not in shown)
    yield from textwrap.wrap(others, WIDTH, initial_indent="  ", subsequent_indent="  ")
    yield FOOTER


def class_section(key: str, block: Namespace | None, default: str = "") -> Iterator[str]:
    """The options of the class that a block of the configuration names, or of a default class if it names none."""
    given = block or options.effective_config([f"--{key}={default}"])[key.replace("model.", "model.init_args.")]
    yield f"\n{key}: {given.class_path}" + ("" if block else " (none given)")
    yield from table(rows(key, load_class(given.class_path), class_arguments(given)))


def rows(prefix: str, target: Callable[..., Any], values: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Name, type, value and meaning of every option in `values`."""
    known = parameters(target)
    return [
        (f"--{prefix}.{name}", type_text(known[name].type), current_value(known[name], value), known[name].summary)
        for name, value in values.items()
        if name in known and f"{prefix}.{name}" not in LINKED
    ]


def table(lines: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Lines in columns. A cell that is longer than its column shifts the rest of its line; the last one is cut."""
    columns = zip(*lines, strict=True)
    widths = [min(limit, max(map(len, column))) for limit, column in zip((40, 14, 12), columns, strict=False)]
    for *cells, text in lines:
        line, end = " ", 1
        for cell, width in zip(cells, widths, strict=False):
            end += width + 2
            line = f"{line} {textwrap.shorten(cell, 60, placeholder=' ...')} ".ljust(end)
        yield f"{line} {textwrap.shorten(text, WIDTH - len(line) - 1, placeholder=' ...')}".rstrip()


def general_value(name: str, values: Namespace) -> str:
    value = values.get(name.strip("-"))
    return "" if value is None or name == "-c" else value_text(value)


def current_value(parameter: Parameter, value: Any) -> str:
    return "required" if value is None and parameter.required else value_text(value)


# one class


def class_help(key: str, class_path: str, arguments: Sequence[str]) -> Iterator[str]:
    """Lines of `--KEY.help [CLASS]`: the options of a class with their whole descriptions.

    Without a class, it is the one that the configuration names, or each one of a list.
    """
    for path in [class_path] if class_path else configured_classes(key, arguments):
        target = load_class(path)
        purpose = first_sentence(" ".join((inspect.getdoc(target) or "").split()))
        yield from textwrap.wrap(f"{path}: {purpose}", WIDTH)
        for name, parameter in parameters(target).items():
            if f"{key}.{name}" not in LINKED:
                default = "required" if parameter.required else f"default {value_text(parameter.default)}"
                yield f"\n  --{key}.{name}  {type_text(parameter.type)}, {default}"
                yield from textwrap.wrap(parameter.description, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)
        yield ""


def configured_classes(key: str, arguments: Sequence[str]) -> list[str]:
    """Class paths in the configuration at a key such as `model.backbone` or `trainer.logger`."""
    if key in GROUPS:
        return [f"{GROUPS[key].__module__}.{GROUPS[key].__name__}"]
    found: Any = options.effective_config(arguments)
    for name in key.split("."):
        found = {**vars(found), **class_arguments(found)}.get(name) if isinstance(found, Namespace) else None
    blocks = found if isinstance(found, list) else [found]
    paths = [block.class_path for block in blocks if isinstance(block, Namespace) and "class_path" in block]
    if not paths:
        raise UserError(f"--{key}.help: the configuration gives no class for {key}; name one: --{key}.help CLASS")
    return paths


def load_class(path: str) -> Any:
    """The class or function of a class path; a class of the usual modules by its name alone.

    Raises:
        UserError: If there is none.
    """
    module, _, name = path.rpartition(".")
    for candidate in [module] if module else SHORT_NAMES:
        try:
            found = getattr(importlib.import_module(candidate), name, None)
        except ImportError:
            continue
        if callable(found):
            return found
    known = [*options.task_classes(), *options.data_modules(), *options.backbones()]
    near = difflib.get_close_matches(path, [*known, *(each.rsplit(".", 1)[-1] for each in known)], n=1)
    raise UserError(f"no class {path!r}" + (f"; did you mean {near[0]}?" if near else "; expected my_module.MyClass"))
