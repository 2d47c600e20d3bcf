"""`swin-lightning benchmark data`: how many images an experiment's data gives, and how many its model takes."""

import time
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader

from swin_lightning.benchmark.usual import UsualDataset
from swin_lightning.config import Parser
from swin_lightning.data import ImageDataModule
from swin_lightning.data.decoding import LazyImage
from swin_lightning.data.sampling import ImageDataset, ResumableSampler
from swin_lightning.data.transforms import Transform
from swin_lightning.errors import CommandParser, UserError
from swin_lightning.tasks.classification import SwinClassifier

ROUNDS = 5
Row = tuple[str, float]  # what, images/s


def main(args: list[str]) -> None:
    """Print images/s of reading, decoding, augmentation, loader and model, and which of them limits training.

    Raises:
        ValueError: For a mistake in the experiment, or a stream, which has no images by number.
    """
    parser = CommandParser("swin-lightning benchmark data", description=__doc__, epilog="Also --data.* and --model.*")
    parser.add_argument(
        "-c", "--config", action="append", required=True, metavar="FILE", help="an experiment, overlays"
    )
    parser.add_argument("--images", type=int, default=256, help="training images to measure with")
    parser.add_argument("--usual", action="store_true", help="only beside PIL's pipeline, one loader process each")
    parser.add_argument("--show", metavar="FILE", help="write a sheet of augmented images there, and measure nothing")
    options, overrides = parser.parse_known_args(args)
    if options.images < 1:
        raise UserError(f"--images {options.images} must be at least 1")
    data, model = build(options.config, overrides)
    data.prepare_data()
    data.setup("fit")
    if not hasattr(data.sources["train"], "__getitem__"):
        raise UserError("a stream's images have no numbers; measure a local part of it, with --data.streaming false")
    if options.show:
        show(data, Path(options.show))
        print(f"wrote {options.show}")
        return
    if options.usual:
        ours, usual, ratios = beside_the_usual(data, options.images)
        print(f"ours {ours:.0f} images/s, PIL's pipeline {usual:.0f}, one loader process each, in turns")
        print(f"ratio {median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds)")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps, whole = single_process(data, options.images)
    print(f"{'one loader process':38} {'ms an image':>12} {'images/s':>10}")
    for name, rate in [*steps, whole]:
        print(f"{name:38} {1000 / rate:12.3f} {rate:10.0f}", flush=True)
    workers = max(1, data.workers())
    loaded = loader_rate(data, workers, options.images)
    batch, taken = model_rate(data, model, device)
    print(f"{f'loader, {workers} processes':38} {'':12} {loaded:10.0f}")
    print(f"{f'model, training, {device.type}, batch {batch}':38} {'':12} {taken:10.0f}")
    print(verdict(loaded, taken, whole[1]), flush=True)


