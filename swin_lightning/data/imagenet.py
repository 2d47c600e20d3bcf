"""ImageNet and any other set of images in folders or in Hugging Face's layout."""

from functools import cached_property
from pathlib import Path
from typing import Any

from swin_lightning.data.image_datamodule import ImageDataModule
from swin_lightning.data.sources import HubImages, Source, class_folders, label_column, load_hub, read_class_folders

SPLIT_NAMES = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}


class ImageFolder(ImageDataModule):
    """Your own images: `path/train/<class>/<image>` and `path/val/<class>/<image>`, or a Hugging Face data set.

    Without a `test` split, testing means the validation split.

    Args:
        path: Folder with the splits as folders of class folders, a folder of parquet files in Hugging Face's layout,
            or a hub name.
        **base: Arguments of `ImageDataModule`.
    """

    def __init__(self, path: str, **base: Any) -> None:
        super().__init__(**base)
        self.path = path

    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """Class names in the order of the labels."""
        if self._in_folders:
            return self.folder_names
        features = next(iter(load_hub(self.path).values())).features
        return list(features[label_column(features)].names)

    @cached_property
    def folder_names(self) -> list[str]:
        """Names of the class folders in the order of the labels."""
        return class_folders(self._folder("train", "val"))

    def prepare_data(self) -> None:
        if not self._in_folders:
            load_hub(self.path)

    def load(self, split: str) -> Source:
        wanted = ("test", "val") if split == "test" else (split,)
        if self._in_folders:
            return read_class_folders(self._folder(*wanted), self.folder_names)
        dataset = load_hub(self.path)
        for name in _names(*wanted):
            if name in dataset:
                return HubImages(dataset[name], self.path)
        raise ValueError(f"data.path {self.path!r} has no split {split!r}, only {list(dataset)}")

    @property
    def _in_folders(self) -> bool:
        root = Path(self.path)
        return root.is_dir() and any((root / name).is_dir() for name in _names("train", "val"))

    def _folder(self, *splits: str) -> Path:
        found = [Path(self.path) / name for name in _names(*splits) if (Path(self.path) / name).is_dir()]
        if not found:
            raise ValueError(f"data.path {self.path!r}: there is no folder {Path(self.path) / splits[0]}")
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
