"""Relations between options of model, data and Trainer, checked before the first step.

Each option may be in range by itself and the run be meaningless all the same: a warm-up that is longer than the run, a
patch that is larger than the image. The same function serves `fit`, a Trainer in Python and `sweep --check`.
"""

import os
from typing import Any

from swin_lightning.errors import UserError

WHOLE_RUN = 5  # epochs; a run with fewer tries an experiment out
MAX_WORKERS_PER_CORE, SOME_WORKERS = 4, 32


def check_run(options: Any, model: Any, data: Any = None) -> None:
    """Check options against each other.

    Args:
        options: A Trainer, or the options of one by the same names.
        model: The LightningModule. What it does not have is not checked.
        data: The data module, if there is one, after its `setup` where the size of the data set is to be known.

    Raises:
        UserError: For the first relation that does not hold, with both values.
    """
    _check_length(options)
    _check_warmup(options, model)
    backbone = getattr(model, "backbone", None)
    if data is not None and getattr(data, "image_size", None) is not None:
        _check_images(backbone, data)
        _check_sizes(options, data)
    if getattr(model, "num_classes", 2) == 1:
        raise UserError("model.num_classes 1: a classifier needs at least two classes; check the folders of data.path")


def check_rates(
    lr: float, min_lr: float, warmup_lr: float, decoupled_decay: float, schedule: Any, warmup_epochs: float
) -> None:
    """Check the learning rates of a task against each other, and against the weight decay of AdamW.

    Raises:
        UserError: If a warm-up or a decay would raise the learning rate, or AdamW would turn the weights over.
    """
    if warmup_epochs and warmup_lr > lr:
        raise UserError(f"model.warmup_lr {warmup_lr} is above model.lr {lr}; lower it, or raise model.lr")
    if schedule in ("cosine", "linear", "wsd") and min_lr > lr:
        raise UserError(f"model.min_lr {min_lr} is above model.lr {lr}; lower it, or raise model.lr")
    if lr * decoupled_decay >= 1:
        raise UserError(
            f"model.weight_decay {decoupled_decay}: AdamW multiplies the weights by 1 - lr * weight_decay in a step, "
            f"which is not positive for model.lr {lr}; lower one of them"
        )


def _check_length(options: Any) -> None:
    for unit in ("epochs", "steps"):
        least, most = getattr(options, f"min_{unit}", None), getattr(options, f"max_{unit}", None)
        if least is not None and most is not None and 0 <= most < least:
            raise UserError(f"trainer.min_{unit} {least} is above trainer.max_{unit} {most}; lower it")


def _check_warmup(options: Any, model: Any) -> None:
    """A warm-up ends before the run. A run that is shortened to be tried out is not checked."""
    warmup, epochs = getattr(model, "warmup_epochs", 0), options.max_epochs
    planned = getattr(model, "planned_epochs", None)
    if not warmup or epochs is None or epochs < 0:
        return
    longest = max(epochs, planned or 0)
    if longest < WHOLE_RUN or (planned is None and is_shortened(options)):
        return
    if warmup >= longest:
        raise UserError(
            f"model.warmup_epochs {warmup:g}: the run has {longest} epochs (trainer.max_epochs), all of them warm-up; "
            "lower it, or train longer"
        )


def is_shortened(options: Any) -> bool:
    """Whether a run does not train whole epochs, as to try it out."""
    part = getattr(options, "limit_train_batches", None)
    return bool(options.fast_dev_run or options.overfit_batches or part not in (None, 1.0) or options.max_steps > 0)


def _check_images(backbone: Any, data: Any) -> None:
    """Images against the patches, windows, channels and position embedding of a Swin backbone."""
    size, patch = data.image_size, getattr(backbone, "patch_size", None)
    channels = getattr(backbone, "in_chans", 3)
    if isinstance(channels, int) and channels != 3:
        raise UserError(f"model.backbone.in_chans {channels}: the images have 3 channels (RGB); set it to 3")
    if not isinstance(patch, tuple) or not hasattr(backbone, "stage_size"):
        return
    if max(patch) > size:
        raise UserError(
            f"model.backbone.patch_size {list(patch)} is larger than the images of {size} x {size} pixels; lower it, "
            "or raise data.image_size"
        )
    tokens = [-(-size // side) for side in patch]
    window = backbone.window_size
    if window[0] > tokens[0] and window[1] > tokens[1]:
        raise UserError(
            f"model.backbone.window_size {list(window)} is larger than the first feature map, {tokens[0]} x "
            f"{tokens[1]} patches of images of {size} pixels; lower it, or raise data.image_size"
        )
    expected = backbone.img_size
    if getattr(backbone, "absolute_pos_embed", None) is not None and expected != (size, size):
        raise UserError(
            f"model.backbone.img_size {list(expected)} must be data.image_size {size} for ape, which has a position "
            "for every patch"
        )


def _check_sizes(options: Any, data: Any) -> None:
    """Batches and workers against the data set and the machine."""
    most = max(SOME_WORKERS, MAX_WORKERS_PER_CORE * (os.cpu_count() or 1))
    if (data.num_workers or 0) > most:
        raise UserError(f"data.num_workers {data.num_workers}: expected at most {most} on {os.cpu_count()} CPU cores")
    source = getattr(data, "sources", {}).get("train")
    if source is None or not hasattr(source, "__len__") or not isinstance(data.batch_size, int):
        return
    images = len(source)
    if data.batch_size > images:
        raise UserError(
            f"data.batch_size {data.batch_size} is larger than the training set of {images} images; lower it"
        )
    batches = images // data.batch_size * options.accumulate_grad_batches
    interval, part = options.val_check_interval, options.limit_train_batches
    batches = min(batches, part) if isinstance(part, int) else batches
    every_epoch = options.check_val_every_n_epoch is not None and not options.overfit_batches
    if isinstance(interval, int) and not isinstance(interval, bool) and every_epoch and interval > batches:
        raise UserError(
            f"trainer.val_check_interval {interval}: an epoch has {batches} batches; lower it, or set "
            "trainer.check_val_every_n_epoch null to count across epochs"
        )
