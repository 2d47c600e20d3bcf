"""Find the state dict of a model in the content of a file of any trainer.

Trainers nest state dicts and prefix their keys: `{"model": ...}`, `{"student": ..., "teacher": ...}`, `net.`,
`module.backbone.`. The state dict and the prefix with the most parameters of the model are taken.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from swin_lightning.models.weight_formats import (
    BUFFERS,
    DETECTION_ORDER,
    SIMMIM,
    SWIN_LIGHTNING,
    Format,
    StateDict,
    detect_format,
    map_names,
)

MAX_DEPTH = 5
# modules that wrap another one under an attribute of this name: torch.compile, FSDP, Fabric, activation checkpointing
WRAPPER_MODULES = r"(?:_orig_mod|_fsdp_wrapped_module|_forward_module|_checkpoint_wrapped_module)"
# names of state dicts and prefixes of keys, from the most preferred to the least; others are in between
AVERAGED, TEACHER, OTHER, STUDENT = (
    r"(?:^|[._])(?:ema|averaged?)(?:[._]|$)",
    r"(?:^|[._])teacher",
    "",
    r"student|current_",
)
RESIZED = ("relative_position_bias_table", "absolute_pos_embed", "patch_embed.proj.weight")


@dataclass(frozen=True)
class Candidate:
    """A state dict in a file, read as one format.

    Args:
        entries: Its values by key, without the prefix.
        source: The format.
        where: Names of the dicts that contain it, from the outside in.
        prefix: Prefix of its keys.
        others: Values by key of the entries without this prefix.
        buffers: Computed buffers, which are not in the entries, without the prefix.
    """

    entries: dict[str, object]
    source: Format
    where: tuple[str, ...] = ()
    prefix: str = ""
    others: Mapping[str, object] = field(default_factory=dict)
    buffers: Mapping[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Dicts and prefix as one name, such as `teacher.module.`."""
        return ".".join([*self.where, self.prefix])

    def rank(self) -> int:
        """Preference of the name: averaged weights, teacher of self-distillation, others, student and raw weights."""
        tests = (AVERAGED, TEACHER, STUDENT)
        found = next((i for i, pattern in enumerate(tests) if re.search(pattern, self.name)), None)
        return 2 if found is None else (0, 1, 3)[found]

    def count_matches(self, own: StateDict) -> int:
        """Number of parameters of the backbone that it has, in the right shape or one that can be resized."""
        count = 0
        for name, parts in map_names(self.source, own).items():
            values = [self.entries.get(part.key) for part in parts]
            if name.startswith("backbone.") and all(isinstance(value, Tensor) for value in values):
                whole = len(parts) == 1 and parts[0].qkv_chunk is None and not name.endswith(RESIZED)
                count += not whole or getattr(values[0], "shape", None) == own[name].shape
        return count


def find_state_dict(content: Mapping[str, object], own: StateDict) -> tuple[Candidate, list[Candidate]] | None:
    """The best state dict of a file for a model, and others that match it as well.

    Args:
        content: Content of the file.
        own: Parameters of the model, named `backbone.*` and `head.*`.

    Returns:
        None if the file contains no tensors.
    """
    found: list[tuple[tuple[int, int, int], Candidate]] = []
    for where, state in _state_dicts(content):
        entries = {clean_key(key): value for key, value in state.items()}
        buffers = {key: value for key, value in entries.items() if key.rsplit(".", 1)[-1] in BUFFERS}
        entries = {key: value for key, value in entries.items() if key not in buffers}
        detected = detect_format(entries, own)
        plain = Candidate(entries, detected, where, buffers=buffers)
        complete = detected.name == SWIN_LIGHTNING.name and {n for n in own if n.startswith("backbone.")} <= set(
            entries
        )
        found.append(((-plain.count_matches(own), plain.rank(), 0), plain))
        for source, prefix in [] if complete else _prefixes(entries, own):
            inner = {key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)}
            others = {key: value for key, value in entries.items() if not key.startswith(prefix)}
            stripped = {key.removeprefix(prefix): value for key, value in buffers.items()}
            candidate = Candidate(inner, source, where, prefix, others, stripped)
            found.append(((-candidate.count_matches(own), candidate.rank(), 1), candidate))
    if not found:
        return None
    found.sort(key=lambda pair: pair[0])
    (matches, *_), best = found[0]
    names = {best.name: best}
    for (count, *_), candidate in found:
        if count == matches and matches:
            names.setdefault(candidate.name, candidate)
    return best, [candidate for candidate in names.values() if candidate is not best and not _same(candidate, best)]


