"""ImageNet-1K with the classes of the challenge."""

from pathlib import Path
from typing import Any

from swin_lightning.data.folder import ImageFolder


class ImageNet(ImageFolder):
    """ImageNet-1K: 1.28 million training and 50,000 validation images in 1,000 classes.

    Class indices are those of the challenge, even if a folder contains only some of the classes.

    Args:
        path: Folder with `train/<wnid>/` and `val/<wnid>/`, with tar shards or with parquet files; or a Hub name.
        **base: Arguments of `ImageFolder`.

    Source: Russakovsky et al., arXiv:1409.0575.
    """

    def __init__(self, path: str = "ILSVRC/imagenet-1k", **base: Any) -> None:
        super().__init__(path, **base)
        lines = (Path(__file__).parent / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
        self.folder_names, self.class_names = map(list, zip(*(line.split(" ") for line in lines), strict=True))

    @property
    def shard_class_names(self) -> list[str]:
        """The WordNet ids of the classes."""
        return self.folder_names
