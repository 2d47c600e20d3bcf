"""The same Swin Transformer built by other projects, with the same weights.

None of them is a dependency: they are imported where they are installed, or from a folder that
`pip install --no-deps --target FOLDER timm torchvision transformers` has filled.
"""

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

from swin_lightning.errors import UserError
from swin_lightning.models.registry import model_info
from swin_lightning.models.swin import SwinTransformer
from swin_lightning.models.swin_v2 import SwinTransformerV2
from swin_lightning.models.weights import export_weights

TOLERANCE = 1e-4  # largest difference of two logits that still counts as the same model
VITS = {"vit_small_patch16_224": 4.6e9, "vit_base_patch16_224": 17.6e9, "vit_large_patch16_224": 61.6e9}  # MACs


class Classifier(nn.Module):
    """Backbone and head without Lightning, as `export_weights` takes them."""

    def __init__(self, backbone: SwinTransformer) -> None:
        super().__init__()
        self.backbone, self.head = backbone, backbone.head
        backbone.head = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


class Logits(nn.Module):
    """A model of transformers as a function of images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.model(images).logits)


def ours(name: str, num_classes: int, drop_path: float) -> Classifier:
    """A named model with random parameters, the same at every call.

    Vectors and bias tables are random too: with the zeros and ones they start from, much could differ unseen.
    """
    torch.manual_seed(0)
    backbone = model_info(name).builder(num_classes=num_classes, drop_path_rate=drop_path)
    model = Classifier(cast(SwinTransformer, backbone))
    for key, parameter in model.named_parameters():
        if parameter.ndim == 1 or "bias_table" in key or key == "head.weight":
            nn.init.normal_(parameter, mean=float("norm" in key and key.endswith("weight")), std=0.2)
    return model


@dataclass(frozen=True)
class Plan:
    """What all projects need to know to build the same model."""

    shape: dict[
        str, Any
    ]  # patch_size, embed_dim, depths, num_heads, window_size, mlp_ratio: called the same everywhere
    v2: bool
    size: int  # of the image
    classes: int
    drop_path: float
    official: str | None  # file of the official repository


def peer(name: str, classifier: Classifier, drop_path: float, official: str | None = None) -> nn.Module:
    """The same model by another project.

    Args:
        name: `official`, `timm`, `torchvision` or `transformers`.
        classifier: Ours, whose shape and weights it takes.
        drop_path: Stochastic depth of the last block.
        official: File of the official repository that defines its class.

    Raises:
        ImportError: Where the project is not installed.
        ValueError: Where it has other parameters.
    """
    backbone = classifier.backbone
    layers = cast(Any, backbone.layers)
    shape = {
        "patch_size": backbone.patch_size,
        "embed_dim": backbone.patch_embed.proj.out_channels,
        "depths": [len(layer.blocks) for layer in layers],
        "num_heads": [layer.blocks[0].attn.num_heads for layer in layers],
        "window_size": layers[0].window_size,
        "mlp_ratio": layers[0].blocks[0].mlp.fc1.out_features / backbone.patch_embed.proj.out_channels,
    }
    v2, classes = isinstance(backbone, SwinTransformerV2), cast(int, classifier.head.out_features)
    _mend_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their imports
        model = BUILDERS[name](Plan(shape, v2, backbone.img_size, classes, drop_path, official))
    before_5 = name == "transformers" and importlib.import_module("transformers").__version__.startswith("4.")
    state = export_weights(classifier, "transformers4" if before_5 else name)
    missing, unexpected = model.load_state_dict(state, strict=False)
    unfilled = {key for key, _ in model.named_parameters()} & set(missing)
    if unexpected or unfilled:
        raise UserError(f"{name} does not take our weights: {[*sorted(unfilled), *unexpected][:3]}")
    return Logits(model) if name == "transformers" else model


def vit(classifier: Classifier, macs: float) -> tuple[str, nn.Module] | None:
    """timm's ViT of the nearest multiply-adds, None where none is within a third.

    Raises:
        ImportError: Where timm is not installed.
    """
    _mend_torchvision()
    name = min(VITS, key=lambda name: abs(VITS[name] - macs))
    if classifier.backbone.img_size != 224 or abs(VITS[name] / macs - 1) > 1 / 3:
        return None
    model: nn.Module = importlib.import_module("timm").create_model(name, num_classes=classifier.head.out_features)
    return name, model


def find_peers(folder: str | None) -> None:
    """Let the imports find peers in a folder, after what is installed."""
    if folder is not None:
        if not Path(folder).is_dir():
            raise UserError(f"--peers {folder}: there is no such folder")
        sys.path.append(folder)


def difference(model: nn.Module, reference: nn.Module, images: Tensor) -> float:
    """The largest difference of two models' logits in evaluation."""
    with torch.no_grad():
        return float((model.eval()(images) - reference.eval()(images)).abs().max())


def accepted(name: str, difference: float) -> float:
    """The difference, if it is small enough for a comparison of speed to mean something.

    Raises:
        ValueError: Where the outputs differ.
    """
    if not difference <= TOLERANCE:
        raise UserError(f"{name} answers differently by {difference:.1e} with our weights: there is nothing to compare")
    return difference


# helpers


def _timm(plan: Plan) -> nn.Module:
    module = importlib.import_module(f"timm.models.swin_transformer{'_v2' * plan.v2}")
    cls = module.SwinTransformerV2 if plan.v2 else module.SwinTransformer
    return _built(cls(**plan.shape, img_size=plan.size, num_classes=plan.classes, drop_path_rate=plan.drop_path))


def _torchvision(plan: Plan) -> nn.Module:
    module = importlib.import_module("torchvision.models.swin_transformer")
    shape = plan.shape | {name: [plan.shape[name]] * 2 for name in ("patch_size", "window_size")}
    if plan.v2:
        shape |= {"block": module.SwinTransformerBlockV2, "downsample_layer": module.PatchMergingV2}
    return _built(module.SwinTransformer(**shape, num_classes=plan.classes, stochastic_depth_prob=plan.drop_path))


def _transformers(plan: Plan) -> nn.Module:
    module, swin = importlib.import_module("transformers"), "Swinv2" if plan.v2 else "Swin"
    options = {"image_size": plan.size, "num_labels": plan.classes, "drop_path_rate": plan.drop_path}
    config = getattr(module, f"{swin}Config")(**plan.shape, **options)
    return _built(getattr(module, f"{swin}ForImageClassification")(config))


def _official(plan: Plan) -> nn.Module:
    if plan.official is None:
        raise ImportError("no --official FILE")
    spec = importlib.util.spec_from_file_location("official_swin", plan.official)
    if spec is None or spec.loader is None or not Path(plan.official).is_file():
        raise UserError(f"--official {plan.official}: there is no such Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    name = "SwinTransformerV2" if plan.v2 else "SwinTransformer"
    if not hasattr(module, name):
        raise ImportError(f"{plan.official} defines no {name}")
    options = {"img_size": plan.size, "num_classes": plan.classes, "drop_path_rate": plan.drop_path}
    return _built(getattr(module, name)(**plan.shape, **options))


def _built(model: Any) -> nn.Module:
    assert isinstance(model, nn.Module)
    return model


BUILDERS: dict[str, Callable[[Plan], nn.Module]] = {
    "official": _official,
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
}

_operators: list[torch.library.Library] = []  # declarations live as long as their library object


def _mend_torchvision() -> None:
    """Declare two operators that torchvision looks up when imported beside another build of torch than its own.

    The peers import it and its models need none of its compiled operators.
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
        _operators.append(library)
        importlib.import_module("torchvision")
