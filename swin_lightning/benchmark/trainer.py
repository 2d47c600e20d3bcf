"""What the Trainer costs: our `fit` with logging, averaged weights and callbacks, against a bare loop of torch.

`swin-lightning benchmark model --trainer`; both loops train the same model on the same batches.
"""

import argparse
import tempfile
import time
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from swin_lightning.benchmark.measure import autocast, paired_ratio
from swin_lightning.callbacks import BestMetric, TrainingMonitor
from swin_lightning.checkpointing import EMA
from swin_lightning.loggers import CSVLogger
from swin_lightning.models.registry import model_info
from swin_lightning.tasks.classification import SwinClassifier

STEPS, WARMUP = 40, 5  # of one measurement; the first are left out
CLIP = 5.0

Batch = dict[str, torch.Tensor]


class Clock(Callback):
    """Seconds of a step after the first, from the start of a batch to the start of the next."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.starts.append(time.perf_counter())

    def seconds(self) -> float:
        return (self.starts[-1] - self.starts[WARMUP]) / (len(self.starts) - 1 - WARMUP)


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Measure both in turns and print one line.

    Returns:
        Median milliseconds of a step of both, and the ratio with quartiles.
    """
    size, classes = model_info(options.model).image_size, model_info(options.model).num_classes
    batch = {
        "image": torch.randn(options.batch_size, 3, size, size),
        "target": torch.randint(classes, (options.batch_size,)),
        "index": torch.arange(options.batch_size),
    }
    ours, bare = [], []
    for _ in range(options.rounds or 5):
        bare.append(bare_loop(classifier(options, classes), batch, options))
        ours.append(trainer_loop(classifier(options, classes), batch, options))
    ratio, low, high = paired_ratio(ours, bare)
    extra = median(1e3 * (mine - theirs) for mine, theirs in zip(ours, bare, strict=True))
    print(
        f"{options.model}, batch {options.batch_size}: bare loop {1e3 * median(bare):.1f} ms a step, "
        f"Trainer {1e3 * median(ours):.1f} ms: {extra:.1f} ms more, ratio {ratio:.3f} ({low:.3f}-{high:.3f})",
        flush=True,
    )
    return {"bare_ms": 1e3 * median(bare), "trainer_ms": 1e3 * median(ours), "ratio": (ratio, low, high)}


def classifier(options: argparse.Namespace, classes: int) -> SwinClassifier:
    torch.manual_seed(0)
    return SwinClassifier(model_info(options.model).builder(drop_path_rate=0.0), classes, label_smoothing=0.1)


def trainer_loop(model: SwinClassifier, batch: Batch, options: argparse.Namespace) -> float:
    """Seconds of a step of `fit` as the command line sets it up."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            accelerator="gpu" if options.device.startswith("cuda") else "cpu",
            devices=1,
            precision="bf16-mixed" if options.precision == "bf16" else "32-true",
            max_steps=STEPS,
            gradient_clip_val=CLIP,
            log_every_n_steps=20,
            logger=CSVLogger(folder),
            callbacks=[EMA(0.999), TrainingMonitor(), BestMetric(), clock],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(model, loader(batch))
    return clock.seconds()


def bare_loop(model: SwinClassifier, batch: Batch, options: argparse.Namespace) -> float:
    """Seconds of a step that computes the same and nothing else."""
    model = model.to(options.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    start = 0.0
    for i, host in enumerate(loader(batch)):
        if i == WARMUP:
            _wait(options.device)
            start = time.perf_counter()
        images, targets = host["image"].to(options.device), host["target"].to(options.device)
        optimizer.zero_grad()
        with autocast(images, options.precision):
            logits = model(images)
        F.cross_entropy(logits.float(), targets, label_smoothing=0.1).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    _wait(options.device)
    return (time.perf_counter() - start) / (STEPS - WARMUP)


def loader(batch: Batch) -> "DataLoader[Batch]":
    return DataLoader([batch] * STEPS, batch_size=None)  # type: ignore[arg-type]


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
