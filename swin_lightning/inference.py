"""`Predictor`: classes and probabilities of images by a checkpoint alone, without its experiment or training data.

Pixels and probabilities are those of `swin-lightning test`: the same decoding, resizing and normalisation.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.plugins import HalfPrecision, MixedPrecision, Precision
from PIL import Image
from torch import Tensor

from swin_lightning.batch import IGNORE_INDEX, Preprocessing, find_preprocessing
from swin_lightning.checkpoint_classes import Allowed
from swin_lightning.data.decoding import LazyImage, pil_pixels
from swin_lightning.data.readers import list_images
from swin_lightning.data.sampling import channels_first
from swin_lightning.data.transforms import eval_transform
from swin_lightning.errors import UserError
from swin_lightning.models.linear import use_onednn
from swin_lightning.models.weights import read_checkpoint
from swin_lightning.prediction_callbacks import class_names, is_probability
from swin_lightning.program_files import Program, is_program
from swin_lightning.runs import RunFolder
from swin_lightning.tasks.classification import load_classifier
from swin_lightning.tasks.loading import CLASS_PATH, load_module, stored_arguments
from swin_lightning.trainer_precision import default_precision

PrecisionName = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true"]
Picture = str | Path | bytes | Image.Image | np.ndarray | Tensor | LazyImage


@dataclass(frozen=True)
class Prediction:
    """What a classifier says about one image.

    Attributes:
        classes: Class names, K, in the order of the model.
        probabilities: Probability of each of them, K float32 on the CPU.
        name: Path of the image, or its position in the call.
    """

    classes: list[str]
    probabilities: Tensor
    name: str

    def top(self, k: int = 1) -> list[tuple[str, float]]:
        """The k most probable classes with their probabilities, most probable first."""
        best = self.probabilities.topk(min(k, len(self.classes)))
        return [(self.classes[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]


class Predictor:
    """Classify images with a checkpoint of `swin-lightning fit`, or a program of `swin-lightning export`.

    ```python
    predictor = Predictor("runs/EXPERIMENT/RUN")
    (prediction,) = predictor("photo.jpg")
    prediction.top(5)
    ```

    Args:
        checkpoint: A `.ckpt` file, or a run folder: its best checkpoint, else the last. For a program (`.onnx`,
            `.pt2`, TorchScript `.pt`) the result is a `ProgramPredictor`.
        device: Such as `cpu` or `cuda:1`; by default a GPU if there is one.
        precision: As `trainer.precision`; by default that of `swin-lightning test`, see `default_precision`.
        batch_size: Images per forward pass.
        preprocessing: In place of what the checkpoint states; needed if it states none, such as one of a data module
            with an `eval_transform` of its own.
        allow: Classes that the checkpoint may name besides those of `swin_lightning`, see `checkpoint_classes`.

    Attributes:
        module: The LightningModule in evaluation mode on the device.
        class_names: K names, in the order of the probabilities.
        preprocessing: From an image to the input of the network.

    Raises:
        UserError: If the file is no checkpoint of a classifier, or states no preprocessing.
    """

    def __new__(cls, checkpoint: str | Path, *args: Any, **kwargs: Any) -> "Predictor":
        """A `ProgramPredictor` for an exported program."""
        return super().__new__(ProgramPredictor if is_program(checkpoint) else cls)

    def __init__(
        self,
        checkpoint: str | Path,
        device: str | torch.device | None = None,
        precision: PrecisionName | None = None,
        batch_size: int = 32,
        preprocessing: Preprocessing | None = None,
        allow: Allowed = (),
    ) -> None:
        path = find_checkpoint_file(checkpoint)
        content = read_checkpoint(path)
        found = preprocessing or find_preprocessing(content)
        if found is None:
            raise UserError(
                f"checkpoint {str(path)!r} does not state its preprocessing (it is older than this version, or its "
                "data module has an eval_transform of its own); use `swin-lightning predict -c EXPERIMENT`, or in "
                "Python Predictor(..., preprocessing=...)"
            )
        _check_batch_size(batch_size)
        self.checkpoint, self.preprocessing, self.batch_size = path, found, batch_size
        self.device = _find_device(device)
        names_class = CLASS_PATH in stored_arguments(content, f"checkpoint {str(path)!r}")
        module = load_module(path, LightningModule, allow) if names_class else load_classifier(path, allow)
        if precision is None:
            chosen, _ = default_precision(self.device.type, module, found.image_size, batch_size)
            precision = cast(PrecisionName, chosen)
        self._precision = _precision_plugin(precision, self.device)
        use_onednn(module)
        self._precision.convert_module(module)  # in place
        self.module: LightningModule = module.to(self.device).eval().requires_grad_(False)
        self.class_names = class_names(self.module)
        self._transform = eval_transform(found.image_size, found.crop, found.crop_ratio)

    def __call__(self, images: Picture | Iterable[Picture]) -> list[Prediction]:
        """Predict one image or many.

        Args:
            images: Paths of files, or of folders (all images below them); encoded files as bytes; PIL images; uint8
                arrays `H, W, 3`, `H, W, 4` or `H, W`; tensors `3, H, W` or `1, H, W`, uint8 or float in [0, 1]. An
                array or tensor with one dimension more is a batch.

        Returns:
            One `Prediction` per image, in order.

        Raises:
            UserError: If an image cannot be read or is of another type.
        """
        return list(self.stream(images))

    def stream(self, images: Picture | Iterable[Picture]) -> Iterator[Prediction]:
        """As calling it, but predictions are yielded after each batch; takes an iterator of any length."""
        pictures = _each(images)
        while batch := list(islice(pictures, self.batch_size)):
            pixels = torch.stack([self.preprocess(picture, name) for name, picture in batch])
            for (name, _), row in zip(batch, self.probabilities(pixels), strict=True):
                yield Prediction(self.class_names, row, name)

    def preprocess(self, image: Picture, name: str = "image") -> Tensor:
        """The pixels that the network sees, `3, S, S` uint8, before normalisation.

        Raises:
            UserError: If the image cannot be read or is of another type.
        """
        return channels_first(self._transform(_to_pixels(image, name), (0, 0, 0)))

    @torch.inference_mode()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Probabilities `B, K` float32 on the CPU, of preprocessed pixels `B, 3, S, S` uint8.

        Raises:
            UserError: If the module does not return class probabilities.
        """
        images = self._precision.convert_input(self.preprocessing.normalize(pixels.to(self.device)))
        index = torch.arange(len(images), device=self.device)
        batch = {"image": images, "target": torch.full_like(index, IGNORE_INDEX), "index": index}
        with self._precision.forward_context():
            result: Any = self.module.predict_step(batch, 0)
        if not is_probability(result):
            raise UserError(f"predict_step of {type(self.module).__name__} does not return class probabilities B, K")
        return result.float().cpu()  # type: ignore[no-any-return]


