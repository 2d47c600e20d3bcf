"""ImageNet-1K with the classes of the challenge."""

from functools import cached_property
from pathlib import Path
from typing import Any

from swin_lightning.data.folder import ImageFolder
from swin_lightning.data.imagenet_devkit import is_official_val, validation_labels
from swin_lightning.data.layouts import find_images, subfolders
from swin_lightning.data.readers import FileReader, Reader, TarReader
from swin_lightning.errors import UserError


class ImageNet(ImageFolder):
    """ImageNet-1K: 1.28 million training and 50,000 validation images in 1,000 classes.

    Class indices are those of the challenge, even if a folder contains only some of the classes.

    Args:
        path: Folder with the files of the challenge (`ILSVRC2012_img_train.tar` or `train/<wnid>/`,
            `ILSVRC2012_img_val.tar` or the validation images in one folder, and `ILSVRC2012_devkit_t12.tar.gz`), which
            are read in place; with `train/<wnid>/` and `val/<wnid>/`; with tar shards or parquet files; or a Hub name.
        **base: Arguments of `ImageFolder`.

    Raises:
        UserError: If the files of the challenge are to be streamed.

    Source: Russakovsky et al., arXiv:1409.0575.
    """

    def __init__(self, path: str = "ILSVRC/imagenet-1k", **base: Any) -> None:
        super().__init__(path, **base)
        if self.streaming and (Path(self.path) / "ILSVRC2012_img_train.tar").is_file():
            raise UserError("data.streaming: the files of the challenge are read in place; leave the option out")
        lines = (Path(__file__).parent / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
        self.folder_names, self.class_names = map(list, zip(*(line.split(" ") for line in lines), strict=True))

    @property
    def shard_class_names(self) -> list[str]:
        """The WordNet ids of the classes."""
        return self.folder_names

    def found_splits(self) -> set[str]:
        return super().found_splits() | ({"val"} if self._official_val and not self.streaming else set())

    def read(self, split: str) -> Reader:
        if split == "val" and (official := self._official_val):
            if official.is_file():
                tar = TarReader([official], labelled=False)
                tar.labels = validation_labels(Path(self.path), tar.members, self.folder_names)
                return tar
            found = find_images(official, deep=False)
            labels = validation_labels(Path(self.path), [path.name for path in found.paths], self.folder_names)
            return FileReader(found.paths, labels, found.left_out)
        return super().read(split)

    # helpers

    @cached_property
    def _official_val(self) -> Path | None:
        """The tar file or the folder of the validation images of the challenge, if they are in no class folders."""
        root = Path(self.path)
        if (archive := root / "ILSVRC2012_img_val.tar").is_file():
            return archive
        return next((folder for folder in subfolders(root) if is_official_val(folder)), None) if root.is_dir() else None

    def shards(self, *splits: str) -> list[Path]:
        archives = [Path(self.path) / f"ILSVRC2012_img_{split}.tar" for split in splits if split != "test"]
        return [archive for archive in archives if archive.is_file()][:1] or super().shards(*splits)
