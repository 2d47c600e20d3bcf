"""The images of a run, and what a change of precision costs: accuracy before and after, side by side."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swin_lightning.batch import IGNORE_INDEX
from swin_lightning.checkpoint_classes import Allowed
from swin_lightning.data.image_datamodule import ImageDataModule
from swin_lightning.data.readers import list_images
from swin_lightning.errors import UserError
from swin_lightning.explore.evaluation import load_run
from swin_lightning.inference import Predictor
from swin_lightning.runs import RunFolder

CALIBRATION_IMAGES = 128
EVALUATION_IMAGES = 2000


def run_data(checkpoint: Path, allow: Allowed = ()) -> ImageDataModule | None:
    """The data module of the run that wrote a checkpoint, None for a checkpoint outside of a run folder."""
    run = RunFolder.of_checkpoint(checkpoint)
    return load_run(run.path, allow)[1] if run is not None else None


def calibration_images(path: str | None, data: ImageDataModule | None) -> list[Any]:
    """Images from which int8 ranges are taken: those of a path, or training images of the run, at most 128.

    Raises:
        UserError: If there is neither, or the images cannot be read.
    """
    if path is not None:
        source = Path(path)
        files = list_images(source) if source.is_dir() else [source]
        return _spread(files, CALIBRATION_IMAGES)
    if data is None:
        raise UserError("--int8: the checkpoint is not in a run folder; give images with --calibration PATH")
    return [image for image, _ in split_images(data, "train", CALIBRATION_IMAGES)]


def split_images(data: ImageDataModule, split: str, limit: int) -> Iterator[tuple[Any, int]]:
    """Images and labels of a split before any transform, at equal distances.

    Raises:
        UserError: If the split cannot be read, or is a stream.
    """
    reader = data.load(split)
    if not hasattr(reader, "__getitem__"):
        raise UserError(f"data.streaming: the {split} split is a stream and cannot be indexed; use a local copy")
    for index in _spread(range(len(reader)), limit):
        yield reader[index]


def predict(predictor: Predictor, images: Iterable[Any]) -> Tensor:
    """Probabilities, `N, K`."""
    return torch.stack([prediction.probabilities for prediction in predictor.stream(images)])


def accuracy_table(
    checkpoint: Path,
    program: Path,
    name: str,
    data: ImageDataModule | None,
    images: str | None = None,
    allow: Allowed = (),
) -> str:
    """Checkpoint and program on the validation images of a run, or on other images without labels.

    Args:
        checkpoint: The checkpoint.
        program: The program made of it.
        name: Column of the program, such as `int8`.
        data: The data module of the run; None for a checkpoint outside of a run folder.
        images: A path of images, used without a data module.
        allow: Classes that the checkpoint may name besides those of `swin_lightning`.
    """
    before = Predictor(checkpoint, device="cpu", precision="32-true", allow=allow)
    after = Predictor(program)
    labels = None
    if data is not None:
        pairs = list(split_images(data, "val", EVALUATION_IMAGES))
        pictures, labels = [image for image, _ in pairs], torch.tensor([label for _, label in pairs])
    elif images is not None:
        pictures = calibration_images(images, None)
    else:
        return "accuracy: not measured, the checkpoint is not in a run folder"
    one, other = predict(before, pictures), predict(after, pictures)
    rows = [("", "checkpoint", name)]
    if labels is not None and (known := labels != IGNORE_INDEX).any():
        correct = [float((p.argmax(dim=1) == labels)[known].double().mean()) for p in (one, other)]
        rows.append(("top-1 accuracy, val", f"{100 * correct[0]:.2f} %", f"{100 * correct[1]:.2f} %"))
    same = float((one.argmax(dim=1) == other.argmax(dim=1)).double().mean())
    rows.append(("same top-1", "", f"{100 * same:.2f} %"))
    rows.append(("largest difference", "", f"{float((one - other).abs().max()):.4f}"))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
    return "\n".join([*lines, f"({len(pictures)} images)"])


def _spread(items: Any, limit: int) -> list[Any]:
    positions = np.linspace(0, len(items) - 1, min(limit, len(items))).round().astype(int)
    return [items[int(position)] for position in positions]