class ProgramPredictor(Predictor):
    """`Predictor` for an exported program, which runs on the CPU with the precision it was exported with.

    Attributes:
        program: The program; `program.info` is what the file says about itself.

    Raises:
        UserError: If the file is damaged or of another program, or for an argument that a program has no use for.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        device: str | torch.device | None = None,
        precision: PrecisionName | None = None,
        batch_size: int = 32,
        preprocessing: Preprocessing | None = None,
        allow: Allowed = (),
    ) -> None:
        path = find_checkpoint_file(checkpoint)
        if precision is not None or torch.device(device or "cpu").type != "cpu":
            raise UserError(f"program {str(path)!r} runs on the CPU as exported; leave out device and precision")
        _check_batch_size(batch_size)
        self.program = Program(path)
        found = preprocessing or self.program.info.preprocessing
        if found is None:
            raise UserError(f"program {str(path)!r} states no preprocessing; use Predictor(..., preprocessing=...)")
        self.checkpoint, self.preprocessing, self.batch_size = path, found, batch_size
        self.device, self.class_names = torch.device("cpu"), self.program.info.class_names
        self._transform = eval_transform(found.image_size, found.crop, found.crop_ratio)

    def stream(self, images: Picture | Iterable[Picture]) -> Iterator[Prediction]:
        if not self.program.info.includes_preprocessing:
            yield from super().stream(images)
            return
        for name, picture in _each(images):
            pixels = torch.from_numpy(np.asarray(_to_pixels(picture, name)))
            yield Prediction(self.class_names, self.program(pixels), name)

    def probabilities(self, pixels: Tensor) -> Tensor:
        if self.program.info.includes_preprocessing:
            raise UserError(f"program {str(self.checkpoint)!r} takes images before their preprocessing; call predictor")
        return self.program(self.preprocessing.normalize(pixels)).softmax(dim=1)


def find_checkpoint_file(path: str | Path) -> Path:
    """The checkpoint that a path means: a file, or the best (else the last) one of a run folder.

    Raises:
        UserError: If there is no such file, or the folder is not a run folder.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return RunFolder.open(path).checkpoint()
    if not path.is_file():
        raise UserError(f"checkpoint {str(path)!r}: no such file; give a .ckpt file or a run folder")
    return path


