"""Which samples, in which order, with which random numbers: all of it a function of (seed, epoch, index).

The sampler yields the epoch together with the index, so that the augmentation of a sample depends neither on the number
of workers or ranks nor on where a run was resumed.
"""

from collections.abc import Iterator
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from swin_lightning.batch import IGNORE_INDEX
from swin_lightning.data.decoding import MAX_PIXELS, CorruptImageError, LazyImage
from swin_lightning.data.readers import Reader
from swin_lightning.data.transforms import Transform
from swin_lightning.errors import UserError

OnBadImage = Literal["raise", "skip"]
Sampling = Literal["shuffle", "balanced"]
Key = tuple[int, int]  # epoch, index; ~index for a padding sample, which repeats a sample to fill the ranks equally

MAX_REPLACEMENTS = 100  # images tried in place of a corrupt one


class ImageDataset(Dataset[dict[str, Any]]):
    """The images of a reader after a transform. Items: `image` (`3, H, W` uint8), `target`, `index`, `bad_index`.

    The key is an epoch and an index; an index alone means epoch 0.

    Args:
        reader: Images and labels.
        transform: From an image to the pixels of the sample.
        seed: Seed of the augmentation, together with epoch and index.
        on_bad_image: `raise` an error for an unreadable image, or `skip` it: `bad_index` is its index (otherwise -1).
            Batches keep their size so that ranks stay in step: in training the next readable image replaces it, with
            its own label; in evaluation a black image of index -1 does, which counts in no metric.
        training: Whether the samples are for training.
        max_pixels: Largest number of pixels of an image file that is decoded.

    Raises:
        UserError: If an image is unreadable, or 100 consecutive images are where they are skipped.
    """

    def __init__(
        self,
        reader: Reader,
        transform: Transform,
        seed: int = 0,
        on_bad_image: OnBadImage = "raise",
        training: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.reader, self.transform, self.seed = reader, transform, seed
        self.on_bad_image, self.training, self.max_pixels = on_bad_image, training, max_pixels

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, key: Key | int) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        padding = index < 0
        index = ~index if padding else index
        seed = (self.seed, epoch, index)
        index %= len(self.reader)  # see `balanced_order`
        try:
            image, target = self._read(index)
            pixels, used_index, bad_index = self.transform(image, seed), index, -1
        except CorruptImageError:
            if self.on_bad_image == "raise":
                raise
            pixels, target, used_index = self._replacement(index, seed)
            bad_index = index
        if padding:
            target, used_index = IGNORE_INDEX, -1
        return {"image": channels_first(pixels), "target": target, "index": used_index, "bad_index": bad_index}

    def _read(self, index: int) -> tuple[np.ndarray | LazyImage, int]:
        image, target = self.reader[index]
        if isinstance(image, LazyImage):
            image.max_pixels = self.max_pixels
        return image, target

    def _replacement(self, index: int, seed: tuple[int, int, int]) -> tuple[np.ndarray, int, int]:
        """Pixels, target and index of the sample that replaces an unreadable image."""
        if not self.training:
            return self.transform(blank_image(), seed), IGNORE_INDEX, -1
        for step in range(1, min(MAX_REPLACEMENTS, len(self.reader))):
            candidate = (index + step) % len(self.reader)
            try:
                image, target = self._read(candidate)
                return self.transform(image, seed), target, candidate
            except CorruptImageError:
                pass
        tried = min(MAX_REPLACEMENTS, len(self.reader))
        raise UserError(
            f"cannot read {self.reader.name(index)} nor the images after it ({tried} tried); check data.path"
        )


def blank_image() -> np.ndarray:
    """A black image in place of an unreadable one."""
    return np.zeros((32, 32, 3), np.uint8)


def channels_first(pixels: np.ndarray) -> torch.Tensor:
    """`H, W, 3` -> `3, H, W`, contiguous."""
    planes = np.empty((3, *pixels.shape[:2]), np.uint8)
    cv2.split(pixels, list(planes))  # takes a third of the time of a transposed copy
    return torch.from_numpy(planes)


