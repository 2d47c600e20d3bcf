"""Short runs of two processes, started by `run_ranks`: losses, gradient norms and checkpoints by strategy."""

import subprocess
import sys
from pathlib import Path

import torch
from lightning import Callback

from swin_lightning import SwinClassifier
from swin_lightning.callbacks import TrainingMonitor
from swin_lightning.checkpointing import PerStepSeed
from swin_lightning.data import Digits
from swin_lightning.ema import EMA
from swin_lightning.models import SwinTransformer
from swin_lightning.strategies import full_tensor
from tests.support.cli import environment
from tests.support.training import trainer


def run_ranks(module, *args, timeout=300):
    """Start `python -m module args` as two ranks on the CPU. Returns the output."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", module]
    done = subprocess.run([*launcher, *args], env=environment(), capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


class Record(Callback):
    """The losses and gradient norms of all steps, the loss averaged over ranks."""

    def __init__(self):
        self.losses, self.norms = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(trainer.strategy.reduce(outputs["loss"].detach().clone())))

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        if "train/grad_norm" in trainer.callback_metrics:
            self.norms.append(float(trainer.callback_metrics["train/grad_norm"]))


def small_classifier(**options):
    torch.manual_seed(torch.distributed.get_rank() if torch.distributed.is_initialized() else 0)
    backbone = SwinTransformer(img_size=28, patch_size=2, embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=7)
    return SwinClassifier(backbone, num_classes=10, layer_decay=0.9, **options)


def fit(folder, strategy, steps=20, ckpt_path=None, decay=0.9, devices=2, model=None, batch_size=64, **options):
    """Train on the digits. Returns the record, the trainer and the module."""
    record = Record()
    callbacks = [PerStepSeed(), TrainingMonitor(), record, *([EMA(decay)] if decay else [])]
    defaults = {"max_steps": steps, "max_epochs": -1, "gradient_clip_val": 0.5, "log_every_n_steps": 1,
                "limit_val_batches": 2, "val_check_interval": 10, "check_val_every_n_epoch": None}  # fmt: skip
    result = trainer(folder, callbacks, strategy=strategy, devices=devices, **defaults | options)
    model = model or small_classifier()
    data = Digits(batch_size=batch_size, num_workers=0)
    result.fit(model, datamodule=data, ckpt_path=ckpt_path and str(ckpt_path), weights_only=True)
    return record, result, model


def compare():
    """DDP against FSDP2, plain and with everything that could interfere; what each wrote is resumed by the other."""
    results = {}
    for name, strategy in (("ddp", "ddp"), ("fsdp2", "fsdp2")):
        record, run, model = fit(name, strategy)
        scores = run.validate(model, datamodule=Digits(batch_size=64, num_workers=0), verbose=False)
        weights = {n: full_tensor(p.detach()) for n, p in model.named_parameters()}
        results[name] = {"losses": record.losses, "norms": record.norms, "val": scores[0], "weights": weights}
    for first, second in (("ddp", "fsdp2"), ("fsdp2", "ddp"), ("ddp", "ddp"), ("fsdp2", "fsdp2")):
        record, _, _ = fit(f"{first}-{second}", second, steps=30, ckpt_path=f"{first}/last.ckpt")
        results[f"{first}-{second}"] = {"losses": record.losses, "norms": record.norms}
    return results


class Convolutions(torch.nn.Module):
    """A backbone with BatchNorm, whose blocks are found by their class."""

    num_features = 16

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.Sequential(self.block(3), self.block(16), self.block(16))

    def block(self, channels):
        layers = torch.nn.Conv2d(channels, 16, 3, 2, 1), torch.nn.BatchNorm2d(16), torch.nn.ReLU()
        return torch.nn.Sequential(*layers)

    def forward(self, images):
        return self.blocks(images).mean((2, 3))


class Distilled(SwinClassifier):
    """Has a parameter of its own and a frozen teacher, which is used after the network."""

    def __init__(self, backbone, num_classes):
        super().__init__(backbone, num_classes)
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.teacher = SwinClassifier(Convolutions(), num_classes)
        self.freeze_patterns.append("teacher")

    def training_step(self, batch, batch_idx):
        logits = self(batch["image"]) * self.scale
        with torch.no_grad():
            wanted = self.teacher(batch["image"])
        return self.compute_loss(logits, batch["target"]) + (logits - wanted).square().mean()


def sgd(parameters, lr):
    return torch.optim.SGD(parameters, lr, momentum=0.9)


def options():
    """DDP and FSDP2 with options that could interfere."""
    cases = {
        "plain": ({}, {}),
        "gradient_checkpointing": ({"gradient_checkpointing": True}, {}),
        "freeze": ({"freeze": ["backbone.layers.0"]}, {}),
        "probe": ({"freeze": "backbone"}, {}),
        "sgd": ({"optimizer": sgd}, {}),
        "compile": ({"compile": True}, {}),
        "accumulate": ({}, {"accumulate_grad_batches": 2}),
        "no EMA": ({}, {"decay": 0}),
        "clip by value": ({}, {"gradient_clip_algorithm": "value"}),
        "bf16-mixed": ({}, {"precision": "bf16-mixed"}),
        "bf16-true": ({}, {"precision": "bf16-true"}),
        "convolutions": (lambda: SwinClassifier(Convolutions(), num_classes=10), {}),
        "distilled": (lambda: Distilled(small_classifier().backbone, num_classes=10), {}),
    }
    results = {}
    for name, (model, trainer_options) in cases.items():
        for strategy in ("ddp", "fsdp2"):
            torch.manual_seed(0)
            built = model() if callable(model) else small_classifier(**model)
            folder = f"{name} {strategy}"
            record, run, _ = fit(folder, strategy, 6, model=built, val_check_interval=6, **trainer_options)
            found = {"losses": record.losses, "norms": record.norms, "val": float(run.callback_metrics["val/loss"])}
            results.setdefault(name, []).append(found)
    return results


if __name__ == "__main__":
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    found = globals()[sys.argv[1]]()
    if torch.distributed.get_rank() == 0:
        torch.save(found, Path("results.pt"))
    torch.distributed.destroy_process_group()
