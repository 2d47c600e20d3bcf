"""Checkpoints as `fit` writes them, made without training, and changed at will."""

import copy

import torch

from swin_lightning import SwinClassifier
from swin_lightning.models import SwinTransformer

BACKBONE = {"img_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}


def hyper_parameters(**changes):
    """Hyperparameters of a classifier of three classes; `changes` replaces or adds some."""
    block = {"class_path": "swin_lightning.models.SwinTransformer", "init_args": copy.deepcopy(BACKBONE)}
    return {
        "_class_path": "swin_lightning.SwinClassifier",
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
        **{"backbone": block, "lr": 0.002, "num_classes": 3, "class_names": ["a", "b", "c"]},
        **changes,
    }


def state_dict():
    torch.manual_seed(0)
    backbone = SwinTransformer(**BACKBONE)
    return SwinClassifier(backbone, 3).state_dict()


def write_checkpoint(path, state=None, **changes):
    """A checkpoint of a run with changed hyperparameters and entries of its state dict (None removes one)."""
    parameters = {key: value for key, value in {**state_dict(), **(state or {})}.items() if value is not None}
    content = {"state_dict": parameters, "hyper_parameters": hyper_parameters(**changes)}
    progress = {"global_step": 3, "epoch": 1, "pytorch-lightning_version": "2.6.6", "loops": {}, "callbacks": {}}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**content, **progress}, path)
    return path


def backbone(**arguments):
    """A block of a backbone with changed arguments, for `hyper_parameters(backbone=...)`."""
    return {"class_path": "swin_lightning.models.SwinTransformer", "init_args": {**BACKBONE, **arguments}}
