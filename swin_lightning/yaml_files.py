"""Reading YAML files of users: limits, duplicate keys and tags are checked, and every error names file and line."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from swin_lightning.errors import UserError, shorten

MAX_BYTES = 16 * 2**20
MAX_NODES = 200_000  # with every alias replaced by what it stands for
MAX_DEPTH = 50
MAX_DIGITS = 300  # of an integer; Python converts no more than 4300
STANDARD = "tag:yaml.org,2002:"
TAGS = {f"{STANDARD}{name}" for name in "null bool int float str seq map timestamp merge value".split()}


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file.

    Raises:
        UserError: If the file cannot be read, is binary, is not YAML, is too large or too deep, with all aliases
            replaced as well, or has a duplicate key or a tag of a programming language.
    """
    root = check_yaml(read_text(path), str(path))
    return yaml.SafeLoader.construct_document(yaml.SafeLoader(""), root) if root is not None else None


def read_text(path: str | Path) -> str:
    """The text of a file that should be YAML."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: more than {MAX_BYTES >> 20} MiB; expected a YAML file")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8; expected YAML") from error
    if "\0" in text:
        raise UserError(f"{path}: a binary file; expected YAML")
    return text


def check_yaml(text: str, where: str) -> yaml.Node | None:
    """Check a YAML document without building it.

    Args:
        text: The document.
        where: Its file, for messages.

    Returns:
        Its root; None for an empty document.
    """
    try:
        _check_size(text, where)
        root: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise UserError(f"{where}{line}: not valid YAML: {shorten(problem)}") from error
    if root is not None:
        _check_nodes(root, where)
    return root


def locate(root: yaml.Node | None, key: str) -> int | None:
    """The line of a dotted key, which may leave out `init_args`; None if the document does not have it."""
    found = list(_lines(root, key.split("."))) if root is not None else []
    return found[-1] if found else None


# helpers


def _check_size(text: str, where: str) -> None:
    """Count nodes with aliases expanded, without building them."""
    sizes: list[int] = [0]  # of the open collections
    anchors: list[str | None] = [None]
    of_anchor: dict[str, int] = {}
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            sizes.append(1)
            anchors.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            size, anchor = sizes.pop(), anchors.pop()
            if anchor is not None:
                of_anchor[anchor] = size
            sizes[-1] += size
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in anchors:
                line = event.start_mark.line + 1 if event.start_mark else 0
                raise UserError(f"{where}:{line}: *{shorten(event.anchor)} is within what it stands for; write it out")
            sizes[-1] += of_anchor.get(str(event.anchor), 1)
        elif isinstance(event, yaml.ScalarEvent):
            sizes[-1] += 1
        line = event.start_mark.line + 1 if event.start_mark else 0
        if len(sizes) > MAX_DEPTH:
            raise UserError(f"{where}:{line}: nested more than {MAX_DEPTH} levels deep; expected a flatter file")
        if sizes[-1] > MAX_NODES:
            raise UserError(
                f"{where}:{line}: more than {MAX_NODES} values, with aliases (*name) replaced; use fewer aliases"
            )


def _check_nodes(root: yaml.Node, where: str) -> None:
    pending, seen = [root], {id(root)}
    while pending:
        node = pending.pop()
        line = node.start_mark.line + 1
        if node.tag not in TAGS:
            tag = node.tag.replace(STANDARD, "!!")
            raise UserError(f"{where}:{line}: tag {shorten(tag)} is not supported; write plain values and class_path")
        if node.tag == f"{STANDARD}int" and len(node.value) > MAX_DIGITS:
            raise UserError(f"{where}:{line}: {shorten(node.value)}: expected a number of at most {MAX_DIGITS} digits")
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for name, value in node.value:
                if not isinstance(name, yaml.ScalarNode):
                    raise UserError(f"{where}:{name.start_mark.line + 1}: a list or mapping as a key; expected a name")
                if name.value in lines and name.value != "<<":
                    raise UserError(
                        f"{where}:{name.start_mark.line + 1}: {shorten(name.value)} is given twice, first in line "
                        f"{lines[name.value]}; keep one"
                    )
                lines[name.value] = name.start_mark.line + 1
                children.append(value)
        new = [child for child in children if id(child) not in seen]
        seen |= {id(child) for child in new}
        pending += new


def _lines(node: yaml.Node, parts: Sequence[str]) -> Iterator[int]:
    """Lines where a mapping has the key of these parts, which a file may join: `model.lr: 0.1`."""
    if not isinstance(node, yaml.MappingNode):
        return
    for name, value in node.value:
        words = str(name.value).removesuffix("+").split(".")
        if words in (["init_args"], ["dict_kwargs"]):
            yield from _lines(value, parts)
        elif words == list(parts[: len(words)]):
            if len(words) == len(parts):
                yield name.start_mark.line + 1
            else:
                yield from _lines(value, parts[len(words) :])
