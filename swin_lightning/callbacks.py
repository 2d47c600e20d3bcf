"""Callbacks for any logger."""

import csv
import time
from typing import Any

import torch
import yaml
from jsonargparse import dict_to_namespace
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from swin_lightning.batch import IGNORE_INDEX
from swin_lightning.run_figures import Prediction, learning_curves, prediction_sheet
from swin_lightning.runs import RunFolder


class EarlyStopping(LightningEarlyStopping):
    """Stop when validation no longer improves.

    Args:
        patience: Validations without improvement; 0 leaves early stopping out.
        monitor: Metric that should improve.
        mode: Whether it should grow (`max`) or shrink (`min`).
        min_delta: Smallest change that counts.
    """

    def __init__(self, patience: int = 0, monitor: str = "val/acc", mode: str = "max", min_delta: float = 0.0) -> None:
        super().__init__(monitor=monitor, mode=mode, patience=patience, min_delta=min_delta)
        self.enabled = patience > 0


class SaveConfig(Callback):
    """Writes the configuration into the run folder and sends it to the loggers under the keys of the command line.

    Args:
        run: The run folder.
        text: The configuration as YAML.
    """

    def __init__(self, run: RunFolder, text: str) -> None:
        self.run, self.text = run, text
        self._saved = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._saved or not trainer.is_global_zero:
            return
        self._saved = True
        self.run.path.mkdir(parents=True, exist_ok=True)
        self.run.next_config().write_text(self.text, encoding="utf-8")
        options = {
            key.replace(".init_args.", "."): v for key, v in dict_to_namespace(yaml.safe_load(self.text)).items()
        }
        for logger in trainer.loggers:
            logger.log_hyperparams(options)


class TrainingMonitor(Callback):
    """Logs learning rate, gradient norm and images per second, each as often as the Trainer logs."""

    def __init__(self) -> None:
        self._images, self._since = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._images, self._since = 0, time.perf_counter()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if should_log(trainer):  # before clipping
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            pl_module.log("train/grad_norm", torch.nn.utils.get_total_norm(gradients))
            pl_module.log("train/lr", max(group["lr"] for group in optimizer.param_groups))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch["image"]) * trainer.world_size
        if should_log(trainer):
            now = time.perf_counter()
            pl_module.log("train/images_per_s", self._images / (now - self._since))
            self._images, self._since = 0, now

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._images, self._since = 0, time.perf_counter()  # validation's time is not training's


class BestMetric(Callback):
    """Logs the best value so far as `<monitor>_best`, across resumed runs.

    Args:
        monitor: Metric to follow; larger is better.
    """

    def __init__(self, monitor: str = "val/acc") -> None:
        self.monitor = monitor
        self.best = float("-inf")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        if value is not None and not trainer.sanity_checking and trainer.state.fn == "fit":
            self.best = max(self.best, float(value))
            pl_module.log(f"{self.monitor}_best", self.best, prog_bar=True, sync_dist=True)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


class ProgressBar(RichProgressBar):
    """Rich's bar with losses, accuracies and images per second.

    In training it reads them as often as the Trainer logs. Reading waits for a GPU, and what is logged with
    `prog_bar=True` Lightning reads at every step, with a bar or without.
    """

    def __init__(self) -> None:
        super().__init__(leave=True)
        self._shown: Any = {}

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if not trainer.training or last or should_log(trainer) or not self._shown:
            hidden = ("train/lr", "train/grad_norm")
            self._shown = {k: float(v) for k, v in trainer.callback_metrics.items() if k not in hidden}
        return self._shown


class CompileTimeLogger(Callback):
    """Says how long the first training step took: a compiled model is compiled in it."""

    def __init__(self) -> None:
        self._said = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_global_zero and not self._said:
            print(f"first step {time.perf_counter() - self._since:.1f} s, with compilation", flush=True)
        self._said = True


