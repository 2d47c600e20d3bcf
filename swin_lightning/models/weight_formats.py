"""The names that other projects give to the parameters of a Swin Transformer: one table a format, for both directions.

A table maps official names, which are ours, to theirs. A file is read by asking, for every parameter of the model,
where the file keeps it (`Format.slots`), and written by putting it there. Sources: the state dicts of
microsoft/Swin-Transformer f82860b, timm 1.0.31, torchvision 0.28, transformers 5.23 and open-mmlab/mmpretrain ee7f2e8.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

StateDict = dict[str, Tensor]
# computed, whatever a file says; the last counts the updates of an average
BUFFERS = ("relative_position_index", "relative_coords_table", "attn_mask", "n_averaged")
LEFT_OUT = r"(?:^|\.)mask_token$|^decoder\."  # of masked image modelling: no part of a classifier


@dataclass(frozen=True)
class Slot:
    """Where a file keeps a parameter: an entry, or one of the three equal parts of its rows."""

    entry: str
    third: int | None = None


@dataclass(frozen=True)
class Format:
    """How a project names its parameters.

    Args:
        name: The format's name.
        mark: Regular expression that finds a name which only this format has.
        prefix: Of all names but those of the head.
        names: Official name of a module or parameter -> theirs. `{s}` and `{b}` stand for stage and block, `{next}`
            for s + 1, `{odd}` and `{even}` for 2s + 1 and 2s + 2, `{last}` for the last stage. A tuple holds the
            consecutive parts of the official parameter; `[i]` is the i-th third of an entry's rows.
        unfold: Patch merging in the channel order of `nn.Unfold`.
        wrapper: Key under which a `.pth` file holds the parameters.
    """

    name: str
    mark: str
    prefix: str = ""
    names: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    unfold: bool = False
    wrapper: str | None = None

    def slots(self, name: str, last_stage: int) -> list[Slot]:
        """Where this format keeps the parameter of an official name; its parts follow each other along the rows."""
        place = re.match(r"layers\.(\d+)\.(?:blocks\.(\d+)|downsample)\.", name)
        if place is None:
            prefix = "" if name.startswith("head.") else self.prefix
            return [Slot(prefix + part.format(last=last_stage)) for part in self._rename(name)]
        s, b, inner = int(place[1]), place[2], name[place.end() :]
        template = "layers.{s}.downsample" if b is None else "layers.{s}.blocks.{b}"
        theirs = str(self.names.get(template, template))
        theirs = self.prefix + theirs.format(s=s, b=b, next=s + 1, odd=2 * s + 1, even=2 * s + 2)
        slots = []
        for part in [inner] if b is None else self._rename(inner):  # patch merging has the same names everywhere
            entry, _, third = f"{theirs}.{part}".rstrip("]").partition("[")
            slots.append(Slot(entry, int(third) if third else None))
        return slots

    def _rename(self, name: str) -> list[str]:
        """Their names for a module's parameter, by the longest known beginning of its official name."""
        words = name.split(".")
        for length in range(len(words), 0, -1):
            theirs = self.names.get(".".join(words[:length]))
            if theirs is not None:
                parts = (theirs,) if isinstance(theirs, str) else theirs
                return [".".join([part, *words[length:]]) for part in parts]
        return [name]


SWIN_LIGHTNING = Format("swin_lightning", mark=r"^backbone\.", prefix="backbone.")

OFFICIAL = Format("official", mark=r"^layers\.0\.downsample\.", wrapper="model")  # timm before 0.8 as well

SIMMIM = replace(OFFICIAL, name="SimMIM", mark=r"^encoder\.(patch_embed|layers)\.", prefix="encoder.")

TIMM = Format(
    "timm",
    mark=r"^layers\.[1-9]\d*\.downsample\.|^head\.fc\.",  # looked for where there is no layers.0.downsample
    names={"layers.{s}.downsample": "layers.{next}.downsample", "head": "head.fc"},
)

TORCHVISION = Format(
    "torchvision",
    mark=r"^features\.\d",
    names={
        "patch_embed.proj": "features.0.0",
        "patch_embed.norm": "features.0.2",
        "layers.{s}.blocks.{b}": "features.{odd}.{b}",
        "layers.{s}.downsample": "features.{even}",
        "attn.q_bias": "attn.qkv.bias[0]",  # V2; the third between them belongs to the keys and counts as zero
        "attn.v_bias": "attn.qkv.bias[2]",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.3",
    },
)

TRANSFORMERS_4 = Format(
    "transformers4",
    mark=r"\.attention\.self\.",
    prefix="swin.",
    names={
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "patch_embed.norm": "embeddings.norm",
        "absolute_pos_embed": "embeddings.position_embeddings",
        "layers.{s}.blocks.{b}": "encoder.layers.{s}.blocks.{b}",
        "layers.{s}.downsample": "encoder.layers.{s}.downsample",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attn.relative_position_bias_table": "attention.self.relative_position_bias_table",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "norm": "layernorm",
        "head": "classifier",
    },
)

