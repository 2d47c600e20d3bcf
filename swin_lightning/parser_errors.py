"""Messages of the parser in one line: the option, its value, what is allowed, and the nearest option if there is none.

The messages of jsonargparse 4.53 quote Python types and repeat whole configurations. Their keys, classes and values are
read here, and the message is written again from the type of the parameter.
"""

import difflib
import importlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from lightning import LightningDataModule, LightningModule

from swin_lightning.config_check import GROUPS
from swin_lightning.data import ImageDataModule
from swin_lightning.errors import collapse_whitespace, shorten
from swin_lightning.models import SwinTransformer
from swin_lightning.ranges import Seed, out_of_range
from swin_lightning.signatures import argument_types, parameters
from swin_lightning.tasks import SwinClassifier

START = "start from an experiment: -c digits_swin_micro"
GENERAL = ("seed_everything", "experiment", "test_after_fit", "ckpt_path", "weights_only", "model", "data")
BASES: dict[str, type] = {"model": SwinClassifier, "model.backbone": SwinTransformer, "data": ImageDataModule}
# names of other projects and earlier releases -> option
SYNONYMS = {
    "epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "epoch": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "gpus": "trainer.devices",
    "num_gpus": "trainer.devices",
    "device": "trainer.devices",
    "gpu": "trainer.devices",
    "amp": "trainer.precision",
    "fp16": "trainer.precision",
    "clip_grad": "trainer.gradient_clip_val",
    "grad_clip": "trainer.gradient_clip_val",
    "accum_iter": "trainer.accumulate_grad_batches",
    "learning_rate": "model.lr",
    "base_lr": "model.lr",
    "wd": "model.weight_decay",
    "opt": "model.optimizer",
    "sched": "model.lr_schedule",
    "scheduler": "model.lr_schedule",
    "smoothing": "model.label_smoothing",
    "arch": "model.backbone",
    "pretrained": "model.weights",
    "checkpoint_path": "ckpt_path",
    "resume": "ckpt_path",
    "drop_path": "model.backbone.drop_path_rate",
    "workers": "data.num_workers",
    "bs": "data.batch_size",
    "img_size": "data.image_size",
    "input_size": "data.image_size",
    "data_path": "data.path",
    "data_dir": "data.path",
    "aa": "data.rand_augment",
    "reprob": "data.random_erasing",
    "seed": "seed_everything",
    "patience": "early_stopping.patience",
    "ema_decay": "ema.decay",
    "logger": "trainer.logger",
}
# types and defaults of options of no class
PLAIN: dict[str, tuple[Any, Any]] = {
    "seed_everything": (Seed, 0),
    "test_after_fit": (bool, True),
    "weights_only": (bool | None, None),
    "ckpt_path": (str | None, None),
    "experiment": (str | None, None),
    "allow_classes": (str, ""),
}
QUOTE, COMMA = "'", ","
# what a class path may be, by option
EXAMPLES = {
    "model": "swin_lightning.SwinClassifier",
    "model.backbone": "swin_lightning.models.swin_tiny_patch4_window7_224",
    "model.optimizer": "torch.optim.SGD",
    "model.lr_schedule": "torch.optim.lr_scheduler.StepLR",
    "model.loss": "torch.nn.CrossEntropyLoss",
    "model.metrics": "{f1: {class_path: torchmetrics.classification.MulticlassF1Score, init_args: {num_classes: 10}}}",
    "data": "swin_lightning.data.ImageFolder",
    "trainer.logger": "swin_lightning.loggers.CSVLogger",
    "trainer.callbacks": "lightning.pytorch.callbacks.Timer",
}
NO_CLASS = re.compile(
    r"No module named '[^']*'|module '[^']*' has no attribute '[^']*'|cannot import name '\w+'|"
    r"[Ee]xpected a dot import path string: \S*|[Ii]mport path \S+ does not correspond to a subclass of \S+|"
    r"Problem with given class_path '[^']*': *(?=Errors|$)|expects a function or a callable class: [^:]*"
)


def short_key(key: str) -> str:
    """A key as on the command line: `model.init_args.lr` -> `model.lr`."""
    return re.sub(r"^(fit|validate|test|predict)(\.|$)", "", key.replace(".init_args", "")).removeprefix("init_args.")


