"""Time and peak memory of a training step and an evaluation step, as the Trainer runs them.

Both run through Lightning with the experiment's module, optimizers, precision, gradient clipping and accumulation, on
one device and with that device's share of the global batch. Every step gets the same batch, so that loading is not
measured. Callbacks, loggers and communication between devices are left out.
"""

import logging
import time
import warnings
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from jsonargparse import Namespace
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.data import extract_batch_size
from torch.utils.data import DataLoader

from swin_lightning.benchmark.memory import peak_memory, reset_peak_memory
from swin_lightning.config import instantiate
from swin_lightning.data import ImageDataModule
from swin_lightning.trainer_precision import trainer_precision

WARMUP = 2  # steps before the measurement: compilation, first allocations, state of the optimizer
TRAINER_OPTIONS = ("accelerator", "precision", "gradient_clip_val", "gradient_clip_algorithm",
                   "accumulate_grad_batches", "deterministic", "benchmark")  # fmt: skip


@dataclass(frozen=True)
class StepResult:
    """Measurement of a step.

    Args:
        images: Images per step.
        seconds: Median time of a step.
        peak_memory: Bytes; on a CPU those of the whole process.
    """

    images: int
    seconds: float
    peak_memory: int


def report_steps(config: Namespace, steps: int) -> None:
    """Print time, throughput and peak memory of a training step and, if the module has one, an evaluation step."""
    data, model = instantiate(config)
    data.prepare_data()
    data.setup("fit")
    devices = world_size(config)
    if isinstance(data, ImageDataModule):
        data.num_workers = 0  # one batch is loaded
        data.batch_size //= devices
    results = {}
    if type(model).validation_step is not LightningModule.validation_step:
        results["evaluation step"], _ = measure(data, model, config, steps, training=False)
    results["training step"], trainer = measure(data, model, config, steps, training=True)
    device = trainer.strategy.root_device
    details = torch.cuda.get_device_name(device) if device.type == "cuda" else f"threads: {torch.get_num_threads()}"
    optimizers = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers)
    print(f"{config.experiment}: {type(model).__name__}, {optimizers}, precision {trainer.precision}")
    print(f"{device.type}, {details}" + (f", one of {devices} devices" if devices > 1 else ""))
    print(f"{'':16} {'images':>7} {'ms':>10} {'images/s':>10} {'peak memory':>12}")
    for name, result in reversed(results.items()):
        rate, memory = result.images / result.seconds, f"{result.peak_memory / 1e6:.0f} MB"
        print(f"{name:16} {result.images:7} {1e3 * result.seconds:10.1f} {rate:10.1f} {memory:>12}", flush=True)
    print("peak memory: " + ("allocated on the GPU" if device.type == "cuda" else "resident, of the whole process"))


def measure(
    data: LightningDataModule, model: LightningModule, config: Namespace, steps: int, training: bool
) -> tuple[StepResult, Trainer]:
    """Run steps of the module on the first batch of the data.

    Args:
        data: Data module after `setup("fit")`.
        model: Its parameters are changed by training steps.
        config: Configuration of the experiment, for the Trainer's options.
        steps: Number of steps to measure.
        training: Measure `training_step` and the optimizers, or else `validation_step`.

    Returns:
        The measurement, and the Trainer that made it.
    """
    trainer_config = config.trainer
    accumulated = trainer_config.accumulate_grad_batches if training else 1
    timer = StepTimer(accumulated)
    options = {name: trainer_config[name] for name in TRAINER_OPTIONS}
    options["precision"] = trainer_precision(trainer_config, model, data)
    if not model.automatic_optimization:
        options["gradient_clip_val"] = None  # clipped in the training_step, if at all
    trainer = _quiet_trainer(
        **options,
        devices=1,
        max_epochs=max(1, trainer_config.max_epochs or 1),  # the learning-rate schedule may depend on it
        limit_val_batches=0 if training else None,
        callbacks=[timer],
    )
    repeated = RepeatedBatch(data, (WARMUP + steps + 1) * accumulated)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")  # there is nothing to load
        warnings.filterwarnings("ignore", "You passed in a `val_dataloader`")  # a module without validation_step
        warnings.filterwarnings("ignore", ".*LeafSpec.*", module="lightning")  # deprecated by torch, used by Lightning
        if training:
            trainer.fit(model, datamodule=repeated)
        else:
            trainer.validate(model, datamodule=repeated, verbose=False)
    return StepResult(timer.images * accumulated, timer.seconds(), timer.peak_memory), trainer


class StepTimer(Callback):
    """Record when each step starts; the time of a step lasts until the start of the next one.

    Args:
        accumulated: Batches per optimizer step.
    """

    def __init__(self, accumulated: int) -> None:
        self.accumulated = accumulated
        self.starts: list[float] = []
        self.images = 0
        self.peak_memory = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._start(pl_module.device, batch, batch_idx)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._start(pl_module.device, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = True

    def seconds(self) -> float:
        """Median time of a step after the warm-up."""
        return median(end - start for start, end in pairwise(self.starts[WARMUP:]))

    def _start(self, device: torch.device, batch: Any, batch_idx: int) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if batch_idx == 0:
            self.images = extract_batch_size(batch)
            reset_peak_memory(device)
        if batch_idx % self.accumulated == 0:
            self.starts.append(time.perf_counter())
            self.peak_memory = peak_memory(device)


class RepeatedBatch(LightningDataModule):
    """Yields the first batch of another data module again and again, with its hooks for the transfer to the device.

    Args:
        data: The other data module, after `setup`.
        batches: Number of batches per epoch.
    """

    def __init__(self, data: LightningDataModule, batches: int) -> None:
        super().__init__()
        self.data, self.batches = data, batches

    def setup(self, stage: str) -> None:
        self.data.trainer = self.trainer

    def train_dataloader(self) -> DataLoader[Any]:
        return self._repeat(self.data.train_dataloader())

    def val_dataloader(self) -> DataLoader[Any]:
        return self._repeat(self.data.val_dataloader())

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self.data.on_before_batch_transfer(batch, dataloader_idx)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return self.data.transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self.data.on_after_batch_transfer(batch, dataloader_idx)

    def _repeat(self, loaders: Any) -> DataLoader[Any]:
        batch, _, _ = next(iter(CombinedLoader(loaders, "max_size_cycle")))
        return DataLoader([batch] * self.batches, batch_size=None)  # type: ignore[arg-type]


def world_size(config: Namespace) -> int:
    """Number of devices of the experiment, on all nodes."""
    chosen = {name: config.trainer[name] for name in ("accelerator", "devices", "num_nodes")}
    return _quiet_trainer(**chosen).world_size


def _quiet_trainer(**options: Any) -> Trainer:
    """A Trainer that prints and writes nothing, and ignores that it may run inside of a SLURM job."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for name in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"):
        options[name] = False
    return Trainer(**options, plugins=[LightningEnvironment()])
