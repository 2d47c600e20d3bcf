"""Read parameters from files of any project that publishes Swin Transformers, and write them back (`formats.py`).

Everything is strict. Buffers that can be computed are dropped, every other difference is an error that names it.
"""

import logging
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from swin_lightning.models import formats
from swin_lightning.models.formats import BUFFERS, LEFT_OUT, Format, Slot, StateDict
from swin_lightning.models.resize import BiasResize, centre_bias_table, resize_bias_table, resize_position_embedding
from swin_lightning.models.swin import SwinTransformer, WindowAttention
from swin_lightning.models.swin_v2 import SwinTransformerV2, WindowAttentionV2, log_spaced_coords

log = logging.getLogger(__name__)


def read_checkpoint(path: str | Path) -> dict[str, object]:
    """Read a `.ckpt`, `.pth` or `.safetensors` file without running code from it.

    Raises:
        ValueError: If there is no such file, it is no checkpoint, or it holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"checkpoint {str(path)!r}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "GLOBAL" in str(error):
            raise ValueError(_unsafe(path, str(error))) from error
        raise ValueError(f"checkpoint {str(path)!r} is not a checkpoint, or it is damaged") from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, BadZipFile) as error:
        raise ValueError(f"checkpoint {str(path)!r} is not a checkpoint, or it is damaged") from error
    except Exception as error:  # safetensors raises its own class, which needs the library to be named
        raise ValueError(f"checkpoint {str(path)!r} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {str(path)!r} holds a {type(content).__name__} instead of a dict of parameters")
    return content


def load_weights(classifier: nn.Module, path: str | Path, bias_resize: BiasResize = "bicubic") -> None:
    """Fill a classifier (`backbone.*`, `head.*`) with the parameters of a file, whose format is detected and said.

    Relative position bias tables of another window, and absolute position embeddings of another image, are resized.
    Swin V2 computes its bias from coordinates and needs no resizing, but the window that the file was trained with as
    `pretrained_window_sizes` of the backbone. A head of another number of classes keeps its initial values.

    Args:
        classifier: Module with a `backbone` and a linear `head`.
        path: `.ckpt`, `.pth` or `.safetensors` file: of this project, official (also SimMIM), of timm, torchvision,
            transformers or mmpretrain.
        bias_resize: How bias tables of another window are resized, see `resize.resize_bias_table`.

    Raises:
        ValueError: If the file cannot be read or differs in names or shapes; nothing is loaded then.
    """
    entries, kind = _parameters(read_checkpoint(path), path)
    source = formats.detect(entries)
    own = {name: p for name, p in classifier.state_dict().items() if name.startswith(("backbone.", "head."))}
    slots = _slots(source, own)
    slots = _without_other_head(slots, own, entries, path)

    expected = {slot.entry for parts in slots.values() for slot in parts}
    problems = [f"missing {entry}" for entry in sorted(expected - entries.keys())]
    problems += [f"unexpected {entry}" for entry in entries if entry not in expected]
    state, resized = {}, set()
    largest = max(
        (_window(p) for entry, p in entries.items() if entry.endswith("position_bias_table") and p.ndim == 2), default=0
    )
    for name, parts in slots.items():
        if all(slot.entry in entries for slot in parts):
            found = [entries[slot.entry] for slot in parts]
            if len(parts) == 1 and found[0].shape != own[name].shape and _alike(name, slots, entries):
                found[0], how = _resized(name, found[0], own[name], largest, bias_resize)
                resized |= {how} - {""}
            wrong = _wrong_shapes(parts, found, own[name])
            problems += wrong
            if not wrong:
                state[name] = formats.joined(found, parts)
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise ValueError(f"weights {str(path)!r} ({source.name} format) do not fit the model: {shown}")
    if source.unfold:
        merged = [name for name in state if formats.has_merged_channels(name, state)]
        state.update({name: formats.from_unfold(state[name]) for name in merged})
    classifier.load_state_dict(state, strict=False)  # the names were compared above; metrics have no place in files
    said = "; ".join([f"{len(state)} parameters", *sorted(resized)])
    log.info("weights %s: %s format%s, %s", path, source.name, kind, said)


def export_weights(classifier: nn.Module, target: str) -> StateDict:
    """The parameters of a classifier as another project names and lays them out.

    Args:
        classifier: Module with a Swin `backbone` and a linear `head`.
        target: `swin_lightning`, `official`, `timm`, `torchvision`, `transformers`, `transformers4` (V1 before
            release 5) or `mmpretrain`.

    Returns:
        What the other project's model takes with `load_state_dict`, by its names; no tensor is shared.

    Raises:
        ValueError: For an unknown format, or another backbone than ours in a format that is not ours.
    """
    own = {name: p.detach() for name, p in classifier.state_dict().items() if name.startswith(("backbone.", "head."))}
    layout = _written_format(classifier, target)
    if layout is formats.SWIN_LIGHTNING:
        return {name: value.clone() for name, value in own.items()}
    state = formats.written({_official(name): value for name, value in own.items()}, layout)
    if layout is formats.TORCHVISION:  # the one that saves what it could compute
        state.update(_torchvision_buffers(cast(SwinTransformer, classifier.backbone)))
    return state


def save_weights(classifier: nn.Module, path: str | Path, target: str = "swin_lightning") -> None:
    """Write `export_weights` to a `.safetensors` file, or to a `.pth` file in the wrapper that the project expects.

    Raises:
        ValueError: For another ending of the path, or what `export_weights` refuses.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pth"):
        raise ValueError(f"output {str(path)!r} must end with .safetensors or .pth")
    state = export_weights(classifier, target)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in state.items()}, path, metadata={"format": "pt"})
    else:
        wrapper = _written_format(classifier, target).wrapper
        torch.save({wrapper: state} if wrapper else state, path)


