"""A checkpoint as `swin-lightning fit` writes it, of a small classifier with random weights."""

import torch

from swin_lightning.batch import Preprocessing
from swin_lightning.models import SwinTransformer, SwinTransformerV2
from swin_lightning.tasks.classification import SwinClassifier
from tests.support.golden import randomize

SIZES = {"img_size": 24, "patch_size": 4, "embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 4}
PREPROCESSING = Preprocessing(24, "center", 0.75, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
CLASSES = ["cat", "dog", "eel"]


def write_checkpoint(path, version=1, preprocessing=PREPROCESSING, classes=CLASSES, **sizes):
    """Write the checkpoint; returns its classifier in evaluation mode."""
    cls = {1: SwinTransformer, 2: SwinTransformerV2}[version]
    backbone = {"class_path": f"swin_lightning.models.{cls.__name__}", "init_args": SIZES | sizes}
    classifier = SwinClassifier(cls(**backbone["init_args"]), num_classes=len(classes), class_names=classes)
    randomize(classifier, std=0.3)
    hparams = {"backbone": backbone, "num_classes": len(classes), "class_names": classes}
    hparams["_instantiator"] = "lightning.pytorch.cli.instantiate_module"
    content = {
        "pytorch-lightning_version": "2.6.6",
        "state_dict": classifier.state_dict(),
        "hyper_parameters": hparams,
        "ImageFolder": {"preprocessing": preprocessing.state()} if preprocessing else {},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return classifier.eval()
