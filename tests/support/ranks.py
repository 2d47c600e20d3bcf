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


def fit(folder, strategy, steps=20, ckpt_path=None, decay=0.9, devices=2, model=None, **options):
    """Train on the digits. Returns the record, the trainer and the module."""
    record = Record()
    callbacks = [PerStepSeed(), TrainingMonitor(), record, *([EMA(decay)] if decay else [])]
    defaults = {"max_steps": steps, "max_epochs": -1, "gradient_clip_val": 0.5, "log_every_n_steps": 1,
                "limit_val_batches": 2, "val_check_interval": 10, "check_val_every_n_epoch": None}  # fmt: skip
    result = trainer(folder, callbacks, strategy=strategy, devices=devices, **defaults | options)
    model = model or small_classifier()
    data = Digits(batch_size=64, num_workers=0)
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


if __name__ == "__main__":
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    found = globals()[sys.argv[1]]()
    if torch.distributed.get_rank() == 0:
        torch.save(found, Path("results.pt"))
    torch.distributed.destroy_process_group()
