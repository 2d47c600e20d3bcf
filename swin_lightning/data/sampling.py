"""Which samples, in which order, with which randomness: all of it a function of (seed, epoch, index).

The sampler sends the epoch along with the index, so that a sample's augmentation depends neither on the
number of workers or ranks, nor on where a run was resumed.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler

from swin_lightning.data.sources import NO_LABEL, Source
from swin_lightning.data.transforms import Transform

Key = tuple[int, int]  # epoch, index; ~index for a repeated sample that fills the last batch of a rank


class ImageDataset(Dataset[dict[str, Any]]):
    """A source seen through a transform. Items are `image` (`3, H, W` uint8), `target` and `index`.

    The key is an epoch and an index; an index alone means epoch 0.
    """

    def __init__(self, source: Source, transform: Transform, seed: int = 0) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key | int) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        repeated = index < 0
        index = ~index if repeated else index
        image, target = self.source[index]
        image = self.transform(image, (self.seed, epoch, index))
        pixels = torch.from_numpy(np.stack(cv2.split(image)))
        return {"image": pixels, "target": NO_LABEL if repeated else target, "index": index}


class EpochSampler(DistributedSampler[Any]):
    """Sampler for training and evaluation, on one or several ranks.

    In training every epoch is a new permutation of which the incomplete last global batch is left out, and
    `skip` leaves out the batches that a resumed epoch has seen. In evaluation every sample comes once, in order;
    ranks that would come short repeat one under `NO_LABEL`, because collective operations need equal numbers of steps.

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