class ResumableSampler(DistributedSampler[Any]):
    """Sampler for training and evaluation, on one or several ranks.

    In training every epoch is a new permutation without its incomplete last global batch, and `deal_pairs` divides
    each global batch; a resumed epoch begins at `start_batch`. In evaluation every sample is yielded once, in order;
    ranks with fewer samples are padded with a repeated sample of target `IGNORE_INDEX` and index -1, because collective
    operations need equal numbers of steps.

    It derives from `DistributedSampler` so that Lightning does not replace it.

    Args:
        size: Samples in the data set.
        batch_size: Samples per batch of one rank (micro-batch).
        seed: Seed of the permutations, together with the epoch (`set_epoch`).
        training: Whether to shuffle and drop the incomplete batch.
        rank: Rank of this process.
        world_size: Number of ranks.
        accumulate: Batches per optimizer step.
        labels: Class indices `size`; given, the classes are equally frequent in training, see `balanced_order`.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int = 0,
        training: bool = False,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        labels: np.ndarray | None = None,
    ) -> None:
        super().__init__(range(size), num_replicas=world_size, rank=rank, shuffle=training, seed=seed)  # type: ignore[arg-type]
        self.size, self.batch_size, self.training, self.labels = size, batch_size, training, labels
        self.start_batch = 0  # first batch of the next epoch; later epochs begin at 0
        self.places = deal_pairs(batch_size, rank, world_size, accumulate)
        step, per_rank = batch_size * world_size * accumulate, batch_size * accumulate
        self.num_samples = size // step * per_rank if training else -(-size // world_size)  # per rank

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[Key]:
        if self.training:
            steps, size = self.num_samples // self.places.size, self.places.size * self.num_replicas
            rng = np.random.default_rng((self.seed, self.epoch))
            order = rng.permutation(self.size) if self.labels is None else balanced_order(self.labels, rng)
            indices = order[: steps * size].reshape(steps, size)[:, self.places.ravel()].ravel()
        else:
            indices = np.arange(self.rank, self.rank + self.num_samples * self.num_replicas, self.num_replicas)
            indices[indices >= self.size] = ~0
        start, self.start_batch = self.start_batch * self.batch_size, 0
        for index in indices[start:]:
            yield self.epoch, int(index)


def balanced_order(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """N samples in random order in which all classes are equally frequent, up to one.

    The samples of a class are drawn without replacement until all are used, then again. Occurrence r = 0, 1, ... of
    sample i is the number i + r N, so that its augmentation differs.

    Args:
        labels: Class indices of the N samples.
        rng: Generator of the epoch.
    """
    size, classes = len(labels), rng.permutation(np.unique(labels))
    chosen = []
    for k, label in enumerate(classes):
        members = np.flatnonzero(labels == label)
        wanted = size // len(classes) + (k < size % len(classes))
        rounds = [rng.permutation(members) + r * size for r in range(-(-wanted // len(members)))]
        chosen.append(np.concatenate([*rounds, members[:0]])[:wanted])
    return rng.permutation(np.concatenate(chosen))


def deal_pairs(batch_size: int, rank: int, world_size: int, accumulate: int) -> np.ndarray:
    """Places in the global batch of B samples that a rank gets, `accumulate, batch_size`.

    Mixup mixes the sample at place j with the one at B - 1 - j. Both are in the same micro-batch, at mirrored places
    again, so that it is mixed as a part of the global batch. If `batch_size` is odd, the sample in the middle of a
    micro-batch has no partner in it.

    Args:
        batch_size: Samples per micro-batch.
        rank: Rank of the process.
        world_size: Number of ranks.
        accumulate: Micro-batches per optimizer step.
    """
    parts, pairs = world_size * accumulate, batch_size // 2
    part = np.arange(accumulate)[:, None] * world_size + rank  # accumulate, 1
    first = part * pairs + np.arange(pairs)  # accumulate, pairs
    middle = (parts * pairs + part)[:, : batch_size % 2]
    return np.concatenate([first, middle, parts * batch_size - 1 - first[:, ::-1]], axis=1)


class LazyDataLoader(DataLoader[Any]):
    """A DataLoader that starts its workers when the first batch is requested, not when the iterator is created.

    A run that is resumed at the end of an epoch creates the iterator before it knows that the next epoch begins.
    """

    def __iter__(self) -> Any:
        yield from super().__iter__()
