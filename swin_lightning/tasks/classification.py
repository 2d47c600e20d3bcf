"""SwinClassifier: a task with a linear head, a loss and metrics."""

import logging
import re
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from swin_lightning.batch import IGNORE_INDEX, Batch, Preprocessing, find_preprocessing
from swin_lightning.checkpoint_classes import Allowed
from swin_lightning.class_counts import ClassCounts, mean_scores
from swin_lightning.errors import UserError, shorten, summarize
from swin_lightning.losses import class_probabilities
from swin_lightning.models.weights import read_checkpoint
from swin_lightning.ranges import PositiveInt, Rate, check_arguments
from swin_lightning.tasks.base import Task
from swin_lightning.tasks.hub_mixin import HubMixin
from swin_lightning.tasks.loading import load_module

log = logging.getLogger(__name__)

OWN_METRICS = ("loss", "acc", "acc5")  # means over images
CLASS_METRICS = ("f1_macro", "acc_balanced")  # means over classes


class SwinClassifier(Task, HubMixin):
    """Image classifier. The backbone is any module with `num_features` that maps images to `B, num_features`.

    `val/loss` and `test/loss` are the training loss without label smoothing. `f1_macro` and `acc_balanced` are means
    over the classes, see `class_counts.mean_scores`.

    Args:
        backbone: The network below the head.
        num_classes: Number of classes K; the command line takes it from the data.
        label_smoothing: Label smoothing of the default loss, for class indices and mixed targets alike.
        loss: Callable `(logits, targets) -> scalar` in place of the default cross-entropy: `torch.nn.CrossEntropyLoss`
            with class weights, `torch.nn.BCEWithLogitsLoss` (on one-hot targets), a class of `swin_lightning.losses` or
            your own. Targets are class indices `B`, or probabilities `B, K` with mixup or CutMix.
        metrics: Further metrics of torchmetrics by name, logged as `val/<name>` and `test/<name>`; one value per class
            as `val/<name>/<class>`. They get probabilities `B, K` and class indices `B`.
        class_names: Names of the classes, stored in the checkpoint for predictions; the command line takes them from
            the data.
        class_weights: Weight of each class in the default loss, K; the command line takes them from the data, see
            `data.class_weights`.
        **task: Arguments of `Task`.

    Raises:
        UserError: As `Task`; also for a metric that does not fit the classes.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: PositiveInt,
        label_smoothing: Rate = 0.0,
        loss: Callable[..., Any] | None = None,
        metrics: dict[str, Metric] | None = None,
        class_names: list[str] | None = None,
        class_weights: list[float] | None = None,
        **task: Any,
    ) -> None:
        if num_classes is None:
            raise UserError("model.num_classes is not given; a data module gives it: set data, or pass num_classes")
        check_arguments(SwinClassifier.__init__, locals(), "model.")
        super().__init__(backbone, **task)
        if class_names is not None and len(class_names) != num_classes:
            raise UserError(f"model.class_names has {len(class_names)} names for model.num_classes {num_classes}")
        self.num_classes = num_classes
        self.class_names = class_names
        self.label_smoothing = label_smoothing
        self.loss = loss
        self.register_buffer("class_weights", None if class_weights is None else torch.tensor(class_weights), False)
        if loss is not None and class_weights is not None:
            log.warning(f"data.class_weights has no effect: model.loss is {_name(loss)}; give it the weights")
        if loss is not None and label_smoothing:
            log.warning(f"model.label_smoothing {label_smoothing} has no effect: model.loss is {_name(loss)}")
        if loss is not None:
            _check_loss(loss, num_classes)
        if isinstance(getattr(backbone, "head", None), nn.Linear):
            backbone.head = nn.Identity()  # replaced by the head of the classifier
        if not isinstance(getattr(backbone, "num_features", None), int):
            raise UserError(
                f"model.backbone {type(backbone).__name__} has no num_features; set it to the number of features that "
                "its forward returns"
            )
        self.head = nn.Linear(int(backbone.num_features), num_classes)  # type: ignore[arg-type]
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.extra_metrics = sorted(metrics or {})
        self.metrics = nn.ModuleDict()  # by the names under which they are logged
        for split in ("val", "test"):
            self.metrics.update({f"{split}/{name}": WeightedMean() for name in OWN_METRICS})
            self.metrics[f"{split}/classes"] = ClassCounts(num_classes)
            for name, metric in (metrics or {}).items():
                _check_metric(name, metric, num_classes)
                self.metrics[f"{split}/{name}"] = deepcopy(metric)
        self.preprocessing: Preprocessing | None = None  # that of the checkpoint it was loaded from
        self.finish_init()

    def logged_metrics(self) -> list[str]:
        """Names of the metrics that training and validation log, so that a wrong monitor is found before training."""
        names = [f"val/{name}" for name in (*OWN_METRICS, *CLASS_METRICS)]
        for name in self.extra_metrics:
            per_class = _per_class(cast(Metric, self.metrics[f"val/{name}"]))
            names += [f"val/{name}/{label}" for label in self._labels()] if per_class else [f"val/{name}"]
        return ["train/loss", *names]

    def forward(self, images: Tensor) -> Tensor:
        """Logits `B, num_classes` of normalised images `B, 3, H, W`."""
        return self.head(self.backbone(images))  # type: ignore[no-any-return]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.preprocessing = find_preprocessing(checkpoint) or self.preprocessing

    def compute_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch. Override it, or `training_step`, in a subclass.

        Args:
            logits: `B, K` float32.
            targets: Class indices `B`, or probabilities `B, K`.
        """
        if self.loss is None:
            smoothing = self.label_smoothing if self.training else 0.0
            return F.cross_entropy(logits, targets, self.class_weights, label_smoothing=smoothing)
        if isinstance(self.loss, nn.BCEWithLogitsLoss):
            targets = class_probabilities(logits, targets)
        if isinstance(self.loss, nn.CrossEntropyLoss) and not self.training:
            return F.cross_entropy(logits, targets, self.loss.weight)
        return self.loss(logits, targets)  # type: ignore[no-any-return]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self(batch["image"])
        loss = self.compute_loss(logits.float(), batch["target"])
        self.log_step_mean("train/loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Probabilities, `B, num_classes`."""
        return self(batch["image"]).float().softmax(dim=1)  # type: ignore[no-any-return]

    def on_validation_epoch_end(self) -> None:
        self._log_per_class("val")

    def on_test_epoch_end(self) -> None:
        self._log_per_class("test")

    # helpers

    def _evaluate(self, batch: Batch, split: str) -> Tensor:
        logits, targets = self(batch["image"]).float(), batch["target"]
        known = targets != IGNORE_INDEX
        count = known.sum()
        top5 = logits.topk(min(5, self.num_classes)).indices
        weight = count
        if self.loss is None:
            loss = F.cross_entropy(logits, targets, self.class_weights, ignore_index=IGNORE_INDEX, reduction="sum")
            if self.class_weights is not None:
                weight = (self.class_weights[targets.clamp(min=0)] * known).sum()
        else:  # the mean over the labelled samples; selecting them makes the host wait for a GPU
            loss = self.compute_loss(logits[known], targets[known]) * count if count else logits.new_zeros(())
        sums = {"loss": loss, "acc": (logits.argmax(dim=1) == targets).sum(), "acc5": (top5 == targets[:, None]).sum()}
        for name, total in sums.items():
            metric = cast(WeightedMean, self.metrics[f"{split}/{name}"])
            metric.update(total, weight if name == "loss" else count)
            self.log(f"{split}/{name}", metric, prog_bar=True)
        self.metrics[f"{split}/classes"].update(logits.argmax(dim=1), targets)  # type: ignore[operator]
        for name in self.extra_metrics:
            extra = cast(Metric, self.metrics[f"{split}/{name}"])
            if count:
                extra.update(logits[known].softmax(dim=1), targets[known])
            if not _per_class(extra):
                self.log(f"{split}/{name}", extra)
        return logits  # type: ignore[no-any-return]

    def _labels(self) -> list[str]:
        return self.class_names or [str(k) for k in range(self.num_classes)]

    def _log_per_class(self, split: str) -> None:
        classes = cast(ClassCounts, self.metrics[f"{split}/classes"])
        for name, mean in mean_scores(classes.compute()).items():
            self.log(f"{split}/{name}", mean.float(), prog_bar=True, sync_dist=True)  # equal on all ranks
        classes.reset()
        for name in self.extra_metrics:
            metric = cast(Metric, self.metrics[f"{split}/{name}"])
            if _per_class(metric):
                for label, value in zip(self._labels(), metric.compute(), strict=True):
                    self.log(f"{split}/{name}/{label}", value, sync_dist=True)
                metric.reset()


class WeightedMean(Metric):
    """Mean over samples.

    torchmetrics' MeanMetric checks every batch for NaN, which makes the host wait for a GPU, and with
    `nan_strategy="disable"` version 1.9 ignores the weights.
    """

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "count"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, total: Tensor, count: Tensor) -> None:
        # not in place: `validate` leaves inference tensors, which `fit` could not change
        self.total = self.total + total
        self.count = self.count + count

    def compute(self) -> Tensor:
        return self.total / self.count  # NaN without a labelled image: 0 would look like a result


