"""Measure the overhead of the Lightning Trainer: `fit` with logging, EMA and callbacks, against a bare training loop.

Both train the same model on the same batches, and the runs alternate.
"""

import argparse
import logging
import tempfile
import time
import warnings
from statistics import median
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from benchmarks.command import add_model_option, build_parser, parse, run
from benchmarks.timing import autocast, paired_ratio, synchronize
from swin_lightning.batch import Batch
from swin_lightning.callbacks import BestMetric, TrainingMonitor
from swin_lightning.ema import EMA
from swin_lightning.loggers import CSVLogger
from swin_lightning.models.registry import model_info
from swin_lightning.tasks.classification import SwinClassifier

STEPS, WARMUP = 40, 5  # of one measurement; the warm-up steps are not counted
CLIP = 5.0


class StepClock(Callback):
    """Mean seconds of a step after the warm-up, from the start of a batch to the start of the next."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        synchronize(pl_module.device)
        self.starts.append(time.perf_counter())

    def seconds(self) -> float:
        return (self.starts[-1] - self.starts[WARMUP]) / (len(self.starts) - 1 - WARMUP)


def main(args: list[str]) -> None:
    """Print the time of a step in both loops.

    Raises:
        UserError: For wrong options.
    """
    parser = build_parser("trainer", __doc__)
    add_model_option(parser)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    compare(parse(parser, args))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Measure both loops in alternation and print one line.

    Returns:
        `bare_ms` and `trainer_ms`, median milliseconds of a step, and `ratio`, median and quartiles.
    """
    info = model_info(options.model)
    size, classes = info.image_size, info.num_classes
    batch: Batch = {
        "image": torch.randn(options.batch_size, 3, size, size),
        "target": torch.randint(classes, (options.batch_size,)),
        "index": torch.arange(options.batch_size),
    }
    bare, trainer = [], []
    for _ in range(options.rounds or 5):
        bare.append(bare_loop(build_classifier(options.model, classes), batch, options))
        trainer.append(trainer_loop(build_classifier(options.model, classes), batch, options))
    ratio, low, high = paired_ratio(trainer, bare)
    overhead = median(1e3 * (a - b) for a, b in zip(trainer, bare, strict=True))
    print(
        f"{options.model}, batch {options.batch_size}: bare loop {1e3 * median(bare):.1f} ms per step, "
        f"Trainer {1e3 * median(trainer):.1f} ms: overhead {overhead:.1f} ms, ratio {ratio:.3f} ({low:.3f}-{high:.3f})",
        flush=True,
    )
    return {"bare_ms": 1e3 * median(bare), "trainer_ms": 1e3 * median(trainer), "ratio": (ratio, low, high)}


def build_classifier(name: str, num_classes: int) -> SwinClassifier:
    torch.manual_seed(0)
    return SwinClassifier(model_info(name).builder(drop_path_rate=0.0), num_classes)


def trainer_loop(model: SwinClassifier, batch: Batch, options: argparse.Namespace) -> float:
    """Seconds of a step of `fit`, set up as by the command line."""
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec.*")  # deprecated by torch, used by Lightning
        warnings.filterwarnings("ignore", ".*does not have many workers")
        warnings.filterwarnings("ignore", "You defined a `validation_step` but have no `val_dataloader`")
        Trainer(
            accelerator="gpu" if options.device.startswith("cuda") else "cpu",
            devices=1,
            precision="bf16-mixed" if options.precision == "bf16" else "32-true",
            max_steps=STEPS,
            gradient_clip_val=CLIP,
            log_every_n_steps=min(20, STEPS),
            logger=CSVLogger(folder),
            callbacks=[EMA(0.999), TrainingMonitor(), BestMetric(), clock],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(model, batches(batch))
    return clock.seconds()


def bare_loop(model: SwinClassifier, batch: Batch, options: argparse.Namespace) -> float:
    """Seconds of a step of a loop that does the same computation and nothing else."""
    device = torch.device(options.device)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    start = 0.0
    for i, host_batch in enumerate(batches(batch)):
        if i == WARMUP:
            synchronize(device)
            start = time.perf_counter()
        images, targets = host_batch["image"].to(device), host_batch["target"].to(device)
        optimizer.zero_grad()
        with autocast(images, options.precision):
            logits = model(images)
        F.cross_entropy(logits.float(), targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    synchronize(device)
    return (time.perf_counter() - start) / (STEPS - WARMUP)


def batches(batch: Batch) -> "DataLoader[Batch]":
    """The same batch for every step."""
    return DataLoader(cast(Any, [batch] * STEPS), batch_size=None)


if __name__ == "__main__":
    run(main)