TRANSFORMERS_V2 = replace(
    TRANSFORMERS_4,
    name="transformers",
    mark=r"continuous_position_bias_mlp",
    prefix="swinv2.",
    names={
        **TRANSFORMERS_4.names,
        "attn.q_bias": "attention.self.query.bias",
        "attn.v_bias": "attention.self.value.bias",
        "attn.logit_scale": "attention.self.logit_scale",
        "attn.cpb_mlp": "attention.self.continuous_position_bias_mlp",
    },
)

TRANSFORMERS = replace(
    TRANSFORMERS_4,
    name="transformers",
    mark=r"\.attention\.q_proj\.",
    names={
        **TRANSFORMERS_4.names,
        "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        "attn.relative_position_bias_table": "attention.relative_position_bias.relative_position_bias_table",
        "attn.proj": "attention.o_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    },
)

MMPRETRAIN = Format(
    "mmpretrain",
    mark=r"(^|\.)stages\.\d+\.blocks\.",
    prefix="backbone.",
    names={
        "patch_embed.proj": "patch_embed.projection",
        "layers.{s}.blocks.{b}": "stages.{s}.blocks.{b}",
        "layers.{s}.downsample": "stages.{s}.downsample",
        "attn": "attn.w_msa",
        "mlp.fc1": "ffn.layers.0.0",
        "mlp.fc2": "ffn.layers.1",
        "norm": "norm{last}",
        "head": "head.fc",
    },
    unfold=True,
    wrapper="state_dict",
)

MMPRETRAIN_V2 = replace(
    MMPRETRAIN,
    mark=r"(^|\.)stages\..*\.w_msa\.logit_scale$",
    names={**MMPRETRAIN.names, "layers.{s}.downsample": "stages.{next}.downsample"},
)

# the first whose mark is found; a name that stands in two formats has its mark in the more special one
DETECTED = (
    TRANSFORMERS_V2,
    TRANSFORMERS,
    TRANSFORMERS_4,
    MMPRETRAIN_V2,
    MMPRETRAIN,
    TORCHVISION,
    SWIN_LIGHTNING,
    SIMMIM,
    OFFICIAL,
    TIMM,
)

# what can be written: a format for V1 and one for V2
WRITTEN = {
    "swin_lightning": (SWIN_LIGHTNING, SWIN_LIGHTNING),
    "official": (OFFICIAL, OFFICIAL),
    "timm": (TIMM, TIMM),
    "torchvision": (TORCHVISION, TORCHVISION),
    "transformers": (TRANSFORMERS, TRANSFORMERS_V2),
    "transformers4": (TRANSFORMERS_4, TRANSFORMERS_V2),  # before release 5
    "mmpretrain": (MMPRETRAIN, MMPRETRAIN_V2),
}


def detect(names: Iterable[str]) -> Format:
    """The format that a file's names belong to; official where nothing tells otherwise, as for a single stage."""
    names = list(names)
    found = next((f for f in DETECTED if any(re.search(f.mark, name) for name in names)), OFFICIAL)
    if not any(name.startswith(found.prefix) for name in names):
        found = replace(found, prefix="")  # a backbone saved by itself
    return found


def to_unfold(x: Tensor) -> Tensor:
    """The channels of patch merging, last axis 4C, from the official order to that of `nn.Unfold`.

    Officially the four neighbours (0,0), (1,0), (0,1), (1,1) of row and column follow each other with C channels
    each; `nn.Unfold` goes through the neighbours row by row within every channel.
    """
    return x.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)


def from_unfold(x: Tensor) -> Tensor:
    """The inverse of `to_unfold`."""
    return x.unflatten(-1, (-1, 4)).transpose(-1, -2)[..., [0, 2, 1, 3], :].flatten(-2)


def has_merged_channels(name: str, state: Mapping[str, Tensor]) -> bool:
    """Whether a parameter's last axis is the 4C channels that patch merging joins: V2 normalises the 2C behind it."""
    stage, merging, parameter = name.partition(".downsample.")
    if not merging:
        return False
    return parameter == "reduction.weight" or len(state[name]) == state[f"{stage}.downsample.reduction.weight"].shape[1]


def written(state: Mapping[str, Tensor], target: Format) -> StateDict:
    """Parameters by official names -> the entries of a file in another format."""
    last_stage = last_stage_of(state)
    entries: StateDict = {}
    for name, value in state.items():
        if target.unfold and has_merged_channels(name, state):
            value = to_unfold(value)
        slots = target.slots(name, last_stage)
        for slot, part in zip(slots, value.chunk(len(slots)) if len(slots) > 1 else [value], strict=True):
            if slot.third is None:
                entries[slot.entry] = part.clone()
            else:
                whole = entries.setdefault(slot.entry, part.new_zeros(3 * len(part), *part.shape[1:]))
                whole.chunk(3)[slot.third].copy_(part)
    return entries


def last_stage_of(names: Iterable[str]) -> int:
    """The number of the last stage."""
    return max((int(name.split(".")[1]) for name in names if name.startswith("layers.")), default=0)


def joined(parts: list[Tensor], slots: list[Slot]) -> Tensor:
    """The parameter whose parts were found in these slots."""
    rows = [part if slot.third is None else part.chunk(3)[slot.third] for part, slot in zip(parts, slots, strict=True)]
    return torch.cat(rows) if len(rows) > 1 else rows[0]
