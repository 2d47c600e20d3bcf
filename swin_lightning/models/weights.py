"""Load weights from checkpoints of any project that publishes Swin Transformers, and save them in the same formats.

Loading is strict: buffers that the model computes itself are dropped, every other difference is an error.
"""

import logging
import math
import re
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from swin_lightning.errors import UserError
from swin_lightning.models import weight_formats as formats
from swin_lightning.models.attention import WindowAttention
from swin_lightning.models.resize import BiasResize, centre_bias_table, resize_bias_table, resize_position_embedding
from swin_lightning.models.swin import BasicLayer, SwinTransformer
from swin_lightning.models.swin_v2 import SwinTransformerV2, WindowAttentionV2, log_spaced_coords
from swin_lightning.models.weight_errors import describe_mismatch, invalid_values, suggest_model
from swin_lightning.models.weight_files import read_checkpoint, read_parameters, trained_windows
from swin_lightning.models.weight_formats import Format, KeyMapping, Mappings, StateDict
from swin_lightning.models.windows import relative_position_index

__all__ = ["HeadRows", "export_weights", "load_weights", "read_checkpoint", "save_weights"]

log = logging.getLogger(__name__)

HeadRows = Literal["imagenet22k"]
# Indices of the ImageNet-1K classes in ImageNet-22K, as in timm's imagenet21k_goog_synsets.txt, except that the teddy
# bear has row 5564 (teddy, the garment), as in microsoft/Swin-Transformer
IMAGENET22K_ROWS = Path(__file__).parent / "imagenet22k_rows.txt"


def load_weights(
    model: nn.Module, path: str | Path, bias_resize: BiasResize = "bicubic", head_rows: HeadRows | None = None
) -> None:
    """Load the weights of a checkpoint, whose format is detected and logged.

    Relative position bias tables are interpolated to another window size, absolute position embeddings to another
    image size. Swin V2 needs no interpolation, but the window size of the pre-training as `pretrained_window_sizes`
    of the backbone. A head with another number of classes is not loaded and keeps its initial values. Averaged (EMA)
    weights are preferred if the checkpoint has them.

    Args:
        model: Module with a `backbone` and optionally a linear `head`, such as a task, or a backbone itself. If it has
            no head, the head of the checkpoint is ignored.
        path: `.ckpt`, `.pth` or `.safetensors` file of this project, the official repositories (Swin, SimMIM), timm,
            torchvision, transformers or mmpretrain, or of a trainer that wraps one of their models; also an index of
            shards, a TorchScript archive, `https://...` or `hf-hub:owner/name` (see `weight_download.local_file`).
        bias_resize: Interpolation of bias tables, see `resize.resize_bias_table`.
        head_rows: `imagenet22k` initialises a head of 1000 classes with the ImageNet-1K rows of a 21841-class head, as
            the official fine-tuning does.

    Raises:
        UserError: If the file cannot be read, or keys or shapes do not match the model; nothing is loaded then.
    """
    own = _own_parameters(model) | _pretraining_parameters(model)
    file = read_parameters(path, own)
    entries, source = file.state, file.source
    mappings, head = _match_head(formats.map_names(source, own), own, entries, head_rows)
    mappings, initialised = _match_pretraining(mappings, entries)
    if not any(_official(name).startswith("head.") for name in own):
        _drop_head(entries, source, path)

    expected = {mapping.key for parts in mappings.values() for mapping in parts}
    wrong: list[str] = []
    state, resized = {}, set()
    for name, parts in mappings.items():
        if all(mapping.key in entries for mapping in parts):
            found = [entries[mapping.key] for mapping in parts]
            if problem := next(filter(None, (invalid_values(entries[p.key], own[name]) for p in parts)), None):
                raise UserError(f"weights {str(path)!r}: {parts[0].key} {problem}")
            if len(parts) == 1 and found[0].shape != own[name].shape and _same_shape_in_stage(name, mappings, entries):
                found[0], how = _resize(name, found[0], own[name], _backbone_of(model), bias_resize)
                resized |= set(how)
            if mismatches := _wrong_shapes(parts, found, own[name]):
                wrong += mismatches
            else:
                state[name] = formats.merge_chunks(found, parts)
    if problems := describe_mismatch(expected, entries, wrong):
        remedy = suggest_model(own, entries)
        raise UserError(f"weights {str(path)!r} ({source.name} format) do not match the model: {problems}{remedy}")
    if source.unfold_order:
        merged = [name for name in state if formats.has_merged_channels(name, state)]
        state.update({name: formats.from_unfold_order(state[name]) for name in merged})
    if _backbone_of(model) is model:
        state = {name.removeprefix("backbone."): value for name, value in state.items()}
    model.load_state_dict(state, strict=False)  # keys were compared above; the model may have further parts
    summary = "; ".join([f"{len(state)} parameters", *sorted(resized)])
    log.info("weights %s: %s format%s, %s", path, source.name, file.remark, summary)
    for message in filter(None, (head, initialised)):
        log.warning("weights %s: %s", path, message)
    if isinstance(backbone := _backbone_of(model), SwinTransformerV2):
        trained = trained_windows(file, len(backbone.layers))
        layers = cast(list[BasicLayer], backbone.layers)
        if trained and trained != [cast(WindowAttentionV2, layer.blocks[0].attn).trained_window[0] for layer in layers]:
            log.warning(
                "weights %s: the windows of the pre-training were %s, by which coordinates are normalised; build the "
                "model with pretrained_window_sizes=%s",
                path,
                ", ".join(map(str, trained)),
                trained,
            )


