"""Configuration: finding experiments, the options of the command line, parsing, and errors in one line.

A configuration has three layers: `experiments/base.yaml`, one experiment with overlays (`-c`), and dotted options of
the command line. `model` and `data` name a class and its arguments; options and W&B leave out the level `init_args`.
"""

import enum
import inspect
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, Namespace, dict_to_namespace  # type: ignore[attr-defined]
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from swin_lightning.checkpoint_classes import Allowed, check_block
from swin_lightning.config_check import FROM_DATA, GROUPS, check_values
from swin_lightning.errors import UserError, shorten
from swin_lightning.experiment_files import find_experiment, installed_experiments
from swin_lightning.parser_errors import explain, short_key
from swin_lightning.runs import RunFolder
from swin_lightning.tasks import SwinClassifier
from swin_lightning.yaml_files import check_yaml, locate, read_text, read_yaml

# defaults such as `Interval.step` of Lightning's Timer, whose annotation is str, are dumped as their values
yaml.SafeDumper.add_multi_representer(enum.Enum, lambda dumper, member: dumper.represent_data(member.value))


# experiments


def resolve_experiments(arguments: Sequence[str]) -> list[str]:
    """Replace the names after `-c` and `--config` by paths."""
    resolved, value_follows = [], False
    for argument in arguments:
        flag, equals, name = argument.partition("=")
        if value_follows:
            argument = str(find_experiment(argument))
        elif flag == "--config" and equals:
            argument = f"--config={find_experiment(name)}"
        elif argument.startswith("-c") and argument != "-c":  # `-cNAME` and `-c=NAME`, as argparse reads them
            argument = f"--config={find_experiment(argument[2:].removeprefix('='))}"
        value_follows = argument in ("-c", "--config")
        resolved.append(argument)
    return resolved


def config_files(arguments: Sequence[str]) -> list[str]:
    """The configuration files of resolved arguments, in order."""
    follows = [value for flag, value in pairwise(arguments) if flag in ("-c", "--config")]
    return follows + [argument.partition("=")[2] for argument in arguments if argument.startswith("--config=")]


def experiment_name(arguments: Sequence[str]) -> str:
    """The name of the first configuration file, which is the experiment; later ones are overlays."""
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=False):
        if flag in ("-c", "--config"):
            return Path(value).stem
        if flag.startswith("--config="):
            return Path(flag.removeprefix("--config=")).stem
    return "unnamed"


# options


class Parser(LightningArgumentParser):
    """Parser with errors in one line that name the nearest valid option. Abbreviated options are refused."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def add_class_arguments(
        self, class_type: type, *args: Any, skip: set[str | int] | None = None, **kwargs: Any
    ) -> list[str]:
        """Make `save_dir` of every logger optional: the command line gives it the run folder."""
        optional: set[str | int] = set()
        if (
            isinstance(class_type, type)
            and issubclass(class_type, Logger)
            and "save_dir" in init_parameters(class_type)
        ):
            optional = {"save_dir"}
            self.add_argument("--save_dir", type=str | None, help="Folder; the run folder by default.")
        added: list[str] = super().add_class_arguments(class_type, *args, skip={*(skip or ()), *optional}, **kwargs)
        return added

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # the parser of a class's arguments: the outer one knows the whole key
            super().error(message, ex)
        raise UserError(explain(message)) from ex

    def validate(self, cfg: Any, *args: Any, **kwargs: Any) -> None:
        """Check types, then ranges; of the whole configuration, not of the arguments of a class by themselves."""
        super().validate(cfg, *args, **kwargs)
        if isinstance(cfg, Namespace) and "trainer" in cfg:
            check_values(cfg)

    def add_function_arguments(self, *args: Any, linked_targets: Any = None, **kwargs: Any) -> Any:
        """Without the link targets of the enclosing class, which jsonargparse 4.53 passes to functions by mistake.

        Else `--model.lr` fails after an experiment has given arguments to a backbone that is a function.
        """
        return super().add_function_arguments(*args, **kwargs)


def add_options(parser: LightningArgumentParser) -> None:
    """Add the options that `fit`, `validate`, `test` and `predict` share."""
    parser.add_argument("--seed_everything", type=int, default=0, help="Seed of the data and the network.")
    parser.add_argument("--experiment", type=str | None, help="Name of the experiment; by default the first file's.")
    parser.add_argument(
        "--test_after_fit", type=bool, default=True, help="Test the best checkpoint at the end of `fit`."
    )
    parser.add_argument(
        "--allow_classes",
        type=str,
        default="",
        help="Classes or modules, separated by commas, that the checkpoint may name besides those of swin_lightning.",
    )
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    parser.set_defaults({"model": {"class_path": f"swin_lightning.{SwinClassifier.__name__}"}})
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)
    for key, group in GROUPS.items():
        parser.add_lightning_class_args(group, key)
    for name in FROM_DATA:
        # through a function: a data module without the attribute serves any model that does not need it
        parser.link_arguments("data", f"model.init_args.{name}", _attribute(name), apply_on="instantiate")
    parser.link_arguments("seed_everything", "data.init_args.seed", int)  # plain, or it cannot be dumped


def build_parser() -> Parser:
    """The parser of `swin-lightning fit`, by itself."""
    parser = Parser(default_config_files=[str(installed_experiments() / "base.yaml")])
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="Experiment or overlay: a path or a name.")
    add_options(parser)
    skip: set[str | int] = {"model", "train_dataloaders", "val_dataloaders", "datamodule"}
    parser.add_method_arguments(Trainer, "fit", skip=skip)
    return parser


def parse(parser: LightningArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse arguments; an error of a configuration file names the file and the line.

    Args:
        parser: The parser, with subcommands or without.
        arguments: Arguments with the names of experiments.

    Raises:
        UserError: For an unknown option, a value of the wrong type or out of range, or a file that cannot be read.
    """
    if unreadable := [argument for argument in arguments if "\0" in argument]:
        raise UserError(f"{shorten(unreadable[0])}: a null character; expected text")
    resolved = resolve_experiments(arguments)
    files = config_files(resolved)
    roots = {path: check_yaml(read_text(path), path) for path in files}
    for path, root in roots.items():
        check_sections(path, root)
    for argument in resolved:
        if "&" in argument and "*" in argument:
            check_yaml(argument.partition("=")[2], argument.partition("=")[0])
    try:
        return parser.parse_args(resolved)
    except UserError as error:
        key = re.match(r"(?:unknown option )?([\w.]+)", str(error))
        if key is None or any(argument.startswith(f"--{key[1]}") for argument in resolved):
            raise
        for path in reversed(files):  # a later file replaces values of an earlier one
            if (line := locate(roots[path], key[1])) is not None:
                raise UserError(f"{path}:{line}: {error}") from error
        raise


