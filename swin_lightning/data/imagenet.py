"""ImageNet and any other set of images in folders or in Hugging Face's layout."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from swin_lightning.data.hub_download import load_hub
from swin_lightning.data.image_datamodule import ImageDataModule
from swin_lightning.data.readers import HubImages, Source, class_folders, label_column, read_class_folders
from swin_lightning.data.streaming import Stream, StreamedImages, StreamLoader
from swin_lightning.data.tar_shards import TarImages, class_list, find_shards
from swin_lightning.errors import UserError

SPLIT_NAMES = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}


class ImageFolder(ImageDataModule):
    """Your own images: `path/train/<class>/<image>` and `path/val/<class>/<image>`, tar shards, or a Hugging Face set.

    Without a `test` split, testing means the validation split.

    Args:
        path: Folder with the splits as folders of class folders, as `train*.tar` and `val*.tar` (webdataset's layout,
            or class folders inside), or as parquet files in Hugging Face's layout; a hub name; for streaming also
            an address such as `s3://bucket/folder`.
        streaming: Read while training, without a copy on the disk; see `data.streaming` for what that cannot promise.
        stream_size: Training images of a stream that does not tell.
        **base: Arguments of `ImageDataModule`.
    """

    def __init__(self, path: str, streaming: bool = False, stream_size: int | None = None, **base: Any) -> None:
        super().__init__(**base)
        self.path, self.streaming, self.stream_size = path, streaming, stream_size

    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """Class names in the order of the labels."""
        if self.streaming:
            names = self._stream("train").class_names
            if not names:
                raise UserError(f"data.path {self.path!r} does not name its classes; subclass ImageFolder to name them")
            return names
        if self._shards("train"):
            return class_list(Path(self.path), self._tar("train"))
        if self._in_folders:
            return self.folder_names
        features = next(iter(load_hub(self.path).values())).features
        return list(features[label_column(features)].names)

    @cached_property
    def folder_names(self) -> list[str]:
        """Names of the class folders in the order of the labels."""
        return class_folders(self._folder("train", "val"))

    def prepare_data(self) -> None:
        if not (self.streaming or self._in_folders or self._shards("train", "val")):
            load_hub(self.path)

    def load(self, split: str) -> Source:
        wanted = ("test", "val") if split == "test" else (split,)
        if self.streaming:
            return self._stream(*wanted)  # type: ignore[return-value]
        if self._shards(*wanted):
            named = self.folder_names if isinstance(self, ImageNet) else self.class_names
            return self._tar(*wanted).name_classes(named)
        if self._in_folders:
            return read_class_folders(self._folder(*wanted), self.folder_names)
        dataset = load_hub(self.path)
        for name in _names(*wanted):
            if name in dataset:
                return HubImages(dataset[name], self.path)
        raise UserError(f"data.path {self.path!r} has no split {split!r}, only {list(dataset)}")

    def train_dataloader(self) -> Any:
        stream = self.sources["train"]
        if not isinstance(stream, Stream):
            return super().train_dataloader()
        size = self.stream_size or stream.size
        if size is None:
            raise UserError(f"data.path {self.path!r} does not tell its number of images; set data.stream_size")
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batch_size = self.micro_batch_size()
        data = StreamedImages(
            *(stream, self.train_transform(), self.seed, True, rank, world_size), on_bad_image=self.on_bad_image
        )
        # a process without a shard would have nothing to give
        shards = max(1, stream.rows.num_shards // (world_size if stream.rows.num_shards % world_size == 0 else 1))
        workers = min(self.workers(), shards)
        trainer = self.trainer
        loader = StreamLoader(
            data,
            steps=size // (batch_size * world_size),
            epoch=lambda: trainer.current_epoch if trainer is not None else 0,
            batch_size=batch_size,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
        )
        loader.skip = self._batches_done(len(loader))
        return loader

    def _loader(self, split: str, sampler: Any) -> DataLoader[Any]:
        stream = self.sources[split]
        if not isinstance(stream, Stream):
            return super()._loader(split, sampler)
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        data = StreamedImages(
            *(stream, self.eval_transform(), self.seed, False, rank, world_size), on_bad_image=self.on_bad_image
        )
        size = self.eval_batch_size or self.micro_batch_size()
        return DataLoader(data, size, num_workers=min(self.workers(), 1), pin_memory=torch.cuda.is_available())

    def _sampler(self, split: str) -> Any:
        return None if isinstance(self.sources[split], Stream) else super()._sampler(split)

    def _stream(self, *splits: str) -> Stream:
        return Stream(self.path, tuple(_names(*splits)))

    def _shards(self, *splits: str) -> list[Path]:
        return find_shards(Path(self.path), _names(*splits))

    def _tar(self, *splits: str) -> TarImages:
        return TarImages(self._shards(*splits))

    @property
    def _in_folders(self) -> bool:
        root = Path(self.path)
        return root.is_dir() and any((root / name).is_dir() for name in _names("train", "val"))

    def _folder(self, *splits: str) -> Path:
        found = [Path(self.path) / name for name in _names(*splits) if (Path(self.path) / name).is_dir()]
        if not found:
            raise UserError(f"data.path {self.path!r}: there is no folder {Path(self.path) / splits[0]}")
        return found[0]


class ImageNet(ImageFolder):
    """ImageNet-1K: 1.28 million training and 50,000 validation images in 1,000 classes.

    The classes are those of the challenge, in its order, even where a folder holds a part of them only.

    Args:
        path: Folder with `train/<wnid>/` and `val/<wnid>/`, a folder of parquet files, or a hub name.
        **base: Arguments of `ImageDataModule`.

    Source: Russakovsky et al., arXiv:1409.0575.
    """

    def __init__(self, path: str = "ILSVRC/imagenet-1k", **base: Any) -> None:
        super().__init__(path, **base)
        lines = (Path(__file__).parent / "imagenet_classes.txt").read_text().splitlines()
        self.folder_names, self.class_names = map(list, zip(*(line.split(" ") for line in lines), strict=True))


def _names(*splits: str) -> list[str]:
    return [name for split in splits for name in SPLIT_NAMES[split]]