def export_weights(model: nn.Module, target: str = "swin_lightning") -> StateDict:
    """Convert the weights of a model to the format of another project.

    Args:
        model: Module with a Swin `backbone` and a linear `head`, or a backbone.
        target: `swin_lightning`, `official`, `timm`, `torchvision`, `transformers`, `transformers4` (V1 before
            release 5) or `mmpretrain`.

    Returns:
        State dict for `load_state_dict` of the other project's classifier; copies, no shared memory.

    Raises:
        UserError: If the format is unknown, or is that of another project and the backbone is not a Swin Transformer.
    """
    own = {name: value.detach() for name, value in _own_parameters(model).items()}
    layout = _export_format(model, target)
    if layout is formats.SWIN_LIGHTNING:
        return {name: value.clone() for name, value in own.items()}
    backbone = cast(SwinTransformer, _backbone_of(model))
    official = {_official(name): value for name, value in own.items()}
    if layout in (formats.OFFICIAL, formats.TIMM):  # their bias tables have the size of the clamped window
        official = {name: _crop_bias_table(name, value, backbone) for name, value in official.items()}
    state = formats.to_format(official, layout)
    _warn_about_padding(backbone, layout, target)
    if layout is formats.TORCHVISION:  # the only one with buffers in its state dict
        state.update(_torchvision_buffers(backbone))
    return state


