"""The base class of all data modules: loaders, augmentation and normalisation of labelled images."""

import logging
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from swin_lightning.batch import IGNORE_INDEX, Batch, Preprocessing
from swin_lightning.data.decoding import MAX_PIXELS, MaxPixels
from swin_lightning.data.description import describe_split
from swin_lightning.data.erasing import Boxes, erase, random_boxes
from swin_lightning.data.layouts import left_out_note
from swin_lightning.data.mixup import MixupCutmix
from swin_lightning.data.readers import FileReader, Reader, Sources, labels_of, read_unlabelled
from swin_lightning.data.sampling import ImageDataset, LazyDataLoader, OnBadImage, ResumableSampler, Sampling
from swin_lightning.data.transforms import (
    AreaRange,
    Crop,
    Degrees,
    EvalCrop,
    RandAugment,
    Transform,
    eval_transform,
    train_transform,
)
from swin_lightning.errors import UserError
from swin_lightning.ranges import (
    ImageSide,
    NonNegativeInt,
    PositiveInt,
    Probability,
    Range,
    Seed,
    Share,
    check_arguments,
)

log = logging.getLogger(__name__)

SPLITS = {"train": "train", "sanity_check": "val", "validate": "val", "test": "test", "predict": "predict"}  # by stage
Alpha = Annotated[float, Range(ge=0, le=100)]  # of a Beta distribution; at 100 all ratios are near 1/2
Mean = tuple[Probability, Probability, Probability]  # of the pixels in [0, 1], by channel
Deviation = Annotated[float, Range(ge=1e-4, le=1)]
Std = tuple[Deviation, Deviation, Deviation]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageDataModule(LightningDataModule):
    """Base class of data modules for image classification.

    Batches leave the workers as uint8 pixels and reach the model as `swin_lightning.batch.Batch`: normalised, and in
    training randomly erased and mixed on the device.

    A subclass implements `load(split)` and sets `class_names`; it may override `train_transform` and `eval_transform`.

    Args:
        image_size: Side length S of the input images in pixels.
        batch_size: **Global** batch size: images per optimizer step over all devices and accumulated batches.
        eval_batch_size: Images per device and step in evaluation; by default as many as in training.
        num_workers: DataLoader workers per device; by default the free CPU cores, at most 8.
        crop: Training crop: `random_resized`, `pad` (pad by 1/8, then random crop) or `none` (resize only).
        crop_scale: Range of the area fraction that `random_resized` keeps.
        hflip: Probability of a horizontal flip.
        rotate: Maximum random rotation in degrees.
        rand_augment: RandAugment policy in timm's notation, such as `rand-m9-mstd0.5-inc1`.
        random_erasing: Probability of random erasing, per image.
        mixup: Alpha of mixup; 0 disables it.
        cutmix: Alpha of CutMix; 0 disables it.
        mix_probability: Probability that a batch is mixed.
        mix_switch: Probability of CutMix instead of mixup if both are enabled.
        eval_crop: `center` (shorter side to S / eval_crop_ratio, then center crop) or `squash` (resize to S x S).
        eval_crop_ratio: Side length of the center crop, relative to the resized image.
        mean: Per-channel mean (RGB) in [0, 1].
        std: Per-channel standard deviation (RGB).
        predict_path: Image or folder of images for `predict`; by default the test split if it has no labels.
        on_bad_image: `raise` an error for an unreadable image, or `skip` it: training replaces it by the next image,
            evaluation ignores it, and the number of skipped images is logged at the end.
        sampler: `shuffle`, or `balanced`: in an epoch, the images of all classes are equally frequent; those of small
            classes are repeated with other augmentation, and some of the large ones are left out.
        class_weights: `balanced` weights the loss of a class by the inverse of its number of training images; the mean
            weight of an image is 1.
        max_pixels: Largest number of pixels of an image file that is decoded; a larger one is unreadable.
        seed: Seed of order, augmentation and mixing.

    Raises:
        UserError: If an argument is out of range or the global batch cannot be divided equally among the devices.
    """

    class_names: list[str]

    def __init__(
        self,
        image_size: ImageSide = 224,
        batch_size: PositiveInt = 128,
        eval_batch_size: PositiveInt | None = None,
        num_workers: NonNegativeInt | None = None,
        crop: Crop = "random_resized",
        crop_scale: AreaRange = (0.08, 1.0),
        hflip: Probability = 0.5,
        rotate: Degrees = 0.0,
        rand_augment: str | None = None,
        random_erasing: Probability = 0.0,
        mixup: Alpha = 0.0,
        cutmix: Alpha = 0.0,
        mix_probability: Probability = 1.0,
        mix_switch: Probability = 0.5,
        eval_crop: EvalCrop = "center",
        eval_crop_ratio: Share = 224 / 256,
        mean: Mean = IMAGENET_MEAN,
        std: Std = IMAGENET_STD,
        predict_path: str | None = None,
        on_bad_image: OnBadImage = "raise",
        sampler: Sampling = "shuffle",
        class_weights: Literal["balanced"] | None = None,
        max_pixels: MaxPixels = MAX_PIXELS,
        seed: Seed = 0,
    ) -> None:
        check_arguments(ImageDataModule.__init__, locals(), "data.")
        if rand_augment is not None:
            RandAugment.from_name(rand_augment)
        super().__init__()
        self.image_size, self.batch_size = image_size, batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.crop, self.crop_scale = crop, crop_scale
        self.hflip, self.rotate, self.rand_augment = hflip, rotate, rand_augment
        self.random_erasing = random_erasing
        self.mixing = MixupCutmix(mixup, cutmix, mix_probability, mix_switch)
        self.eval_crop, self.eval_crop_ratio = eval_crop, eval_crop_ratio
        red, green, blue = mean
        self.mean = (red, green, blue)
        red, green, blue = std
        self.std = (red, green, blue)
        self.sampler, self.class_weighting = sampler, class_weights
        self.predict_path, self.on_bad_image, self.max_pixels = predict_path, on_bad_image, max_pixels
        self.seed = seed
        self.sources: dict[str, Reader] = Sources()  # by split: train, val, test, predict
        self._bad_images: set[str] = set()  # names

    # for subclasses

    def load(self, split: str) -> Reader:
        """Read the split `train`, `val` or `test`."""
        raise NotImplementedError(f"{type(self).__name__} must implement load(split)")

    @property
    def num_classes(self) -> int:
        """Number of classes K.

        Raises:
            UserError: If the subclass does not set `class_names`.
        """
        try:
            return len(self.class_names)
        except AttributeError as error:  # jsonargparse would silently drop the link from this property to the model
            if hasattr(type(self), "class_names"):  # a property with a bug
                raise RuntimeError(f"{type(self).__name__}.class_names raised an AttributeError") from error
            raise UserError(f"data.class_path: {type(self).__name__} does not set class_names") from error

    @property
    def class_weights(self) -> list[float] | None:
        """Weight of each class in the loss, K; 0 for a class without training images. None without weights."""
        if self.class_weighting is None:
            return None
        if "train" not in self.sources:
            self.sources["train"] = self.load("train")
        counts = np.bincount(labels_of(self.sources["train"]), minlength=self.num_classes)
        return [counts.sum() / (np.count_nonzero(counts) * n) if n else 0.0 for n in counts.tolist()]

    # Lightning's hooks, in the order in which they are called

    def setup(self, stage: str) -> None:
        splits = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}[stage]
        for split in splits:
            if split not in self.sources:
                self.sources[split] = self._predict_images() if split == "predict" else self.load(split)
                if self._rank()[0] == 0:
                    same = split == "test" and self.sources[split] is self.sources.get("val")
                    names = [] if split == "predict" else self.class_names
                    line = describe_split(split, self.sources[split], names)
                    log.info("test: the validation images" if same else line)

    def train_dataloader(self) -> DataLoader[Any]:
        sampler = self._sampler("train", training=True)
        if self.trainer is not None:
            sampler.set_epoch(self.trainer.current_epoch)
            sampler.start_batch = self._batches_done(len(sampler) // sampler.batch_size)
        if not len(sampler):
            raise UserError(
                f"data.batch_size {self.batch_size} is larger than the training set of "
                f"{len(self.sources['train'])} images; lower it"
            )
        self._check_pairs(sampler.batch_size)
        return self._loader("train", sampler, training=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self.eval_dataloader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.eval_dataloader("predict")

    def eval_dataloader(self, split: str) -> DataLoader[Any]:
        """Loader of a split with evaluation pixels, in order; of `train` too."""
        return self._loader(split, self._sampler(split, training=False), training=False)

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        bad_index = batch.pop("bad_index", None)
        if bad_index is not None and self.trainer is not None:
            split = SPLITS[self.trainer.state.stage or ""]
            self._bad_images |= {self.sample_name(split, index) for index in bad_index.tolist() if index >= 0}
        if self.random_erasing and self.trainer is not None and self.trainer.training:
            size, epoch = batch["image"].shape[-2:], self.trainer.current_epoch
            # drawn here, where the indices are still on the host
            batch["boxes"] = random_boxes(batch["index"], size, self.random_erasing, self.seed, epoch)
        return batch

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> Batch:
        images, targets = self.normalize(batch["image"]), batch["target"]
        trainer = self.trainer
        if trainer is not None and trainer.training:
            batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            step = batches // trainer.accumulate_grad_batches  # optimizer step of the epoch, the same on all ranks
            rng = np.random.default_rng((self.seed, trainer.current_epoch, step))
            boxes = batch["boxes"] if self.random_erasing else None
            images, targets = self.augment_batch(images, targets, rng, boxes)
        if trainer is not None:
            images = trainer.precision_plugin.convert_input(images)
        return {"image": images, "target": targets, "index": batch["index"]}

    def augment_batch(
        self, images: Tensor, targets: Tensor, rng: np.random.Generator, boxes: Boxes | None = None
    ) -> tuple[Tensor, Tensor]:
        """Random erasing, then mixup or CutMix, of normalised images `B, 3, S, S` and class indices `B`.

        Args:
            images: Normalised images.
            targets: Class indices.
            rng: Generator of mixup and CutMix, equal for all parts of a global batch.
            boxes: Boxes to erase.

        Returns:
            Images `B, 3, S, S` and class indices `B`, or probabilities `B, K` if the batch was mixed.
        """
        if boxes is not None:
            images = erase(images, boxes)
        return self.mixing(images, targets, self.num_classes, rng)

    def state_dict(self) -> dict[str, Any]:
        """Stored in checkpoints: the preprocessing, unless a subclass replaces a part of it by code of its own."""
        own = [getattr(type(self), name) is getattr(ImageDataModule, name) for name in ("eval_transform", "normalize")]
        return {"preprocessing": self.preprocessing().state()} if all(own) else {}

    def teardown(self, stage: str) -> None:
        if self._bad_images:
            names = sorted(self._bad_images)
            more = f" and {len(names) - 20} more" if len(names) > 20 else ""
            rank = f"rank {self.trainer.global_rank}: " if self.trainer and self.trainer.world_size > 1 else ""
            log.warning(f"{rank}skipped {len(names)} unreadable images: {', '.join(names[:20])}{more}")
            self._bad_images = set()

    # used by callbacks, benchmarks and notebooks

    def train_transform(self) -> Transform:
        red, green, blue = (round(255 * channel) for channel in self.mean)
        return train_transform(
            self.image_size, self.crop, self.crop_scale, self.hflip, self.rotate, self.rand_augment, (red, green, blue)
        )

    def eval_transform(self) -> Transform:
        return eval_transform(self.image_size, self.eval_crop, self.eval_crop_ratio)

    def preprocessing(self) -> Preprocessing:
        """How `eval_transform` and `normalize` turn an image into the input of the network."""
        return Preprocessing(self.image_size, self.eval_crop, self.eval_crop_ratio, self.mean, self.std)

    def eval_protocol(self) -> str:
        """The resize and crop of evaluation in words, such as `resize 256, crop 224`."""
        return self.preprocessing().protocol()

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 pixels `B, 3, H, W` to float with the data set's mean and standard deviation removed."""
        return self.preprocessing().normalize(images)

    def denormalize(self, images: Tensor) -> Tensor:
        """The inverse of `normalize`: float to uint8 pixels."""
        return self.preprocessing().denormalize(images)

    def sample_name(self, split: str, index: int) -> str:
        """Name of a sample in messages and predictions: the path of an image file, or its position in the data set."""
        return self.sources[split].name(index)

    def has_test_labels(self) -> bool:
        """Whether the test split has labels, so that there is something to measure."""
        if "test" not in self.sources:
            self.sources["test"] = self.load("test")
        labels = getattr(self.sources["test"], "labels", None)
        return labels is None or not len(labels) or bool((np.asarray(labels) != IGNORE_INDEX).any())

    def micro_batch_size(self) -> int:
        """Images per forward pass on one device.

        Raises:
            UserError: If the global batch cannot be divided equally.
        """
        world_size, accumulate = self._rank()[1], self.accumulated_batches()
        if self.batch_size % (world_size * accumulate):
            raise UserError(
                f"data.batch_size {self.batch_size} is the global batch size and cannot be divided by "
                f"{world_size} devices x {accumulate} accumulated batches; use a multiple of {world_size * accumulate}"
            )
        return self.batch_size // (world_size * accumulate)

    def accumulated_batches(self) -> int:
        """Forward passes per optimizer step on one device."""
        return self.trainer.accumulate_grad_batches if self.trainer else 1

    def workers(self) -> int:
        """DataLoader workers of this device."""
        return _free_cores() if self.num_workers is None else self.num_workers

    # helpers

    def _rank(self) -> tuple[int, int]:
        """Rank of this process and number of ranks."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _check_pairs(self, micro_batch: int) -> None:
        """Say that mixup depends on the number of devices if a micro-batch does not consist of pairs."""
        parts = self.batch_size // micro_batch
        if micro_batch % 2 and parts > 1 and (self.mixing.mixup or self.mixing.cutmix) and self._rank()[0] == 0:
            log.warning(
                f"data.batch_size {self.batch_size} gives {micro_batch} images per device and forward pass, an odd "
                "number: one of them is not mixed, and which one depends on the number of devices and accumulated "
                f"batches; use a multiple of {2 * parts}"
            )

    def _batches_done(self, batches: int) -> int:
        """Batches of the current epoch that a resumed run has already processed."""
        if self.trainer is None or not self.trainer.fit_loop.restarting:
            return 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        if progress.is_last_batch:  # the next epoch begins, whatever its number of batches
            return 0
        done: int = progress.current.processed  # type: ignore[attr-defined]
        limit = self.trainer.limit_train_batches
        end = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
        return done if done < end else 0

    def _sampler(self, split: str, training: bool) -> ResumableSampler:
        batch_size = self.micro_batch_size() if training else self.eval_batch_size or self.micro_batch_size()
        accumulate = self.accumulated_batches() if training else 1
        source = self.sources[split]
        labels = labels_of(source) if training and self.sampler == "balanced" else None
        return ResumableSampler(len(source), batch_size, self.seed, training, *self._rank(), accumulate, labels)

    def _loader(self, split: str, sampler: ResumableSampler, training: bool) -> DataLoader[Any]:
        transform = self.train_transform() if training else self.eval_transform()
        workers = self.workers()
        return LazyDataLoader(
            ImageDataset(self.sources[split], transform, self.seed, self.on_bad_image, training, self.max_pixels),
            batch_size=sampler.batch_size,
            sampler=sampler,
            drop_last=training,
            num_workers=workers,
            persistent_workers=workers > 0 and (training or split == "val"),  # both are iterated in every epoch
            pin_memory=torch.cuda.is_available(),
        )

    def _predict_images(self) -> Reader:
        if self.predict_path is None and not self.has_test_labels():
            return self.sources["test"]
        path = Path(self.predict_path or "")
        if self.predict_path is None or not path.exists():
            raise UserError(
                f"data.predict_path: no image or folder {self.predict_path!r}; pass --data.predict_path IMAGE_OR_FOLDER"
            )
        reader = FileReader([path], [IGNORE_INDEX]) if path.is_file() else read_unlabelled(path)
        if not len(reader):
            why = left_out_note(reader.left_out)
            raise UserError(f"data.predict_path: no images in folder {self.predict_path!r}{why}")
        return reader


def _free_cores() -> int:
    """CPU cores for the workers of one device: an equal share of this machine's, less one, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(0, min(8, cores // ranks - 1))