def clean_key(key: str) -> str:
    """A key without the names of wrapper modules, at any depth; SimMIM's first V2 used rpe_mlp."""
    key = re.sub(rf"(?<![^.]){WRAPPER_MODULES}\.", "", key)
    return key.replace(".rpe_mlp.", ".cpb_mlp.")


def find_head(candidate: Candidate, own: StateDict) -> dict[str, object]:
    """A linear classifier outside of the prefix, if there is exactly one: its entries under the keys of the format."""
    names = [f"head.{part}" if f"head.{part}" in own else f"backbone.head.{part}" for part in ("weight", "bias")]
    if not own.keys() >= set(names):
        return {}
    mappings = map_names(candidate.source, own)
    keys, features = [mappings[name][0].key for name in names], own[names[0]].shape[1]
    if candidate.entries.keys() & set(keys):
        return {}
    others = {key: value for key, value in candidate.others.items() if isinstance(value, Tensor)}
    layers = [
        layer
        for layer in (key.removesuffix(".weight") for key in others if key.endswith(".weight"))
        if others[f"{layer}.weight"].shape[1:] == (features,)
        and f"{layer}.bias" in others
        and others[f"{layer}.bias"].shape == others[f"{layer}.weight"].shape[:1]
        and re.search(r"(^|\.)(head|fc|classifier|linear|cls_head)(\.|$)", layer)
    ]
    if len(layers) != 1:
        return {}
    return {key: others[f"{layers[0]}.{part}"] for key, part in zip(keys, ("weight", "bias"), strict=True)}


def _state_dicts(
    content: Mapping[str, object], where: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, object]]]:
    """All dicts with tensors by name, from the outside in."""
    if any(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        yield where, {str(key): value for key, value in content.items()}
    for key, value in content.items() if len(where) < MAX_DEPTH else ():
        if isinstance(value, Mapping) and isinstance(key, str):
            yield from _state_dicts(value, (*where, key))


def _prefixes(keys: Collection[str], own: StateDict) -> list[tuple[Format, str]]:
    """Formats and prefixes under which a file may have the model: what precedes a parameter that every model has."""
    found: dict[tuple[str, str, str], tuple[Format, str]] = {}
    backbone = [name for name in own if name.startswith("backbone.")]
    known = ("backbone.patch_embed.proj.weight", "backbone.layers.0.blocks.0.attn.proj.weight")
    for name in [name for name in known if name in own] or backbone[:1]:
        for source in DETECTION_ORDER:
            key = map_names(source, {name: own[name]})[name][0].key
            anchor = key.removeprefix(source.prefix)
            for prefix in {key.removesuffix(anchor) for key in keys if key == anchor or key.endswith(f".{anchor}")}:
                inside = prefix.removesuffix(source.prefix)
                if source.prefix and inside != prefix and (not inside or inside.endswith(".")):
                    found[source.name, source.signature_key, inside] = (source, inside)
                if source.name not in (SWIN_LIGHTNING.name, SIMMIM.name):  # these are official names behind a prefix
                    found[source.name, source.signature_key, prefix] = (replace(source, prefix=""), prefix)
    return [pair for pair in found.values() if pair[1]]


def _same(a: Candidate, b: Candidate) -> bool:
    """Whether two candidates are the same tensors, read with another split of prefix and keys."""
    return a.where == b.where and (a.prefix.startswith(b.prefix) or b.prefix.startswith(a.prefix))
