"""Images for tests: pixels, files, data sets on disk, and a backbone that records its inputs."""

import io
import tarfile

import numpy as np
import torch
from PIL import Image
from torch import nn

PLAIN = {"crop": "none", "hflip": 0.0, "eval_crop": "squash", "mean": (0, 0, 0), "std": (1, 1, 1)}  # pixels unchanged


def noise(height=40, width=56):
    return np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)


def encode(image, kind="PNG", **options):
    """The content of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey_png(value, size=(12, 10)):
    return encode(Image.new("RGB", size, (value, value, value)))


def write_image(path, value=0, size=(9, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(grey_png(value, size))


def write_photographs(root, count=40):
    """JPEGs of 80 x 60 pixels in two class folders, as a training split."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = root / "train" / ("cat", "dog")[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(256, size=(6, 8, 3), dtype=np.uint8))
        small.resize((80, 60), Image.Resampling.BICUBIC).save(path)
    return root


def write_tar(path, files):
    """A tar file with the given contents by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_shards(root, split="train", shards=2, images_per_shard=5, class_folders=False):
    """Tar shards: image i has grey value i and class i % 2, from a `.cls` file or from a class folder."""
    for s in range(shards):
        files = {}
        for i in range(s * images_per_shard, (s + 1) * images_per_shard):
            if class_folders:
                files[f"{('cat', 'dog')[i % 2]}/{i:05d}.png"] = grey_png(i)
            else:
                files |= {f"{i:05d}.png": grey_png(i), f"{i:05d}.cls": str(i % 2).encode()}
        write_tar(root / f"{split}-{s:06d}.tar", files)
    return root


def write_parquet(root, features, shards):
    """Parquet files in the Hub's layout.

    Args:
        root: Folder of the files.
        features: Feature types by column: one `datasets.Image` and labels.
        shards: (split, number, grey values, labels) of each file.
    """
    import datasets

    root.mkdir(parents=True, exist_ok=True)
    image, label = features
    for split, number, values, labels in shards:
        columns = {image: [{"bytes": grey_png(v, (32, 32)), "path": None} for v in values], label: labels}
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        table.to_parquet(root / f"{split}-{number:05d}-of-00004.parquet")
    return root


class Recorder(nn.Module):
    """A backbone with a single feature, the mean of the image times a weight, that records its inputs."""

    num_features = 1

    def __init__(self):
        super().__init__()
        self.scale, self.inputs = nn.Parameter(torch.ones(1)), []

    def forward(self, x):
        self.inputs.append(x.detach().clone())
        return self.scale * x.mean((1, 2, 3))[:, None]

    def values(self):
        """Mean pixel values of the recorded images, from 0 to 255."""
        return [value for x in self.inputs for value in (x.mean((1, 2, 3)) * 255).round().int().tolist()]
