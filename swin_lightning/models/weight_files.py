"""Reading checkpoint files without executing code from them."""

import datetime
import json
import logging
import pickle
import re
import shlex
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from swin_lightning.checkpoint_files import corrupt, verify
from swin_lightning.errors import UserError
from swin_lightning.models.torchscript_files import is_torchscript, read_torchscript
from swin_lightning.models.weight_download import local_file
from swin_lightning.models.weight_formats import (
    OWN_PREFIXES,
    PRETRAINING_KEYS,
    PRETRAINING_PREFIXES,
    SIMMIM,
    SWIN_LIGHTNING,
    Format,
    StateDict,
    map_names,
)
from swin_lightning.models.weight_search import Candidate, find_head, find_state_dict

log = logging.getLogger(__name__)

MAX_NESTING, SMALL = 100, 2**26  # of containers; bytes of a tensor whose elements may be views of the same

# keys of the state dict in a checkpoint, for the command that extracts it
WRAPPERS = ("state_dict_ema", "model_ema", "model", "state_dict")


@dataclass(frozen=True)
class Parameters:
    """Parameters of a backbone and its head in a file.

    Args:
        state: The parameters by their keys in the file, without prefixes.
        source: Format of the keys.
        remark: Kind of checkpoint, for logging.
        buffers: Computed buffers, which are not loaded, by their keys.
    """

    state: StateDict
    source: Format
    remark: str
    buffers: Mapping[str, object]


def read_checkpoint(path: str | Path) -> dict[str, object]:
    """Read a `.ckpt`, `.pth` or `.safetensors` file (`torch.load` with `weights_only=True`), and check its CRC-32 sums.

    TorchScript archives and the index of files that are split into shards (`*.index.json`) are read as well.

    Raises:
        UserError: If the file does not exist, is no checkpoint, is damaged, or contains pickled Python objects.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"checkpoint {str(path)!r}: no such file; expected the path of a checkpoint")
    try:
        if path.name.endswith(".index.json"):
            return {
                key: value for name in shard_names(path) for key, value in read_checkpoint(path.parent / name).items()
            }
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))  # compares all sizes with that of the file
        verify(path)
        if is_torchscript(path):
            return dict(read_torchscript(path))
        with torch.serialization.safe_globals(harmless_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "GLOBAL" in str(error):
            raise UserError(_pickled_objects(path, str(error))) from error
        raise corrupt(path, "is not a checkpoint file or is corrupt") from error
    except UserError:
        raise
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, BadZipFile) as error:
        raise corrupt(path, "is not a checkpoint file or is corrupt") from error
    except Exception as error:  # SafetensorError, whose class needs the library
        raise UserError(f"checkpoint {str(path)!r} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"checkpoint {str(path)!r} contains a {type(content).__name__} instead of a dict of parameters")
    _check_contents(content, path)
    return content


def _check_contents(content: object, path: Path) -> None:
    """Refuse tensors that state more elements than the file holds, and nesting that nothing can follow.

    Raises:
        UserError: If there are any.
    """
    level, seen = [content], {id(content)}  # shared parts once: references can describe 2**30 of them
    for _ in range(MAX_NESTING):
        inner: list[object] = []
        for part in level:
            if isinstance(part, Tensor):
                held = part.layout != torch.strided or part.is_meta or part.is_quantized
                if not held and part.numel() * part.element_size() > part.untyped_storage().nbytes() + SMALL:
                    raise UserError(f"checkpoint {str(path)!r} has a tensor of {part.numel()} repeated elements")
            elif isinstance(part, Mapping | list | tuple):
                parts = part.values() if isinstance(part, Mapping) else part
                inner += [value for value in parts if id(value) not in seen and not seen.add(id(value))]  # type: ignore[func-returns-value]
        level = inner
    if level:
        raise UserError(f"checkpoint {str(path)!r} is nested more than {MAX_NESTING} times")


def shard_names(index: Path) -> list[str]:
    """Names of the files of an index, `model.safetensors.index.json` or `pytorch_model.bin.index.json`.

    Raises:
        UserError: If it is not an index, or names a file in another folder.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"checkpoint {str(index)!r} is not an index of shards: it has no weight_map") from error
    if bad := [name for name in names if name != Path(name).name or name.endswith(".index.json")]:
        raise UserError(f"checkpoint {str(index)!r} names {bad[0]!r}, which is not a file of weights in its folder")
    return names


def read_parameters(path: str | Path, own: StateDict) -> Parameters:
    """Read the parameters of a backbone and its head from a checkpoint of any format.

    The state dict and the prefix of its keys are found by comparing the names with those of the model. Computed buffers
    are dropped. Ignored with a log message are the mask token and decoder of masked image modelling, entries without
    the prefix, and in Lightning checkpoints of this package everything besides `backbone` and `head` (loss, metrics,
    teacher, ...).

    Args:
        path: As for `weight_download.local_file`.
        own: The model's parameters, `backbone.*` and `head.*`.

    Raises:
        UserError: If the file cannot be read or contains anything but tensors.
    """
    content = read_checkpoint(local_file(path))
    found = find_state_dict(content, own)
    if found is None:
        keys = ", ".join(sorted(map(str, content))[:5]) or "no entries"
        raise UserError(f"checkpoint {str(path)!r} contains no parameters; it has {keys}")
    best, others = found
    from_lightning = "pytorch-lightning_version" in content
    averaged = best.rank() == 0 or "current_model_state" in content
    kinds = ["Lightning checkpoint"] * from_lightning + ["averaged weights"] * averaged
    head = find_head(best, own)
    entries = best.entries | head
    if best.prefix or others:
        rest = f"; it also has {', '.join(other.name for other in others[:3])}" if others else ""
        log.info("weights %s: took the entries %r%s", path, f"{best.name}*" if best.prefix else best.name, rest)
    other_parts = _other_parts(best, own, from_lightning)
    if ignored := other_parts | best.others.keys() - _head_keys(best, head):
        shown = ", ".join(sorted(ignored)[:3] + ["..."] * (len(ignored) > 3))
        log.info("weights %s: ignored %d entries outside of backbone and head: %s", path, len(ignored), shown)
    state: StateDict = {}
    for key, value in entries.items():
        if key in other_parts:
            continue
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise UserError(f"weights {str(path)!r} do not match the model: {key} has type {kind}, expected a tensor")
        state[key] = value
    return Parameters(state, best.source, f" ({', '.join(kinds)})" if kinds else "", best.buffers)


