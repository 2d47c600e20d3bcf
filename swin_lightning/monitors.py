"""Monitored metrics: in which direction a metric improves, and whether it is logged at all.

Checkpoints, early stopping, schedules and displays that follow a metric take its direction from here.
"""

import difflib
import re
from collections.abc import Iterable
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import Metric

from swin_lightning.errors import UserError

Mode = Literal["min", "max"]

DEFAULT_MONITOR = "val/acc"
LOWER_IS_BETTER = set(
    "loss err error perplexity ppl nll ce bce xent entropy mae mse rmse mape msle brier ece calibration fid kid lpips "
    "wer cer hamming distance divergence kl cost".split()
)
HIGHER_IS_BETTER = set(
    "acc accuracy top precision recall sensitivity specificity f1 fbeta dice iou miou jaccard auc auroc auprc ap map "
    "r2 kappa mcc matthews psnr ssim correlation pearson spearman bleu rouge ndcg mrr epoch step".split()
)


def find_mode(metric: str, module: LightningModule | None = None) -> Mode | None:
    """The direction in which a metric improves, None if it is not known.

    It is `higher_is_better` of the torchmetrics Metric that the module has under this name (for `val/f1/<class>`, under
    `val/f1`), or follows from the words of the name: down for a loss or an error, up for an accuracy.
    """
    metrics = [(name, m) for name, m in module.named_modules() if isinstance(m, Metric)] if module is not None else []
    for wanted in (metric, metric.rpartition("/")[0]):
        for name, candidate in metrics:
            if wanted and f".{name}".endswith(f".{wanted}") and candidate.higher_is_better is not None:
                return "max" if candidate.higher_is_better else "min"
    parts = re.split(r"[^a-zA-Z0-9]+|(?<=[a-z0-9])(?=[A-Z])", metric) + re.split(r"[^a-zA-Z0-9]+", metric)
    words = {word.lower() for word in parts} | {word.lower().rstrip("0123456789") for word in parts}
    lower, higher = bool(words & LOWER_IS_BETTER), bool(words & HIGHER_IS_BETTER)
    return None if lower == higher else "min" if lower else "max"


def resolve_mode(option: str, metric: str, mode: str | None, module: LightningModule | None = None) -> Mode:
    """The given mode, or that of the metric.

    Args:
        option: Name of the option `mode`, for messages.
        metric: The monitored metric.
        mode: `min`, `max`, or None to take that of the metric.
        module: The module that logs the metric.

    Raises:
        UserError: If the mode contradicts the metric, or neither is known.
    """
    known = find_mode(metric, module)
    if mode is None and known is None:
        raise UserError(f"{option}: it is not known whether {metric} is better when higher or lower; set max or min")
    if mode and known and mode != known:
        better = "higher" if known == "max" else "lower"
        raise UserError(f"{option} {mode} contradicts {metric}, which is better when {better}; set {known}")
    return "min" if (mode or known) == "min" else "max"


def not_logged(
    option: str, metric: str, module: LightningModule, logged: Iterable[str], consequence: str | None = None
) -> str:
    """The message for an option that names a metric which the module does not log.

    It ends with the consequence, or else with the nearest metric that is logged.
    """
    names = sorted(logged)
    shown = [name for name in names if name.count("/") < 2]  # not one metric per class
    near = difflib.get_close_matches(metric, names, n=1)
    hint = f"; {consequence}." if consequence else f"; did you mean {near[0]}?" if near else "."
    return f"{option} {metric} is not logged by {type(module).__name__}{hint} Logged: {', '.join(shown) or 'nothing'}"


def check_monitor(callback: Callback, module: LightningModule, only_ours: bool = False) -> None:
    """Check the monitor and the mode of a callback against the module, before anything starts.

    Args:
        callback: Any callback; those without a monitor pass.
        module: The module. If it is one of this package, it tells by `logged_metrics()` what it logs.
        only_ours: No callback of the user can log further metrics.

    Raises:
        UserError: If the metric cannot be logged, or if the mode contradicts it or is missing.
    """
    metric = getattr(callback, "monitor", None)
    if not isinstance(callback, ModelCheckpoint | EarlyStopping) or not isinstance(metric, str):
        return
    if is_written(callback) and only_ours and type(module).__module__.startswith("swin_lightning."):
        logged = module.logged_metrics() if hasattr(module, "logged_metrics") else None  # type: ignore[operator]
        if logged is not None and metric not in logged and not may_come_later(metric):
            raise UserError(not_logged(option_of(callback), metric, module, logged))
    if hasattr(callback, "resolve_mode"):
        callback.resolve_mode(module)
    else:
        resolve_mode(option_of(callback, "mode"), metric, callback.mode, module)