def planned_epochs(arguments: Sequence[str]) -> int:
    """The largest `trainer.max_epochs` that a configuration file states, 0 if none does.

    A run with fewer, as to try an experiment out, keeps the warm-up of the experiment.
    """
    stated = [0]
    for path in config_files(resolve_experiments(arguments)):
        trainer = (read_yaml(path) or {}).get("trainer")
        epochs = trainer.get("max_epochs") if isinstance(trainer, dict) else None
        stated += [epochs] if isinstance(epochs, int) else []
    return max(stated)


def check_sections(path: str, root: yaml.Node | None) -> None:
    """Check that a configuration file is a mapping, and its sections mappings too."""
    if root is None or root.value == []:
        return
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}: expected a mapping of options such as model and data")
    for name, value in root.value:
        where = f"{path}:{name.start_mark.line + 1}: {name.value}"
        if not re.fullmatch(r"\w+(\.\w+)*\+?", name.value) or not name.tag.endswith((":str", ":merge")):
            line = where.removesuffix(name.value)
            raise UserError(f"{line}key {shorten(repr(name.value))}: expected an option such as model, data or trainer")
        if name.value == "config":
            raise UserError(f"{where}: a file cannot name another one; give -c several times, one for each file")
        if name.value in GROUPS and not isinstance(value, yaml.MappingNode):
            raise UserError(f"{where} {shorten(value.value)}: expected a mapping of options")
        if name.value in ("model", "data") and isinstance(value, yaml.SequenceNode):
            raise UserError(f"{where}: a list; expected class_path and init_args")
    if all(value.tag.endswith(":null") for _, value in root.value):
        raise UserError(f"{path}:1: {root.value[0][0].value} has no value; expected class_path and init_args")


def load(arguments: Sequence[str]) -> Namespace:
    """Parse and check arguments of `swin-lightning fit`, without the word fit. Nothing is built.

    Raises:
        UserError: For an unknown option, a value of the wrong type, or a file that does not exist.
    """
    return parse(build_parser(), arguments)


def load_file(path: str | Path) -> Namespace:
    """The configuration that a run kept in its `config.yaml`."""
    return load(["-c", str(path)])


def load_run_config(run: RunFolder, allow: Allowed = ()) -> Namespace:
    """Model, data and seed of the configuration in a run folder, without the parameters that the model started from.

    Args:
        run: The folder.
        allow: Classes that it may name besides those of `swin_lightning`, see `checkpoint_classes`.

    Raises:
        UserError: If it is not a configuration, or names a class that is not allowed.
    """
    kept, where = run.read_config(), str(run.config)
    blocks = {name: kept[name] for name in ("model", "data") if isinstance(kept.get(name), dict)}
    if "model" not in blocks:
        raise UserError(f"{where} has no model")
    if isinstance(arguments := blocks["model"].get("init_args"), dict):
        arguments["weights"] = None  # the checkpoint replaces them
    for block in blocks.values():
        check_block(block, where, allow)
    loaded: Namespace = build_parser().parse_object({**blocks, "seed_everything": kept.get("seed_everything", 0)})
    return loaded


def instantiate(config: Namespace) -> tuple[Any, Any]:
    """Build the data module and the model of a loaded configuration.

    Returns:
        The LightningDataModule (None if the configuration has none) and the LightningModule.
    """
    part = dict_to_namespace({key: config[key] for key in ("seed_everything", "data", "model")})
    parser = Parser()
    parser.add_argument("--seed_everything", type=int, default=0)
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)
    for name in FROM_DATA:
        parser.link_arguments("data", f"model.init_args.{name}", _attribute(name), apply_on="instantiate")
    built = parser.instantiate(part)
    return built.get("data"), built.model


def flatten(tree: dict[str, Any]) -> dict[str, Any]:
    """Nested configuration -> dotted keys as on the command line, without `init_args`."""
    return {short_key(key): value for key, value in dict_to_namespace(tree).items()}


def init_parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Parameters of a class by name, with those that `**kwargs` passes on to its bases."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(parameter.name, parameter)
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _attribute(name: str) -> Any:
    def read(data: Any) -> Any:
        return getattr(data, name, None)

    read.__name__ = name
    return read
