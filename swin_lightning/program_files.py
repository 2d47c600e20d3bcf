"""Exported programs (`.onnx`, `.pt2`, TorchScript `.pt`): what they say about themselves, and running them.

They carry class names and preprocessing as metadata: properties of an ONNX model, and a file of the same content in
the archive of the other formats. A `.pt2` or TorchScript file is code: `torch.export.load` and `torch.jit.load` may
run what it contains.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

from swin_lightning.batch import Preprocessing
from swin_lightning.errors import UserError, summarize

ProgramFormat = Literal["onnx", "pt2", "torchscript"]
ProgramPrecision = Literal["fp32", "fp16", "int8"]
Run = Callable[[Tensor], Tensor]

SUFFIXES: dict[str, ProgramFormat] = {".onnx": "onnx", ".pt2": "pt2", ".pt": "torchscript"}
PRODUCER = "swin_lightning"
METADATA_FILE = "swin_lightning.json"


@dataclass(frozen=True)
class ProgramInfo:
    """What an exported program says about itself.

    Attributes:
        class_names: K names, in the order of the outputs.
        input_size: Height and width of the network input in pixels.
        preprocessing: From an image to the input of the network; None if the checkpoint did not state it.
        includes_preprocessing: True: one uint8 RGB image `H, W, 3` of any size to its probabilities, `K`. False:
            normalised float32 images `B, C, height, width` to logits, `B, K`.
        precision: Of the weights: `fp32`, `fp16` or `int8`.
    """

    class_names: list[str]
    input_size: tuple[int, int]
    preprocessing: Preprocessing | None
    includes_preprocessing: bool = False
    precision: ProgramPrecision = "fp32"

    def metadata(self) -> dict[str, str]:
        """Name -> value in JSON, as the files hold them."""
        values = {"producer": PRODUCER, **asdict(self)}
        values |= values.pop("preprocessing") or {}
        return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}

    @classmethod
    def from_metadata(cls, path: Path, metadata: Mapping[str, str]) -> "ProgramInfo":
        """The opposite of `metadata`.

        Raises:
            UserError: If a part is missing or wrong, as in a file of another program.
        """
        try:
            values = {name: json.loads(value) for name, value in metadata.items()}
            values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
            if values["producer"] != PRODUCER:
                raise ValueError(values["producer"])
            stated = {field.name: values[field.name] for field in fields(Preprocessing) if field.name in values}
            return cls(
                class_names=[str(name) for name in values["class_names"]],
                input_size=values["input_size"],
                preprocessing=Preprocessing(**stated) if stated else None,
                includes_preprocessing=values["includes_preprocessing"],
                precision=values["precision"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"program {str(path)!r} was not written by `swin-lightning export`: it does not state its classes and "
                "preprocessing"
            ) from error


class Program:
    """An exported program on the CPU.

    Args:
        path: A file of `swin-lightning export`.

    Attributes:
        info: What the file says about itself.

    Raises:
        UserError: If the file is damaged, of another program, or its library is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"program {str(path)!r}: no such file")
        readers = {"onnx": _open_onnx, "pt2": _open_pt2, "torchscript": _open_torchscript}
        self._run, metadata = readers[program_format(self.path)](self.path)
        self.info = ProgramInfo.from_metadata(self.path, metadata)

    @torch.inference_mode()
    def __call__(self, inputs: Tensor) -> Tensor:
        """Run the program, see `ProgramInfo.includes_preprocessing` for inputs and outputs.

        Raises:
            UserError: If its outputs do not belong to the classes that it states.
        """
        outputs = self._run(inputs)
        if outputs.shape[-1] != len(self.info.class_names):
            names = len(self.info.class_names)
            raise UserError(f"program {str(self.path)!r}: {outputs.shape[-1]} outputs, but {names} class names")
        return outputs


def is_program(path: str | Path) -> bool:
    """Whether a path has the suffix of an exported program."""
    return Path(path).suffix in SUFFIXES


def program_format(path: str | Path) -> ProgramFormat:
    """The format of a program by its suffix.

    Raises:
        UserError: If it has another suffix.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise UserError(f"program {str(path)!r} must end with {', '.join(SUFFIXES)}")
    return SUFFIXES[suffix]


# helpers


def _damaged(path: Path, kind: str, error: Exception) -> UserError:
    return UserError(f"program {str(path)!r} is no {kind} or is damaged ({summarize(error)[:200]})")


def _open_onnx(path: Path) -> tuple[Run, Mapping[str, str]]:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("onnxruntime is needed for .onnx files: pip install 'swin_lightning[export]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; warnings are about optimisations
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise _damaged(path, "ONNX model that onnxruntime can run", error) from error
    (name,) = (node.name for node in session.get_inputs())

    def run(inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: inputs.numpy()})[0])

    return run, session.get_modelmeta().custom_metadata_map


def _open_pt2(path: Path) -> tuple[Run, Mapping[str, str]]:
    extra = {METADATA_FILE: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # of the zip archive, JSON, pickle or the graph
        raise _damaged(path, "torch.export program", error) from error
    return cast(Run, program.module()), json.loads(extra[METADATA_FILE] or "{}")


def _open_torchscript(path: Path) -> tuple[Run, Mapping[str, str]]:
    extra = {METADATA_FILE: ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of all of TorchScript
            program = torch.jit.load(path, map_location="cpu", _extra_files=extra)  # type: ignore[no-untyped-call]
    except Exception as error:  # RuntimeError of the archive, or of its code
        raise _damaged(path, "TorchScript archive", error) from error
    return cast(Run, program), json.loads(extra[METADATA_FILE] or "{}")