def trained_windows(file: Parameters, num_stages: int) -> list[int]:
    """Window size of each stage in the pre-training of Swin V2, from its buffers; empty if the file does not tell.

    The largest coordinate of a window of M tokens is `log8(1 + 8 * (M-1) / (T-1))` for weights trained with T.
    """
    windows = []
    for stage in range(num_stages):
        key = file.source.map_key(f"layers.{stage}.blocks.0.attn.logit_scale", num_stages - 1)[0].key
        table = file.buffers.get(key.replace("logit_scale", "relative_coords_table"))
        if not isinstance(table, Tensor) or table.ndim != 4 or table.shape[1] < 3 or not table.isfinite().all():
            return []
        ratio = (8 ** float(table[0, -1, 0, 0]) - 1) / 8
        windows.append(round(1 + (table.shape[1] // 2) / ratio) if ratio > 0 else 0)
    return windows


def harmless_globals() -> list[Any]:
    """Classes and functions besides those of `torch.load` that a checkpoint may name: none of them does anything.

    NumPy scalars and arrays, paths, containers, dates, and the configuration objects of other trainers, for which an
    OrderedDict stands in.
    """
    scalar, array = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    allowed: list[Any] = [np.ndarray, np.dtype, Namespace, SimpleNamespace, (_plain_dict, "collections.defaultdict")]
    allowed += [datetime.datetime, datetime.date, datetime.timedelta, datetime.timezone]
    allowed += [bool, int, float, str, list, dict, tuple]
    allowed += {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?SU"}
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # before and since NumPy 2
        allowed += [(scalar, f"{module}.scalar"), (array, f"{module}._reconstruct")]
    for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"):
        allowed += [(PurePosixPath, f"{module}.{name}") for module in ("pathlib", "pathlib._local")]
    return allowed + [(OrderedDict, name) for name in CONFIG_CLASSES]


def _plain_dict(*_: object) -> OrderedDict[object, object]:
    """An empty dict in place of a defaultdict, which the restricted unpickler does not fill."""
    return OrderedDict()


CONFIG_CLASSES = (
    "yacs.config.CfgNode",
    "easydict.EasyDict",
    "addict.addict.Dict",
    "ml_collections.config_dict.config_dict.ConfigDict",
    "mmengine.config.config.ConfigDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "pytorch_lightning.utilities.data.AttributeDict",
)


def _other_parts(best: Candidate, own: StateDict, from_lightning: bool) -> set[str]:
    """Entries of a state dict that are known not to belong to backbone and head."""
    pretraining = map_names(best.source, [name for name in own if name.startswith(PRETRAINING_PREFIXES)])
    keys = best.entries.keys() - {parts[0].key for parts in pretraining.values()}
    if from_lightning and best.source.name == SWIN_LIGHTNING.name:
        return keys - {key for key in keys if key.startswith(OWN_PREFIXES)}
    if best.source.name == SIMMIM.name:  # and MoBY: projectors, queues, the second encoder
        return {key for key in keys if not key.startswith("encoder.")} | {key for key in keys if "mask_token" in key}
    return {key for key in keys if re.search(PRETRAINING_KEYS, key.removeprefix("encoder."))} - own.keys()


def _head_keys(best: Candidate, head: dict[str, object]) -> set[str]:
    """Keys of a head outside of the prefix."""
    values = {id(value) for value in head.values()}
    return {key for key, value in best.others.items() if id(value) in values}


def _pickled_objects(path: Path, error: str) -> str:
    """Message for a checkpoint with pickled objects, such as the configuration in official training checkpoints.

    It includes a command that extracts the parameters, if that works: unknown classes are unpickled as OrderedDict.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # format of torch < 1.6: the error message names the first object only
        names = re.findall(r"GLOBAL ([\w.]+)", error)
    message = f"checkpoint {str(path)!r} contains pickled Python objects ({', '.join(names)}); refusing to load it "
    message += "(weights_only=True). "
    try:
        with torch.serialization.safe_globals([(OrderedDict, name) for name in names]):
            content = torch.load(path, map_location="cpu", weights_only=True)
        wrapper = next(key for key in WRAPPERS if isinstance(content.get(key), dict))
    except Exception:
        return message + "Ask its author for a checkpoint of `model.state_dict()` only"
    placeholders = ", ".join(f'(OrderedDict, "{name}")' for name in names)
    code = (
        "import torch; from collections import OrderedDict; "
        f"torch.serialization.add_safe_globals([{placeholders}]); "
        f'torch.save(torch.load({json.dumps(str(path))}, map_location="cpu", weights_only=True)["{wrapper}"], '
        f"{json.dumps(str(path.with_suffix('.weights.pth')))})"
    )
    return f"{message}Extract its state dict with: python -c {shlex.quote(code)}"