# helpers


def _unsafe(path: Path, error: str) -> str:
    """What to do with a file that holds objects, as official training checkpoints hold their configuration."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # of the format before torch 1.6, whose first object only the error tells
        names = re.findall(r"GLOBAL ([\w.]+)", error)
    stand_ins = ", ".join(f"(OrderedDict, '{name}')" for name in names)
    return (
        f"checkpoint {str(path)!r} holds Python objects besides tensors ({', '.join(names)}), and loading them could "
        "run code; nothing was loaded. To keep the parameters without running any, read the objects as plain "
        f"dictionaries: with torch.serialization.safe_globals([{stand_ins}]): "
        "torch.save(torch.load(PATH, weights_only=True)['model'], NEW)"
    )


def _parameters(content: Mapping[str, object], path: str | Path) -> tuple[StateDict, str]:
    """A file's parameters without wrapper, buffers and what belongs to no classifier, and a remark on their kind."""
    remark = ""
    if "pytorch-lightning_version" in content:
        remark = " (averaged weights of a run)" if "current_model_state" in content else " (checkpoint of a run)"
    for wrapper in ("model", "state_dict"):
        if isinstance(content.get(wrapper), dict):
            content = cast(Mapping[str, object], content[wrapper])
            break
    if not any(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"checkpoint {str(path)!r} holds no parameters")
    state: StateDict = {}
    left_out = []
    for key, value in content.items():
        name = re.sub(r"^module\.|(?<![^.])_orig_mod\.", "", str(key))  # of data-parallel and compiled models
        name = name.replace(".rpe_mlp.", ".cpb_mlp.")  # of SimMIM's first V2 models
        if not isinstance(value, Tensor):
            raise ValueError(f"weights {str(path)!r} do not fit the model: {name} is a {type(value).__name__}")
        if re.search(LEFT_OUT, name.removeprefix("encoder.")):
            left_out.append(name)
        elif name.rsplit(".", 1)[-1] not in BUFFERS:
            state[name] = value
    if left_out:
        log.info("weights %s: left out %s, which belong to masked image modelling", path, ", ".join(left_out))
    return state, remark


def _official(name: str) -> str:
    return name.removeprefix("backbone.")


def _slots(source: Format, own: Mapping[str, Tensor]) -> dict[str, list[Slot]]:
    """Where a file of this format keeps each of the classifier's parameters."""
    if source.name == formats.SWIN_LIGHTNING.name:
        return {name: [Slot(name)] for name in own}  # whatever the backbone
    last_stage = formats.last_stage_of(map(_official, own))
    return {name: source.slots(_official(name), last_stage) for name in own}


def _without_other_head(
    slots: dict[str, list[Slot]], own: Mapping[str, Tensor], entries: StateDict, path: str | Path
) -> dict[str, list[Slot]]:
    """Leave the head as it is where the file has none or one of other classes; say so, and drop it from the file."""
    if not {"head.weight", "head.bias"} <= own.keys():
        return slots
    names = [slots[name][0].entry for name in ("head.weight", "head.bias")]
    weight, bias = (entries.get(name) for name in names)
    if (weight is None) != (bias is None):
        return slots
    if weight is not None and bias is not None:
        regular = weight.ndim == 2 and weight.shape[1] == own["head.weight"].shape[1] and bias.shape == weight.shape[:1]
        if not regular or len(weight) == len(own["head.weight"]):
            return slots
    found = "none" if weight is None else f"{len(weight)} classes"
    log.warning("weights %s: the file's head has %s; ours of %d is new", path, found, len(own["head.weight"]))
    for name in names:
        entries.pop(name, None)
    return {name: parts for name, parts in slots.items() if name not in ("head.weight", "head.bias")}


