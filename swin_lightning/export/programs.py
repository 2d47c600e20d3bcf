"""Write a classifier as a program that runs without this package: ONNX, torch.export (`.pt2`) or TorchScript (`.pt`).

Height and width of the network input are fixed: whether windows are padded, shifted and masked depends on them. The
batch is dynamic. With preprocessing the program takes one image of any size instead.
"""

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from swin_lightning.errors import UserError
from swin_lightning.export.preprocessing import ResizeCropNormalize
from swin_lightning.models.swin import SwinTransformer
from swin_lightning.program_files import METADATA_FILE, ProgramInfo, program_format

OPSET = 18  # the newest that torch's exporter writes without a conversion; LayerNormalization needs 17


class Network(nn.Module):
    """Normalised float32 images `B, C, H, W` to float32 logits `B, K`, computed with the weights' precision."""

    def __init__(self, classifier: nn.Module, half: bool = False) -> None:
        super().__init__()
        parts = (cast(nn.Module, classifier.backbone), cast(nn.Module, classifier.head))
        self.backbone, self.head = copy.deepcopy(parts) if half else parts
        self.half_precision = half
        if half:
            self.half()

    def forward(self, images: Tensor) -> Tensor:
        if self.half_precision:
            images = images.half()
        return self.head(self.backbone(images)).float()  # type: ignore[no-any-return]


class ImageClassifier(nn.Module):
    """One uint8 RGB image `H, W, 3` of any size to its probabilities, `K`."""

    def __init__(self, preprocess: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.preprocess, self.network = preprocess, network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(self.preprocess(image)).softmax(dim=1)[0]  # type: ignore[no-any-return]


def write_program(classifier: nn.Module, path: Path, info: ProgramInfo) -> None:
    """Write a program in the format of its suffix.

    Args:
        classifier: Module with a `backbone` and a `head`, on the CPU. Its training mode is restored afterwards.
        path: `.onnx`, `.pt2` or `.pt` file.
        info: What the file will say about itself; int8 is made from an fp32 file, see `quantization`.

    Raises:
        UserError: If the suffix is another, or a library is not installed.
    """
    with _evaluation_mode(classifier), torch.no_grad():
        network: nn.Module = Network(classifier, half=info.precision == "fp16")
        images = torch.zeros(2, in_channels(classifier), *info.input_size)
        writer = {"onnx": _write_onnx, "pt2": _write_pt2, "torchscript": _write_torchscript}[program_format(path)]
        writer(network, images, path, info)


def in_channels(classifier: nn.Module) -> int:
    """Number of image channels that a classifier takes."""
    backbone = classifier.backbone
    return backbone.patch_embed.proj.in_channels if isinstance(backbone, SwinTransformer) else 3


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of exporters about their own internals and about libraries that are not needed."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


# helpers


def _write_onnx(network: nn.Module, images: Tensor, path: Path, info: ProgramInfo) -> None:
    try:
        import onnxscript  # noqa: F401  torch needs it
    except ImportError as error:
        raise UserError(
            "onnx and onnxscript are needed for --format onnx: pip install 'swin_lightning[export]'"
        ) from error
    program, inputs, shapes = _with_preprocessing(network, images, info)
    names = ("image", "probabilities") if info.includes_preprocessing else ("images", "logits")
    with quiet():
        exported = torch.onnx.export(
            program,
            (inputs,),
            dynamic_shapes=shapes,
            dynamo=True,
            opset_version=OPSET,
            input_names=names[:1],
            output_names=names[1:],
            external_data=False,
            verbose=False,
        )
    assert exported is not None
    exported.model.metadata_props.update(info.metadata())
    exported.save(path)


def _write_pt2(network: nn.Module, images: Tensor, path: Path, info: ProgramInfo) -> None:
    program, inputs, shapes = _with_preprocessing(network, images, info)
    exported = torch.export.export(program, (inputs,), dynamic_shapes=shapes)
    torch.export.save(exported, path, extra_files={METADATA_FILE: json.dumps(info.metadata())})


def _write_torchscript(network: nn.Module, images: Tensor, path: Path, info: ProgramInfo) -> None:
    with quiet():  # TorchScript is deprecated, and shapes of the trace are constant on purpose
        program: nn.Module = torch.jit.trace(network, images[:1])  # type: ignore[no-untyped-call]
        if info.includes_preprocessing:
            program = torch.jit.script(ImageClassifier(_preprocess(info), program).eval())
        torch.jit.save(program, path, _extra_files={METADATA_FILE: json.dumps(info.metadata())})


def _with_preprocessing(
    network: nn.Module, images: Tensor, info: ProgramInfo
) -> tuple[nn.Module, Tensor, tuple[dict[int, torch.export.Dim]]]:
    """The module to export, an input, and its dynamic dimensions."""
    if not info.includes_preprocessing:
        return network.eval(), images, ({0: torch.export.Dim("batch", min=1)},)
    height, width = torch.export.Dim("height", min=1), torch.export.Dim("width", min=1)
    image = torch.zeros(images.shape[2] + 3, images.shape[3] + 5, 3, dtype=torch.uint8)
    return ImageClassifier(_preprocess(info), network).eval(), image, ({0: height, 1: width},)


def _preprocess(info: ProgramInfo) -> ResizeCropNormalize:
    preprocessing = info.preprocessing
    assert preprocessing is not None
    return ResizeCropNormalize(
        preprocessing.image_size, preprocessing.shorter_side, preprocessing.mean, preprocessing.std
    )


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
