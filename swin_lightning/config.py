"""The parser of configuration files and dotted keys, with errors in one line."""

import difflib
import inspect
import re
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from swin_lightning.data import ImageDataModule
from swin_lightning.errors import UserError, collapse_whitespace
from swin_lightning.models import SwinTransformer


class Parser(LightningArgumentParser):
    """Errors in one line, with the nearest valid key."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(_short(message, self._known_keys(ex))) from ex

    def _known_keys(self, ex: Exception | None) -> list[str]:
        parser = getattr(ex, "subcommand_parser", None) or self
        keys = [action.dest for action in parser._actions]
        for action in parser._actions:
            subparsers = getattr(action, "_name_parser_map", None) or {}
            keys += [key.dest for sub in subparsers.values() for key in sub._actions]
        modules = [ImageDataModule, *_subclasses(ImageDataModule)]
        keys += [f"data.{name}" for module in modules for name in inspect.signature(module).parameters]
        keys += [f"model.backbone.{name}" for name in inspect.signature(SwinTransformer).parameters]
        return sorted(set(keys))


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested configuration -> dotted keys as on the command line."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


# helpers


def _short(message: str, keys: list[str]) -> str:
    """A parser's message in one line, with the nearest valid key where one is misspelt."""
    line = collapse_whitespace(message)
    prefix = ""
    while match := re.match(r'Parser key "([\w.]+)": (.*)', line):
        prefix, line = f"{prefix}{match[1]}.", match[2]
        if "Errors: - " in line:  # of a type with alternatives: the first is the one that was meant
            line = line.split("Errors: - ", 1)[1].split(" - Expected a <class 'NoneType'>")[0]
    prefix = prefix.replace("init_args.", "")
    unknown = re.search(r"Unrecognized arguments: --([\w.]+)|[Oo]ption '([\w.]+)'", line, re.IGNORECASE)
    if unknown and "required" not in line:
        key = prefix + (unknown[1] or unknown[2])
        nearest = difflib.get_close_matches(key.replace("init_args.", ""), keys, n=1, cutoff=0.5)
        return f"unknown option {key}" + (f"; did you mean {nearest[0]}?" if nearest else "; see --help")
    if "arguments are required" in line:
        return line.replace("fit.", "") + "; start from an experiment: -c experiments/digits_swin_micro.yaml"
    line = re.sub(r"Expected an? (?:<class '(\w+)'>|typing\.)?(.*?)\. Got value: ", r"expected \1\2, got ", line)
    joint = "" if re.match(r"\w+: ", line) else " "  # an inner parser may have named its part of the key
    return f"{prefix.rstrip('.')}{':' if joint else '.'}{joint}{line}" if prefix else line


def _subclasses(base: type) -> list[type]:
    children: list[type] = base.__subclasses__()
    return [cls for child in children for cls in (child, *_subclasses(child))]