def build(files: list[str], overrides: list[str]) -> tuple[ImageDataModule, SwinClassifier]:
    """Data and model of an experiment and its overlays, with dotted overrides."""
    parser = Parser()
    parser.add_lightning_class_args(SwinClassifier, "model")
    parser.add_lightning_class_args(ImageDataModule, "data", subclass_mode=True)
    parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
    parser.link_arguments("data.class_names", "model.class_names", apply_on="instantiate")
    config: Any = None
    for file in files:
        if not Path(file).is_file():
            raise UserError(f"-c {file}: there is no such file")
        content = yaml.safe_load(Path(file).read_text()) or {}
        part = {key: content[key] for key in ("model", "data") if key in content}
        config = parser.parse_object(part, config, defaults=config is None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attribute 'backbone' is an instance")  # how it is kept is intended
        built = parser.instantiate_classes(parser.parse_args(overrides, namespace=config))
    return built.data, built.model


def single_process(data: ImageDataModule, images: int) -> tuple[list[Row], Row]:
    """Images/s of each step by itself, and of all of them, in this process and on one thread."""
    source, transform = data.sources["train"], data.train_transform()
    cropped, dataset = Transform([], transform.crop), ImageDataset(source, transform, data.seed)
    keys = list(islice(ResumableSampler(len(source), 1, data.seed, training=True), images))

    def read(key: tuple[int, int]) -> Any:
        image = source[key[1]][0]
        if isinstance(image, LazyImage):
            image.size()  # reads the file
        return image

    def seeded(key: tuple[int, int]) -> tuple[int, int, int]:
        return (data.seed, *key)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader process
    try:
        times = _interleaved(
            {
                "read": read,
                "decode": lambda key: cropped(read(key), seeded(key)),
                "augment": lambda key: transform(read(key), seeded(key)),
                "whole": lambda key: dataset[key],
            },
            keys,
        )
    finally:
        torch.set_num_threads(threads)
    parts = {
        "read": times["read"],
        "decode and crop": times["decode"] - times["read"],
        "augment": times["augment"] - times["decode"],
        "to a tensor": times["whole"] - times["augment"],
    }
    return [(name, 1 / max(seconds, 1e-9)) for name, seconds in parts.items()], ("all of it", 1 / times["whole"])


def loader_rate(data: ImageDataModule, workers: int, images: int) -> float:
    """Images/s that arrive from so many processes, after the first batch of each."""
    data.num_workers = workers
    data.batch_size = min(data.batch_size, max(1, images // (4 * workers)), len(data.sources["train"]))
    batches = iter(data.train_dataloader())
    for _ in range(workers):
        next(batches, None)
    start, seen = time.perf_counter(), 0
    for batch in batches:
        seen += len(batch["image"])
        if seen >= 4 * images:
            break
    return seen / (time.perf_counter() - start)


def beside_the_usual(data: ImageDataModule, images: int) -> tuple[float, float, list[float]]:
    """Images/s of our loader and of the usual one, medians, and the ratio of every round.

    Raises:
        ValueError: For another crop than `random_resized`, or images that are not files.
    """
    source = data.sources["train"]
    if data.crop != "random_resized" or not isinstance(source[0][0], LazyImage):
        raise UserError("--usual compares the pipeline of ImageNet: data.crop random_resized, from image files")
    images = min(images, len(source))

    def loader(dataset: Any) -> DataLoader[Any]:
        keys = _Keys(len(source), images, data.seed)
        return DataLoader(dataset, 25, sampler=keys, num_workers=1, persistent_workers=True)

    own = ImageDataset(source, data.train_transform(), data.seed, training=True)
    loaders = [loader(own), loader(UsualDataset(data))]
    rates: list[tuple[float, float]] = []
    for turn in range(ROUNDS + 1):
        both = []
        for batches in loaders:
            batches.sampler.set_epoch(turn)  # type: ignore[attr-defined]
            start = time.perf_counter()
            seen = sum(len(batch["image"]) for batch in batches)
            both.append(seen / (time.perf_counter() - start))
        if turn:  # the first one starts the processes
            rates.append((both[0], both[1]))
    ours, usual = zip(*rates, strict=True)
    return median(ours), median(usual), [a / b for a, b in rates]


class _Keys(ResumableSampler):
    """So many images of an epoch."""

    def __init__(self, size: int, images: int, seed: int) -> None:
        super().__init__(size, 1, seed, training=True)
        self.num_samples = images


def model_rate(data: ImageDataModule, model: SwinClassifier, device: torch.device) -> tuple[int, float]:
    """The batch that was tried, and images/s of augmentation on the device, forward, backward and AdamW."""
    batch = min(data.batch_size, 128 if device.type == "cuda" else 8)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    pixels = torch.randint(256, (batch, 3, data.image_size, data.image_size), dtype=torch.uint8, device=device)
    targets = torch.arange(batch, device=device) % data.num_classes
    half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)

    def step(index: int) -> None:
        images, mixed = data.augment_batch(data.normalize(pixels), targets, np.random.default_rng(index))
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = model(images)
        torch.nn.functional.cross_entropy(logits.float(), mixed).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    step(0)
    return batch, batch / _interleaved({"step": step}, list(range(2)))["step"]


def verdict(loaded: float, taken: float, one: float) -> str:
    """Which of the two limits the run, and by how much."""
    if loaded < taken:
        needed = -(-taken // one)
        return f"the data limits the run: {loaded / taken:.2f} of the model's demand, which {needed:.0f} processes meet"
    return f"the model limits the run: the data could give {loaded / taken:.1f} times as much"


def show(data: ImageDataModule, path: Path, samples: int = 8, epochs: int = 6) -> None:
    """A sheet: a sample a row as evaluation sees it, in the first epochs of training, and erased and mixed."""
    source, transform, evaluate = data.sources["train"], data.train_transform(), data.eval_transform()
    chosen = np.linspace(0, len(source) - 1, min(samples, len(source))).astype(int).tolist()
    columns = [[evaluate(np.asarray(source[i][0]), (0, 0, i)) for i in chosen]]
    columns += [[transform(source[i][0], (data.seed, epoch, i)) for i in chosen] for epoch in range(epochs)]
    titles = ["evaluation", *(f"epoch {epoch}" for epoch in range(epochs))]
    targets = torch.tensor([source[i][1] for i in chosen])
    if data.random_erasing or data.mixing.mixup or data.mixing.cutmix:
        for epoch in range(2):
            batch = torch.from_numpy(np.stack(columns[1 + epoch])).permute(0, 3, 1, 2)
            images, _ = data.augment_batch(data.normalize(batch), targets, np.random.default_rng((data.seed, epoch)))
            columns.append(list(data.denormalize(images).permute(0, 2, 3, 1).numpy()))
            titles.append(f"{epoch}, mixed")
    cell = max(64, min(160, data.image_size))
    sheet = Image.new("RGB", ((cell + 4) * len(columns), (cell + 4) * len(chosen) + 14), "white")
    for x, (title, column) in enumerate(zip(titles, columns, strict=True)):
        ImageDraw.Draw(sheet).text((x * (cell + 4) + 2, 1), title, fill="black")
        for y, pixels in enumerate(column):
            tile = Image.fromarray(pixels).resize((cell, cell), Image.Resampling.BICUBIC)
            sheet.paste(tile, (x * (cell + 4), y * (cell + 4) + 14))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _interleaved(tasks: dict[str, Callable[[Any], Any]], keys: list[Any]) -> dict[str, float]:
    """Seconds a key of every task: all take turns, and the median of the rounds counts."""
    rounds: dict[str, list[float]] = {name: [] for name in tasks}
    for name, task in _turns(tasks):
        start = time.perf_counter()
        for key in keys:
            task(key)
        rounds[name].append((time.perf_counter() - start) / len(keys))
    return {name: median(seconds) for name, seconds in rounds.items()}


def _turns(tasks: dict[str, Callable[[Any], Any]]) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    for _ in range(ROUNDS):
        yield from tasks.items()
