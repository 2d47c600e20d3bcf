"""Static int8 quantization by onnxruntime: linear layers and the patch embedding, weights per channel.

The range of every quantized activation is taken from calibration images. Products of two activations (attention) and
everything else stay float32: they are a small part of the time, and softmax and normalisation need the precision.
"""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from swin_lightning.data.decoding import LazyImage
from swin_lightning.data.sampling import channels_first
from swin_lightning.data.transforms import eval_transform
from swin_lightning.export.programs import quiet, write_program
from swin_lightning.program_files import ProgramInfo

QUANTIZED = ["Conv", "Gemm", "MatMul"]


def quantize(classifier: nn.Module, path: Path, info: ProgramInfo, images: Iterable[Any]) -> None:
    """Write an int8 ONNX program.

    Args:
        classifier: Module with a `backbone` and a `head`, on the CPU.
        path: `.onnx` file.
        info: What the file will say about itself.
        images: Calibration images: paths, `LazyImage`s or arrays `H, W, 3` uint8.
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, inputs: Iterator[dict[str, np.ndarray]]) -> None:
            self.inputs = inputs

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.inputs, None)

    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder, "fp32.onnx")
        write_program(classifier, full, replace(info, precision="fp32"))
        with quiet():
            quantization.quantize_static(
                full,
                path,
                Reader(_inputs(info, images)),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=QUANTIZED,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},  # linear layers, not the products of attention
            )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, info.metadata())
    onnx.save(model, path)


def _inputs(info: ProgramInfo, images: Iterable[Any]) -> Iterator[dict[str, np.ndarray]]:
    """Inputs of the program for each image."""
    preprocessing = info.preprocessing
    assert preprocessing is not None
    transform = eval_transform(preprocessing.image_size, preprocessing.crop, preprocessing.crop_ratio)
    for image in images:
        picture = LazyImage(image, str(image)) if isinstance(image, Path) else image
        if info.includes_preprocessing:
            yield {"image": np.asarray(picture)}
        else:
            pixels = channels_first(transform(picture, (0, 0, 0)))[None]
            yield {"images": preprocessing.normalize(pixels).numpy()}
