"""`swin-lightning features RUN`: features of a data set by the backbone of a run, as a Parquet file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lightning import LightningModule
from torch import nn

from swin_lightning.config import instantiate, load
from swin_lightning.data import ImageDataModule
from swin_lightning.errors import CommandParser, UserError, add_allow_option
from swin_lightning.explore.evaluation import load_run

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Features:
    """Features of the images of a split.

    Attributes:
        values: Output of the backbone, `N, C` float32.
        labels: Class indices, `N`; -1 where there is no label.
        names: File or position of each image, N.
        class_names: K.
    """

    values: np.ndarray
    labels: np.ndarray
    names: list[str]
    class_names: list[str]

    def table(self, split: str) -> pd.DataFrame:
        """One row per image: `split`, `name`, `label` (index), `class` (name) and `feature` (array of length C)."""
        classes = [self.class_names[i] if 0 <= i < len(self.class_names) else None for i in self.labels]
        columns = {"split": split, "name": self.names, "label": self.labels, "class": classes}
        return pd.DataFrame({**columns, "feature": list(self.values)})


def features(args: list[str]) -> None:
    """Write the features of a data set by the backbone of a run, with evaluation pixels and in order.

    One row per image: split, name, label, class and feature. `swin-lightning probe` measures how well they separate the
    classes.
    """
    parser = CommandParser("swin-lightning features", description=features.__doc__)
    parser.add_argument("run", metavar="RUN", help="run folder, or a checkpoint in one")
    parser.add_argument(
        "data", metavar="DATA", nargs="?", help="experiment or folder of images; by default the data of the run"
    )
    parser.add_argument("--output", metavar="FILE", default="features.parquet", help="default: features.parquet")
    parser.add_argument("--split", choices=SPLITS, action="append", help="may be repeated (default: train and test)")
    parser.add_argument("--images", type=int, metavar="N", help="first N images of each split (default: all)")
    add_allow_option(parser)
    options = parser.parse_args(args)
    if not options.output.endswith(".parquet"):
        raise UserError(f"--output {options.output!r} must end with .parquet")
    if options.images is not None and options.images < 1:
        raise UserError(f"--images {options.images} must be at least 1")
    model, data = load_run(options.run, options.allow_classes)
    splits = options.split or ["train", "test"]
    if options.data is not None and Path(options.data).is_dir():
        data.predict_path, splits = options.data, ["predict"]
    elif options.data is not None:
        data = _data_of(options.data)
    parts = [extract_features(model, data, split, options.images).table(split) for split in splits]
    table = pd.concat(parts, ignore_index=True)
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(options.output, index=False)
    print(f"features: {options.output} ({len(table)} images, {len(table.feature[0])} features)")


def extract_features(model: nn.Module, data: ImageDataModule, split: str, limit: int | None = None) -> Features:
    """Features of a split with evaluation pixels, in order; on a GPU if there is one.

    Args:
        model: Task with a `backbone` that maps images to `B, C`, or such a backbone; it is moved to the GPU and back.
        data: The data module.
        split: `train`, `val`, `test` or `predict`.
        limit: Maximum number of images, from the beginning.

    Raises:
        UserError: If the backbone does not return `B, C`, or the split is empty.
    """
    backbone = model.backbone if isinstance(model, LightningModule) else model
    assert isinstance(backbone, nn.Module)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    home, training = next(backbone.parameters()).device, backbone.training
    backbone.to(device).eval()
    if split not in data.sources:
        if split == "predict":
            data.setup("predict")
        else:
            data.prepare_data()
            data.sources[split] = data.load(split)
    values, labels, indices, seen = [], [], [], 0
    with torch.inference_mode():
        for batch in data.eval_dataloader(split):
            found = backbone(data.normalize(batch["image"].to(device)))
            if found.ndim != 2:
                raise UserError(f"{type(backbone).__name__} returns {tuple(found.shape)} in place of features B, C")
            known = batch["index"] >= 0  # not images that could not be read
            values.append(found.float().cpu()[known])
            labels.append(batch["target"][known])
            indices.append(batch["index"][known])
            seen += len(values[-1])
            if limit is not None and seen >= limit:
                break
    backbone.to(home).train(training)
    if not seen:
        raise UserError(f"split {split!r} has no image")
    kept = slice(limit)
    names = [data.sample_name(split, int(index)) for index in torch.cat(indices)[kept]]
    class_names = [] if split == "predict" else list(data.class_names)
    return Features(torch.cat(values)[kept].numpy(), torch.cat(labels)[kept].numpy(), names, class_names)


def read_features(path: str | Path, split: str) -> Features:
    """The features of a split in a file of `swin-lightning features`.

    Raises:
        UserError: If it is not such a file, or does not have the split.
    """
    if not Path(path).is_file():
        raise UserError(f"features {str(path)!r}: no such file; write it with `swin-lightning features RUN`")
    try:
        table = pd.read_parquet(path, columns=["split", "name", "label", "class", "feature"])
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"features {str(path)!r}: not a file of `swin-lightning features` ({error})") from error
    rows = table[table["split"] == split]
    if rows.empty:
        found = ", ".join(sorted(table["split"].unique()))
        raise UserError(f"features {str(path)!r} have no split {split!r}; they have {found}")
    classes = rows.dropna(subset="class").drop_duplicates("label").set_index("label")["class"]
    class_names = [str(classes.get(k, k)) for k in range(max(rows["label"].max() + 1, 0))]
    return Features(np.stack(rows["feature"].tolist()), rows["label"].to_numpy(), rows["name"].tolist(), class_names)


# helpers


def _data_of(experiment: str) -> ImageDataModule:
    data, _ = instantiate(load(["-c", experiment]))
    if not isinstance(data, ImageDataModule):
        raise UserError(f"{experiment}: {type(data).__name__} is not a subclass of ImageDataModule")
    return data
