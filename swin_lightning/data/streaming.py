"""Training and evaluation on streams, for data sets larger than the disk: object stores and the Hugging Face Hub.

The streams are those of Hugging Face `datasets`, not webdataset: it is a dependency already, reads both layouts
(parquet and tar) through fsspec (s3, gs, hf, https, local), and splits by rank and by DataLoader worker.

What holds for a stream:

- The augmentation of an image is a function of (seed, epoch, content of the file).
- The order is a function of (seed, epoch, number of ranks, number of workers).
- A resumed epoch continues with the same batches if the numbers of ranks and workers are unchanged. The images before
  are read again, without decoding, and dropped: resuming late in an epoch costs network traffic. With another number of
  accumulated batches it continues with the same images if there is at most one worker per rank.
- Which images are mixed depends on the numbers of ranks, workers and accumulated batches.
- An epoch has as many steps as the size of the data set allows. If ranks or workers have shares of unequal size, the
  smaller ones start again, so that a few images are seen twice and a few not at all.
"""

import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
from torch.utils.data import DataLoader, IterableDataset

from swin_lightning.batch import IGNORE_INDEX
from swin_lightning.data.decoding import MAX_PIXELS, CorruptImageError, LazyImage
from swin_lightning.data.hub_download import first_line
from swin_lightning.data.hub_reader import find_columns, find_split
from swin_lightning.data.sampling import OnBadImage, blank_image, channels_first
from swin_lightning.data.transforms import Transform
from swin_lightning.errors import UserError

EPOCH_STRIDE = 1_000_000  # between the shuffling epochs of two passes over a share within one epoch


class StreamReader:
    """One split that is read sequentially.

    Args:
        path: Hub name, folder, or URL such as `s3://bucket/folder` with `<split>*.parquet` or `<split>*.tar`.
        names: Possible names of the split.
        image: Name of the image column; found by default.
        label: Name of the label column; found by default.

    Raises:
        UserError: If the data set cannot be opened, or has no such split, image column or label column of integers.
    """

    def __init__(self, path: str, names: tuple[str, ...], image: str | None = None, label: str | None = None) -> None:
        import datasets

        self.path = path
        splits = open_splits(path, names)
        name = find_split(splits, names, path)
        rows = splits[name]
        # `datasets` knows the features of every format that has image columns before it reads the first row
        self.columns = find_columns(rows.features or {}, path, image, label)
        if self.columns.text:
            raise UserError(
                f"data.streaming: column {self.columns.label!r} of {path!r} is text, whose classes are unknown before "
                "the whole stream is read; make it a ClassLabel (`datasets.Dataset.class_encode_column`), or do not "
                "stream"
            )
        self.rows = rows.cast_column(self.columns.image, datasets.Image(decode=False))
        info = (rows.info.splits or {}).get(name)
        self.size: int | None = info.num_examples if info is not None and info.num_examples else None

    def worker_options(self, workers: int) -> dict[str, Any]:
        """Arguments of a DataLoader for its workers: those that read from a network are not forked.

        fsspec sends its requests from a thread, which a forked process does not have, so that it may wait for ever.
        """
        local = Path(self.path.removeprefix("file://")).exists()
        return {"num_workers": workers, "multiprocessing_context": "spawn" if workers and not local else None}

    def name(self, index: int) -> str:
        return f"{self.path}, the image with CRC-32 {index:08x}"


def open_splits(path: str, names: tuple[str, ...]) -> Any:
    """The splits of a data set as `datasets.IterableDataset`, by name.

    Raises:
        UserError: If the data set cannot be opened.
    """
    import datasets

    try:
        if "://" not in path:
            folder = Path(path).resolve()  # a relative folder could have the name of a builder, such as parquet
            return datasets.load_dataset(str(folder) if folder.exists() else path, streaming=True)
        files = fsspec.filesystem(path.partition("://")[0])
        for suffix in ("parquet", "tar"):
            for name in names:
                if files.glob(pattern := f"{path.rstrip('/')}/{name}*.{suffix}"):
                    builder = "webdataset" if suffix == "tar" else suffix
                    return datasets.load_dataset(builder, data_files={name: pattern}, streaming=True)
        return {}
    except (OSError, ImportError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"data.path: cannot stream {path!r} ({first_line(error)})") from error


