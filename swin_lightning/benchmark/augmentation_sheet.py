"""A picture of what training does to images: `swin-lightning benchmark data -c EXPERIMENT --show FILE`."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from swin_lightning.data import ImageDataModule
from swin_lightning.data.erasing import random_boxes

MARGIN, HEADER = 4, 14  # pixels between tiles, and above them for the titles


def save_augmentation_sheet(data: ImageDataModule, path: Path, samples: int = 8, epochs: int = 6) -> None:
    """Save a grid of images: one row per sample, one column per view.

    The columns are the evaluation transform, the training transform in the first epochs, and, if the data module uses
    them, random erasing and mixup or CutMix on the first two of these.

    Args:
        data: Data module after `setup("fit")`.
        path: Image file to write; its folder is created.
        samples: Number of samples, spread evenly over the training set.
        epochs: Number of epochs.
    """
    source, transform, eval_transform = data.sources["train"], data.train_transform(), data.eval_transform()
    indices = np.linspace(0, len(source) - 1, min(samples, len(source))).astype(int).tolist()
    columns = {"evaluation": [eval_transform(np.asarray(source[i][0]), (0, 0, i)) for i in indices]}
    for epoch in range(epochs):
        columns[f"epoch {epoch}"] = [transform(source[i][0], (data.seed, epoch, i)) for i in indices]
    if data.random_erasing or data.mixing.mixup or data.mixing.cutmix:
        targets = torch.tensor([source[i][1] for i in indices])
        for epoch in range(2):
            batch = torch.from_numpy(np.stack(columns[f"epoch {epoch}"])).permute(0, 3, 1, 2)  # B, 3, S, S
            rng, size = np.random.default_rng((data.seed, epoch)), batch.shape[-2:]
            boxes = random_boxes(torch.tensor(indices), size, data.random_erasing, data.seed, epoch)
            images, _ = data.augment_batch(data.normalize(batch), targets, rng, boxes)
            columns[f"mixed {epoch}"] = list(data.denormalize(images).permute(0, 2, 3, 1).numpy())
    tile = max(64, min(160, data.image_size))
    step = tile + MARGIN
    sheet = Image.new("RGB", (step * len(columns), step * len(indices) + HEADER), "white")
    for x, (title, column) in enumerate(columns.items()):
        ImageDraw.Draw(sheet).text((x * step + 2, 1), title, fill="black")
        for y, pixels in enumerate(column):
            image = Image.fromarray(pixels).resize((tile, tile), Image.Resampling.BICUBIC)
            sheet.paste(image, (x * step, y * step + HEADER))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
