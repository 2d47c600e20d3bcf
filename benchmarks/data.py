"""Compare our training data pipeline with the usual PIL pipeline, each in one loader process.

With `--workers N` also our pipeline in N loader processes with our pipeline in one.
"""

import time
from statistics import median
from typing import Any

from torch.utils.data import DataLoader

from benchmarks.baseline_pipeline import BaselineDataset
from benchmarks.command import run
from swin_lightning.config import instantiate, load
from swin_lightning.data import ImageDataModule
from swin_lightning.data.decoding import LazyImage
from swin_lightning.data.sampling import ImageDataset, ResumableSampler
from swin_lightning.errors import CommandParser, UserError

ROUNDS = 5
BATCH_SIZE = 25
USAGE = "%(prog)s -c EXPERIMENT [--images N] [--workers N] [options of swin-lightning fit, such as --data.path FOLDER]"


def main(args: list[str]) -> None:
    """Print the images/s of both pipelines and their ratio.

    Raises:
        UserError: For a mistake in the experiment, and for data that the PIL pipeline does not support.
    """
    parser = CommandParser("python -m benchmarks.data", usage=USAGE, description=__doc__, allow_abbrev=False)
    parser.add_argument("--images", type=int, default=256, help="number of training images to measure with")
    parser.add_argument("--workers", type=int, default=1, help="also measure this number of loader processes")
    options, overrides = parser.parse_known_args(args)
    for name, value in vars(options).items():
        if value < 1:
            raise UserError(f"--{name} {value} must be at least 1")
    data, _ = instantiate(load(overrides))
    if not isinstance(data, ImageDataModule):
        raise UserError(f"{type(data).__name__} is not an ImageDataModule; the PIL pipeline needs its options")
    data.prepare_data()
    data.setup("fit")
    ours, baseline = compare(data, options.images)
    print(f"ours {median(ours):.0f} images/s, PIL {median(baseline):.0f} images/s; one loader process each")
    print(format_ratio(ours, baseline))
    if options.workers > 1:
        one, several = compare_workers(data, options.images, options.workers)
        print(
            f"ours with {options.workers} loader processes {median(several):.0f} images/s, with one {median(one):.0f}"
        )
        print(format_ratio(several, one))


def compare(data: ImageDataModule, images: int) -> tuple[list[float], list[float]]:
    """Images/s of our pipeline and of the PIL pipeline in every round.

    Raises:
        UserError: For another crop than `random_resized`, or images that do not come from files.
    """
    source = data.sources["train"]
    if data.crop != "random_resized" or not hasattr(source, "__getitem__") or not isinstance(source[0][0], LazyImage):
        raise UserError("the PIL pipeline needs data.crop=random_resized and a local data set of image files")
    return in_turns(build_loader(data, own_dataset(data), images), build_loader(data, BaselineDataset(data), images))


def compare_workers(data: ImageDataModule, images: int, workers: int) -> tuple[list[float], list[float]]:
    """Images/s of our pipeline with one and with several loader processes in every round."""
    one, several = (build_loader(data, own_dataset(data), images, number) for number in (1, workers))
    return in_turns(one, several)


def own_dataset(data: ImageDataModule) -> ImageDataset:
    """The training set as `swin-lightning fit` reads it."""
    return ImageDataset(data.sources["train"], data.train_transform(), data.seed, training=True)


def build_loader(data: ImageDataModule, dataset: Any, images: int, workers: int = 1) -> DataLoader[Any]:
    """A loader of the first images of every epoch."""
    size = len(data.sources["train"])
    sampler = FirstImages(size, min(images, size), data.seed)
    return DataLoader(dataset, BATCH_SIZE, sampler=sampler, num_workers=workers, persistent_workers=True)


def in_turns(first: DataLoader[Any], second: DataLoader[Any]) -> tuple[list[float], list[float]]:
    """Images/s of two loaders in every round."""
    epoch_rate(first, 0), epoch_rate(second, 0)  # start the processes
    rates = [(epoch_rate(first, epoch), epoch_rate(second, epoch)) for epoch in range(1, ROUNDS + 1)]
    return [a for a, _ in rates], [b for _, b in rates]


def format_ratio(rates: list[float], reference: list[float]) -> str:
    """Median and range of the paired ratios."""
    ratios = [a / b for a, b in zip(rates, reference, strict=True)]
    return f"ratio {median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds)"


def epoch_rate(loader: DataLoader[Any], epoch: int) -> float:
    """Images/s over an epoch."""
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    start = time.perf_counter()
    images = sum(len(batch["image"]) for batch in loader)
    return images / (time.perf_counter() - start)


class FirstImages(ResumableSampler):
    """The first images of every epoch's order.

    Args:
        size: Size of the data set.
        images: Number of images per epoch.
        seed: Seed of the order.
    """

    def __init__(self, size: int, images: int, seed: int) -> None:
        super().__init__(size, 1, seed, training=True)
        self.num_samples = images


if __name__ == "__main__":
    run(main)
