"""Registry of named models (`builders.py`) with their published metrics."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import nn

from swin_lightning.errors import UserError

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class PublishedResult:
    """Published accuracy on the validation set of ImageNet-1K.

    Args:
        top1: Top-1 accuracy in percent.
        top5: Top-5 accuracy in percent.
        pretraining: Training data set; a model pre-trained on ImageNet-22K was then fine-tuned on ImageNet-1K.
        protocol: Evaluation protocol: how images were resized and cropped.
    """

    top1: float
    top5: float
    pretraining: Literal["ImageNet-1K", "ImageNet-22K"]
    protocol: str

    @property
    def setting(self) -> str:
        """Training data and evaluation protocol."""
        data = "ImageNet-22K, then 1K" if self.pretraining == "ImageNet-22K" else self.pretraining
        return f"{data}; {self.protocol}"


@dataclass(frozen=True)
class PretrainedMetrics:
    """Published metrics of a model.

    Args:
        params: Parameters in millions, including a head of 1000 classes.
        gmacs: Multiply-accumulate operations for one image in billions.
        results: Accuracies, one per published checkpoint.
    """

    params: int
    gmacs: float
    results: tuple[PublishedResult, ...]


@dataclass(frozen=True)
class ModelInfo:
    """A registered model.

    Args:
        name: Name of the builder.
        builder: Function that returns the backbone.
        image_size: Side of the training images in pixels.
        num_classes: Number of classes that parameters and MACs are counted with.
        published: Published metrics, if any.
    """

    name: str
    builder: Callable[..., nn.Module]
    image_size: int
    num_classes: int
    published: PretrainedMetrics | None


MODELS: dict[str, ModelInfo] = {}


def register_model(
    image_size: int, num_classes: int = 1000, published: PretrainedMetrics | None = None
) -> Callable[[Builder], Builder]:
    """Decorator that adds a builder function to the registry; see `ModelInfo` for the arguments.

    Raises:
        UserError: If another module has registered a model of the same name.
    """

    def register(builder: Builder) -> Builder:
        name = builder.__name__
        if name in MODELS and MODELS[name].builder.__module__ != builder.__module__:
            raise UserError(f"model {name!r} is already registered by {MODELS[name].builder.__module__}; rename it")
        MODELS[name] = ModelInfo(name, builder, image_size, num_classes, published)
        return builder

    return register


def list_models() -> list[str]:
    """Names of all registered models, in order of registration."""
    return list(MODELS)


def model_info(name: str) -> ModelInfo:
    """Look up a registered model.

    Raises:
        UserError: If there is no model of this name.
    """
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}; run `swin-lightning models` for a list")
    return MODELS[name]


def compare_to_published(class_path: str, experiment: str, top1: float, top5: float, protocol: str) -> str | None:
    """Format a measured accuracy next to the published one, as two lines.

    Args:
        class_path: Class path of the backbone in the configuration.
        experiment: Name of the experiment; `*_ft_22k` is compared with pre-training on ImageNet-22K.
        top1: Measured top-1 accuracy in [0, 1].
        top5: Measured top-5 accuracy in [0, 1].
        protocol: Evaluation protocol of the measurement.

    Returns:
        The two lines, or None if there is no published result for this backbone.
    """
    module, _, name = class_path.rpartition(".")
    info = MODELS.get(name)
    if info is None or info.published is None or not f"{info.builder.__module__}.".startswith(f"{module}."):
        return None
    pretraining = "ImageNet-22K" if experiment.endswith("_ft_22k") else "ImageNet-1K"
    results = info.published.results
    result = next((result for result in results if result.pretraining == pretraining), results[0])
    measured = f"measured   top-1 {100 * top1:4.1f}  top-5 {100 * top5:4.1f}  {protocol}"
    return f"{measured}\npublished  top-1 {result.top1:4.1f}  top-5 {result.top5:4.1f}  {result.setting}"