class MonitorCheck(Callback):
    """Refuses monitors that are never logged, before the first training step where that can be known.

    If a monitor is not among the `logged_metrics()` of the module, one validation batch is run before training to see
    what is logged. Metrics of training are known at the end of the first epoch only; there the callback that monitors
    them refuses them. The default monitor of `checkpoint` is not refused: without it, there is no `best.ckpt`.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logged = pl_module.logged_metrics() if hasattr(pl_module, "logged_metrics") else ()  # type: ignore[operator]
        self._unknown: list[tuple[str, str]] = []  # option and metric
        for option, metric in _monitors(trainer, pl_module):
            if is_validation_metric(metric) and (reason := _never_validates(trainer, pl_module)):
                raise UserError(f"{option} {metric} is never logged: {reason}")
            if metric not in logged and not may_come_later(metric):
                self._unknown.append((option, metric))
        if self._unknown and not trainer.num_sanity_val_steps and not trainer.barebones:
            trainer.num_sanity_val_steps = 1

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._check(trainer, pl_module)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        later = type(pl_module).on_train_epoch_end is not LightningModule.on_train_epoch_end
        for option, metric in self._unknown:
            if metric not in trainer.callback_metrics and is_validation_metric(metric) and not later:
                raise UserError(not_logged(option, metric, pl_module, trainer.callback_metrics))


# helpers


def option_of(callback: Callback, name: str = "monitor") -> str:
    """An option of a callback in a message: `checkpoint.monitor`, or `trainer.callbacks: EarlyStopping.mode`."""
    section = getattr(callback, "section", None) or f"trainer.callbacks: {type(callback).__name__}"
    return f"{section}.{name}"


def is_written(callback: Any) -> bool:
    """Whether the user has written this monitor. Early stopping is off by default, so that its monitor always is."""
    return getattr(callback, "section", None) != "checkpoint" or callback.monitor != DEFAULT_MONITOR


def may_come_later(metric: str) -> bool:
    """Whether a metric is logged in training, or by our callbacks when a validation has ended."""
    return metric.startswith("train") or metric.endswith("_best") or metric in ("epoch", "step")


def is_validation_metric(metric: str) -> bool:
    """Whether a metric is one of the validation by its name: `val/acc`, `val_loss`, `validation/f1`."""
    return re.match(r"(val|valid|validation)(?![a-z])", metric) is not None and not metric.endswith("_best")


def _monitors(trainer: Trainer, pl_module: LightningModule) -> list[tuple[str, str]]:
    """Option and metric of everything that monitors one. A mode that contradicts its metric is refused."""
    found = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint | EarlyStopping) and callback.monitor and is_written(callback):
            resolve_mode(option_of(callback, "mode"), callback.monitor, callback.mode, pl_module)
            found.append((option_of(callback), callback.monitor))
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, ReduceLROnPlateau) and config.monitor:
            resolve_mode("the mode of ReduceLROnPlateau", config.monitor, config.scheduler.mode, pl_module)
            found.append(("the monitor of ReduceLROnPlateau", config.monitor))
    return found


def _never_validates(trainer: Trainer, pl_module: LightningModule) -> str:
    """Why there is no validation in this run; empty if there is one."""
    every, epochs = trainer.check_val_every_n_epoch, trainer.max_epochs
    if trainer.limit_val_batches == 0:
        return "trainer.limit_val_batches is 0"
    if not trainer.enable_validation:
        return "there is no validation, for which model and data need validation_step and val_dataloader"
    if every and epochs is not None and 0 <= epochs < every:
        return f"trainer.check_val_every_n_epoch {every} is more than trainer.max_epochs {epochs}"
    return ""