def explain(message: str) -> str:
    """A message of jsonargparse in one line: key, value, what is allowed; or the nearest option for a misspelt one."""
    line = collapse_whitespace(message)
    keys, cls, owner, rest = _path(line)
    key = short_key(".".join(keys))
    if unknown := re.search(r"unrecognized arguments: (.*)", line):
        given = unknown[1].split(" ")[0]
        if not given.startswith("--"):
            return f"unexpected argument {shorten(given)}; options are --NAME=VALUE, configuration files -c FILE"
        return unknown_option(given.removeprefix("--").partition("=")[0])
    if alone := re.search(r"argument (\S+): expected one argument", line):
        return f"{alone[1]} or an option of it: expected one argument; write --NAME=VALUE, or -c FILE"
    if group := re.search(r"Group '([\w.]+)' does not accept option '([^']*)'", line):
        return unknown_option(short_key(f"{group[1]}.{group[2]}"))
    if (option := re.search(r"Option '([^']*)' is not accepted", rest)) or (
        option := re.search(r"does not accept option '([^']*)'|No action for key \"([^\"]*)\"", rest)
    ):
        name = option[1] or option[2]
        if name == "class_path":
            return f"{key}: arguments beside class_path belong under init_args"
        if owner is not None:
            return unknown_argument(key, name, owner)
        if key in EXAMPLES:
            other = f"{key.rpartition('.')[0]}.{name}"
            meant = f"did you mean {other}?" if other in known_options() else f"{_name_class(key)}"
            return f"unknown option {key}.{shorten(name)}; {meant}"
        return unknown_option(f"{key}.{name}".lstrip("."))
    if required := re.search(r"arguments? (?:is|are) required: (?:fit\.)?([\w.]+(?:, [\w.]+)*)", line):
        names = ", ".join(short_key(f"{key}.{name}".lstrip(".")) for name in required[1].strip().split(", "))
        basic = {"model.backbone", "model", "data"} & {*names.split(", ")}
        return f"missing {names}; {START if basic else f'set it, as --{names.partition(COMMA)[0]}=VALUE'}"
    if alone := re.search(r"class_path='typing.Any', init_args=Namespace\((\w+)=(.*?)\)\)", rest):
        return f"{key}.{alone[1]} {shorten(alone[2].strip(QUOTE))}: {_name_class(key)}"
    if load := re.search(r"Unable to load config [\"'](.*?)[\"'](?: |$)", line):
        return f"{key or 'option'} {shorten(load[1])}: expected a mapping of its options, such as --{key}.NAME=VALUE"
    if key:
        return _bad_value(key, keys[-1], cls, rest)
    return shorten(line) if len(line) > 400 else line


def unknown_option(key: str) -> str:
    """The message for an option that does not exist, with the nearest one that does."""
    key = short_key(key)
    near = nearest(key, known_options())
    return f"unknown option {shorten(key)}" + (f"; did you mean {near}?" if near else "; see swin-lightning fit --help")


def unknown_argument(key: str, name: str, cls: Callable[..., Any]) -> str:
    """The message for an argument that a configured class does not have, with those that it has."""
    accepted = list(parameters(cls))
    label = getattr(cls, "__name__", str(cls))
    text = f"unknown option {key}.{shorten(name)}: {label} has no such argument"
    base = BASES.get(key)
    others = [each.__name__ for each in [base, *subclasses(base)] if name in parameters(each)] if base else []
    if others:
        return f"{text}; {others[0]} has it (--{key} {others[0]})"
    near = difflib.get_close_matches(name.lower(), [each.lower() for each in accepted], n=1)
    if near:
        argument = next(each for each in accepted if each.lower() == near[0])
        return f"unknown option {key}.{shorten(name)}; did you mean {key}.{argument}?"
    if name in {option.rpartition(".")[2] for option in known_options()}:
        return f"{text}; did you mean {nearest(name, known_options())}?"
    return f"{text}; expected one of {', '.join(accepted[:12])}{', ...' if len(accepted) > 12 else ''}"


def nearest(key: str, options: set[str]) -> str | None:
    """The option that was meant: a synonym, the same last name in any case, or the most similar one."""
    lowered = key.lower().replace("-", "_")
    section, _, leaf = lowered.rpartition(".")
    same = [option for option in options if option.lower().rpartition(".")[2] == leaf]
    if same:
        return min(same, key=lambda option: (not option.lower().startswith(section), option.count("."), option))
    if leaf in SYNONYMS:
        return SYNONYMS[leaf]
    leaves = {option.rpartition(".")[2].lower() for option in options}
    if close := difflib.get_close_matches(leaf, sorted(leaves), n=1, cutoff=0.75):
        return nearest(f"{section}.{close[0]}", options)
    by_name = {option.lower(): option for option in sorted(options)}
    whole = difflib.get_close_matches(lowered, list(by_name), n=1, cutoff=0.6)
    return by_name[whole[0]] if whole else None


def known_options() -> set[str]:
    """The options with a name of their own, and those of the classes that this package provides."""
    keys = set(GENERAL)
    for group, cls in GROUPS.items():
        keys |= {f"{group}.{name}" for name in argument_types(cls)}
    for prefix, base in BASES.items():
        for cls in [base, *subclasses(base)]:
            keys |= {f"{prefix}.{name}" for name in argument_types(cls)}
    return keys


