"""Folders for the Hugging Face Hub that this project, timm and transformers load as they are.

    config.json                        transformers' and timm's configuration, and ours under `swin_lightning`
    preprocessor_config.json           transformers' image processor: that of timm
    model-transformers.safetensors     weights for transformers and for us
    model.safetensors.index.json       by which transformers finds them
    model-timm.safetensors             weights for timm, whose names differ

`config.json` of a network that timm and transformers cannot build has our part only, and `model.safetensors` our names.
Nothing in a folder names code: the network is a Swin Transformer with the sizes that are stated.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from swin_lightning.batch import Preprocessing
from swin_lightning.errors import UserError, summarize
from swin_lightning.models.swin import BasicLayer, SwinTransformer, SwinTransformerBlock
from swin_lightning.models.swin_v2 import SwinTransformerV2, WindowAttentionV2
from swin_lightning.models.weights import save_weights

CONFIG, INDEX, PROCESSOR = "config.json", "model.safetensors.index.json", "preprocessor_config.json"
OWN, TIMM, TRANSFORMERS = "model.safetensors", "model-timm.safetensors", "model-transformers.safetensors"
TIMM_NAMES = {1: "swin_tiny_patch4_window7_224", 2: "swinv2_tiny_window8_256"}  # sizes are given as model_args
# transformers' own processors round the offset of a center crop down; timm's transforms crop as we do
IMAGE_PROCESSOR = {"image_processor_type": "TimmWrapperImageProcessor"}


def write_folder(
    model: nn.Module, class_names: list[str], preprocessing: Preprocessing | None, folder: Path
) -> list[str]:
    """Write weights and configurations of a classifier.

    Args:
        model: Module with a Swin `backbone` and a linear `head`.
        class_names: K names.
        preprocessing: From an image to the input of the network.
        folder: An existing folder.

    Returns:
        The other projects that can load it: `timm` and `transformers`, or none.

    Raises:
        UserError: If the backbone is no Swin Transformer, or the preprocessing is unknown.
    """
    backbone = model.backbone
    if type(backbone) not in (SwinTransformer, SwinTransformerV2):
        raise UserError(f"only a Swin Transformer can be saved for the Hub, not {type(backbone).__name__}")
    if preprocessing is None:
        raise UserError(
            "the preprocessing is unknown, and without it nobody can use the model: load the model from a checkpoint "
            "of `swin-lightning fit`, or set model.preprocessing = swin_lightning.batch.Preprocessing(...)"
        )
    network = cast(SwinTransformer, backbone)
    sizes = network_sizes(network)
    own = {"backbone": sizes, "class_names": class_names, "preprocessing": preprocessing.state()}
    compatible = is_compatible(network, preprocessing.image_size)
    config: dict[str, Any] = {"swin_lightning": own | {"weights": TRANSFORMERS if compatible else OWN}}
    if compatible:
        config |= transformers_config(sizes, class_names) | timm_config(sizes, class_names, preprocessing)
        save_weights(model, folder / TRANSFORMERS, "transformers")
        save_weights(model, folder / TIMM, "timm")
        _write_json(folder / INDEX, shard_index(folder / TRANSFORMERS))
        _write_json(folder / PROCESSOR, IMAGE_PROCESSOR)
    else:
        save_weights(model, folder / OWN)
    _write_json(folder / CONFIG, config)
    return ["timm", "transformers"] if compatible else []


def read_config(path: Path) -> tuple[SwinTransformer, list[str], Preprocessing, str]:
    """Network without weights, class names, preprocessing and name of the weight file of a `config.json`.

    Raises:
        UserError: If it was not written by `write_folder`.
    """
    try:
        own = json.loads(path.read_text(encoding="utf-8"))["swin_lightning"]
        sizes: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in own["backbone"].items()}
        cls = {1: SwinTransformer, 2: SwinTransformerV2}[sizes.pop("version")]
        stated: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in own["preprocessing"].items()}
        weights = own["weights"]
        if weights not in (OWN, TRANSFORMERS):
            raise ValueError(f"weights {weights!r}")
        names = [str(name) for name in own["class_names"]]
        return cls(**sizes), names, Preprocessing(**stated), weights
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{str(path)!r} was not written by save_pretrained of SwinClassifier ({summarize(error)})"
        ) from error


def network_sizes(network: SwinTransformer) -> dict[str, Any]:
    """Arguments of the constructor, and the version."""
    layers = cast(list[BasicLayer], network.layers)
    blocks = [cast(SwinTransformerBlock, layer.blocks[0]) for layer in layers]
    attention = blocks[0].attn
    sizes: dict[str, Any] = {
        "version": 2 if isinstance(network, SwinTransformerV2) else 1,
        "img_size": network.img_size,
        "patch_size": network.patch_size,
        "in_chans": network.patch_embed.proj.in_channels,
        "embed_dim": network.patch_embed.proj.out_channels,
        "depths": [len(layer.blocks) for layer in layers],
        "num_heads": [block.attn.num_heads for block in blocks],
        "window_size": layers[0].window_size,
        "mlp_ratio": blocks[0].mlp.fc1.out_features / blocks[0].mlp.fc1.in_features,
        "ape": network.absolute_pos_embed is not None,
        "patch_norm": isinstance(network.patch_embed.norm, nn.LayerNorm),
    }
    if isinstance(attention, WindowAttentionV2):
        sizes["qkv_bias"] = attention.q_bias is not None
        trained = [cast(WindowAttentionV2, block.attn).trained_window for block in blocks]
        own = [block.attn.window_size for block in blocks]
        sizes["pretrained_window_sizes"] = [t[0] if t != o else 0 for t, o in zip(trained, own, strict=True)]
    else:
        sizes["qkv_bias"] = attention.qkv.bias is not None
    return sizes


def is_compatible(network: SwinTransformer, image_size: int) -> bool:
    """Whether timm and transformers compute the same: squares, no padding within windows, no position embedding."""
    sizes = network_sizes(network)
    square = all(sizes[name][0] == sizes[name][1] for name in ("img_size", "patch_size", "window_size"))
    window = sizes["window_size"][0]
    maps = [network.stage_size(stage)[0] for stage in range(len(sizes["depths"]))]
    whole = image_size % (sizes["patch_size"][0] << len(maps) - 1) == 0
    fits = all(side % min(window, side) == 0 for side in maps)
    return square and whole and fits and image_size == sizes["img_size"][0] and sizes["patch_norm"] and not sizes["ape"]


# the other projects


def transformers_config(sizes: Mapping[str, Any], class_names: list[str]) -> dict[str, Any]:
    """`SwinConfig` or `Swinv2Config` of transformers."""
    version = {1: "", 2: "v2"}[sizes["version"]]
    config = {
        "model_type": f"swin{version}",
        "architectures": [f"Swin{version}ForImageClassification"],
        "image_size": sizes["img_size"][0],
        "patch_size": sizes["patch_size"][0],
        "num_channels": sizes["in_chans"],
        "window_size": sizes["window_size"][0],
        "id2label": {str(i): name for i, name in enumerate(class_names)},
        "label2id": {name: i for i, name in enumerate(class_names)},
        "layer_norm_eps": 1e-5,
    } | IMAGE_PROCESSOR  # transformers looks here in a local folder, and in preprocessor_config.json on the Hub
    shared = ("embed_dim", "depths", "num_heads", "mlp_ratio", "qkv_bias", "pretrained_window_sizes")
    return config | {name: sizes[name] for name in shared if name in sizes}


def timm_config(sizes: Mapping[str, Any], class_names: list[str], preprocessing: Preprocessing) -> dict[str, Any]:
    """timm's `architecture`, `pretrained_cfg` and `model_args`."""
    size, squash = preprocessing.image_size, preprocessing.shorter_side is None
    pretrained = {
        "input_size": [sizes["in_chans"], size, size],
        "fixed_input_size": True,
        "interpolation": preprocessing.interpolation,
        "crop_mode": "squash" if squash else "center",
        "crop_pct": 1.0 if squash else preprocessing.crop_ratio,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "num_classes": len(class_names),
        "label_names": class_names,
        "first_conv": "patch_embed.proj",
        "classifier": "head.fc",
        "hf_hub_filename": TIMM,
    }
    shared = ("in_chans", "embed_dim", "depths", "num_heads", "mlp_ratio", "qkv_bias", "pretrained_window_sizes")
    arguments = {name: sizes[name] for name in shared if name in sizes}
    arguments |= {name: sizes[name][0] for name in ("img_size", "patch_size", "window_size")}
    return {
        "architecture": TIMM_NAMES[sizes["version"]],
        "num_classes": len(class_names),
        "pretrained_cfg": pretrained,
        "model_args": arguments,
    }


def shard_index(weights: Path) -> dict[str, Any]:
    """The index by which transformers finds a file of another name than `model.safetensors`."""
    from safetensors import safe_open

    with safe_open(weights, "pt") as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(tensors, weights.name)}


# helpers


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
