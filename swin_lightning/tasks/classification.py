"""SwinClassifier: backbone, head, loss and metrics as one LightningModule."""

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric

from swin_lightning.batch import IGNORE_INDEX, Batch
from swin_lightning.errors import UserError
from swin_lightning.models.resize import BiasResize
from swin_lightning.models.weights import HeadRows, load_weights, read_checkpoint
from swin_lightning.optim import parameter_groups, warmup_cosine

CompileMode = Literal["reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


class SwinClassifier(LightningModule):
    """An image classifier. The backbone may be any module with `num_features` that maps images to `B, num_features`.

    Args:
        backbone: The network below the head.
        num_classes: Classes K.
        lr: Peak learning rate for the global batch, used as written.
        weight_decay: Of AdamW; norms, biases and bias tables have none.
        warmup_epochs: Epochs of linear warm-up.
        warmup_lr: Learning rate of the first step where there is a warm-up.
        min_lr: Learning rate at the end of the cosine.
        layer_decay: Factor of the learning rate from a layer to the one before it.
        label_smoothing: Of the training loss, for class indices and mixed targets alike.
        weights: File to take the parameters from, see `models.checkpoints`.
        bias_resize: How bias tables from `weights` of another window are resized: `bicubic` as the official code, or
            `geometric` as SimMIM.
        head_rows: `imagenet22k` starts the head for ImageNet-1K with its rows of a head for ImageNet-22K in `weights`.
        compile: Compile the backbone, by torch.compile's default or in the mode that is named: `reduce-overhead`
            records CUDA graphs, `max-autotune` also tries kernels; neither has run on a GPU yet. What stochastic depth
            drops is then computed, so that a graph has one shape.
        gradient_checkpointing: Recompute the blocks in the backward pass to save memory.
        class_names: Names of the classes, kept in the checkpoint for predictions.

    Raises:
        ValueError: If the weights do not fit, the learning rate is not positive, or the backbone cannot do what an
            option asks.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        warmup_epochs: float = 0.0,
        warmup_lr: float = 1e-6,
        min_lr: float = 1e-5,
        layer_decay: float = 1.0,
        label_smoothing: float = 0.0,
        weights: str | None = None,
        bias_resize: BiasResize = "bicubic",
        head_rows: HeadRows | None = None,
        compile: bool | CompileMode = False,
        gradient_checkpointing: bool = False,
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Attribute 'backbone' is an instance")  # removed below
            self.save_hyperparameters(logger=False)  # the command line logs the whole configuration under its own keys
        self.hparams["weights"] = None  # a checkpoint brings its own
        if isinstance(self.hparams["backbone"], nn.Module):  # built outside the command line: no plain value
            del self.hparams["backbone"]
        if lr <= 0:
            raise UserError(f"model.lr {lr} must be above 0")
        self.num_classes = num_classes
        self.lr, self.min_lr, self.layer_decay = lr, min_lr, layer_decay
        self.weight_decay = weight_decay
        self.warmup_epochs, self.warmup_lr = warmup_epochs, warmup_lr
        self.label_smoothing = label_smoothing
        self.compile_backbone = compile
        self.class_names = class_names

        self.backbone = backbone
        if isinstance(getattr(backbone, "head", None), nn.Linear):
            backbone.head = nn.Identity()  # the classifier's head takes its place
        self.head = nn.Linear(int(backbone.num_features), num_classes)  # type: ignore[arg-type]
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        if gradient_checkpointing:
            if not hasattr(backbone, "set_grad_checkpointing"):
                raise UserError(
                    f"model.gradient_checkpointing: {type(backbone).__name__} has no set_grad_checkpointing()"
                )
            backbone.set_grad_checkpointing()  # type: ignore[operator]
        if weights is not None:
            load_weights(self, weights, bias_resize, head_rows)

        self.val_metrics, self.test_metrics = (
            nn.ModuleDict({name: Mean() for name in ("loss", "acc", "acc5")}) for _ in ("val", "test")
        )

    def setup(self, stage: str) -> None:
        if self.compile_backbone:
            mode = self.compile_backbone if isinstance(self.compile_backbone, str) else None
            # in place: the parameters keep their names; a graph a size: one for all sizes once took over 20 min to make
            self.backbone.compile(mode=mode, dynamic=False)
            self.compile_backbone = False

    def forward(self, images: Tensor) -> Tensor:
        """Logits `B, num_classes` of normalised images `B, 3, H, W`."""
        return self.head(self.backbone(images))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits, targets = self(batch["image"]), batch["target"]
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, batch_size=len(logits))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._evaluate(batch, "val", self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._evaluate(batch, "test", self.test_metrics)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Probabilities, `B, num_classes`."""
        return self(batch["image"]).float().softmax(dim=1)

    def configure_optimizers(self) -> Any:
        layer_id = getattr(self.backbone, "layer_id", None)
        groups = parameter_groups(
            self, self.lr, self.weight_decay, self.layer_decay, layer_id and _below_backbone(layer_id)
        )
        optimizer = AdamW(groups, lr=self.lr, betas=(0.9, 0.999), fused=self._can_fuse())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, self._lr_factor), "interval": "step", "name": "lr"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        precision = self.trainer.precision_plugin
        if gradient_clip_val and isinstance(precision, MixedPrecision) and precision.scaler is None:
            # Lightning refuses to clip for a fused optimizer in mixed precision, since gradients may still be scaled;
            # in bfloat16 they never are
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # helpers

    def _evaluate(self, batch: Batch, split: str, metrics: nn.ModuleDict) -> Tensor:
        logits, targets = self(batch["image"]).float(), batch["target"]
        best = logits.topk(min(5, self.num_classes)).indices
        sums = {
            "loss": F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum"),
            "acc": (logits.argmax(dim=1) == targets).sum(),
            "acc5": (best == targets[:, None]).sum(),
        }
        count = (targets != IGNORE_INDEX).sum()
        for name, total in sums.items():
            metric = cast(Mean, metrics[name])
            metric.update(total, count)
            self.log(f"{split}/{name}", metric, prog_bar=True)
        return logits

    def _can_fuse(self) -> bool:
        # a fused step unscales float16 gradients by itself, which keeps them from being clipped
        return self.device.type in ("cuda", "cpu") and (self._trainer is None or self.trainer.precision != "16-mixed")

    def _lr_factor(self, step: int) -> float:
        # Read here and not in configure_optimizers: asking the trainer for the number of steps that early would
        # make it build the loaders before a resumed run knows where it stands (Lightning-AI/pytorch-lightning#20550).
        start, end = self.warmup_lr / self.lr, self.min_lr / self.lr
        if step == 0:
            return start if self.warmup_epochs else 1.0
        steps_per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        total = self.trainer.max_steps
        if total < 0:
            total = steps_per_epoch * (self.trainer.max_epochs or 1)
        return warmup_cosine(step, total, round(self.warmup_epochs * steps_per_epoch), start, end)


class Mean(Metric):
    """Mean over samples. torchmetrics' own metrics look into every batch's values, for which a GPU is waited for."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "count"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, total: Tensor, count: Tensor) -> None:
        self.total += total
        self.count += count

    def compute(self) -> Tensor:
        return self.total / self.count.clamp(min=1)


def _below_backbone(layer_id: Callable[[str], int]) -> Callable[[str], int]:
    """Depth by the classifier's parameter names: those of the backbone lose their prefix, the head keeps its name."""
    return lambda name: layer_id(name.removeprefix("backbone."))


def load_classifier(path: str) -> SwinClassifier:
    """The classifier of a run's checkpoint, on the CPU.

    Raises:
        ValueError: If the file is no checkpoint of a run, or does not know its backbone.
    """
    hparams = read_checkpoint(path).get("hyper_parameters")
    if not isinstance(hparams, dict) or "backbone" not in hparams:
        raise UserError(
            f"checkpoint {path!r} does not tell its model, as those of `swin-lightning fit` do; for weights, build the "
            "model in Python with weights=PATH and call models.checkpoints.save_weights"
        )
    return SwinClassifier.load_from_checkpoint(path, map_location="cpu", weights_only=True)