def save_weights(model: nn.Module, path: str | Path, target: str = "swin_lightning") -> None:
    """Write `export_weights` to a `.safetensors` file, or to a `.pth` file in the wrapper that the project expects.

    Raises:
        UserError: If the path has another suffix, or `export_weights` raises it.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pth"):
        raise UserError(f"output {str(path)!r} must end with .safetensors or .pth")
    state = export_weights(model, target)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in state.items()}, path, metadata={"format": "pt"})
    else:
        wrapper = _export_format(model, target).wrapper
        torch.save({wrapper: state} if wrapper else state, path)


# parameters of the model, named `backbone.*` and `head.*` even if the model is a backbone


def _backbone_of(model: nn.Module) -> nn.Module:
    backbone = getattr(model, "backbone", None)
    return backbone if isinstance(backbone, nn.Module) else model


def _own_parameters(model: nn.Module) -> StateDict:
    """Parameters and buffers of backbone and head; other parts of a task are not in weight files."""
    state = model.state_dict()
    if _backbone_of(model) is model:
        state = {name if name.startswith("head.") else f"backbone.{name}": value for name, value in state.items()}
    return {name: value for name, value in state.items() if name.startswith(formats.OWN_PREFIXES)}


def _pretraining_parameters(model: nn.Module) -> StateDict:
    """Mask token and decoder of masked image modelling, of a task that has both."""
    state = model.state_dict()
    names = [name for name in state if name.startswith(formats.PRETRAINING_PREFIXES)]
    return {name: state[name] for name in names} if "mask_token" in names and len(names) > 1 else {}


def _official(name: str) -> str:
    return name.removeprefix("backbone.")


# matching file and model


def _match_head(mappings: Mappings, own: StateDict, entries: StateDict, rows: HeadRows | None) -> tuple[Mappings, str]:
    """Keep the initial head if the file has none or one of another size, or select rows of the file's head.

    Returns:
        The mappings, without those of a head that keeps its initial values, and a message about the head, or "".
    """
    names = [f"head.{part}" if f"head.{part}" in own else f"backbone.head.{part}" for part in ("weight", "bias")]
    if not own.keys() >= set(names):
        return mappings, ""
    keys, num_classes = [mappings[name][0].key for name in names], len(own[names[0]])
    weight, bias = (entries.get(key) for key in keys)
    if (weight is None) != (bias is None):
        return mappings, ""
    message = f"no classifier in checkpoint; initialised a new {num_classes}-class head"
    if weight is not None and bias is not None:
        linear = weight.ndim == 2 and weight.shape[1:] == own[names[0]].shape[1:] and bias.shape == weight.shape[:1]
        if not linear or len(weight) == num_classes:
            return mappings, ""
        if rows is not None and (len(weight), num_classes) == (21841, 1000):
            selected = torch.tensor([int(row) for row in IMAGENET22K_ROWS.read_text(encoding="utf-8").split()])
            entries.update({key: entries[key][selected] for key in keys})
            return mappings, "classifier: selected the 1000 ImageNet-1K rows of the 21841-class head"
        message = f"classifier: checkpoint has {len(weight)} classes; initialised a new {num_classes}-class head"
        message += f" (to keep the classifier, build the model with num_classes={len(weight)})"
    for key in keys:
        entries.pop(key, None)
    return {name: parts for name, parts in mappings.items() if name not in names}, message


def _match_pretraining(mappings: Mappings, entries: StateDict) -> tuple[Mappings, str]:
    """Keep the initial mask token and decoder if the file has none, as that of a classifier."""
    names = [name for name in mappings if name.startswith(formats.PRETRAINING_PREFIXES)]
    if not names or any(mappings[name][0].key in entries for name in names):
        return mappings, ""
    kept = {name: parts for name, parts in mappings.items() if name not in names}
    return kept, "no mask token and decoder in checkpoint; initialised new ones"


def _drop_head(entries: StateDict, source: Format, path: str | Path) -> None:
    """Remove the head of a file, for a model without one."""
    prefix = source.map_key("head.weight", 0)[0].key.removesuffix("weight")
    if head := [key for key in entries if key.startswith(prefix)]:
        log.info("weights %s: ignored the classifier of the checkpoint: the model has no head", path)
    for key in head:
        del entries[key]


def _resize(
    name: str, value: Tensor, own: Tensor, backbone: nn.Module, mode: BiasResize
) -> tuple[Tensor, tuple[str, ...]]:
    """Fit a parameter to the window, image size or channels of the model, and describe what was done."""
    if name.endswith("patch_embed.proj.weight") and value.ndim == 4 and own.shape[2:] == value.shape[2:]:
        n = own.shape[1]  # a grey image, repeated over the channels, gives the same tokens as before
        how = "sum over channels" if n == 1 else f"mean over channels times {value.shape[1]}/{n}"
        adapted = (value.sum(dim=1, keepdim=True) / n).expand(-1, n, -1, -1)
        return adapted, (f"patch embedding adapted from {value.shape[1]} to {n} channels ({how})",)
    layer = _stage_of(name, backbone)
    if name.endswith("relative_position_bias_table") and layer is not None and value.ndim == 2:
        side = math.isqrt(len(value))
        old, new = (side // 2 + 1, side // 2 + 1), layer.window_size
        if side**2 != len(value) or side % 2 == 0 or value.shape[1] != own.shape[1]:
            return value, ()
        done = []
        window = _clamped_window(name, backbone, new, at_least=old)
        if old != window:
            value = resize_bias_table(value, window, mode)
            done.append(f"bias tables resized from window {_show(old)} to {_show(window)} ({mode})")
        if window != new:  # official and timm models have tables of the clamped window where the map is smaller
            value = centre_bias_table(value, window, new)
            done.append(f"bias tables of window {_show(window)} padded to window {_show(new)}")
        return value, tuple(done)
    if name.endswith("absolute_pos_embed") and value.ndim == 3 and value.shape[2] == own.shape[2]:
        square = math.isqrt(value.shape[1]) ** 2 == value.shape[1]
        if square and isinstance(backbone, SwinTransformer):
            return resize_position_embedding(value, backbone.stage_size(0)), ("position embedding resized (bicubic)",)
    return value, ()


def _same_shape_in_stage(name: str, mappings: Mappings, entries: StateDict) -> bool:
    """Whether a parameter has the same shape in all blocks of its stage in the file, since they share a window size."""
    stage, _, inner = name.partition(".blocks.")
    end = inner.partition(".")[2]
    keys = [mappings[key][0].key for key in mappings if key.startswith(stage + ".") and key.endswith(end)]
    return not inner or len({entries[key].shape for key in keys if key in entries}) == 1


def _wrong_shapes(mappings: list[KeyMapping], found: list[Tensor], own: Tensor) -> list[str]:
    """A message for each tensor of the file that does not have the shape of its part of the parameter."""
    wrong = []
    for mapping, value in zip(mappings, found, strict=True):
        shape = tuple(own.shape)
        if mapping.qkv_chunk is not None:
            shape = (3 * shape[0], *shape[1:])
        elif len(mappings) > 1:
            shape = (shape[0] // len(mappings), *shape[1:])
        if tuple(value.shape) != shape:
            wrong.append(f"{mapping.key} has shape {tuple(value.shape)}, expected {shape}")
    return wrong


def _stage_of(name: str, backbone: nn.Module) -> BasicLayer | None:
    """The stage of a parameter of a Swin backbone."""
    stage = re.match(r"layers\.(\d+)\.", _official(name))
    return cast(BasicLayer, backbone.layers[int(stage[1])]) if stage and isinstance(backbone, SwinTransformer) else None


def _clamped_window(
    name: str, backbone: nn.Module, window: tuple[int, int], at_least: tuple[int, int] = (1, 1)
) -> tuple[int, int]:
    """Window clamped to the feature map at `img_size` in the stage of a parameter, but not below `at_least`."""
    size = cast(SwinTransformer, backbone).stage_size(int(_official(name).split(".")[1]))
    h, w = (min(M, max(old, n)) for M, old, n in zip(window, at_least, size, strict=True))
    return h, w


def _show(window: tuple[int, int]) -> str:
    h, w = window
    return str(h) if h == w else f"{h}x{w}"


# export


def _export_format(model: nn.Module, target: str) -> Format:
    if target not in formats.EXPORT_FORMATS:
        raise UserError(f"unknown format {target!r}; choose one of {', '.join(formats.EXPORT_FORMATS)}")
    backbone = _backbone_of(model)
    if not isinstance(backbone, SwinTransformer) and target != formats.SWIN_LIGHTNING.name:
        raise UserError(f"format {target!r} requires a Swin Transformer; the backbone is a {type(backbone).__name__}")
    return formats.EXPORT_FORMATS[target][isinstance(backbone, SwinTransformerV2)]


def _crop_bias_table(name: str, value: Tensor, backbone: SwinTransformer) -> Tensor:
    """Crop a bias table to the window clamped to the feature map of its stage; other parameters are unchanged."""
    layer = _stage_of(name, backbone)
    if layer is None or not name.endswith("relative_position_bias_table"):
        return value
    return centre_bias_table(value, layer.window_size, _clamped_window(name, backbone, layer.window_size))


def _warn_about_padding(backbone: SwinTransformer, layout: Format, target: str) -> None:
    """Other projects let tokens attend to the padding of a window, or do not support padding."""
    clamps = layout in (formats.OFFICIAL, formats.TIMM, formats.TRANSFORMERS_V2)  # windows larger than the map
    window = cast(BasicLayer, backbone.layers[0]).window_size
    sizes = [backbone.stage_size(stage) for stage in range(len(backbone.layers))]
    padded = [
        size for size in sizes if any(n % M and not (clamps and n < M) for n, M in zip(size, window, strict=True))
    ]
    if padded:
        log.warning(
            "%s attends to padding or fails: its outputs will differ, since feature maps of side %s are not a multiple "
            "of the window size %s",
            target,
            ", ".join(map(_show, padded)),
            _show(window),
        )


def _torchvision_buffers(backbone: SwinTransformer) -> StateDict:
    """Index and, for V2, coordinates, which a strict `load_state_dict` of torchvision requires."""
    buffers, same = {}, True
    for name, module in backbone.named_modules():
        if isinstance(module, WindowAttention):
            M_h, M_w = module.window_size
            buffers[f"{name}.relative_position_index"] = relative_position_index(module.window_size).flatten()
            if isinstance(module, WindowAttentionV2):
                coords = log_spaced_coords(module.window_size, module.window_size)
                buffers[f"{name}.relative_coords_table"] = coords.view(1, 2 * M_h - 1, 2 * M_w - 1, 2)
                same = same and module.trained_window == module.window_size
    if not same:
        log.warning("torchvision has no pretrained_window_sizes: its position bias and outputs will differ")
    return {formats.TORCHVISION.map_key(name, 0)[0].key: value for name, value in buffers.items()}
