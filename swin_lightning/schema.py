"""`swin-lightning schema`: a JSON schema of experiments, with which editors check and complete them.

jsonargparse can describe a parser as a schema, but it lists every subclass of every type, such as all modules of
torch.nn, and version 4.53 fails on the Trainer's options with a TypeError.
"""

import inspect
import json
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, get_args, get_origin

import lightning

from swin_lightning import options
from swin_lightning.config_check import GROUPS
from swin_lightning.errors import CommandParser
from swin_lightning.options import kind, number_bounds
from swin_lightning.ranges import plain
from swin_lightning.signatures import Parameter, parameters

Schema = dict[str, Any]

JSON_TYPES = {"null": "null", "bool": "boolean", "int": "integer", "float": "number", "str": "string"}
BOUNDS = {">=": "minimum", ">": "exclusiveMinimum", "<=": "maximum", "<": "exclusiveMaximum"}
# a class: its path or name, or a mapping; an overlay may give some of its arguments alone
CLASS: Schema = {
    "type": ["string", "object"],
    "pattern": r"\.|^[A-Z]",
    "properties": {"class_path": {"type": "string"}, "init_args": {"type": ["object", "null"]}},
}
DESCRIPTION_LENGTH = 300


def schema(args: list[str]) -> None:
    """Print the JSON schema of experiments, for the completion and the checks of editors.

    An experiment names its schema in the first line: # yaml-language-server: $schema=experiment.schema.json
    """
    CommandParser("swin-lightning schema", description=schema.__doc__).parse_args(args)
    print(json.dumps(experiment_schema(), indent=1, ensure_ascii=False))


def experiment_schema() -> Schema:
    """JSON schema, draft 7, of a file for `-c`: an experiment or an overlay."""
    models, backbones = options.task_classes(), options.backbones()
    data = {path: cls for path, cls in options.data_modules().items() if not path.endswith(".ImageDataModule")}
    base = options.effective_config([])  # base.yaml
    blocks = {
        group: group_schema({n: replace(p, default=base[group][n]) for n, p in parameters(cls).items()})
        for group, cls in GROUPS.items()
    }
    definitions: dict[str, Schema] = {}
    for key, known in {"model": models, "backbone": backbones, "data": data}.items():
        definitions |= class_definitions(key, known)
    dotted = "|".join(("model", "data", *blocks))
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$comment": f"Written by `swin-lightning schema` with lightning {lightning.__version__}; do not edit.",
        "title": "swin_lightning experiment",
        "type": "object",
        "properties": {
            "$schema": {"type": "string"},
            "seed_everything": {"type": "integer", "minimum": 0, "description": "Seed of the data and the network."},
            "experiment": {"type": ["string", "null"], "description": "Name of the experiment."},
            "test_after_fit": {"type": "boolean", "description": "Test the best checkpoint at the end of `fit`."},
            "ckpt_path": {"type": ["string", "null"], "description": "Checkpoint of a run: a path, `last` or `best`."},
            "model": {"$ref": "#/definitions/model"},
            "data": {"$ref": "#/definitions/data"},
            **blocks,
        },
        "patternProperties": {rf"^({dotted})\.": True},  # model.lr: 0.1
        "additionalProperties": False,
        "definitions": definitions,
    }


# blocks


