"""Throughput of an experiment's data pipeline against the demand of its model."""

import time
from collections.abc import Callable
from itertools import islice
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jsonargparse import Namespace

from swin_lightning.benchmark.augmentation_sheet import save_augmentation_sheet
from swin_lightning.benchmark.step import measure, world_size
from swin_lightning.config import instantiate
from swin_lightning.data import ImageDataModule
from swin_lightning.data.decoding import LazyImage
from swin_lightning.data.sampling import ImageDataset, ResumableSampler
from swin_lightning.data.transforms import Transform
from swin_lightning.errors import UserError

ROUNDS = 5
MODEL_STEPS = 5
MAX_BATCH_SIZE = {"cuda": 128, "cpu": 8}  # of the model's measurement: enough for its throughput


def report_throughput(config: Namespace, images: int, sheet: str | None = None) -> None:
    """Print images/s of every stage in one process, of the loader and of the model, and name the bottleneck.

    Args:
        config: Configuration of an experiment.
        images: Number of training images to measure with.
        sheet: Save a sheet of augmented images there instead.

    Raises:
        UserError: For data that are not an `ImageDataModule` of numbered images.
    """
    data, model = instantiate(config)
    if not isinstance(data, ImageDataModule):
        raise UserError(f"{type(data).__name__} is not an ImageDataModule; only `benchmark step` can measure it")
    data.prepare_data()
    data.setup("fit")
    if not hasattr(data.sources["train"], "__getitem__"):
        raise UserError("a stream cannot be read by index; measure a local part of it with --data.streaming=false")
    if sheet is not None:
        save_augmentation_sheet(data, Path(sheet))
        print(f"wrote {sheet}")
        return
    stages, whole = stage_rates(data, images)
    print(f"{'one loader process':38} {'ms per image':>12} {'images/s':>10}")
    for name, rate in [*stages.items(), ("all stages", whole)]:
        print(f"{name:38} {1000 / rate:12.3f} {rate:10.0f}", flush=True)
    workers = max(1, data.workers())
    batch_size = max(1, data.batch_size // (config.trainer.accumulate_grad_batches * world_size(config)))
    loaded = loader_rate(data, workers, images)
    print(f"{f'loader, num_workers={workers}':38} {'':12} {loaded:10.0f}", flush=True)

    config.trainer.accumulate_grad_batches = 1
    data.num_workers = 0
    gpu = config.trainer.accelerator != "cpu" and torch.cuda.is_available()
    data.batch_size = min(batch_size, MAX_BATCH_SIZE["cuda" if gpu else "cpu"], len(data.sources["train"]))
    result, trainer = measure(data, model, config, MODEL_STEPS, training=True)
    demand, device = result.images / result.seconds, trainer.strategy.root_device.type
    print(f"{f'model, training, {device}, batch {result.images}':38} {'':12} {demand:10.0f}")
    print(bottleneck(loaded, demand, whole), flush=True)


def stage_rates(data: ImageDataModule, images: int) -> tuple[dict[str, float], float]:
    """Images/s of each stage of the training pipeline, and of all together, on one thread of this process.

    Args:
        data: Data module after `setup("fit")`.
        images: Number of images to measure with, from the beginning of the first epoch.
    """
    source, transform = data.sources["train"], data.train_transform()
    crop_only, dataset = Transform([], transform.crop), ImageDataset(source, transform, data.seed)
    keys = list(islice(ResumableSampler(len(source), 1, data.seed, training=True), images))

    def read(key: tuple[int, int]) -> Any:
        image = source[key[1]][0]
        if isinstance(image, LazyImage):
            image.size()  # reads the file
        return image

    def seed(key: tuple[int, int]) -> tuple[int, int, int]:
        return (data.seed, *key)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader process
    try:
        seconds = time_per_key(
            {
                "read": read,
                "decoded": lambda key: crop_only(read(key), seed(key)),
                "augmented": lambda key: transform(read(key), seed(key)),
                "tensor": lambda key: dataset[key],
            },
            keys,
        )
    finally:
        torch.set_num_threads(threads)
    stages = {
        "read": seconds["read"],
        "decode and crop": seconds["decoded"] - seconds["read"],
        "augment": seconds["augmented"] - seconds["decoded"],
        "convert to a tensor": seconds["tensor"] - seconds["augmented"],
    }
    return {name: 1 / max(value, 1e-9) for name, value in stages.items()}, 1 / seconds["tensor"]


def time_per_key(tasks: dict[str, Callable[[Any], Any]], keys: list[Any]) -> dict[str, float]:
    """Seconds per key of every task: median of several rounds, in each of which all tasks run once over the keys."""
    rounds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(ROUNDS):
        for name, task in tasks.items():
            start = time.perf_counter()
            for key in keys:
                task(key)
            rounds[name].append((time.perf_counter() - start) / len(keys))
    return {name: median(seconds) for name, seconds in rounds.items()}


def loader_rate(data: ImageDataModule, workers: int, images: int) -> float:
    """Images/s of the training loader with this number of processes, after the first batch of each."""
    data.num_workers = workers
    data.batch_size = min(data.batch_size, max(1, images // (4 * workers)), len(data.sources["train"]))
    batches = iter(data.train_dataloader())
    for _ in range(workers):
        next(batches, None)
    start, loaded = time.perf_counter(), 0
    for batch in batches:
        loaded += len(batch["image"])
        if loaded >= 4 * images:
            break
    return loaded / (time.perf_counter() - start)


def bottleneck(loaded: float, demand: float, one_process: float) -> str:
    """A sentence that names the bottleneck of training.

    Args:
        loaded: Images/s of the loader.
        demand: Images/s that the model can train with.
        one_process: Images/s of one loader process.
    """
    if loaded >= demand:
        return f"bottleneck: the model; the data pipeline delivers {loaded / demand:.1f} times its demand"
    share = f"{loaded / demand:.0%} of the model's demand"
    return f"bottleneck: the data pipeline, at {share}; it needs num_workers={ceil(demand / one_process)}"
