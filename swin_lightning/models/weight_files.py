"""Reading checkpoint files without executing code from them."""

import json
import logging
import pickle
import re
import shlex
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import cast
from zipfile import BadZipFile

import torch
from torch import Tensor

from swin_lightning.checkpoint_files import corrupt, verify
from swin_lightning.errors import UserError
from swin_lightning.models.weight_formats import (
    BUFFERS,
    OWN_PREFIXES,
    PRETRAINING_KEYS,
    SWIN_LIGHTNING,
    StateDict,
    detect_format,
)

log = logging.getLogger(__name__)

# keys of the state dict in a checkpoint; averaged weights of timm and torchvision first
WRAPPERS = ("state_dict_ema", "model_ema", "model", "state_dict")


def read_checkpoint(path: str | Path) -> dict[str, object]:
    """Read a `.ckpt`, `.pth` or `.safetensors` file (`torch.load` with `weights_only=True`), and check its CRC-32 sums.

    Raises:
        UserError: If the file does not exist, is no checkpoint, is damaged, or contains pickled Python objects.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {str(path)!r}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        verify(path)
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
    return content


def read_parameters(path: str | Path, own: Collection[str]) -> tuple[StateDict, str]:
    """Read the parameters of a backbone and its head from a checkpoint of any format.

    Computed buffers are dropped. Ignored with a log message are the mask token and decoder of masked image modelling,
    and in Lightning checkpoints of this package everything besides `backbone` and `head` (loss, metrics, teacher, ...).

    Args:
        path: As for `read_checkpoint`.
        own: Names of the model's parameters, `backbone.*` and `head.*`.

    Returns:
        The parameters by their keys in the file, and a remark on the kind of checkpoint for logging.

    Raises:
        UserError: If the file cannot be read or contains anything but tensors.
    """
    content = read_checkpoint(path)
    remark = ""
    wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), dict)), None)
    from_lightning = "pytorch-lightning_version" in content
    if from_lightning:
        remark = f" (Lightning checkpoint{', averaged weights' if 'current_model_state' in content else ''})"
    elif wrapper and "ema" in wrapper:
        remark = " (averaged weights)"
    if wrapper:
        content = cast(dict[str, object], content[wrapper])
    if not any(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"checkpoint {str(path)!r} contains no parameters")
    entries = {_clean_key(str(key)): value for key, value in content.items()}
    entries = {key: value for key, value in entries.items() if key.rsplit(".", 1)[-1] not in BUFFERS}
    main = [key for key in entries if key.startswith(OWN_PREFIXES)]
    if from_lightning and detect_format(main, own) == SWIN_LIGHTNING:
        ignored = entries.keys() - set(main)
    else:
        pretraining = re.compile(PRETRAINING_KEYS)
        ignored = {key for key in entries if pretraining.search(key.removeprefix("encoder."))} - set(own)
    if ignored:
        shown = ", ".join(sorted(ignored)[:3] + ["..."] * (len(ignored) > 3))
        log.info("weights %s: ignored %d entries outside of backbone and head: %s", path, len(ignored), shown)
    state: StateDict = {}
    for key, value in entries.items():
        if key in ignored:
            continue
        if not isinstance(value, Tensor):
            found = type(value).__name__
            raise UserError(f"weights {str(path)!r} do not match the model: {key} has type {found}, expected a tensor")
        state[key] = value
    return state, remark


def _clean_key(key: str) -> str:
    """A key without the prefixes of DataParallel, AveragedModel and torch.compile; SimMIM's first V2 used rpe_mlp."""
    key = re.sub(r"^(?:module\.|_orig_mod\.)+|(?<![^.])_orig_mod\.", "", key)
    return key.replace(".rpe_mlp.", ".cpb_mlp.")


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
