"""Training and evaluation from a stream: sets that do not fit the disk, from an object store or the hub.

The reader is Hugging Face `datasets`, not webdataset: it is a dependency already, reads both of their layouts (parquet
and tar) through fsspec (s3, gs, hf, https, local), and splits by rank and by loader process itself.

What a stream can promise, and what it cannot:

- An image's augmentation is a function of (seed, epoch, its bytes), whoever reads it.
- The order is a function of (seed, epoch, ranks, loader processes): another number of either is another order.
- A resumed epoch goes on with the same batches, if ranks and loader processes are as many as before. The images that
  were seen are read again, undecoded, and dropped: resuming late in an epoch costs its share of network traffic.
- An epoch is as many steps as fit into the set's size. Where ranks or processes hold unequal shares the smaller ones
  start again, so that a few images come twice and a few not at all.
"""

import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import fsspec
import numpy as np
from torch.utils.data import DataLoader, IterableDataset

from swin_lightning.batch import IGNORE_INDEX
from swin_lightning.data.decoding import CorruptImageError, Encoded
from swin_lightning.data.readers import label_column
from swin_lightning.data.sampling import OnBadImage, channels_first
from swin_lightning.data.transforms import Transform
from swin_lightning.errors import UserError


class Stream:
    """One split that is read from its beginning.

    Args:
        path: Hub name, folder, or address such as `s3://bucket/folder` with `<split>*.parquet` or `<split>*.tar`.
        names: What the split may be called.

    Raises:
        ValueError: If there is no such split.
    """

    def __init__(self, path: str, names: tuple[str, ...]) -> None:
        import datasets

        self.path = path
        splits = load_stream(path, names)
        found = next((name for name in names if name in splits), None)
        if found is None:
            raise UserError(f"data.path {path!r} has no split {names[0]!r}, only {list(splits)}")
        rows = splits[found]
        self.features = rows.features or rows._resolve_features().features
        self.image_column = next(n for n, kind in self.features.items() if isinstance(kind, datasets.Image))
        self.label_column = label_column(self.features)
        self.class_names: list[str] | None = getattr(self.features[self.label_column], "names", None)
        self.rows = rows.cast_column(self.image_column, datasets.Image(decode=False))
        known = (rows.info.splits or {}).get(found)
        self.size: int | None = known.num_examples if known is not None and known.num_examples else None

    def name(self, index: int) -> str:
        return f"{self.path}, the image with CRC-32 {index:08x}"


def load_stream(path: str, names: tuple[str, ...]) -> Any:
    """The splits of a data set, unread.

    Raises:
        ValueError: If it cannot be reached.
    """
    import datasets

    try:
        if "://" not in path:
            return datasets.load_dataset(path, streaming=True)
        files = fsspec.filesystem(path.partition("://")[0])
        for kind in ("parquet", "tar"):
            for name in names:
                if files.glob(pattern := f"{path.rstrip('/')}/{name}*.{kind}"):
                    builder = "webdataset" if kind == "tar" else kind
                    return datasets.load_dataset(builder, data_files={name: pattern}, streaming=True)
        return {}
    except (OSError, ImportError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"data.path {path!r} cannot be streamed ({str(error).splitlines()[0]})") from error


class StreamedImages(IterableDataset[dict[str, Any]]):
    """The items of `ImageDataset` from a stream, the share of one rank.

    Args:
        stream: Where from.
        transform: From an image to its pixels.
        seed: Of order and augmentation.
        training: Endless and shuffled; else every image once, in order, ranks filled up under `IGNORE_INDEX`.
        rank: Of this process.
        world_size: Ranks.
        buffer: Images among which the shuffling draws, a process, besides the order of the shards.
        on_bad_image: As in `ImageDataset`; a skipped image's place is taken by the next one.
    """

    def __init__(
        self,
        stream: Stream,
        transform: Transform,
        seed: int = 0,
        training: bool = False,
        rank: int = 0,
        world_size: int = 1,
        buffer: int = 1000,
        on_bad_image: OnBadImage = "raise",
    ) -> None:
        self.stream, self.transform, self.seed, self.training = stream, transform, seed, training
        self.rank, self.world_size, self.buffer, self.on_bad_image = rank, world_size, buffer, on_bad_image
        self.epoch, self.skip = 0, 0  # images of this process to leave out

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._train() if self.training else self._evaluate()

    def _train(self) -> Iterator[dict[str, Any]]:
        from datasets.distributed import split_dataset_by_node

        rows = self.stream.rows.shuffle(seed=self.seed, buffer_size=self.buffer)
        rows = split_dataset_by_node(rows, rank=self.rank, world_size=self.world_size)
        skip, bad, turn = self.skip, -1, 0
        while True:
            rows.set_epoch(self.epoch + 1_000_000 * turn)
            seen = 0
            for row in self._read(rows):
                seen += 1
                if skip:
                    skip -= 1
                    continue
                item = self._item(row)
                if item["target"] == IGNORE_INDEX:
                    bad = item["bad"]
                    continue
                yield item | {"bad": bad}
                bad = -1
            if not seen:
                return
            turn += 1

    def _evaluate(self) -> Iterator[dict[str, Any]]:
        item, count, size = None, 0, 0
        for size, row in enumerate(self._read(self.stream.rows), 1):
            if (size - 1) % self.world_size == self.rank:
                item = self._item(row)
                count += 1
                yield item
            elif item is None:
                item = self._item(row)
        if item is not None:  # ranks that come short repeat an image that does not count
            for _ in range(-(-size // self.world_size) - count):
                yield item | {"target": IGNORE_INDEX, "bad": -1}

    def _read(self, rows: Any) -> Iterator[dict[str, Any]]:
        try:
            yield from rows
        except Exception as error:  # of the network, tar or parquet; the libraries have nearly every kind
            what = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            raise UserError(
                f"reading the stream {self.stream.path} failed ({what}); mend it and go on with --ckpt_path last"
            ) from error

    def _item(self, row: dict[str, Any]) -> dict[str, Any]:
        image, target = row[self.stream.image_column], int(row[self.stream.label_column])
        data: bytes = image["bytes"] or fsspec.open(image["path"], "rb").open().read()
        index = zlib.crc32(data)
        try:
            pixels, bad = self.transform(Encoded(data, self.stream.name(index)), (self.seed, self.epoch, index)), -1
        except CorruptImageError:
            if self.on_bad_image == "raise":
                raise
            pixels = self.transform(np.zeros((32, 32, 3), np.uint8), (self.seed, self.epoch, index))
            target, bad = IGNORE_INDEX, index
        return {"image": channels_first(pixels), "target": target, "index": index, "bad": bad}


class StreamLoader(DataLoader[Any]):
    """A loader over `steps` batches of an endless stream, of which `skip` are left out the first time.

    Args:
        dataset: The stream.
        steps: Batches an epoch.
        epoch: Tells the epoch when one begins.
        **options: Of `DataLoader`.
    """

    def __init__(self, dataset: StreamedImages, steps: int, epoch: Callable[[], int], **options: Any) -> None:
        super().__init__(dataset, drop_last=True, **options)
        self.steps, self.epoch, self.skip = steps, epoch, 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Any:
        skip, self.skip = self.skip, 0
        processes = max(self.num_workers, 1)
        dataset: Any = self.dataset
        dataset.epoch = self.epoch()
        dataset.skip = skip // processes * (self.batch_size or 1)  # a process gives every so many-th batch
        yield from islice(super().__iter__(), skip % processes, self.steps - skip + skip % processes)
