"""Images in class folders, tar shards or Hugging Face data sets: the data module for a user's own data."""

import logging
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from swin_lightning.data.hub_download import load_hub_dataset
from swin_lightning.data.hub_reader import HuggingFaceReader, find_columns, find_split, label_classes
from swin_lightning.data.layouts import (
    find_images,
    find_root,
    find_split_folders,
    has_images,
    left_out_note,
    list_class_folders,
    split_names,
    subfolders,
)
from swin_lightning.data.manifest import SUFFIXES, Manifest, read_manifest
from swin_lightning.data.readers import (
    Reader,
    TarReader,
    find_shards,
    read_class_folders,
    read_unlabelled,
    tar_class_names,
)
from swin_lightning.data.split_datamodule import SplitDataModule
from swin_lightning.data.streaming import StreamDataset, StreamLoader, StreamReader
from swin_lightning.errors import UserError
from swin_lightning.ranges import PositiveInt, check_arguments

log = logging.getLogger(__name__)

DATA_SUFFIXES = {".parquet", ".arrow", ".csv", ".json", ".jsonl", ".zip", ".tar"}  # read by Hugging Face datasets


class ImageFolder(SplitDataModule):
    """Your own images: class folders, with or without folders of splits, tar shards, or a Hugging Face data set.

    Splits that are missing are drawn from the training images, see `SplitDataModule`. A folder `test` without class
    folders is a test split without labels.

    Args:
        path: Folder with `<class>/<image>`, `<split>/<class>/<image>`, `train*.tar` and `val*.tar` (webdataset's
            layout, or with class folders), or parquet files in the Hub's layout; a table (`.csv`, `.tsv`, `.parquet`)
            of the paths and labels of images; a Hub name; for streaming also a URL such as `s3://bucket/folder`.
        image_column: Column of the images of a Hugging Face data set, or of the paths in a table; found by default.
        label_column: Column of the labels, such as `coarse_label`: text, integers or classes; by default the one named
            `label`, or the only one with classes.
        group_column: Column of the groups in a table, such as patients; `group` by default, see `group_file`.
        streaming: Read during training, without a copy on disk; see `data.streaming` for the limits.
        stream_size: Number of training images of a stream, if the data set does not state it.
        **base: Arguments of `SplitDataModule`.
    """

    def __init__(
        self,
        path: str,
        image_column: str | None = None,
        label_column: str | None = None,
        group_column: str | None = None,
        streaming: bool = False,
        stream_size: PositiveInt | None = None,
        **base: Any,
    ) -> None:
        check_arguments(ImageFolder.__init__, locals(), "data.")
        super().__init__(**base)
        self.path, self.streaming, self.stream_size = os.path.expanduser(path), streaming, stream_size
        self.image_column, self.label_column, self.group_column = image_column, label_column, group_column
        if streaming and (self.folds or self.val_size or self.test_size):
            raise UserError("data.streaming: splits cannot be drawn from a stream; set no val_size, test_size or folds")

    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """Class names in the order of the labels.

        Raises:
            UserError: If the data set is missing, its labels have no names, or there are fewer than two classes.
        """
        names = self._read_class_names()
        if len(names) < 2:
            raise UserError(f"data.path: {self.path!r} has one class only, {names}; at least two are needed")
        return names

    @cached_property
    def folder_names(self) -> list[str]:
        """Names of the class folders in the order of the labels."""
        return list_class_folders(self._split_folders.get("train") or next(iter(self._split_folders.values())))

    @property
    def shard_class_names(self) -> list[str]:
        """Names of the class folders inside tar shards in the order of the labels."""
        return self.class_names

    def prepare_data(self) -> None:
        if not (self.streaming or self._manifest or self._split_folders or self.shards("train", "val")):
            load_hub_dataset(self.path)

    def setup(self, stage: str) -> None:
        """Read the splits. A global batch larger than the training set is lowered to it: experiments are written for
        data of any size. The learning rate stays."""
        super().setup(stage)
        source, parts = self.sources.get("train"), self._rank()[1] * self.accumulated_batches()
        if stage != "fit" or source is None or isinstance(source, StreamReader):
            return
        largest = len(source) // parts * parts
        if largest and self.batch_size > len(source):
            if self._rank()[0] == 0:
                log.warning(
                    f"data.batch_size {self.batch_size} is larger than the training set of {len(source)} images and "
                    f"lowered to {largest}; model.lr is unchanged"
                )
            self.batch_size = largest

    def found_splits(self) -> set[str]:
        if self.streaming:  # an unknown test split is sought when it is read
            return {"train", "val"}
        if self._manifest:
            return self._manifest.splits
        if self.shards("train", "val"):
            return {split for split in ("train", "val", "test") if self.shards(split)}
        if self._split_folders:
            return set(self._split_folders)
        splits = load_hub_dataset(self.path)
        return {split for split in ("train", "val", "test") if any(name in splits for name in split_names(split))}

    def load(self, split: str) -> Reader:
        if self.streaming:
            wanted = ("test", "val") if split == "test" else (split,)
            return self._stream(*wanted)  # type: ignore[return-value]
        return super().load(split)

    def read(self, split: str) -> Reader:
        if self._manifest:
            return self._manifest.read(split, self.class_names)
        if shards := self.shards(split):
            return TarReader(shards).assign_labels(self.shard_class_names)
        if folders := self._split_folders:
            return self._read_folder(folders.get(split) or Path(self.path) / split, split)
        splits = load_hub_dataset(self.path)
        rows = splits[find_split(splits, split_names(split), self.path)]
        columns = self._columns(rows, labelled=split != "test")
        return HuggingFaceReader(rows, self.path, columns, self._label_classes if columns.class_names is None else None)

    def train_dataloader(self) -> DataLoader[Any]:
        """The loader of an image stream, which has no length of its own, or of indexed images.

        Raises:
            UserError: If the number of images of a stream is unknown.
        """
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
        return StreamDataset(
            stream,
            transform,
            self.seed,
            training,
            *self._rank(),
            on_bad_image=self.on_bad_image,
            max_pixels=self.max_pixels,
        )

    def _read_class_names(self) -> list[str]:
        if self.streaming:
            columns = self._stream("train").columns
            if columns.class_names is None:
                raise UserError(
                    f"data.streaming: column {columns.label!r} of {self.path!r} is plain integers without class names; "
                    "make it a ClassLabel (see class_encode_column), set class_names in a subclass, or do not stream"
                )
            return columns.class_names
        if self._manifest:
            return self._manifest.class_names
        if shards := self.shards("train"):
            return tar_class_names(Path(self.path), TarReader(shards))
        if self._split_folders:
            return self.folder_names
        columns = self._columns(next(iter(load_hub_dataset(self.path).values())))
        return columns.class_names or [str(value) for value in self._label_classes or []]

    @cached_property
    def _label_classes(self) -> list[str | int] | None:
        """Values of the label column in the order of the classes, of labels that are text or integers without names.

        None for integers in a subclass that sets `class_names`: these are class indices.
        """
        splits = load_hub_dataset(self.path)
        rows = splits[find_split(splits, split_names("train"), self.path)]
        columns = self._columns(rows)
        if "class_names" in vars(self) or not isinstance(getattr(type(self), "class_names", None), cached_property):
            return list(self.class_names) if columns.text else None
        return label_classes(rows, columns)

    def _columns(self, rows: Any, labelled: bool = True) -> Any:
        return find_columns(rows.features, self.path, self.image_column, self.label_column, labelled)

    def _stream(self, *splits: str) -> StreamReader:
        return StreamReader(self.path, split_names(*splits), self.image_column, self.label_column)

    @cached_property
    def _manifest(self) -> Manifest | None:
        path = Path(self.path)
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            return None
        return read_manifest(path, self.image_column, self.label_column, self.group_column)

    def shards(self, *splits: str) -> list[Path]:
        return find_shards(Path(self.path), split_names(*splits))

    @cached_property
    def _root(self) -> Path:
        """The folder that holds splits or class folders."""
        return find_root(Path(self.path))

    @cached_property
    def _split_folders(self) -> dict[str, Path]:
        """The folders of the splits that hold class folders; class folders alone are `train`. Empty for other data."""
        root = self._root
        if not root.is_dir() or not subfolders(root):
            return {}
        if not any(map(has_images, subfolders(root))):
            if any(path.suffix in DATA_SUFFIXES for path in root.rglob("*")):
                return {}
            why = left_out_note(find_images(root).left_out)
            raise UserError(
                f"data.path: no images in folder {str(root)!r}{why}; expected "
                f"{root}/<class>/<image> or {root}/train/<class>/<image>"
            )
        return find_split_folders(root) or {"train": root}

    def _read_folder(self, folder: Path, split: str) -> Reader:
        if split == "test" and folder.is_dir() and not {f.name for f in subfolders(folder)} & set(self.folder_names):
            return read_unlabelled(folder)
        reader = read_class_folders(folder, self.folder_names)
        if split == "train" and folder != self._root:
            beside = [f.name for f in subfolders(self._root) if f not in self._split_folders.values()]
            reader.left_out.update({f"folder {name!r}, which is not a split": 1 for name in beside})
        return reader