def class_definitions(key: str, known: Mapping[str, Callable[..., Any]]) -> dict[str, Schema]:
    """Schema of a block that names a class and its arguments, and those of the arguments of known classes.

    The block is one of `{class_path: X, init_args: {...}}`, `{init_args: {...}}`, the arguments alone, or a class path.
    Without a class path, the class is that of an earlier file: any of the known ones.
    """
    by_arguments: dict[str, list[str]] = {}  # classes with the same arguments share a definition
    merged: dict[str, Parameter] = {}
    for path, target in known.items():
        by_arguments.setdefault(json.dumps(group_schema(parameters(target))), []).append(path)
        merged |= {name: parameter for name, parameter in parameters(target).items() if name not in merged}
    definitions = {f"{key}.init_args": group_schema(merged)}
    cases = []
    for text, paths in by_arguments.items():
        name = f"{key}.init_args.{paths[0].rsplit('.', 1)[-1]}"
        definitions[name] = json.loads(text)
        spelled = {"enum": sorted({spelling for path in paths for spelling in spellings(path, known[path])})}
        then = {"properties": {"init_args": {"$ref": f"#/definitions/{name}"}}}
        cases.append({"if": {"properties": {"class_path": spelled}}, "then": then})
    given = {"type": "object", "required": ["class_path"]}
    properties = {"class_path": {}, "init_args": {"type": "object"}, "dict_kwargs": {"type": "object"}}
    arguments = {"$ref": f"#/definitions/{key}.init_args"}
    definitions[key] = {
        "type": ["object", "string"],
        "properties": {"class_path": {"anyOf": [{"enum": list(known)}, {"type": "string"}]}},
        "if": given,
        "then": {"properties": properties, "additionalProperties": False, "allOf": cases},
        "else": {
            "if": {"type": "object", "required": ["init_args"]},
            "then": {"properties": {"init_args": arguments, "dict_kwargs": {}}, "additionalProperties": False},
            "else": {"if": {"type": "object"}, "then": arguments},
        },
    }
    return definitions


def spellings(path: str, target: Callable[..., Any]) -> list[str]:
    """The class paths by which a class can be named: where it is exported, where it is defined, its name alone."""
    if not inspect.isclass(target):
        return [path]
    package = f"{target.__module__.rpartition('.')[0]}.{target.__name__}"
    return [path, package, f"{target.__module__}.{target.__name__}", target.__name__]


def group_schema(known: Mapping[str, Parameter]) -> Schema:
    """Schema of a mapping of these parameters, all of them optional: another file may have given them."""
    properties: dict[str, Schema] = {}
    for name, parameter in known.items():
        properties[name] = parameter_schema(parameter)
        for item in list_items(parameter.type):
            several = any_of([{"type": "array", "items": item}, item])
            properties[f"{name}+"] = {"description": f"Appended to {name}.", **several}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def parameter_schema(parameter: Parameter) -> Schema:
    text = textwrap.shorten(parameter.description, DESCRIPTION_LENGTH, placeholder=" ...")
    described = {"description": text} if text else {}
    if parameter.name == "backbone":
        return {**described, "allOf": [{"$ref": "#/definitions/backbone"}]}
    plain = isinstance(parameter.default, bool | int | float | str)
    default = {"default": parameter.default} if plain else {}
    return {**described, **type_schema(parameter.type), **default}


# types


def type_schema(hint: Any) -> Schema:
    """Schema of the values of a type."""
    name, parts = kind(hint)
    if name == "union":
        return any_of(map(type_schema, parts))
    if name == "choice":
        return {"enum": list(parts)}
    if name == "list":
        items = [type_schema(part) for part in parts]
        if get_origin(plain(hint)) is tuple and ... not in get_args(plain(hint)):
            return {"type": "array", "items": items, "minItems": len(items), "maxItems": len(items)}
        return {"type": "array", **({"items": items[0]} if items else {})}
    if name == "mapping":
        return {"type": "object", **({"additionalProperties": type_schema(parts[0])} if parts else {})}
    if name == "class":
        return CLASS
    bounds = {BOUNDS[sign]: number for sign, number in number_bounds(hint)}
    return {"type": JSON_TYPES[name], **bounds} if name in JSON_TYPES else {}


def list_items(hint: Any) -> list[Schema]:
    """Schema of the items of a list that can be extended; none for other types."""
    name, parts = kind(hint)
    if name == "union":
        return [item for part in parts for item in list_items(part)][:1]
    return [type_schema(parts[0])] if name == "list" and parts and get_origin(plain(hint)) is not tuple else []


def any_of(schemas: Iterable[Schema]) -> Schema:
    """Any of these schemas. Plain types are joined to a list of types."""
    types: list[str] = []
    others: list[Schema] = []
    for each in schemas:
        if each == {}:
            return {}
        if set(each) == {"type"}:
            types += [name for name in [each["type"]] if name not in types]
        elif each not in others:
            others.append(each)
    if types:
        others.append({"type": types if len(types) > 1 else types[0]})
    return others[0] if len(others) == 1 else {"anyOf": others}