class EpochSummary(Callback):
    """One line an epoch where the output is a file and a progress bar would be noise."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            values = {name: float(value) for name, value in trainer.callback_metrics.items()}
            shown = "  ".join(
                f"{name} {values[name]:.4g}" for name in ("train/loss", "val/loss", "val/acc") if name in values
            )
            seconds, self._start = time.perf_counter() - self._start, time.perf_counter()
            print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {shown}  {seconds:.1f} s", flush=True)


class PredictionReport(Callback):
    """Pictures of the run and of sample predictions in the run folder; the samples and a confusion matrix to W&B.

    Args:
        run: The run folder.
        samples: How many predictions are shown.
        max_classes: Largest number of classes for which there is a confusion matrix.
    """

    def __init__(self, run: RunFolder, samples: int = 32, max_classes: int = 100) -> None:
        self.run, self.samples, self.max_classes = run, samples, max_classes

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._names = class_names(pl_module)
        self._predictions: list[Prediction] = []
        self._confusion = None
        if len(self._names) <= self.max_classes:
            self._confusion = MulticlassConfusionMatrix(len(self._names), ignore_index=IGNORE_INDEX).to(
                pl_module.device
            )

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._confusion is not None:
            self._confusion.update(outputs, batch["target"])
        missing = self.samples - len(self._predictions)
        if missing > 0 and trainer.is_global_zero:
            images = trainer.datamodule.denormalize(batch["image"][:missing])  # type: ignore[attr-defined]
            images = images.permute(0, 2, 3, 1).cpu().numpy()
            best = outputs[:missing].softmax(dim=1).max(dim=1)
            rows = zip(images, batch["target"].tolist(), best.indices.tolist(), best.values.tolist(), strict=False)
            self._predictions += [Prediction(i, self._names[t], self._names[k], p) for i, t, k, p in rows if t >= 0]

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # on every rank, since it gathers
        counts = None if self._confusion is None else self._confusion.compute().cpu()
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for logger in trainer.loggers:
            if hasattr(logger, "log_predictions"):
                logger.log_predictions(self._predictions)
            if counts is not None and hasattr(logger, "log_confusion"):
                logger.log_confusion(counts, self._names)
        self.run.path.mkdir(parents=True, exist_ok=True)
        prediction_sheet(self._predictions, self.run.prediction_sheet)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self.run.metrics.is_file():
            learning_curves(self.run.path)


class PredictionWriter(Callback):
    """Writes `predict`'s results as `predictions.csv`: path, class, probability, and the following classes.

    Args:
        run: The run folder.
        top_k: Classes a row.
    """

    def __init__(self, run: RunFolder, top_k: int = 5) -> None:
        self.path = run.predictions
        self.top_k = top_k
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        top = outputs.topk(min(self.top_k, outputs.shape[1]), dim=1)
        index, values, classes = pl_module.all_gather((batch["index"], top.values, top.indices))
        self._rows.append((index.flatten().cpu(), values.flatten(0, -2).cpu(), classes.flatten(0, -2).cpu()))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        index, values, classes = (torch.cat(column).tolist() for column in zip(*self._rows, strict=True))
        source = trainer.datamodule.sources["predict"]  # type: ignore[attr-defined]
        names = class_names(pl_module)
        k = len(values[0])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", *(part for i in range(1, k + 1) for part in (f"class_{i}", f"probability_{i}"))])
            rows = dict(zip(index, zip(values, classes, strict=True), strict=True))  # repeated samples fall together
            rows.pop(-1, None)  # unreadable images
            for i, (probabilities, places) in sorted(rows.items()):
                pairs = zip(places, probabilities, strict=True)
                writer.writerow([source.name(i), *(part for c, p in pairs for part in (names[c], f"{p:.6f}"))])
        print(f"predictions: {self.path}", flush=True)


def class_names(module: LightningModule) -> list[str]:
    """The classifier's class names, or the classes' numbers."""
    return module.hparams.get("class_names") or [str(k) for k in range(module.hparams["num_classes"])]


def should_log(trainer: Trainer) -> bool:
    """Whether the Trainer logs this training step."""
    return (trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
