"""Which samples, in which order, with which randomness: all of it a function of (seed, epoch, index).

The sampler sends the epoch along with the index, so that a sample's augmentation depends neither on the
number of workers or ranks, nor on where a run was resumed.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from swin_lightning.batch import IGNORE_INDEX
from swin_lightning.data.decoding import CorruptImageError
from swin_lightning.data.readers import Source
from swin_lightning.data.transforms import Transform
from swin_lightning.errors import UserError

OnBadImage = Literal["raise", "skip"]
Key = tuple[int, int]  # epoch, index; ~index for a repeated sample that fills the last batch of a rank


class ImageDataset(Dataset[dict[str, Any]]):
    """A source seen through a transform. Items are `image` (`3, H, W` uint8), `target`, `index` and `bad`.

    The key is an epoch and an index; an index alone means epoch 0.

    Args:
        source: Where images and labels come from.
        transform: From an image to its pixels.
        seed: Of the augmentation, together with epoch and index.
        on_bad_image: Whether an unreadable image is an error (`raise`) or is left out (`skip`); then `bad` is its
            index, and -1 for others. Batches keep their size and ranks their step: in training the next readable
            image stands in, under its own label; in evaluation a black one that counts in no metric, of index -1.
        training: Which of the two it is.

    Raises:
        ValueError: For an unreadable image, or 100 of them in a row where they are skipped.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        seed: int = 0,
        on_bad_image: OnBadImage = "raise",
        training: bool = False,
    ) -> None:
        self.source, self.transform, self.seed = source, transform, seed
        self.on_bad_image, self.training = on_bad_image, training

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key | int) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        repeated = index < 0
        index = ~index if repeated else index
        seed = (self.seed, epoch, index)
        try:
            image, target = self.source[index]
            pixels, place, bad = self.transform(image, seed), index, -1
        except CorruptImageError:
            if self.on_bad_image == "raise":
                raise
            pixels, target, place = self._stand_in(index, seed)
            bad = index
        target = IGNORE_INDEX if repeated else target
        return {"image": channels_first(pixels), "target": target, "index": place, "bad": bad}

    def _stand_in(self, index: int, seed: tuple[int, int, int]) -> tuple[np.ndarray, int, int]:
        """Pixels, target and index of what takes the place of an unreadable image."""
        if not self.training:
            return self.transform(np.zeros((32, 32, 3), np.uint8), seed), IGNORE_INDEX, -1
        for step in range(1, min(100, len(self.source))):
            place = (index + step) % len(self.source)
            try:
                image, target = self.source[place]
                return self.transform(image, seed), target, place
            except CorruptImageError:
                pass
        raise UserError(
            f"{self.source.name(index)} and all images after it cannot be read, as far as was tried; see data.path"
        )


def channels_first(pixels: np.ndarray) -> torch.Tensor:
    """`H, W, 3` -> `3, H, W`, contiguous."""
    planes = np.empty((3, *pixels.shape[:2]), np.uint8)
    cv2.split(pixels, list(planes))  # a third of the time of a transposed copy
    return torch.from_numpy(planes)


class ResumableSampler(DistributedSampler[Any]):
    """Sampler for training and evaluation, on one or several ranks.

    In training every epoch is a new permutation of which the incomplete last global batch is left out, and
    `skip` leaves out the batches that a resumed epoch has seen. In evaluation every sample comes once, in order;
    ranks that would come short repeat one under `IGNORE_INDEX`, because collective operations need equal numbers of steps.

    It is a `DistributedSampler` so that Lightning keeps it as it is.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int = 0, training: bool = False, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(range(size), num_replicas=world_size, rank=rank, shuffle=training, seed=seed)  # type: ignore[arg-type]
        self.size, self.batch_size, self.training = size, batch_size, training
        self.skip = 0  # batches of the next epoch to leave out
        samples = size // (batch_size * world_size) * batch_size if training else -(-size // world_size)
        self.num_samples = samples  # of one rank

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[Key]:
        indices: Sequence[int] | np.ndarray = range(self.size)
        if self.training:
            indices = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        start, self.skip = self.skip * self.batch_size, 0
        for turn in range(start, self.num_samples):
            place = turn * self.num_replicas + self.rank
            index = int(indices[place]) if place < self.size else ~0
            yield self.epoch, index


class EpochLoader(DataLoader[Any]):
    """A loader whose processes start to read when the first batch is asked for, not when the iterator is made.

    A run that is resumed at the end of an epoch makes the iterator before it knows that the next epoch is to come.
    """

    def __iter__(self) -> Any:
        yield from super().__iter__()
