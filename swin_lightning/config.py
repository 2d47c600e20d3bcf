"""Configuration: finding experiments, the options of the command line, parsing, and errors in one line.

A configuration has three layers: `experiments/base.yaml`, one experiment with overlays (`-c`), and dotted options of
the command line. `model` and `data` name a class and its arguments; options and W&B leave out the level `init_args`.
"""

import difflib
import enum
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, Namespace, dict_to_namespace  # type: ignore[attr-defined]
from jsonargparse.typing import NonNegativeInt
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from swin_lightning.callbacks import EarlyStopping
from swin_lightning.checkpoint_classes import Allowed, check_block
from swin_lightning.checkpointing import Checkpoint
from swin_lightning.data import ImageDataModule
from swin_lightning.ema import EMA
from swin_lightning.errors import UserError, collapse_whitespace
from swin_lightning.experiment_files import find_experiment, installed_experiments
from swin_lightning.models import SwinTransformer
from swin_lightning.non_finite import NonFinite
from swin_lightning.runs import RunFolder
from swin_lightning.tasks import SwinClassifier

# defaults such as `Interval.step` of Lightning's Timer, whose annotation is str, are dumped as their values
yaml.SafeDumper.add_multi_representer(enum.Enum, lambda dumper, member: dumper.represent_data(member.value))
START = "start from an experiment: -c digits_swin_micro"


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
        value_follows = argument in ("-c", "--config")
        resolved.append(argument)
    return resolved


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

    def add_function_arguments(self, *args: Any, linked_targets: Any = None, **kwargs: Any) -> Any:
        """Without the link targets of the enclosing class, which jsonargparse 4.53 passes to functions by mistake.

        Else `--model.lr` fails after an experiment has given arguments to a backbone that is a function.
        """
        return super().add_function_arguments(*args, **kwargs)


def add_options(parser: LightningArgumentParser) -> None:
    """Add the options that `fit`, `validate`, `test` and `predict` share."""
    parser.add_argument("--seed_everything", type=NonNegativeInt, default=0, help="Seed of the data and the network.")
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
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    parser.set_defaults({"model": {"class_path": f"swin_lightning.{SwinClassifier.__name__}"}})
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)
    parser.add_lightning_class_args(Checkpoint, "checkpoint")
    parser.add_lightning_class_args(EMA, "ema")
    parser.add_lightning_class_args(EarlyStopping, "early_stopping")
    parser.add_lightning_class_args(NonFinite, "non_finite")
    for name in ("num_classes", "class_names", "class_weights"):
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


def load(arguments: Sequence[str]) -> Namespace:
    """Parse and check arguments of `swin-lightning fit`, without the word fit. Nothing is built.

    Raises:
        UserError: For an unknown option, a value of the wrong type, or a file that does not exist.
    """
    return build_parser().parse_args(resolve_experiments(arguments))


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
    parser.add_argument("--seed_everything", type=NonNegativeInt, default=0)
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)
    for name in ("num_classes", "class_names", "class_weights"):
        parser.link_arguments("data", f"model.init_args.{name}", _attribute(name), apply_on="instantiate")
    built = parser.instantiate(part)
    return built.get("data"), built.model


def flatten(tree: dict[str, Any]) -> dict[str, Any]:
    """Nested configuration -> dotted keys as on the command line, without `init_args`."""
    return {short_key(key): value for key, value in dict_to_namespace(tree).items()}


def short_key(key: str) -> str:
    """A key as on the command line: `model.init_args.lr` -> `model.lr`."""
    return key.replace(".init_args.", ".")


# errors


def explain(message: str) -> str:
    """A message of jsonargparse in one line, with the nearest valid option if one is misspelt."""
    line = collapse_whitespace(message)
    keys: list[str] = []
    # from the outside in: the key, then the first of the alternatives of its type, which is the one that was meant
    while match := re.search(r'^.*?Parser key "([\w.]+)": ?|^.*?Errors: - |^Problem with given class_path .*?: ', line):
        keys += [match[1]] if match[1] else []
        line = line[match.end() :]
    key = short_key(".".join(keys)).removeprefix("init_args.")
    key = re.sub(r"^(fit|validate|test|predict)(\.|$)", "", key)
    line, _, given = line.partition(" Given value type:")
    line = re.sub(r"^Type .*? expects a function or a callable class: ", "", line)
    pattern = r"unrecognized arguments: --([\w.]+)|option '([\w.]+)' is not accepted|not accept option '([\w.]+)'"
    if unknown := re.search(pattern, line, re.I):
        name = unknown[1] or unknown[2] or unknown[3]
        if name == "class_path":
            return f"{key}: arguments beside class_path belong under init_args"
        return unknown_option(f"{key}.{name}" if unknown[2] and key else name)
    if required := re.search(r"arguments? (?:is|are) required: (?:fit\.)?([\w., ]+)", line):
        names = ", ".join(f"{key}.{name}".lstrip(".") for name in required[1].strip().split(", "))
        return f"missing {names}" + (f"; {START}" if {"model.backbone", "model", "data"} & {*names.split(", ")} else "")
    alternatives = list(
        dict.fromkeys(_expected(part) for part in line.split(" - ") if "<class 'NoneType'>" not in part)
    )
    line = " or ".join(alternatives)
    if line.startswith("expected ") and ", got " not in line and (value := re.search(r"Given value: (.*)", given)):
        nested = re.match(r"NestedArg\(key=.*?, val=(.*)\)", value[1])
        line += f", got {nested[1] if nested else value[1]}"
    return f"{key}: {line}" if key else line


def _expected(text: str) -> str:
    """One alternative of a type, such as `Expected a <class 'int'>. Got value: x`, in plain words."""
    text = re.sub(r"Expected an? typing\.Literal\[(.*?)\]", lambda m: f"expected one of {m[1]}".replace("'", ""), text)
    text = re.sub(r"Expected an? (?:<class '(?:[\w.]*\.)?(\w+)'>)?", r"expected \1", text)
    text = re.sub(r"expected dot import path string: .*", "a class path such as my_module.MyClass", text)
    return re.sub(r"[.,]? Got value: ", ", got ", text).strip()


def unknown_option(key: str) -> str:
    """The message for an option that does not exist, with the nearest one that does."""
    key = short_key(key)
    key = re.sub(r"^(fit|validate|test|predict)\.", "", key)
    options, leaf = sorted(known_options()), key.rsplit(".", 1)[-1].lower()
    same = [option for option in options if option.rsplit(".", 1)[-1].lower() == leaf]
    near = sorted(same, key=lambda option: (option.count("."), option)) or difflib.get_close_matches(
        key, options, n=1, cutoff=0.5
    )
    return f"unknown option {key}" + (f"; did you mean {near[0]}?" if near else "; see swin-lightning fit --help")


def known_options() -> set[str]:
    """The options with a name of their own, and those of the classes that this package provides."""
    keys = set(map(short_key, build_parser().get_defaults(skip_validation=True).keys()))
    for prefix, base in {"model": SwinClassifier, "model.backbone": SwinTransformer, "data": ImageDataModule}.items():
        for cls in [base, *_subclasses(base)]:
            keys |= {f"{prefix}.{name}" for name in init_parameters(cls)}
    return keys


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


def _subclasses(base: type) -> Iterator[type]:
    children: list[type] = base.__subclasses__()
    for child in children:
        yield child
        yield from _subclasses(child)
