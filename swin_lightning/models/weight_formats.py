"""Key maps of other projects: how each weight format names the parameters of a Swin Transformer.

Each format maps official names, which are also ours, to its own keys, for reading and for writing. Sources: the state
dicts of microsoft/Swin-Transformer f82860b, timm 1.0.31, torchvision 0.28, transformers 5.23 and open-mmlab/mmpretrain
ee7f2e8.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

StateDict = dict[str, Tensor]
# recomputed by the model instead of loaded; `n_averaged` counts the updates of a torch AveragedModel
BUFFERS = ("relative_position_index", "relative_coords_table", "attn_mask", "n_averaged")
OWN_PREFIXES = ("backbone.", "head.")
PRETRAINING_PREFIXES = ("mask_token", "decoder.")  # of `tasks.SimMIM`
PRETRAINING_KEYS = r"(?:^|\.)mask_token$|^decoder\."  # of masked image modelling, not part of the backbone


@dataclass(frozen=True)
class KeyMapping:
    """Where a file stores a parameter, or a part of it.

    Args:
        key: Key in the state dict of the file.
        qkv_chunk: The parameter is this chunk, 0 to 2, of three equal chunks of rows (query, key, value); None for
            the whole tensor.
    """

    key: str
    qkv_chunk: int | None = None


@dataclass(frozen=True)
class Format:
    """How a project names its parameters.

    Args:
        name: Name of the format.
        signature_key: Regular expression for a key that identifies the format.
        prefix: Prefix of all keys except those of the head.
        names: Official name of a module or parameter -> its name in this format. Placeholders: `{s}` stage, `{b}`
            block, `{next}` s + 1, `{odd}` 2s + 1, `{even}` 2s + 2, `{last}` last stage. A tuple lists consecutive
            chunks of the official parameter; `[i]` denotes the i-th of three chunks of the tensor in the file.
        unfold_order: The channels of patch merging are in the order of `nn.Unfold`.
        wrapper: Key of the state dict in a `.pth` file.
    """

    name: str
    signature_key: str
    prefix: str = ""
    names: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    unfold_order: bool = False
    wrapper: str | None = None

    def map_key(self, name: str, last_stage: int) -> list[KeyMapping]:
        """Where this format stores the parameter with an official name, as consecutive chunks of its rows."""
        match = re.match(r"layers\.(\d+)\.(?:blocks\.(\d+)|downsample)\.", name)
        if match is None:
            prefix = "" if name.startswith(("head.", "decoder.")) else self.prefix
            return [KeyMapping(prefix + part.format(last=last_stage)) for part in self._rename(name)]
        stage, block, inner = int(match[1]), match[2], name[match.end() :]
        template = "layers.{s}.downsample" if block is None else "layers.{s}.blocks.{b}"
        module = str(self.names.get(template, template))
        module = self.prefix + module.format(s=stage, b=block, next=stage + 1, odd=2 * stage + 1, even=2 * stage + 2)
        mappings = []
        for part in [inner] if block is None else self._rename(inner):  # names within patch merging never differ
            key, _, chunk = f"{module}.{part}".rstrip("]").partition("[")
            mappings.append(KeyMapping(key, int(chunk) if chunk else None))
        return mappings

    def _rename(self, name: str) -> list[str]:
        """Names of a parameter in this format, by the longest prefix of its official name in `names`."""
        words = name.split(".")
        for length in range(len(words), 0, -1):
            renamed = self.names.get(".".join(words[:length]))
            if renamed is not None:
                parts = (renamed,) if isinstance(renamed, str) else renamed
                return [".".join([part, *words[length:]]) for part in parts]
        return [name]


Mappings = dict[str, list[KeyMapping]]  # parameter of the model -> where the file stores it

SWIN_LIGHTNING = Format("swin_lightning", signature_key=r"^backbone\.", prefix="backbone.")

OFFICIAL = Format("official", signature_key=r"^layers\.0\.downsample\.", wrapper="model")  # timm before 0.8 as well

SIMMIM = replace(
    OFFICIAL,
    name="SimMIM",
    signature_key=r"^encoder\.(patch_embed|layers)\.",
    prefix="encoder.",
    names={"decoder": "decoder.0"},
)

TIMM = Format(
    "timm",
    signature_key=r"^layers\.[1-9]\d*\.downsample\.|^head\.fc\.",  # OFFICIAL comes before
    names={"layers.{s}.downsample": "layers.{next}.downsample", "head": "head.fc"},
)

TORCHVISION = Format(
    "torchvision",
    signature_key=r"^features\.\d",
    names={
        "patch_embed.proj": "features.0.0",
        "patch_embed.norm": "features.0.2",
        "layers.{s}.blocks.{b}": "features.{odd}.{b}",
        "layers.{s}.downsample": "features.{even}",
        "attn.q_bias": "attn.qkv.bias[0]",  # V2; chunk 1 is the bias of the keys, which is zero
        "attn.v_bias": "attn.qkv.bias[2]",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.3",
    },
)

TRANSFORMERS_4 = Format(
    "transformers4",
    signature_key=r"\.attention\.self\.",
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
    signature_key=r"continuous_position_bias_mlp",
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
    signature_key=r"\.attention\.q_proj\.",
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
    signature_key=r"(^|\.)stages\.\d+\.blocks\.",
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
    unfold_order=True,
    wrapper="state_dict",
)

MMPRETRAIN_V2 = replace(
    MMPRETRAIN,
    signature_key=r"(^|\.)stages\..*\.w_msa\.logit_scale$",
    names={**MMPRETRAIN.names, "layers.{s}.downsample": "stages.{next}.downsample"},
)

# the first format whose signature key is found; where two formats share keys, the more specific one comes first
DETECTION_ORDER = (
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

# formats for export: of V1 and of V2
EXPORT_FORMATS = {
    "swin_lightning": (SWIN_LIGHTNING, SWIN_LIGHTNING),
    "official": (OFFICIAL, OFFICIAL),
    "timm": (TIMM, TIMM),
    "torchvision": (TORCHVISION, TORCHVISION),
    "transformers": (TRANSFORMERS, TRANSFORMERS_V2),
    "transformers4": (TRANSFORMERS_4, TRANSFORMERS_V2),  # before release 5
    "mmpretrain": (MMPRETRAIN, MMPRETRAIN_V2),
}


def detect_format(keys: Collection[str], own: Collection[str] = ()) -> Format:
    """Detect the format of a file.

    Args:
        keys: Keys of the file.
        own: Names of the model's parameters in our format. If the file has all those of the backbone, it is in our
            format; this identifies any backbone.

    Returns:
        The format, by signature keys; official if there is none, as in a model of one stage.
    """
    backbone = {name for name in own if name.startswith("backbone.")}
    if backbone and backbone <= set(keys):
        return SWIN_LIGHTNING
    found = next((f for f in DETECTION_ORDER if any(re.search(f.signature_key, key) for key in keys)), OFFICIAL)
    if not any(key.startswith(found.prefix) for key in keys):
        found = replace(found, prefix="")  # a backbone saved without the prefix of its classifier
    return found


def map_names(source: Format, own: Iterable[str]) -> Mappings:
    """Where a file of a format stores each parameter of a model, named `backbone.*` and `head.*`."""
    if source.name == SWIN_LIGHTNING.name:
        return {name: [KeyMapping(name)] for name in own}  # any backbone
    last_stage = last_stage_of(name.removeprefix("backbone.") for name in own)
    return {name: source.map_key(name.removeprefix("backbone."), last_stage) for name in own}


def to_format(state: Mapping[str, Tensor], target: Format) -> StateDict:
    """Convert parameters with official names to the state dict of another format."""
    last_stage = last_stage_of(state)
    converted: StateDict = {}
    for name, value in state.items():
        if target.unfold_order and has_merged_channels(name, state):
            value = to_unfold_order(value)
        mappings = target.map_key(name, last_stage)
        for mapping, part in zip(mappings, value.chunk(len(mappings)) if len(mappings) > 1 else [value], strict=True):
            if mapping.qkv_chunk is None:
                converted[mapping.key] = part.clone()
            else:
                whole = converted.setdefault(mapping.key, part.new_zeros(3 * len(part), *part.shape[1:]))
                whole.chunk(3)[mapping.qkv_chunk].copy_(part)
    return converted


def merge_chunks(tensors: list[Tensor], mappings: list[KeyMapping]) -> Tensor:
    """The official parameter from the tensors that a file stores for its mappings."""
    chunks = [
        tensor if mapping.qkv_chunk is None else tensor.chunk(3)[mapping.qkv_chunk]
        for tensor, mapping in zip(tensors, mappings, strict=True)
    ]
    return torch.cat(chunks) if len(chunks) > 1 else chunks[0]


def to_unfold_order(x: Tensor) -> Tensor:
    """Reorder the channels of patch merging, `..., 4*C`, from the official order to that of `nn.Unfold`.

    Official: C channels of the neighbour (0, 0), then of (1, 0), (0, 1) and (1, 1), given as (row, column).
    `nn.Unfold`: for each channel its four neighbours, row by row.
    """
    return torch.unflatten(x, -1, (4, -1))[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)


def from_unfold_order(x: Tensor) -> Tensor:
    """Inverse of `to_unfold_order`."""
    return torch.unflatten(x, -1, (-1, 4)).transpose(-1, -2)[..., [0, 2, 1, 3], :].flatten(-2)


def has_merged_channels(name: str, state: Mapping[str, Tensor]) -> bool:
    """Whether the last axis of a parameter has the 4C channels of patch merging.

    That is its linear layer, and its norm in V1; the norm of V2 comes after the linear layer.
    """
    stage, downsample, parameter = name.partition(".downsample.")
    if not downsample:
        return False
    return parameter == "reduction.weight" or len(state[name]) == state[f"{stage}.downsample.reduction.weight"].shape[1]


def last_stage_of(names: Iterable[str]) -> int:
    """Index of the last stage."""
    return max((int(name.split(".")[1]) for name in names if name.startswith("layers.")), default=0)