def subclasses(base: type) -> Iterator[type]:
    """All classes that derive from a class."""
    children: list[type] = base.__subclasses__()
    for child in children:
        yield child
        yield from subclasses(child)


# helpers


def _path(line: str) -> tuple[list[str], Callable[..., Any] | None, Callable[..., Any] | None, str]:
    """Keys from the outside in, the class that has the last one, the class given for it, and the rest of the message.

    Of the alternatives of a type the first is followed, which is the one that was meant.
    """
    keys: list[str] = []
    cls: Callable[..., Any] | None = None
    given: Callable[..., Any] | None = None
    pattern = r"^.*?(?:Parser key \"(?P<key>[^\"]+)\": ?|Problem with given class_path '(?P<path>[^']*)': )"
    while match := re.search(pattern, line):
        if match["key"]:
            keys += [name for name in [match["key"]] if not (keys and keys[-1] == name)]
            cls, given = given, None
        elif (found := _import(match["path"])) is not None:
            given = found
        else:
            break
        line = line[match.end() :]
    return keys, cls, given, line


def _bad_value(key: str, name: str, cls: Callable[..., Any] | None, rest: str) -> str:
    """The message for a value that is not of the type of an option."""
    value = _value(rest, name)
    hint: Any = Any
    default: Any = None
    if cls is None and (owner := re.search(r"Got value: Namespace\(class_path='([\w.]+)'", rest)) and "." in key:
        cls = _import(owner[1])  # the class that has the argument
    if cls is not None and name.rpartition(".")[2] in argument_types(cls):
        hint, default = argument_types(cls)[name.rpartition(".")[2]]
    elif key.partition(".")[0] in GROUPS:
        hint, default = argument_types(GROUPS[key.partition(".")[0]]).get(key.partition(".")[2], (Any, None))
    elif key in ("model", "data"):
        hint = LightningModule if key == "model" else LightningDataModule
    elif key in PLAIN:
        hint, default = PLAIN[key]
    if key in EXAMPLES and NO_CLASS.search(rest):
        found = re.search(r"No module named '[^']*'|module '[^']*' has no attribute '[^']*'", rest)
        reason = f" ({found[0]})" if found else ""
        near = _nearest_class(key, value)
        if near == value:
            return f"{key} {shorten(value)}: not a class of this kind; expected one such as {EXAMPLES[key]}"
        more = f"; did you mean {near}?" if near else f", such as {EXAMPLES[key]}"
        choices = re.search(r"Literal\[(.*?)\]", rest)
        words = f"one of {choices[1]} or ".replace("'", "") if choices else ""
        return f"{key} {shorten(value)}: expected {words}the path of a class{reason}{more}"
    if hint is Any:
        return f"{key} {shorten(value)}: {shorten(rest)}"
    example = f", such as {EXAMPLES[key]}" if key in EXAMPLES else ""
    return out_of_range(key, value, hint, default) + example


def _name_class(key: str) -> str:
    return f"name the class that has it first, such as --{key} {EXAMPLES[key]}"


def _value(rest: str, name: str) -> str:
    """The given value in the rest of a message."""
    if nested := re.search(r"NestedArg\(key='[^']*', val=(.*?)\)(?: - Expected|$)", rest):
        return nested[1].strip("'")
    for pattern in (r"Got value:(.*?)(?= - Expected| Given value|$)", r"Given value:(.*?)(?= - Expected|$)"):
        if given := re.search(pattern, rest):
            value = given[1].strip().partition(". Got value: ")[0] or "''"
            class_path = re.fullmatch(r"Namespace\(\w+='([^']*)'.*", value)
            return class_path[1] if class_path else value
    return ""


def _nearest_class(key: str, value: str) -> str | None:
    """The class of the same module, or of this package, whose name is nearest to that of a class path."""
    module, _, name = value.rpartition(".")
    example = EXAMPLES[key].rpartition(".")[0]
    for candidate in dict.fromkeys((module, example)):
        found = _import(candidate) if candidate else None
        names = {each.lower(): each for each in dir(found) if not each.startswith("_")}
        if found is not None and (near := difflib.get_close_matches(name.lower(), list(names), n=1, cutoff=0.7)):
            return f"{candidate}.{names[near[0]]}"
    return None


def _import(path: str) -> Any:
    """The module, class or function of a path, if it has been imported."""
    module, _, name = path.rpartition(".")
    try:
        found = importlib.import_module(module or path)
    except (ImportError, ValueError):
        return None
    return getattr(found, name, None) if module else found
