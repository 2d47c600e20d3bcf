"""Images in class folders, tar shards or Hugging Face data sets: the data module for a user's own data."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from swin_lightning.data.hub_download import load_hub_dataset
from swin_lightning.data.image_datamodule import ImageDataModule
from swin_lightning.data.readers import (
    HuggingFaceReader,
    Reader,
    TarReader,
    find_columns,
    find_shards,
    find_split,
    list_class_folders,
    read_class_folders,
    tar_class_names,
)
from swin_lightning.data.streaming import StreamDataset, StreamLoader, StreamReader
from swin_lightning.errors import UserError
from swin_lightning.ranges import PositiveInt, check_arguments

SPLIT_NAMES = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}


class ImageFolder(ImageDataModule):
    """Your own images: `path/train/<class>/<image>` and `path/val/<class>/<image>`, tar shards, or a Hub data set.

    If there is no `test` split, testing uses the validation split.

    Args:
        path: Folder with the splits as folders of class folders, as `train*.tar` and `val*.tar` (webdataset's layout,
            or with class folders), or as parquet files in the Hub's layout; a Hub name; for streaming also a URL such
            as `s3://bucket/folder`.
        streaming: Read during training, without a copy on disk; see `data.streaming` for the limits.
        stream_size: Number of training images of a stream, if the data set does not state it.
        **base: Arguments of `ImageDataModule`.
    """

    def __init__(self, path: str, streaming: bool = False, stream_size: PositiveInt | None = None, **base: Any) -> None:
        check_arguments(ImageFolder.__init__, locals(), "data.")
        super().__init__(**base)
        self.path, self.streaming, self.stream_size = path, streaming, stream_size

    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """Class names in the order of the labels.

        Raises:
            UserError: If the data set is missing or its labels have no names.
        """
        if self.streaming:
            columns = StreamReader(self.path, _split_names("train")).columns
        elif self._shards("train"):
            return tar_class_names(Path(self.path), TarReader(self._shards("train")))
        elif self._has_folders:
            return self.folder_names
        else:
            columns = find_columns(next(iter(load_hub_dataset(self.path).values())).features, self.path)
        if columns.class_names is None:
            raise UserError(
                f"data.path: column {columns.label!r} of {self.path!r} is plain integers without class names; make it "
                "a ClassLabel (see `datasets.Dataset.class_encode_column`) or subclass ImageFolder and set class_names"
            )
        return columns.class_names

    @cached_property
    def folder_names(self) -> list[str]:
        """Names of the class folders in the order of the labels."""
        return list_class_folders(self._folder("train", "val"))

    @property
    def shard_class_names(self) -> list[str]:
        """Names of the class folders inside tar shards in the order of the labels."""
        return self.class_names

    def prepare_data(self) -> None:
        if not (self.streaming or self._has_folders or self._shards("train", "val")):
            load_hub_dataset(self.path)

    def load(self, split: str) -> Reader:
        wanted = ("test", "val") if split == "test" else (split,)
        if self.streaming:
            return StreamReader(self.path, _split_names(*wanted))  # type: ignore[return-value]
        if shards := self._shards(*wanted):
            return TarReader(shards).assign_labels(self.shard_class_names)
        if self._has_folders:
            return read_class_folders(self._folder(*wanted), self.folder_names)
        splits = load_hub_dataset(self.path)
        return HuggingFaceReader(splits[find_split(splits, _split_names(*wanted), self.path)], self.path)

    def train_dataloader(self) -> DataLoader[Any]:
        stream = self.sources["train"]
        if not isinstance(stream, StreamReader):
            return super().train_dataloader()
        size = self.stream_size or stream.size
        if size is None:
            raise UserError(f"data.stream_size: {self.path!r} does not state its number of images; set it")
        trainer, batch_size, accumulate = self.trainer, self.micro_batch_size(), self.accumulated_batches()
        world_size = self._rank()[1]
        # a worker without a shard would yield nothing
        shards = max(1, stream.rows.num_shards // (world_size if stream.rows.num_shards % world_size == 0 else 1))
        loader = StreamLoader(
            self._stream_dataset("train"),
            steps=size // (batch_size * world_size * accumulate) * accumulate,
            epoch=lambda: trainer.current_epoch if trainer is not None else 0,
            batch_size=batch_size,
            pin_memory=torch.cuda.is_available(),
            **stream.worker_options(min(self.workers(), shards)),
        )
        loader.start_batch = self._batches_done(len(loader))
        return loader

    def eval_dataloader(self, split: str) -> DataLoader[Any]:
        stream = self.sources[split]
        if not isinstance(stream, StreamReader):
            return super().eval_dataloader(split)
        return DataLoader(
            self._stream_dataset(split),
            batch_size=self.eval_batch_size or self.micro_batch_size(),
            pin_memory=torch.cuda.is_available(),
            **stream.worker_options(min(self.workers(), 1)),
        )

    # helpers

    def _stream_dataset(self, split: str) -> StreamDataset:
        stream: Any = self.sources[split]
        training = split == "train"
        transform = self.train_transform() if training else self.eval_transform()
        return StreamDataset(stream, transform, self.seed, training, *self._rank(), on_bad_image=self.on_bad_image)

    def _shards(self, *splits: str) -> list[Path]:
        return find_shards(Path(self.path), _split_names(*splits))

    @property
    def _has_folders(self) -> bool:
        root = Path(self.path)
        return any((root / name).is_dir() for name in _split_names("train", "val"))

    def _folder(self, *splits: str) -> Path:
        root = Path(self.path)
        found = [root / name for name in _split_names(*splits) if (root / name).is_dir()]
        if not found:
            raise UserError(
                f"data.path: no folder {str(root / splits[0])!r}; expected {root}/{splits[0]}/<class>/<image>"
            )
        return found[0]


def _split_names(*splits: str) -> tuple[str, ...]:
    """The names that the splits may have on disk or on the Hub, in order of preference."""
    return tuple(name for split in splits for name in SPLIT_NAMES[split])
