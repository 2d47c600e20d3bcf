"""The base of all data sets: what a subclass needs to say is where its images are."""

import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from swin_lightning.batch import IGNORE_INDEX
from swin_lightning.data.mixup import MixupCutmix, random_erasing
from swin_lightning.data.readers import FileImages, Source, list_images
from swin_lightning.data.sampling import EpochLoader, ImageDataset, OnBadImage, ResumableSampler
from swin_lightning.data.transforms import Crop, EvalCrop, Transform, eval_transform, train_transform
from swin_lightning.errors import UserError

log = logging.getLogger(__name__)

SPLITS = {"train": "train", "sanity_check": "val", "validate": "val", "test": "test", "predict": "predict"}  # of stages
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageDataModule(LightningDataModule):
    """Loaders, augmentation and normalisation of a classified set of images.

    A batch travels as uint8 and reaches the model as a dict: `image` `B, 3, S, S` float, normalised; `target` `B`
    class indices, or `B, K` probabilities where mixup or CutMix mixed them; `index` `B` places in the data set.

    Subclasses implement `load(split)` and give `class_names`; they may override `train_transform` and `eval_transform`.

    Args:
        image_size: Side S of the square that the network sees, in pixels.
        batch_size: **Global** batch: images of one optimizer step over all devices and accumulated batches.
        eval_batch_size: Images a device and step in evaluation; as many as in training by default.
        num_workers: Loader processes a device; by default the cores that are left, at most 8.
        crop: Training crop: `random_resized`, `pad` (by 1/8, then a random crop) or `none` (resize only).
        crop_scale: Share of the area that `random_resized` keeps, from and to.
        hflip: Probability of a horizontal flip.
        rotate: Largest random rotation in degrees.
        rand_augment: RandAugment in timm's notation, such as `rand-m9-mstd0.5-inc1`.
        random_erasing: Probability of erasing a box of an image.
        mixup: Alpha of mixup; 0 is off.
        cutmix: Alpha of CutMix; 0 is off.
        mix_probability: Share of batches that are mixed.
        mix_switch: Probability of CutMix where both are on.
        eval_crop: `center` (shorter side to S / eval_crop_ratio, then the centre) or `squash`.
        eval_crop_ratio: Share of the resized side that the centre crop keeps.
        mean: Mean of the channels R, G, B in [0, 1].
        std: Standard deviation of the channels.
        predict_path: Image or folder of images for `predict`.
        on_bad_image: What an unreadable image does: `raise` an error that names it, or `skip`: the next one stands in
            for it in training, evaluation leaves it out, and the end of the run tells how many there were.
        seed: Seed of order, augmentation and mixing.

    Raises:
        ValueError: For sizes below 1, or a global batch that the devices cannot share equally.
    """

    class_names: list[str]

    def __init__(
        self,
        image_size: int = 224,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        crop: Crop = "random_resized",
        crop_scale: tuple[float, float] = (0.08, 1.0),
        hflip: float = 0.5,
        rotate: float = 0.0,
        rand_augment: str | None = None,
        random_erasing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_probability: float = 1.0,
        mix_switch: float = 0.5,
        eval_crop: EvalCrop = "center",
        eval_crop_ratio: float = 224 / 256,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        predict_path: str | None = None,
        on_bad_image: OnBadImage = "raise",
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in {"image_size": image_size, "batch_size": batch_size}.items():
            if value < 1:
                raise UserError(f"data.{name} {value} must be at least 1")
        self.image_size = image_size
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.crop, self.crop_scale = crop, crop_scale
        self.hflip, self.rotate, self.rand_augment = hflip, rotate, rand_augment
        self.random_erasing = random_erasing
        self.mixing = MixupCutmix(mixup, cutmix, mix_probability, mix_switch)
        self.eval_crop, self.eval_crop_ratio = eval_crop, eval_crop_ratio
        self.mean, self.std = tuple(mean), tuple(std)
        self.predict_path = predict_path
        self.on_bad_image = on_bad_image
        self.seed = seed
        self._bad: set[str] = set()  # names of unreadable images
        self.sources: dict[str, Source] = {}

    # what a subclass says

    def load(self, split: str) -> Source:
        """Read the split `train`, `val` or `test`."""
        raise NotImplementedError(f"{type(self).__name__} must implement load(split)")  # abstract

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    # Lightning's hooks, in the order of their calls

    def setup(self, stage: str) -> None:
        needed = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}[stage]
        for split in needed:
            if split not in self.sources:
                self.sources[split] = self._predict_source() if split == "predict" else self.load(split)

    def train_dataloader(self) -> DataLoader[Any]:
        sampler = self._sampler("train")
        if self.trainer is not None:
            sampler.set_epoch(self.trainer.current_epoch)
            sampler.skip = self._batches_done(len(sampler) // sampler.batch_size)
        if not len(sampler):
            raise UserError(
                f"data.batch_size {self.batch_size} is larger than the training set of "
                f"{len(self.sources['train'])} images; lower it"
            )
        return self._loader("train", sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader("val", self._sampler("val"))

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader("test", self._sampler("test"))

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader("predict", self._sampler("predict"))

    def on_before_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        bad = batch.pop("bad", None)
        if bad is not None and self.trainer is not None:
            source = self.sources[SPLITS[self.trainer.state.stage or ""]]
            self._bad |= {source.name(index) for index in bad.tolist() if index >= 0}
        return batch

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        images, targets = self.normalize(batch["image"]), batch["target"]
        trainer = self.trainer
        if trainer is not None and trainer.training:
            step = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            rng = np.random.default_rng((self.seed, trainer.current_epoch, step, trainer.global_rank))
            images, targets = self.augment_batch(images, targets, rng)
        if trainer is not None:
            images = trainer.precision_plugin.convert_input(images)
        return {"image": images, "target": targets, "index": batch["index"]}

    def augment_batch(self, images: Tensor, targets: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Erase and mix normalised images `B, 3, S, S` and their targets, on their device."""
        if self.random_erasing:  # before the mixing: a mixed image has the boxes of both
            images = random_erasing(images, self.random_erasing, rng)
        return self.mixing(images, targets, self.num_classes, rng)

    def teardown(self, stage: str) -> None:
        if self._bad:
            names = sorted(self._bad)
            more = f" and {len(names) - 20} more" if len(names) > 20 else ""
            rank = f"rank {self.trainer.global_rank}: " if self.trainer and self.trainer.world_size > 1 else ""
            log.warning(f"{rank}{len(names)} unreadable images were skipped: {', '.join(names[:20])}{more}")
            self._bad = set()

    # helpers

    def train_transform(self) -> Transform:
        red, green, blue = (round(255 * channel) for channel in self.mean)
        return train_transform(
            self.image_size, self.crop, self.crop_scale, self.hflip, self.rotate, self.rand_augment, (red, green, blue)
        )

    def eval_transform(self) -> Transform:
        return eval_transform(self.image_size, self.eval_crop, self.eval_crop_ratio)

    def eval_protocol(self) -> str:
        """How evaluation cuts an image, in words."""
        size = self.image_size
        if self.eval_crop == "squash" or self.eval_crop_ratio == 1.0:
            return f"resize {size} x {size}"
        return f"resize {int(size / self.eval_crop_ratio)}, crop {size}"

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 pixels -> float, channels centred and scaled."""
        mean, std = _by_channel(self.mean, images.device), _by_channel(self.std, images.device)
        return (images / 255 - mean) / std

    def denormalize(self, images: Tensor) -> Tensor:
        """The inverse of `normalize`: float -> uint8 pixels."""
        mean, std = _by_channel(self.mean, images.device), _by_channel(self.std, images.device)
        return ((images * std + mean) * 255).round().clamp(0, 255).byte()

    def micro_batch_size(self) -> int:
        """Images of one forward pass on one device."""
        if self.trainer is None:
            return self.batch_size
        parts = self.trainer.world_size * self.trainer.accumulate_grad_batches
        if self.batch_size % parts:
            raise UserError(
                f"data.batch_size {self.batch_size} is the global batch and cannot be shared by "
                f"{self.trainer.world_size} devices x {self.trainer.accumulate_grad_batches} accumulated batches; "
                f"use a multiple of {parts}"
            )
        return self.batch_size // parts

    def workers(self) -> int:
        """Loader processes of this device."""
        return _spare_cores() if self.num_workers is None else self.num_workers

    def _batches_done(self, batches: int) -> int:
        """Batches of the epoch that a resumed run has seen."""
        if self.trainer is None or not self.trainer.fit_loop.restarting:
            return 0
        done: int = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
        limit = self.trainer.limit_train_batches
        end = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
        return done if done < end else 0  # at its end the next epoch begins

    def _sampler(self, split: str) -> ResumableSampler:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        training = split == "train"
        batch_size = self.micro_batch_size() if training else self.eval_batch_size or self.micro_batch_size()
        return ResumableSampler(len(self.sources[split]), batch_size, self.seed, training, rank, world_size)

    def _loader(self, split: str, sampler: ResumableSampler) -> DataLoader[Any]:
        training = split == "train"
        transform = self.train_transform() if training else self.eval_transform()
        workers = self.workers()
        return EpochLoader(
            ImageDataset(self.sources[split], transform, self.seed, self.on_bad_image, training),
            batch_size=sampler.batch_size,
            sampler=sampler,
            drop_last=training,
            num_workers=workers,
            persistent_workers=workers > 0 and split in ("train", "val"),  # both come again every epoch
            pin_memory=torch.cuda.is_available(),
        )

    def _predict_source(self) -> Source:
        path = Path(self.predict_path or "")
        if self.predict_path is None or not path.exists():
            raise UserError(
                f"data.predict_path {self.predict_path!r}: there is no such image or folder; "
                "pass --data.predict_path FOLDER"
            )
        paths: Sequence[Path] = [path] if path.is_file() else list_images(path)
        if not paths:
            raise UserError(f"data.predict_path {self.predict_path!r} holds no image")
        return FileImages(paths, [IGNORE_INDEX] * len(paths))


@functools.cache
def _by_channel(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """`3, 1, 1` on the device, sent there once: the host waits for a GPU that it sends a number to."""
    with torch.inference_mode(False):  # evaluation may be the first to ask, and training needs it for gradients
        return torch.tensor(values, device=device).view(3, 1, 1)


def _spare_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(0, min(8, cores // ranks - 1))