class StreamDataset(IterableDataset[dict[str, Any]]):
    """The share of one rank in a stream, as items of `ImageDataset`; the index is the CRC-32 of the file.

    Args:
        reader: The stream.
        transform: From an image to the pixels of the sample.
        seed: Seed of order and augmentation.
        training: Endless and shuffled; otherwise every image once, in order, ranks padded with `IGNORE_INDEX`.
        rank: Rank of this process.
        world_size: Number of ranks.
        buffer_size: Images in the shuffle buffer of a worker; the order of the shards is shuffled as well.
        on_bad_image: As in `ImageDataset`; the next image of the stream replaces a skipped one.
        max_pixels: As in `ImageDataset`.
    """

    def __init__(
        self,
        reader: StreamReader,
        transform: Transform,
        seed: int = 0,
        training: bool = False,
        rank: int = 0,
        world_size: int = 1,
        buffer_size: int = 1000,
        on_bad_image: OnBadImage = "raise",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.reader, self.transform, self.seed, self.training = reader, transform, seed, training
        self.rank, self.world_size, self.buffer_size, self.on_bad_image = rank, world_size, buffer_size, on_bad_image
        self.max_pixels = max_pixels
        self.epoch, self.start_sample = 0, 0  # first sample of this worker in the epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._train() if self.training else self._evaluate()

    def _train(self) -> Iterator[dict[str, Any]]:
        from datasets.distributed import split_dataset_by_node

        rows = self.reader.rows.shuffle(seed=self.seed, buffer_size=self.buffer_size)
        rows = split_dataset_by_node(rows, rank=self.rank, world_size=self.world_size)
        to_skip, bad_index, passes = self.start_sample, -1, 0
        while True:
            rows.set_epoch(self.epoch + EPOCH_STRIDE * passes)
            empty = True
            for row in self._read(rows):
                empty = False
                if to_skip:
                    to_skip -= 1
                    continue
                item = self._item(row)
                if item["target"] == IGNORE_INDEX:
                    bad_index = item["bad_index"]
                    continue
                yield item | {"bad_index": bad_index}
                bad_index = -1
            if empty:
                return
            passes += 1

    def _evaluate(self) -> Iterator[dict[str, Any]]:
        item, count, size = None, 0, 0
        for size, row in enumerate(self._read(self.reader.rows), 1):
            if (size - 1) % self.world_size == self.rank:
                item = self._item(row)
                count += 1
                yield item
            elif item is None:
                item = self._item(row)
        if item is not None:  # ranks with fewer images repeat one that does not count
            for _ in range(-(-size // self.world_size) - count):
                yield item | {"target": IGNORE_INDEX, "bad_index": -1}

    def _read(self, rows: Any) -> Iterator[dict[str, Any]]:
        try:
            yield from rows
        except Exception as error:  # network, tar or parquet errors of many types
            raise UserError(
                f"data.path: reading the stream {self.reader.path!r} failed ({type(error).__name__}: "
                f"{first_line(error)}). Fix the source and resume with --ckpt_path last"
            ) from error

    def _item(self, row: dict[str, Any]) -> dict[str, Any]:
        image, target = row[self.reader.columns.image], int(row[self.reader.columns.label or ""])
        data: bytes = image["bytes"] or fsspec.open(image["path"], "rb").open().read()
        index, bad_index = zlib.crc32(data), -1
        seed = (self.seed, self.epoch, index)
        try:
            pixels = self.transform(LazyImage(data, self.reader.name(index), self.max_pixels), seed)
        except CorruptImageError:
            if self.on_bad_image == "raise":
                raise
            pixels = self.transform(blank_image(), seed)
            target, bad_index = IGNORE_INDEX, index
        return {"image": channels_first(pixels), "target": target, "index": index, "bad_index": bad_index}


class StreamLoader(DataLoader[Any]):
    """A DataLoader over the first `steps` batches of an endless stream; a resumed epoch begins at `start_batch`.

    Args:
        dataset: The stream.
        steps: Batches per epoch.
        epoch: Returns the current epoch; called at the start of each one.
        **options: Arguments of `DataLoader`.
    """

    def __init__(self, dataset: StreamDataset, steps: int, epoch: Callable[[], int], **options: Any) -> None:
        super().__init__(dataset, drop_last=True, **options)
        self.steps, self.epoch, self.start_batch = steps, epoch, 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Any:
        start, self.start_batch = self.start_batch, 0
        workers = max(self.num_workers, 1)
        dataset: Any = self.dataset
        dataset.epoch = self.epoch()
        dataset.start_sample = start // workers * (self.batch_size or 1)  # workers yield batches in turn
        yield from islice(super().__iter__(), start % workers, self.steps - start + start % workers)
