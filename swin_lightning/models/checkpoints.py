"""Read parameters from files: official checkpoints, and what this project's Trainer saves.

Everything is strict. Buffers that can be computed are dropped, every other difference is an error that names it.
"""

import logging
import pickle
from pathlib import Path
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

BUFFERS = ("relative_position_index", "relative_coords_table", "attn_mask")  # computed, whatever a file says
StateDict = dict[str, Tensor]


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
            raise ValueError(
                f"checkpoint {str(path)!r} holds Python objects besides tensors, and loading them could run code; if "
                "you trust its source, save the parameters alone: "
                "torch.save(torch.load(PATH, weights_only=False)['model'], NEW)"
            ) from error
        raise ValueError(f"checkpoint {str(path)!r} is not a checkpoint, or it is damaged") from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, BadZipFile) as error:
        raise ValueError(f"checkpoint {str(path)!r} is not a checkpoint, or it is damaged") from error
    except Exception as error:  # safetensors raises its own class, which needs the library to be named
        raise ValueError(f"checkpoint {str(path)!r} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {str(path)!r} holds a {type(content).__name__} instead of a dict of parameters")
    return content


def load_weights(classifier: nn.Module, path: str | Path) -> None:
    """Fill a classifier (`backbone.*`, `head.*`) with the parameters of a file.

    A head of another number of classes keeps its initial values, and that is said.

    Raises:
        ValueError: If the file cannot be read or differs in names or shapes; nothing is loaded then.
    """
    state, kind = _canonical(read_checkpoint(path), path)
    own = {name: value for name, value in classifier.state_dict().items() if name.startswith(("backbone.", "head."))}
    state = {name: value for name, value in state.items() if name.rsplit(".", 1)[-1] not in BUFFERS}

    head = [name for name in own if name.startswith("head.")]
    fitting = [name for name in head if name in state and state[name].shape == own[name].shape]
    if len(fitting) != len(head):
        found = f"{len(state['head.weight'])} classes" if "head.weight" in state else "none"
        log.warning("weights %s: the file's head has %s; ours of %d is new", path, found, len(own["head.weight"]))
        state = {name: value for name, value in state.items() if not name.startswith("head.")}
        state.update({name: own[name] for name in head})

    problems = [f"missing {name}" for name in own if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in own]
    problems += [
        f"{name} has shape {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise ValueError(f"weights {str(path)!r} ({kind}) do not fit the model: {shown}")
    classifier.load_state_dict(state, strict=False)  # the names were compared above; metrics have no place in files
    log.info("weights %s: %s format, %d parameters", path, kind, len(state))


def _canonical(content: dict[str, object], path: str | Path) -> tuple[StateDict, str]:
    """The parameters under the classifier's names, and the format's name."""
    if "state_dict" in content and "pytorch-lightning_version" in content:
        content, kind = content["state_dict"], "swin_lightning"  # type: ignore[assignment]
    elif "model" in content and isinstance(content["model"], dict):
        content, kind = content["model"], "official"
    else:
        kind = "swin_lightning" if any(str(name).startswith("backbone.") for name in content) else "official"
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"checkpoint {str(path)!r} holds no parameters")
    if kind == "official":
        state = {name if name.startswith("head.") else f"backbone.{name}": value for name, value in state.items()}
    else:
        state = {name: value for name, value in state.items() if name.startswith(("backbone.", "head."))}
    return state, kind
