"""Callbacks for metrics and progress. They work with any LightningModule and any data.

What a module does not offer, such as a validation, is left out.
"""

import csv
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor

from swin_lightning.errors import UserError
from swin_lightning.monitors import DEFAULT_MONITOR, Mode, find_mode, not_logged, resolve_mode
from swin_lightning.ranges import NonNegative, NonNegativeInt, check_arguments
from swin_lightning.runs import RunFolder
from swin_lightning.step_mean import should_log
from swin_lightning.strategies import full_tensor

log = logging.getLogger(__name__)


class EarlyStopping(LightningEarlyStopping):
    """Stop when a validation metric no longer improves.

    Args:
        patience: Validations without improvement before the run stops; 0 disables early stopping.
        monitor: Metric to watch.
        mode: Whether a larger (`max`) or a smaller (`min`) value is better; by default as the metric says, see
            `checkpoint.mode`.
        min_delta: Smallest change that counts as an improvement.

    Raises:
        UserError: If the metric is not logged, or if `mode` contradicts it or is needed.
    """

    section = "early_stopping"

    def __init__(
        self,
        patience: NonNegativeInt = 0,
        monitor: str = DEFAULT_MONITOR,
        mode: Mode | None = None,
        min_delta: NonNegative = 0.0,
    ) -> None:
        check_arguments(EarlyStopping.__init__, locals(), "early_stopping.")
        known = mode or find_mode(monitor) or "max"  # see resolve_mode
        super().__init__(monitor=monitor, mode=known, patience=patience, min_delta=min_delta)
        self.enabled, self._given_mode = patience > 0, mode

    def resolve_mode(self, module: LightningModule) -> None:
        """Take the mode from the metric, which may be one of the module's, unless it was given."""
        mode = resolve_mode("early_stopping.mode", self.monitor, self._given_mode, module)
        if mode != self.mode:  # both are signed by the mode
            self.mode, self.min_delta, self.best_score = mode, -self.min_delta, -self.best_score

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.resolve_mode(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            super().on_validation_end(trainer, pl_module)
        except RuntimeError as error:
            self._explain(error, trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return  # max_steps ended the epoch early, before its validation
        try:
            super().on_train_epoch_end(trainer, pl_module)
        except RuntimeError as error:
            self._explain(error, trainer, pl_module)

    def _explain(self, error: RuntimeError, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor in trainer.callback_metrics:
            raise error
        logged = trainer.callback_metrics
        raise UserError(not_logged("early_stopping.monitor", self.monitor, pl_module, logged)) from error


class SaveConfig(Callback):
    """Writes the configuration into the run folder and sends it to the loggers.

    Args:
        run: The run folder.
        text: The configuration as YAML.
        options: The configuration by the option names of the command line.
        stage: The command. A test after `fit`, which `ddp_spawn` starts in new processes, saves nothing.
    """

    def __init__(self, run: RunFolder, text: str, options: dict[str, Any], stage: str = "fit") -> None:
        self.run, self.text, self.options, self.stage = run, text, options, stage

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != self.stage or not trainer.is_global_zero:
            return
        self.run.path.mkdir(parents=True, exist_ok=True)
        self.run.next_config().write_text(self.text, encoding="utf-8")
        for logger in trainer.loggers:
            logger.log_hyperparams(self.options)


class SplitFiles(Callback):
    """Keeps the list of images of each split in the run folder, for data modules with `split_files()`.

    Args:
        run: The run folder.

    Raises:
        UserError: If a resumed run would have other splits.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the split, or compare it with the one of the run that is resumed.

        Raises:
            UserError: If they differ.
        """
        data = getattr(trainer, "datamodule", None)
        if not trainer.is_global_zero or trainer.fast_dev_run or not hasattr(data, "split_files"):  # type: ignore[attr-defined]
            return
        rows = [["path", "label", "split"], *map(list, data.split_files())]  # type: ignore[union-attr]
        if not self.run.splits.is_file():
            if len(rows) > 1:
                self.run.path.mkdir(parents=True, exist_ok=True)
                with self.run.splits.open("w", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerows(rows)
            return
        with self.run.splits.open(newline="", encoding="utf-8") as file:
            before = {tuple(row) for row in csv.reader(file)}
        if changed := len(before ^ {tuple(row) for row in rows}):
            raise UserError(
                f"data: the splits differ from {self.run.splits} in {changed} rows, so that images for testing could "
                "be trained on; restore the files and the options of the data, or start a new run"
            )


class FromScratch(Callback):
    """Says that a large network is trained from scratch on few images.

    Args:
        parameters: Number of parameters from which on a network is large.
        images: Number of training images from which on they are many.
    """

    def __init__(self, parameters: int = 5_000_000, images: int = 20_000) -> None:
        self.parameters, self.images = parameters, images

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            images = len(trainer.datamodule.sources["train"])  # type: ignore[attr-defined]
        except (AttributeError, KeyError, TypeError):  # other data, or a stream
            return
        parameters = sum(p.numel() for p in pl_module.parameters())
        fresh = trainer.ckpt_path is None and getattr(pl_module, "weights", None) is None
        if trainer.is_global_zero and fresh and parameters > self.parameters and images < self.images:
            log.warning(
                f"training {parameters / 1e6:.1f} M parameters from scratch on {images} images: expect a low accuracy; "
                "start from pretrained weights with --model.weights FILE"
            )


class ResumeLoggers(Callback):
    """Tells loggers that have `continue_from(step)` at which step a run is resumed, so that they log no step twice."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        for logger in trainer.loggers if trainer.state.fn == "fit" else ():
            if hasattr(logger, "continue_from"):
                logger.continue_from(checkpoint["global_step"])


class TrainingMonitor(Callback):
    """Logs learning rate, gradient norm (before clipping) and images per second at the steps that the Trainer logs.

    With several optimizers `train/lr` and `train/grad_norm` are those of the first one; the second one has
    `train/lr/1` and `train/grad_norm/1`. An epoch of fewer steps than `log_every_n_steps` is logged too.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = trainer.num_training_batches  # of an epoch; infinite for a stream without a length
        if pl_module.automatic_optimization:
            steps = -(-steps // trainer.accumulate_grad_batches)
        trainer.log_every_n_steps = log_interval(trainer.log_every_n_steps, steps)  # type: ignore[attr-defined]
        self._due, self._step_before = False, trainer.global_step
        self._images, self._since = 0, time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._due, self._step_before = should_log(trainer), trainer.global_step

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if not self._due:
            return
        parameters, suffix = pl_module.parameters(), ""
        if len(trainer.optimizers) > 1:
            parameters = (p for group in optimizer.param_groups for p in group["params"])
            index = next((i for i, other in enumerate(trainer.optimizers) if other is optimizer), 0)
            suffix = f"/{index}" if index else ""
        gradients = [p.grad for p in parameters if p.grad is not None and not p.grad.is_sparse]
        pl_module.log(f"train/grad_norm{suffix}", full_tensor(torch.nn.utils.get_total_norm(gradients)))
        rates = [group["lr"] for group in optimizer.param_groups if "lr" in group]
        if rates:
            pl_module.log(f"train/lr{suffix}", max(rates))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += batch_size(batch) * trainer.world_size
        stepped = trainer.global_step > self._step_before or not pl_module.automatic_optimization
        if self._due and stepped:
            now = time.perf_counter()
            pl_module.log("train/images_per_s", self._images / (now - self._since))
            self._images, self._since = 0, now

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._images, self._since = 0, time.perf_counter()  # exclude validation time from throughput


class BestMetric(Callback):
    """Logs the best value of a validation metric so far as `<monitor>_best`, across resumed runs.

    Args:
        monitor: Metric to follow.
        mode: Whether a larger (`max`) or a smaller (`min`) value is better; by default as the metric says.
    """

    def __init__(self, monitor: str = DEFAULT_MONITOR, mode: Mode | None = None) -> None:
        self.monitor, self.mode = monitor, resolve_mode("BestMetric.mode", monitor, mode)
        self.best = float("-inf" if self.mode == "max" else "inf")

    @property
    def state_key(self) -> str:
        default = (self.monitor, self.mode) == (DEFAULT_MONITOR, "max")
        return super().state_key if default else f"{super().state_key}[{self.monitor}, {self.mode}]"

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._update(trainer):
            pl_module.log(f"{self.monitor}_best", self.best, prog_bar=True, sync_dist=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow a metric that the module logs in its own `on_validation_epoch_end`, which runs after the callbacks."""
        before = self.best
        if self._update(trainer) and self.best != before:
            for logger in trainer.loggers:
                logger.log_metrics({f"{self.monitor}_best": self.best}, trainer.global_step - 1)

    def _update(self, trainer: Trainer) -> bool:
        value = trainer.callback_metrics.get(self.monitor)
        if value is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return False
        self.best = (max if self.mode == "max" else min)(self.best, float(value))  # NaN is never the best
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


class ProgressBar(RichProgressBar):
    """Rich progress bar with the logged metrics and images per second.

    In training it reads the metrics only at the steps that the Trainer logs, since every read makes the host wait for
    a GPU. Lightning reads metrics that are logged with `prog_bar=True` at every step, with a bar or without.

    Args:
        monitor: Metric that is shown first after the losses.
    """

    HIDDEN = ("train/lr", "train/grad_norm")

    def __init__(self, monitor: str = DEFAULT_MONITOR) -> None:
        super().__init__(leave=True)
        self.monitor = monitor
        self._due = False
        self._shown: Any = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._due = should_log(trainer)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if not trainer.training or last or self._due or not self._shown:
            metrics = trainer.callback_metrics
            names = summary_order(metrics, self.monitor)
            self._shown = {name: float(metrics[name]) for name in names if not name.startswith(self.HIDDEN)}
        return self._shown


class CompileTimeLogger(Callback):
    """Prints the time of the first training step, in which a compiled model is compiled."""

    def __init__(self) -> None:
        self._printed = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_global_zero and not self._printed:
            print(f"first step {time.perf_counter() - self._since:.1f} s, including compilation", flush=True)
        self._printed = True


class EpochSummary(Callback):
    """Prints one line per epoch, in place of a progress bar, when the output is not a terminal.

    Args:
        monitor: Metric that is shown first after the losses.
        max_metrics: Largest number of metrics on a line.
    """

    def __init__(self, monitor: str = DEFAULT_MONITOR, max_metrics: int = 8) -> None:
        self.monitor, self.max_metrics = monitor, max_metrics

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics
        first = (*LOSSES, self.monitor)
        names = [n for n in summary_order(metrics, self.monitor) if n in first or n.startswith("val")]
        parts = [f"{name} {float(metrics[name]):.4g}" for name in names[: self.max_metrics]]
        total = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        seconds, self._start = time.perf_counter() - self._start, time.perf_counter()
        print("  ".join([f"epoch {trainer.current_epoch + 1}{total}", *parts, f"{seconds:.1f} s"]), flush=True)


# helpers

LOSSES = ("train/loss", "train_loss", "val/loss", "val_loss")


def log_interval(every: int, steps: float, times: int = 20) -> int:
    """The interval of logging that reaches every epoch.

    Args:
        every: Steps from one logged step to the next, as set; 0 for no logging.
        steps: Optimizer steps of an epoch.
        times: How often a shorter epoch is logged, if it has as many steps.

    Returns:
        `every`; a smaller interval if an epoch has fewer steps.
    """
    return every if every <= steps else max(1, int(steps) // times)


def batch_size(batch: Any) -> int:
    """Number of samples in a batch of any structure; 0 if it holds no tensor."""
    if isinstance(batch, Mapping) and isinstance(batch.get("image"), Tensor):
        return len(batch["image"])
    try:
        return extract_batch_size(batch)
    except MisconfigurationException:
        return 0


def summary_order(names: Iterable[str], monitor: str) -> list[str]:
    """Names of metrics with the losses and the monitor first. One metric per class, `val/acc/<class>`, is left out."""
    first = [*LOSSES, monitor]
    names = [name for name in names if name.count("/") < 2]
    return sorted(names, key=lambda name: first.index(name) if name in first else len(first))