def load_classifier(path: str | Path, allow: Allowed = ()) -> SwinClassifier:
    """The classifier of a run's checkpoint, on the CPU.

    Args:
        path: The checkpoint.
        allow: Classes that it may name besides those of `swin_lightning`, see `load_module`.

    Raises:
        UserError: As `load_module`; also if the file does not store its backbone configuration.
    """
    hparams = read_checkpoint(path).get("hyper_parameters")
    if not isinstance(hparams, Mapping) or "backbone" not in hparams:
        raise UserError(
            f"checkpoint {str(path)!r} does not store its backbone configuration (only checkpoints written by "
            "`swin-lightning fit` do); for weights alone, build the model in Python with weights=PATH"
        )
    return load_module(path, SwinClassifier, allow)


# helpers


def _per_class(metric: Metric) -> bool:
    """Whether a metric has one value per class: `average: none` of torchmetrics' classification metrics."""
    return getattr(metric, "average", "macro") in (None, "none")


def _check_loss(loss: Callable[..., Any], num_classes: int) -> None:
    """Compute the loss of two samples, so that one that does not fit is found before training."""
    if isinstance(loss, nn.NLLLoss):
        raise UserError("model.loss NLLLoss takes log-probabilities, not logits; use torch.nn.CrossEntropyLoss")
    logits, targets = torch.zeros(2, num_classes), torch.arange(2) % num_classes
    given = class_probabilities(logits, targets) if isinstance(loss, nn.BCEWithLogitsLoss) else targets
    try:
        value = loss(logits, given)
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        raise UserError(
            f"model.loss {_name(loss)} does not take logits B, {num_classes} and class indices B "
            f"({shorten(summarize(error))}); use torch.nn.CrossEntropyLoss or one of swin_lightning.losses"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.isfinite().all():
        raise UserError(f"model.loss {_name(loss)} gives {shorten(value)}; expected a finite scalar (reduction: mean)")


def _check_metric(name: str, metric: Metric, num_classes: int) -> None:
    """Compute a metric on a few samples, so that one that does not fit is found before training."""
    option = f"model.metrics.{name}: {_name(metric)}"
    taken = (*OWN_METRICS, *CLASS_METRICS, "classes")
    if not re.fullmatch(r"\w+", name) or name in taken:
        raise UserError(f"model.metrics: name {name!r} must be letters, digits and _, and not one of {taken}")
    rows = min(num_classes, 16)
    probabilities = torch.eye(num_classes)[:rows] * 0.5 + 0.5 / num_classes
    trial = deepcopy(metric)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial.update(probabilities, torch.arange(rows))
            value = trial.compute()
    except (ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"{option} does not fit {num_classes} classes ({summarize(error)})") from error
    expected = (num_classes,) if _per_class(metric) else ()
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if shape != expected:
        raise UserError(f"{option} gives {shape}; only a scalar, or one value per class (average: none), can be logged")


def _name(value: Any) -> str:
    return getattr(value, "__name__", type(value).__name__)
