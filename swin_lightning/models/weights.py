"""Read parameters from files of any project that publishes Swin Transformers, and write them back (`formats.py`).

Everything is strict. Buffers that can be computed are dropped, every other difference is an error that names it.
"""

import json
import logging
import math
import pickle
import re
import shlex
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from swin_lightning.errors import UserError
from swin_lightning.models import weight_formats as formats
from swin_lightning.models.resize import BiasResize, centre_bias_table, resize_bias_table, resize_position_embedding
from swin_lightning.models.swin import BasicLayer, SwinTransformer, WindowAttention
from swin_lightning.models.swin_v2 import SwinTransformerV2, WindowAttentionV2, log_spaced_coords
from swin_lightning.models.weight_formats import BUFFERS, LEFT_OUT, Format, Slot, StateDict

log = logging.getLogger(__name__)

HeadRows = Literal["imagenet22k"]
# where each class of ImageNet-1K stands among those of ImageNet-22K, as in timm's imagenet21k_goog_synsets.txt; only
# the teddy bear has the row of the garment called teddy, 5564, as in microsoft/Swin-Transformer
IMAGENET22K_ROWS = Path(__file__).parent / "imagenet22k_rows.txt"
WRAPPERS = ("state_dict_ema", "model_ema", "model", "state_dict")  # where timm and torchvision keep averaged weights


