"""Convert a checkpoint, run the result and compare it, and only then put it in its place."""

import copy
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from swin_lightning.batch import IGNORE_INDEX, Preprocessing, find_preprocessing
from swin_lightning.checkpoint_classes import Allowed
from swin_lightning.data.sampling import channels_first
from swin_lightning.data.transforms import eval_transform
from swin_lightning.errors import UserError
from swin_lightning.export.accuracy import accuracy_table, calibration_images, run_data
from swin_lightning.export.programs import OPSET, in_channels, write_program
from swin_lightning.export.quantization import quantize
from swin_lightning.inference import find_checkpoint_file
from swin_lightning.models.weights import load_weights, read_checkpoint, save_weights
from swin_lightning.models.windows import to_pair
from swin_lightning.prediction_callbacks import class_names
from swin_lightning.program_files import Program, ProgramInfo, ProgramPrecision, program_format
from swin_lightning.tasks.classification import SwinClassifier, load_classifier

# largest difference of a probability from the checkpoint's: float32 sums in another order; 11 bits; quantization
TOLERANCE: dict[ProgramPrecision, float] = {"fp32": 1e-4, "fp16": 0.05, "int8": 1.0}


def export_weights_file(checkpoint: str, output: Path, target: str, allow: Allowed = ()) -> None:
    """Write the weights of a checkpoint in a weight format, read them back, and compare the logits.

    Raises:
        UserError: As `load_classifier` and `save_weights`.
    """
    classifier = load_classifier(find_checkpoint_file(checkpoint), allow)

    def write(path: Path) -> float:
        save_weights(classifier, path, target)
        loaded = copy.deepcopy(classifier)
        for parameter in (*loaded.backbone.parameters(), *loaded.head.parameters()):
            nn.init.zeros_(parameter)
        load_weights(loaded, path)
        images = torch.randn(2, in_channels(classifier), *_input_size(classifier, None, None))
        return _difference(_probabilities(loaded, images), _probabilities(classifier, images), TOLERANCE["fp32"])

    _write_atomically(output, write)
    print(f"wrote {output} ({target} format)")


def export_program(
    checkpoint: str,
    output: Path,
    size: Sequence[int] | None = None,
    with_preprocessing: bool = False,
    precision: ProgramPrecision = "fp32",
    calibration: str | None = None,
    allow: Allowed = (),
) -> None:
    """Write a checkpoint as a program, see `write_program`, run it, and compare it with the checkpoint.

    Args:
        checkpoint: A `.ckpt` file or a run folder.
        output: `.onnx`, `.pt2` or `.pt` file.
        size: Side of the image in pixels, or height and width; by default that of the checkpoint.
        with_preprocessing: The program takes one uint8 RGB image of any size.
        precision: Of the weights; fp16 and int8 print accuracies before and after.
        calibration: Images for int8; by default training images of the run.
        allow: Classes that the checkpoint may name besides those of `swin_lightning`, see `checkpoint_classes`.

    Raises:
        UserError: If the checkpoint does not state what is needed, or the program computes something else.
    """
    path = find_checkpoint_file(checkpoint)
    classifier, preprocessing = load_classifier(path, allow).eval(), find_preprocessing(read_checkpoint(path))
    if preprocessing is None and (with_preprocessing or precision == "int8"):
        option = "--with-preprocessing" if with_preprocessing else "--int8"
        raise UserError(f"{option}: checkpoint {str(path)!r} does not state its preprocessing")
    height, width = _input_size(classifier, preprocessing, size)
    if with_preprocessing and height != width:
        raise UserError(f"--size {height} {width} with --with-preprocessing: images are resized to squares; give one")
    if preprocessing is not None and size is not None:  # of rectangles nothing is stated
        preprocessing = replace(preprocessing, image_size=height) if height == width else None
    names = class_names(classifier)
    info = ProgramInfo(names, (height, width), preprocessing, with_preprocessing, precision)
    channels = in_channels(classifier)
    if with_preprocessing and channels != 3:
        raise UserError(f"--with-preprocessing: the network has {channels} input channels, an RGB image has 3")
    data = run_data(path, allow) if precision != "fp32" else None

    def write(target: Path) -> float:
        if precision == "int8":
            assert preprocessing is not None
            images = calibration_images(calibration, data)
            quantize(classifier, target, info, images)
        else:
            write_program(classifier, target, info)
        return compare(Program(target), classifier, channels)

    difference = _write_atomically(output, write)
    if precision != "fp32":
        print(accuracy_table(path, output, precision, data, calibration, allow))
    kind = f"onnx opset {OPSET}" if program_format(output) == "onnx" else program_format(output)
    size_mb = output.stat().st_size / 2**20
    # random images are outside of the ranges of a calibration
    agreement = "" if precision == "int8" else f"; probabilities differ by at most {difference:.1e}"
    print(f"wrote {output} ({kind}, {precision}, {size_mb:.1f} MiB){agreement}")


def compare(program: Program, classifier: SwinClassifier, channels: int = 3) -> float:
    """Run a program on random images and compare it with `predict_step` of the checkpoint.

    Returns:
        The largest difference of a probability.

    Raises:
        UserError: If it is larger than the precision explains, or not finite.
    """
    info, generator = program.info, torch.Generator().manual_seed(0)
    tolerance = TOLERANCE[info.precision]
    height, width = info.input_size
    if not info.includes_preprocessing:
        inputs = [torch.randn(n, channels, height, width, generator=generator) for n in (1, 3)]
        return max(_difference(program(x).softmax(dim=1), _probabilities(classifier, x), tolerance) for x in inputs)
    preprocessing = info.preprocessing
    assert preprocessing is not None
    transform = eval_transform(preprocessing.image_size, preprocessing.crop, preprocessing.crop_ratio)
    differences = []
    for size in ((height, width), (2 * height + 5, width // 2 + 1), (height // 3 + 1, 3 * width)):
        image = torch.randint(256, (*size, 3), generator=generator, dtype=torch.uint8)
        pixels = channels_first(np.asarray(transform(image.numpy(), (0, 0, 0))))[None]
        expected = _probabilities(classifier, preprocessing.normalize(pixels))[0]
        differences.append(_difference(program(image), expected, tolerance))
    return max(differences)


# helpers


def _probabilities(classifier: SwinClassifier, images: Tensor) -> Tensor:
    targets = torch.full((len(images),), IGNORE_INDEX)
    with torch.no_grad():
        return classifier.eval().predict_step({"image": images, "target": targets, "index": targets}, 0)


def _difference(actual: Tensor, expected: Tensor, tolerance: float) -> float:
    difference = float((actual - expected).abs().max())
    if not difference <= tolerance:  # NaN as well
        raise UserError(
            f"nothing written: a probability of the export differs by {difference:.2g} from that of the checkpoint; "
            "a backbone and a linear head are exported, without a forward of your own"
        )
    return difference


def _input_size(
    classifier: SwinClassifier, preprocessing: Preprocessing | None, size: Sequence[int] | None
) -> tuple[int, int]:
    if size is not None:
        return to_pair(size[0] if len(size) == 1 else tuple(size), "--size")
    if preprocessing is not None:
        return preprocessing.image_size, preprocessing.image_size
    stated = getattr(classifier.backbone, "img_size", None)
    if stated is None:
        raise UserError(f"image size: {type(classifier.backbone).__name__} has no img_size; set it with --size")
    return to_pair(stated if isinstance(stated, int) else tuple(stated), "img_size")


def _write_atomically(output: Path, write: Callable[[Path], float]) -> float:
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{os.getpid()}-{output.name}")
    try:
        result = write(temporary)
        os.replace(temporary, output)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    return result
