"""The same Swin Transformer as implemented by other projects, with the same weights.

The projects are optional. They are imported if installed, or from a folder that was filled by
`pip install --no-deps --target FOLDER timm torchvision transformers`.
"""

import copy
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.timing import autocast
from swin_lightning.errors import UserError
from swin_lightning.models.linear import use_onednn
from swin_lightning.models.registry import model_info
from swin_lightning.models.swin import SwinTransformer
from swin_lightning.models.swin_v2 import SwinTransformerV2
from swin_lightning.models.weights import export_weights

TOLERANCE = {"32": 1e-6, "bf16": 2e-2}  # largest `logit_difference` that still counts as the same model, by precision
VIT_MACS = {"vit_small_patch16_224": 4.6e9, "vit_base_patch16_224": 17.6e9, "vit_large_patch16_224": 61.6e9}


class Classifier(nn.Module):
    """Backbone and head without Lightning, in the form that `export_weights` expects."""

    def __init__(self, backbone: SwinTransformer) -> None:
        super().__init__()
        self.backbone, self.head = backbone, backbone.head
        backbone.head = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


class LogitsOnly(nn.Module):
    """A model of transformers that returns the logits instead of an output object."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.model(images).logits)


def build_own(name: str, num_classes: int, drop_path: float) -> Classifier:
    """A named model of swin_lightning with random parameters, the same in every call.

    Norms, biases and bias tables are randomized too: initialised to zeros and ones they would hide differences.
    """
    torch.manual_seed(0)
    backbone = model_info(name).builder(num_classes=num_classes, drop_path_rate=drop_path)
    model = Classifier(cast(SwinTransformer, backbone))
    for key, parameter in model.named_parameters():
        if parameter.ndim == 1 or "bias_table" in key or key == "head.weight":
            nn.init.normal_(parameter, mean=float("norm" in key and key.endswith("weight")), std=0.2)
    use_onednn(model)  # as a task does
    return model


@dataclass(frozen=True)
class ModelSpec:
    """Hyperparameters that every project needs to build the same model.

    Args:
        shape: patch_size, embed_dim, depths, num_heads, window_size, mlp_ratio: the same names in every project.
        v2: Swin V2.
        image_size: Side of the image in pixels.
        num_classes: Number of classes.
        drop_path: Stochastic depth rate of the last block.
        official: Path of the official repository's model file.
    """

    shape: dict[str, Any]
    v2: bool
    image_size: int
    num_classes: int
    drop_path: float
    official: str | None


def build_reference(name: str, classifier: Classifier, drop_path: float, official: str | None = None) -> nn.Module:
    """The same model as implemented by another project.

    Args:
        name: `official`, `timm`, `torchvision` or `transformers`.
        classifier: Own model, which gives the shape and the weights.
        drop_path: Stochastic depth rate of the last block.
        official: Path of the official repository's model file.

    Raises:
        ImportError: If the project is not installed.
        UserError: If its parameters differ from ours.
    """
    backbone = classifier.backbone
    layers = cast(Any, backbone.layers)
    shape = {
        "patch_size": backbone.patch_size[0],  # these models are square
        "embed_dim": backbone.patch_embed.proj.out_channels,
        "depths": [len(layer.blocks) for layer in layers],
        "num_heads": [layer.blocks[0].attn.num_heads for layer in layers],
        "window_size": layers[0].window_size[0],
        "mlp_ratio": layers[0].blocks[0].mlp.fc1.out_features / backbone.patch_embed.proj.out_channels,
    }
    v2, num_classes = isinstance(backbone, SwinTransformerV2), cast(int, classifier.head.out_features)
    import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the other projects' imports
        model = BUILDERS[name](ModelSpec(shape, v2, backbone.img_size[0], num_classes, drop_path, official))
    before_5 = name == "transformers" and importlib.import_module("transformers").__version__.startswith("4.")
    state = export_weights(classifier, "transformers4" if before_5 else name)
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing_parameters = {key for key, _ in model.named_parameters()} & set(missing)
    if unexpected or missing_parameters:
        keys = [*sorted(missing_parameters), *unexpected][:3]
        raise UserError(f"{name}: missing or unexpected keys in the exported weights: {keys}")
    return LogitsOnly(model) if name == "transformers" else model


def build_plain(classifier: Classifier) -> nn.Module:
    """Own model without the kernels that `use_onednn` chooses for this processor."""
    model = copy.deepcopy(classifier)
    use_onednn(model, enable=False)
    return model


def build_vit(classifier: Classifier, macs: float) -> tuple[str, nn.Module] | None:
    """timm's ViT with the nearest number of MACs and its name; None if none is within a third of `macs`.

    Raises:
        ImportError: If timm is not installed.
    """
    import_torchvision()
    name = min(VIT_MACS, key=lambda name: abs(VIT_MACS[name] - macs))
    if classifier.backbone.img_size != (224, 224) or abs(VIT_MACS[name] / macs - 1) > 1 / 3:
        return None
    timm = importlib.import_module("timm")
    model: nn.Module = timm.create_model(name, num_classes=classifier.head.out_features)
    return name, model


def add_import_path(folder: str | None) -> None:
    """Search a folder for the other projects, after the installed packages.

    Raises:
        UserError: If the folder does not exist.
    """
    if folder is not None:
        if not Path(folder).is_dir():
            raise UserError(f"--peers {folder}: no such folder")
        sys.path.append(folder)


def max_difference(model: nn.Module, reference: nn.Module, images: Tensor, precision: str = "32") -> float:
    """`logit_difference` of two models in evaluation mode, in float32 or bfloat16 autocast."""
    with torch.no_grad(), autocast(images, precision):
        return logit_difference(model.eval()(images), reference.eval()(images))


def logit_difference(logits: Tensor, reference: Tensor) -> float:
    """The largest absolute difference of two logits, relative to the largest logit if that exceeds 1."""
    logits, reference = logits.float(), reference.float()
    return float((logits - reference).abs().max() / reference.abs().max().clamp(min=1))


def check_difference(name: str, difference: float, precision: str = "32") -> float:
    """Return the difference of two models' logits if it is small enough for their speed to be compared.

    Raises:
        UserError: If it exceeds `TOLERANCE` or is NaN.
    """
    if not difference <= TOLERANCE[precision]:
        raise UserError(f"{name}: logits differ by {difference:.1e} for the same weights; not a comparable model")
    return difference


# helpers


def _timm(spec: ModelSpec) -> nn.Module:
    module = importlib.import_module(f"timm.models.swin_transformer{'_v2' * spec.v2}")
    cls = module.SwinTransformerV2 if spec.v2 else module.SwinTransformer
    options = {"img_size": spec.image_size, "num_classes": spec.num_classes, "drop_path_rate": spec.drop_path}
    return cast(nn.Module, cls(**spec.shape, **options))


def _torchvision(spec: ModelSpec) -> nn.Module:
    module = importlib.import_module("torchvision.models.swin_transformer")
    shape = spec.shape | {name: [spec.shape[name]] * 2 for name in ("patch_size", "window_size")}
    if spec.v2:
        shape |= {"block": module.SwinTransformerBlockV2, "downsample_layer": module.PatchMergingV2}
    options = {"num_classes": spec.num_classes, "stochastic_depth_prob": spec.drop_path}
    return cast(nn.Module, module.SwinTransformer(**shape, **options))


def _transformers(spec: ModelSpec) -> nn.Module:
    module, swin = importlib.import_module("transformers"), "Swinv2" if spec.v2 else "Swin"
    options = {"image_size": spec.image_size, "num_labels": spec.num_classes, "drop_path_rate": spec.drop_path}
    config = getattr(module, f"{swin}Config")(**spec.shape, **options)
    return cast(nn.Module, getattr(module, f"{swin}ForImageClassification")(config))


def _official(spec: ModelSpec) -> nn.Module:
    if spec.official is None:
        raise ImportError("needs --official FILE")
    module_spec = importlib.util.spec_from_file_location("official_swin", spec.official)
    if module_spec is None or module_spec.loader is None or not Path(spec.official).is_file():
        raise UserError(f"--official {spec.official}: no such Python file")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    name = "SwinTransformerV2" if spec.v2 else "SwinTransformer"
    if not hasattr(module, name):
        raise ImportError(f"{spec.official} does not define {name}")
    options = {"img_size": spec.image_size, "num_classes": spec.num_classes, "drop_path_rate": spec.drop_path}
    return cast(nn.Module, getattr(module, name)(**spec.shape, **options))


BUILDERS: dict[str, Callable[[ModelSpec], nn.Module]] = {
    "official": _official,
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
}

_libraries: list[torch.library.Library] = []  # operators are unregistered when their Library object is deleted


def import_torchvision() -> None:
    """Import torchvision, even if it was built for another build of torch (CPU instead of CUDA).

    Its compiled operators are then missing, and its import fails where it registers fake kernels for two of them. The
    models use neither, so that declaring the operators is enough.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)
        importlib.import_module("torchvision")