def read_checkpoint(path: str | Path) -> dict[str, object]:
    """Read a `.ckpt`, `.pth` or `.safetensors` file without running code from it.

    Raises:
        ValueError: If there is no such file, it is no checkpoint, or it holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {str(path)!r}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "GLOBAL" in str(error):
            raise UserError(_unsafe(path, str(error))) from error
        raise UserError(f"checkpoint {str(path)!r} is not a checkpoint, or it is damaged") from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, BadZipFile) as error:
        raise UserError(f"checkpoint {str(path)!r} is not a checkpoint, or it is damaged") from error
    except Exception as error:  # safetensors raises its own class, which needs the library to be named
        raise UserError(f"checkpoint {str(path)!r} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"checkpoint {str(path)!r} holds a {type(content).__name__} instead of a dict of parameters")
    return content


def load_weights(
    classifier: nn.Module, path: str | Path, bias_resize: BiasResize = "bicubic", head_rows: HeadRows | None = None
) -> None:
    """Fill a classifier (`backbone.*`, `head.*`) with the parameters of a file, whose format is detected and said.

    Relative position bias tables of another window, and absolute position embeddings of another image, are resized.
    Swin V2 computes its bias from coordinates and needs no resizing, but the window that the file was trained with as
    `pretrained_window_sizes` of the backbone. A head of another number of classes keeps its initial values. Averaged
    weights are taken where the file has them.

    Args:
        classifier: Module with a `backbone` and a linear `head`.
        path: `.ckpt`, `.pth` or `.safetensors` file: of this project, official (also SimMIM), of timm, torchvision,
            transformers or mmpretrain.
        bias_resize: How bias tables of another window are resized, see `resize.resize_bias_table`.
        head_rows: `imagenet22k` takes the rows of the 1,000 classes of ImageNet-1K, in the order of their names, from a
            head of 21,841 classes, as the official fine-tuning does.

    Raises:
        ValueError: If the file cannot be read or differs in names or shapes; nothing is loaded then.
    """
    entries, kind = _parameters(read_checkpoint(path), path)
    source = formats.detect(entries)
    own = {name: p for name, p in classifier.state_dict().items() if name.startswith(("backbone.", "head."))}
    backbone = cast(nn.Module, classifier.backbone)
    slots, head = _fit_head(_slots(source, own), own, entries, head_rows)

    expected = {slot.entry for parts in slots.values() for slot in parts}
    missing = [f"missing {entry}" for entry in sorted(expected - entries.keys())]
    unexpected = [f"unexpected {entry}" for entry in entries if entry not in expected]
    wrong: list[str] = []
    state, resized = {}, set()
    for name, parts in slots.items():
        if all(slot.entry in entries for slot in parts):
            found = [entries[slot.entry] for slot in parts]
            if len(parts) == 1 and found[0].shape != own[name].shape and _alike(name, slots, entries):
                found[0], how = _resized(name, found[0], own[name], backbone, bias_resize)
                resized |= set(how)
            if misfits := _wrong_shapes(parts, found, own[name]):
                wrong += misfits
            else:
                state[name] = formats.joined(found, parts)
    if problems := missing + unexpected + wrong:
        shown = [*missing[:2], *unexpected[:2], *wrong[:2]]
        shown += [f"and {len(problems) - len(shown)} more"] * (len(problems) > len(shown))
        raise UserError(f"weights {str(path)!r} ({source.name} format) do not fit the model: {'; '.join(shown)}")
    if source.unfold:
        merged = [name for name in state if formats.has_merged_channels(name, state)]
        state.update({name: formats.from_unfold(state[name]) for name in merged})
    classifier.load_state_dict(state, strict=False)  # the names were compared above; metrics have no place in files
    said = "; ".join([f"{len(state)} parameters", *sorted(resized)])
    log.info("weights %s: %s format%s, %s", path, source.name, kind, said)
    if head:
        log.warning("weights %s: %s", path, head)


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
    backbone = cast(SwinTransformer, classifier.backbone)
    clamps = layout in (formats.OFFICIAL, formats.TIMM, formats.TRANSFORMERS_V2)  # a window larger than the map
    official = {_official(name): value for name, value in own.items()}
    if layout in (formats.OFFICIAL, formats.TIMM):  # whose tables are those of the clamped windows
        official = {name: _clamped(name, value, backbone) for name, value in official.items()}
    state = formats.written(official, layout)
    _say_where_others_pad(backbone, target, clamps)
    if layout is formats.TORCHVISION:  # the one that saves what it could compute
        state.update(_torchvision_buffers(backbone))
    return state


def save_weights(classifier: nn.Module, path: str | Path, target: str = "swin_lightning") -> None:
    """Write `export_weights` to a `.safetensors` file, or to a `.pth` file in the wrapper that the project expects.

    Raises:
        ValueError: For another ending of the path, or what `export_weights` refuses.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pth"):
        raise UserError(f"output {str(path)!r} must end with .safetensors or .pth")
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
    """What to do with a file that holds objects, as official training checkpoints hold their configuration.

    The way out is offered only where it leads: the objects are read as dictionaries here, and the rest is found.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # of the format before torch 1.6, which tells one object at a time
        names = re.findall(r"GLOBAL ([\w.]+)", error)
    said = (
        f"checkpoint {str(path)!r} holds Python objects besides tensors ({', '.join(names)}), and loading them could "
    )
    said += "run code; nothing was loaded. "
    try:
        with torch.serialization.safe_globals([(OrderedDict, name) for name in names]):
            content = torch.load(path, map_location="cpu", weights_only=True)
        wrapper = next(key for key in WRAPPERS if isinstance(content.get(key), dict))
    except Exception:
        return said + "They are needed to read it: ask its author for the parameters alone, model.state_dict()"
    stand_ins = ", ".join(f'(OrderedDict, "{name}")' for name in names)
    code = (
        "import torch; from collections import OrderedDict; "
        f"torch.serialization.add_safe_globals([{stand_ins}]); "
        f'torch.save(torch.load({json.dumps(str(path))}, map_location="cpu", weights_only=True)["{wrapper}"], '
        f"{json.dumps(str(path.with_suffix('.weights.pth')))})"
    )
    return said + f"This reads them as plain dictionaries and keeps the parameters: python -c {shlex.quote(code)}"


def _parameters(content: Mapping[str, object], path: str | Path) -> tuple[StateDict, str]:
    """A file's parameters without wrapper, buffers and what belongs to no classifier, and a remark on their kind."""
    remark = ""
    wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), dict)), None)
    if "pytorch-lightning_version" in content:
        remark = " (averaged weights of a run)" if "current_model_state" in content else " (checkpoint of a run)"
    elif wrapper and "ema" in wrapper:
        remark = " (averaged weights)"
    if wrapper:
        content = cast(Mapping[str, object], content[wrapper])
    if not any(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"checkpoint {str(path)!r} holds no parameters")
    state: StateDict = {}
    left_out = []
    for key, value in content.items():
        name = re.sub(r"^(?:module\.|_orig_mod\.)+|(?<![^.])_orig_mod\.", "", str(key))  # parallel, averaged, compiled
        name = name.replace(".rpe_mlp.", ".cpb_mlp.")  # of SimMIM's first V2 models
        if not isinstance(value, Tensor):
            raise UserError(f"weights {str(path)!r} do not fit the model: {name} is a {type(value).__name__}")
        if re.search(LEFT_OUT, name.removeprefix("encoder.")):
            left_out.append(name)
        elif name.rsplit(".", 1)[-1] not in BUFFERS:
            state[name] = value
    if left_out:
        log.info("weights %s: left out %s, parts of masked image modelling", path, ", ".join(left_out))
    return state, remark


def _official(name: str) -> str:
    return name.removeprefix("backbone.")


