"""What a trial of a sweep would refuse, found without training: its options, its model, and the metric that it logs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import LightningDataModule

from swin_lightning import config
from swin_lightning.callbacks import EarlyStopping
from swin_lightning.checkpointing import Checkpoint
from swin_lightning.errors import UserError, user_error
from swin_lightning.monitors import DEFAULT_MONITOR, check_monitor, find_mode, not_logged
from swin_lightning.run_check import check_run

# logged by callbacks of every run
OF_CALLBACKS = ("train/lr", "train/grad_norm", "train/images_per_s", "train/skipped_steps", "epoch", "step")


def trial_error(arguments: Sequence[str], metric: str, goal: str) -> UserError | None:
    """What is wrong with a trial.

    Args:
        arguments: Arguments of `swin-lightning fit`.
        metric: Metric of the sweep.
        goal: `maximize` or `minimize`.
    """
    try:
        parsed = config.load(arguments)
        data, model = config.instantiate(parsed)
        model.planned_epochs = config.planned_epochs(arguments)
        if data is not None:
            read_training_set(data)
        check_run(parsed.trainer, model, data)
        checkpoint = Checkpoint(**vars(parsed.checkpoint))
        for callback in (checkpoint, EarlyStopping(**vars(parsed.early_stopping))):
            check_monitor(callback, model, only_ours=not parsed.trainer.callbacks)
        _check_metric(metric, goal, parsed, model)
    except Exception as error:
        mistake = user_error(error)
        if mistake is None:
            raise
        return mistake
    return None


def read_training_set(data: Any) -> None:
    """Let a data module know its training set if that is on this machine; nothing is downloaded for a check."""
    path = getattr(data, "path", None)
    local = type(data).prepare_data is LightningDataModule.prepare_data
    if hasattr(data, "sources") and hasattr(data, "load") and (local or (path and Path(path).exists())):
        data.sources["train"] = _training_set(type(data), path, getattr(data, "val_size", None), data)


_SETS: dict[Any, Any] = {}


def _training_set(kind: type, path: str | None, val_size: int | None, data: Any) -> Any:
    """Read once for all trials with the same images."""
    key = (kind, path, val_size)
    if key not in _SETS:
        _SETS[key] = data.load("train")
    return _SETS[key]


def _check_metric(metric: str, goal: str, parsed: Any, model: Any) -> None:
    """The metric of a sweep must be logged by its runs, and the goal be that of the metric."""
    monitor = parsed.checkpoint.monitor
    if hasattr(model, "logged_metrics") and not parsed.trainer.callbacks:
        logged = {*model.logged_metrics(), f"{DEFAULT_MONITOR}_best", f"{monitor}_best"}
        tested = {f"test/{name.removeprefix('val/')}" for name in logged if name.startswith("val/")}
        known = {*logged, *OF_CALLBACKS, *(tested if parsed.test_after_fit else ())}
        if metric not in known and not metric.startswith("train/grad_norm/"):
            raise UserError(not_logged("metric.name", metric, model, logged))
    mode = find_mode(metric.removesuffix("_best"), model)
    if mode is not None and not goal.startswith(mode):
        better = "higher" if mode == "max" else "lower"
        raise UserError(f"metric.goal {goal} contradicts {metric}, which is better when {better}; set {mode}imize")