# helpers


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size} must be at least 1")


def _find_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        found = torch.accelerator.current_accelerator(check_available=True)
        return found or torch.device("cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device {str(device)!r} is not available ({str(error).splitlines()[0]})") from error
    return found


def _precision_plugin(precision: str, device: torch.device) -> Precision:
    """The same plugin as the Trainer's."""
    if precision not in get_args(PrecisionName):
        raise UserError(f"precision {precision!r} is unknown; choose one of {', '.join(get_args(PrecisionName))}")
    if precision == "32-true":
        return Precision()
    if precision.endswith("-mixed"):
        return MixedPrecision(cast(Any, precision), device.type)
    return HalfPrecision(cast(Any, precision))


def _each(images: Picture | Iterable[Picture]) -> Iterator[tuple[str, Picture]]:
    """Name and image of each image: folders and batches are taken apart."""
    single = isinstance(images, str | Path | bytes | Image.Image | LazyImage)
    if single or (isinstance(images, np.ndarray | Tensor) and images.ndim < 4):
        images = [images]  # type: ignore[list-item]
    if not isinstance(images, Iterable):
        raise UserError(f"cannot predict a {type(images).__name__}; give paths, PIL images, uint8 arrays or tensors")
    for position, image in enumerate(images):
        if isinstance(image, str | Path):
            path = Path(image).expanduser()
            files = list_images(path) if path.is_dir() else [path]
            yield from ((str(file), file) for file in files)
        else:
            yield str(position), image


def _to_pixels(image: Picture, name: str) -> np.ndarray | LazyImage:
    """A file, or an array `H, W, 3` uint8."""
    if isinstance(image, LazyImage):
        return image
    if isinstance(image, str | Path | bytes):
        return LazyImage(Path(image) if isinstance(image, str) else image, name)
    if isinstance(image, Image.Image):
        try:
            return pil_pixels(image)
        except (ValueError, OSError) as error:
            raise UserError(f"cannot read image {name}: {error}") from error
    if isinstance(image, Tensor):
        image = _tensor_pixels(image, name)
    if not isinstance(image, np.ndarray):
        raise UserError(f"image {name}: cannot predict a {type(image).__name__}; give a path, PIL image or uint8 array")
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    shape_fits = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))
    if image.dtype != np.uint8 or not shape_fits or not image.size:
        raise UserError(
            f"image {name}: an array of {image.dtype} and shape {image.shape}; expected uint8 of H, W, 3 (RGB) or H, W"
        )
    return np.ascontiguousarray(np.stack([image] * 3, axis=2) if image.ndim == 2 else image[:, :, :3])


def _tensor_pixels(image: Tensor, name: str) -> np.ndarray:
    """A tensor `C, H, W` as an array `H, W, C` uint8."""
    image = image.detach().cpu()
    if image.is_floating_point():
        if not (image.numel() and image.min() >= 0 and image.max() <= 1):
            raise UserError(
                f"image {name}: a float tensor must have values in [0, 1]; normalised images go to predictor.module"
            )
        image = (image.float() * 255).round().byte()
    return image.permute(1, 2, 0).numpy() if image.ndim == 3 else image.numpy()