def _slots(source: Format, own: Mapping[str, Tensor]) -> dict[str, list[Slot]]:
    """Where a file of this format keeps each of the classifier's parameters."""
    if source.name == formats.SWIN_LIGHTNING.name:
        return {name: [Slot(name)] for name in own}  # whatever the backbone
    last_stage = formats.last_stage_of(map(_official, own))
    return {name: source.slots(_official(name), last_stage) for name in own}


def _fit_head(
    slots: dict[str, list[Slot]], own: Mapping[str, Tensor], entries: StateDict, rows: HeadRows | None
) -> tuple[dict[str, list[Slot]], str]:
    """Leave the head as it is where the file has none or one of other classes, or give it the rows of its classes.

    Returns:
        The slots, without those of a head that is left as it is, and a line on what happened to the head, or "".
    """
    if not {"head.weight", "head.bias"} <= own.keys():
        return slots, ""
    names, classes = [slots[name][0].entry for name in ("head.weight", "head.bias")], len(own["head.weight"])
    weight, bias = (entries.get(name) for name in names)
    if (weight is None) != (bias is None):
        return slots, ""
    found = "no head"
    if weight is not None and bias is not None:
        regular = weight.ndim == 2 and weight.shape[1] == own["head.weight"].shape[1] and bias.shape == weight.shape[:1]
        if not regular or len(weight) == classes:
            return slots, ""
        found = f"a head of {len(weight)} classes"
        if rows is not None and (len(weight), classes) == (21841, 1000):
            chosen = torch.tensor([int(row) for row in IMAGENET22K_ROWS.read_text().split()])
            entries.update({name: entries[name][chosen] for name in names})
            return slots, f"of {found}, ours has the {classes} rows of ImageNet-1K"
    for name in names:
        entries.pop(name, None)
    slots = {name: parts for name, parts in slots.items() if name not in ("head.weight", "head.bias")}
    return slots, f"the file has {found}; ours of {classes} is new"


def _resized(
    name: str, value: Tensor, own: Tensor, backbone: nn.Module, mode: BiasResize
) -> tuple[Tensor, tuple[str, ...]]:
    """A table of another window, or an embedding of another map, in our size, and what was done; else unchanged."""
    if name.endswith("relative_position_bias_table") and value.ndim == 2 and value.shape[1] == own.shape[1]:
        old, new = _window(value), _window(own)
        if (2 * old - 1) ** 2 != len(value):
            return value, ()
        said = []
        if old != (window := min(new, max(old, _map_side(_official(name), backbone, new)))):
            value = resize_bias_table(value, window, mode)
            said.append(f"bias tables resized from window {old} to {window} ({mode})")
        if window != new:  # official and timm models have a table of the clamped window where the map is smaller
            value = centre_bias_table(value, new)
            said.append(f"bias tables of window {window} are the centre of window {new}")
        return value, tuple(said)
    if name.endswith("absolute_pos_embed") and value.ndim == 3 and value.shape[2] == own.shape[2]:
        square = math.isqrt(value.shape[1]) ** 2 == value.shape[1]
        if square:
            return resize_position_embedding(value, own.shape[1]), ("position embedding resized (bicubic)",)
    return value, ()


def _map_side(name: str, backbone: nn.Module, default: int) -> int:
    """Side of the map of an official parameter's stage at the backbone's `img_size`, if it is a backbone of ours."""
    stage = re.match(r"layers\.(\d+)\.", name)
    return backbone.stage_size(int(stage[1])) if stage and isinstance(backbone, SwinTransformer) else default


def _clamped(name: str, value: Tensor, backbone: SwinTransformer) -> Tensor:
    """A bias table without the offsets that the map of its stage has not; other parameters as they are."""
    if not name.endswith("relative_position_bias_table"):
        return value
    return centre_bias_table(value, min(_window(value), _map_side(name, backbone, _window(value))))


def _say_where_others_pad(backbone: SwinTransformer, target: str, clamps: bool) -> None:
    """Every other project lets the tokens attend to the pads of a window, or cannot pad; ours does not attend."""
    sides = [backbone.stage_size(stage) for stage in range(len(backbone.layers))]
    window = cast(BasicLayer, backbone.layers[0]).window_size
    if uneven := [side for side in sides if side % window and not (clamps and side < window)]:
        log.warning(
            "%s attends to pads or fails where a map is no multiple of window %d, here at side %s: answers will differ",
            target,
            window,
            ", ".join(map(str, uneven)),
        )


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
        raise UserError(f"format {target!r} is unknown; choose one of {', '.join(formats.WRITTEN)}")
    backbone = classifier.backbone
    if not isinstance(backbone, SwinTransformer) and target != formats.SWIN_LIGHTNING.name:
        raise UserError(f"format {target!r} holds Swin Transformers, and the backbone is a {type(backbone).__name__}")
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