def _resized(name: str, value: Tensor, own: Tensor, largest: int, mode: BiasResize) -> tuple[Tensor, str]:
    """A table of another window, or an embedding of another map, in our size, and what was done; else unchanged.

    Args:
        name: Of our parameter.
        value: As it stands in the file.
        own: The parameter it should fill.
        largest: Largest window of the file.
        mode: How tables are resized.
    """
    if name.endswith("relative_position_bias_table") and value.ndim == 2 and value.shape[1] == own.shape[1]:
        old, new = _window(value), _window(own)
        if (2 * old - 1) ** 2 != len(value):
            return value, ""
        if old < largest == new:
            # official and timm models have a smaller table where a stage's map is smaller than the window
            return centre_bias_table(value, new), f"bias tables of window {old} are the centre of window {new}"
        return resize_bias_table(value, new, mode), f"bias tables resized from window {old} to {new} ({mode})"
    if name.endswith("absolute_pos_embed") and value.ndim == 3 and value.shape[2] == own.shape[2]:
        square = math.isqrt(value.shape[1]) ** 2 == value.shape[1]
        if square:
            return resize_position_embedding(value, own.shape[1]), "position embedding resized (bicubic)"
    return value, ""


def _alike(name: str, slots: Mapping[str, list[Slot]], entries: StateDict) -> bool:
    """Whether a parameter has one shape in all blocks of its stage: a window belongs to a stage, not to a block."""
    stage, _, inner = name.partition(".blocks.")
    end = inner.partition(".")[2]
    alike = [slots[key][0].entry for key in slots if key.startswith(stage + ".") and key.endswith(end)]
    return not inner or len({entries[entry].shape for entry in alike if entry in entries}) == 1


def _window(table: Tensor) -> int:
    """Side M of the window that a bias table of `(2M-1)^2` offsets belongs to."""
    return (math.isqrt(len(table)) + 1) // 2


def _wrong_shapes(slots: list[Slot], found: list[Tensor], own: Tensor) -> list[str]:
    """A line for each entry that has not the shape it needs to be this part of our parameter."""
    wrong = []
    for slot, value in zip(slots, found, strict=True):
        shape = tuple(own.shape)
        if slot.third is not None:
            shape = (3 * shape[0], *shape[1:])
        elif len(slots) > 1:
            shape = (shape[0] // len(slots), *shape[1:])
        if tuple(value.shape) != shape:
            wrong.append(f"{slot.entry} has shape {tuple(value.shape)} instead of {shape}")
    return wrong


def _written_format(classifier: nn.Module, target: str) -> Format:
    if target not in formats.WRITTEN:
        raise ValueError(f"format {target!r} is unknown; choose one of {', '.join(formats.WRITTEN)}")
    backbone = classifier.backbone
    if not isinstance(backbone, SwinTransformer) and target != formats.SWIN_LIGHTNING.name:
        raise ValueError(f"format {target!r} holds Swin Transformers, and the backbone is a {type(backbone).__name__}")
    return formats.WRITTEN[target][isinstance(backbone, SwinTransformerV2)]


def _torchvision_buffers(backbone: SwinTransformer) -> StateDict:
    """The indices, and for V2 the coordinates, which a strict `load_state_dict` of torchvision asks for."""
    buffers, same = {}, True
    for name, module in backbone.named_modules():
        if isinstance(module, WindowAttention):
            side = 2 * module.window_size - 1
            buffers[f"{name}.relative_position_index"] = module.relative_position_index.flatten().clone()
            if isinstance(module, WindowAttentionV2):
                coords = log_spaced_coords(module.window_size, module.window_size)
                buffers[f"{name}.relative_coords_table"] = coords.view(1, side, side, 2)
                same = same and torch.allclose(coords, module.relative_coords_table.float().cpu())
    if not same:
        log.warning("torchvision has no pretrained_window_sizes: its bias, and so its answers, will differ from ours")
    return {formats.TORCHVISION.slots(name, 0)[0].entry: value for name, value in buffers.items()}
