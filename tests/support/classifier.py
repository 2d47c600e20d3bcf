"""A small classifier of three classes of coloured noise, trained on files: its checkpoint, and what `test` computed."""

import numpy as np
import torch
from lightning import Callback, Trainer, seed_everything
from PIL import Image

from swin_lightning.data import ImageFolder
from swin_lightning.models import SwinTransformer
from swin_lightning.runs import RunFolder
from swin_lightning.tasks.classification import SwinClassifier

BACKBONE = {
    "class_path": "swin_lightning.models.SwinTransformer",
    "init_args": {
        "img_size": 24, "patch_size": 4, "embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 3,
        "num_classes": 0,
    },
}  # fmt: skip
DATA = {"image_size": 24, "eval_crop_ratio": 0.75, "mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3), "batch_size": 2,
        "num_workers": 0}  # fmt: skip


class Outputs(Callback):
    """The logits of a test."""

    def __init__(self):
        self.logits = []

    def on_test_batch_end(self, trainer, pl_module, outputs, *_):
        self.logits.append(outputs)


def train_classifier(root):
    """A checkpoint in a run folder, the test images and the probabilities that `test` computed for them."""
    rng = np.random.default_rng(0)
    for split, count in {"train": 2, "val": 1, "test": 2}.items():
        for name in ("cat", "dog", "eel"):
            for i in range(count):
                size = (40 + 7 * i, 33, 3)
                path = root / "data" / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(256, size=size, dtype=np.uint8)).save(path)
    seed_everything(1)
    data = ImageFolder(str(root / "data"), **DATA)
    model = SwinClassifier(
        SwinTransformer(**BACKBONE["init_args"]), num_classes=3, class_names=["cat", "dog", "eel"], lr=1e-2
    )
    model.hparams.update(backbone=BACKBONE, _instantiator="lightning.pytorch.cli.instantiate_module")  # as `fit` does
    outputs = Outputs()
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = Trainer(accelerator="cpu", max_epochs=2, num_sanity_val_steps=0, callbacks=outputs, **quiet)
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    run = RunFolder(root / "run")
    trainer.save_checkpoint(run.best)
    run.config.write_text("{}", encoding="utf-8")
    return run, sorted((root / "data" / "test").rglob("*.png")), torch.cat(outputs.logits).softmax(dim=1)
