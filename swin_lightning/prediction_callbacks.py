"""Callbacks for the predictions of a classifier. Any other LightningModule runs without them.

Data modules and batches of any kind are accepted; what they lack, such as images, is left out.
"""

import contextlib
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor, distributed
from torchmetrics.classification import MulticlassConfusionMatrix

from swin_lightning.batch import IGNORE_INDEX
from swin_lightning.class_counts import ClassCounts, class_rows, write_class_table
from swin_lightning.errors import UserError
from swin_lightning.prediction_file import PredictionFile, columns_of
from swin_lightning.run_figures import Prediction, learning_curves, prediction_sheet
from swin_lightning.runs import RunFolder
from swin_lightning.shutdown import Interrupted


class PredictionReport(Callback):
    """Figures and the table by class of a run in its folder, and sample predictions and a confusion matrix for W&B.

    All but the curves need a classifier: `num_classes` or `class_names`, logits `B, K` as the result of
    `test_step`, and batches as `batch.Batch`. Samples also need `denormalize` of the data module.

    Args:
        run: The run folder.
        samples: Number of predictions to show.
        max_classes: Largest number of classes for which there is a confusion matrix.

    Raises:
        UserError: If no image of the test split has a label.
    """

    def __init__(self, run: RunFolder, samples: int = 32, max_classes: int = 100) -> None:
        self.run, self.samples, self.max_classes = run, samples, max_classes

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        has_labels = getattr(getattr(trainer, "datamodule", None), "has_test_labels", None)
        if callable(has_labels) and class_names(pl_module) and not has_labels():
            raise UserError(
                "data.path: the test images have no labels, so that nothing can be measured; the same command with "
                "`predict` in place of `test` writes their classes into a file"
            )

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._names = class_names(pl_module)
        self._predictions: list[Prediction] = []
        self._confusion = None
        self._classes = ClassCounts(len(self._names)).to(pl_module.device) if self._names else None
        if 1 < len(self._names) <= self.max_classes:
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
        """Collect the most probable classes of the images of a batch."""
        if not is_classified(outputs, batch, len(self._names)):
            return
        target = batch["target"]
        target = target.where((target >= 0) & (target < len(self._names)), IGNORE_INDEX)
        if self._confusion is not None:
            self._confusion.update(outputs, target)
        if self._classes is not None:
            self._classes.update(outputs.argmax(dim=1), target)
        missing = self.samples - len(self._predictions)
        denormalize = getattr(getattr(trainer, "datamodule", None), "denormalize", None)
        if missing > 0 and trainer.is_global_zero and callable(denormalize) and "image" in batch:
            images = denormalize(batch["image"][:missing]).permute(0, 2, 3, 1).cpu().numpy()  # B, H, W, 3
            best = outputs[:missing].softmax(dim=1).max(dim=1)
            rows = zip(images, target.tolist(), best.indices.tolist(), best.values.tolist(), strict=False)
            self._predictions += [Prediction(i, self._names[t], self._names[k], p) for i, t, k, p in rows if t >= 0]

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table by class, and send predictions, confusion matrix and table to the loggers."""
        counts = None
        if self._confusion is not None and self._confusion.update_called:
            counts = self._confusion.compute().cpu()  # K, K; on every rank, since it gathers
        classes = []
        if self._classes is not None and self._classes.update_called:
            classes = class_rows(self._classes.compute().cpu(), self._names)
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if any(row["images"] for row in classes):
            write_class_table(classes, self.run.class_table)
        for logger in trainer.loggers:
            if self._predictions and hasattr(logger, "log_predictions"):
                logger.log_predictions(self._predictions)
            if counts is not None and hasattr(logger, "log_confusion"):
                logger.log_confusion(counts, self._names)
            if classes and hasattr(logger, "log_classes"):
                logger.log_classes(classes)
        if self._predictions:
            self.run.path.mkdir(parents=True, exist_ok=True)
            prediction_sheet(self._predictions, self.run.prediction_sheet)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw_curves(trainer)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw_curves(trainer)  # of a run whose test images have no labels

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Draw the curves of a run that ends by Ctrl-C."""
        by_user = isinstance(exception, Interrupted) and exception.signal == signal.SIGINT
        if by_user and trainer.state.fn == "fit":
            with contextlib.suppress(OSError):  # the checkpoint is still to be written
                self._draw_curves(trainer)

    def _draw_curves(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and self.run.metrics.is_file():
            learning_curves(self.run.path)


class PredictionWriter(Callback):
    """Writes the results of `predict` while it runs, see `prediction_file`. Nothing is kept in memory.

    `predict_step` must return class probabilities `B, K`. The path is `sample_name("predict", index)` of the data
    module if it has this method, else the index itself: `index` in the batch, or the position in the data. With
    several processes rank 0 writes the rows of all of them.

    Args:
        file: The file.
        top_k: Number of classes per row.
        known: Rows that the file has already, by path. They are not written again but compared.
    """

    def __init__(self, file: PredictionFile, top_k: int = 5, known: Mapping[str, Sequence[str]] | None = None) -> None:
        self.file, self.top_k, self.known = file, top_k, known or {}

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen, self._written = 0, 0
        self._repeatable: set[int] = set()  # indices of samples, which the ranks repeat to have as many as the others
        self._problem = ""

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the most probable classes of a batch, those of all processes by rank 0."""
        index = batch.get("index") if isinstance(batch, Mapping) else None
        rows: dict[int, tuple[list[int], list[float]]] = {}
        k = 0
        if not is_probability(outputs):
            self._problem = f"predict_step of {type(pl_module).__name__} does not return class probabilities B, K"
        elif index is None and trainer.world_size > 1:
            self._problem = "batches of several processes need an index"
        else:
            k = min(self.top_k, outputs.shape[1])
            top = outputs.float().topk(k, dim=1)
            numbers = range(self._seen, self._seen + len(outputs)) if index is None else index.tolist()
            rows = dict(zip(numbers, zip(top.indices.tolist(), top.values.tolist(), strict=True), strict=True))
            self._seen += len(outputs)
        parts: list[Any] = [(rows, self._problem)]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            distributed.all_gather_object(parts, (rows, self._problem))
            rows = {number: row for part, _ in parts for number, row in part.items() if number not in self._repeatable}
            self._repeatable |= rows.keys()
        self._problem = next((problem for _, problem in parts if problem), "")
        rows.pop(-1, None)  # images that could not be read
        if trainer.is_global_zero and rows and not self._problem:
            self._write(trainer, class_names(pl_module, outputs.shape[1]), k, rows)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        problem = self._problem or ("" if self._written or self.known else "there are none")
        if problem:
            print(f"predictions are not written: {problem}", flush=True)
            return
        self.file.finish()
        print(f"predictions: {self.file.path}", flush=True)

    def _write(
        self, trainer: Trainer, names: list[str], k: int, rows: Mapping[int, tuple[list[int], list[float]]]
    ) -> None:
        """Write rows by index: the indices of the classes and their probabilities."""
        sample_name = getattr(getattr(trainer, "datamodule", None), "sample_name", None)
        lines = []
        for index, (classes, probabilities) in sorted(rows.items()):
            path = str(sample_name("predict", index)) if callable(sample_name) else str(index)
            pairs = zip(classes, probabilities, strict=True)
            line = [path, *(part for c, p in pairs for part in (names[c], f"{p:.6f}"))]
            if path in self.known:
                self._compare(trainer, self.known[path], line)
            else:
                lines.append(line)
        self.file.append(columns_of(k), lines)
        self._written += len(lines)

    def _compare(self, trainer: Trainer, before: Sequence[str], now: Sequence[str]) -> None:
        """Raise an error if a row of the file was predicted by another checkpoint or precision."""
        old, new = (dict(zip(row[1::2], map(float, row[2::2]), strict=True)) for row in (before, now))
        tolerance = 2e-3 if str(trainer.precision).startswith(("32", "64")) else 2e-2
        least = min(new.values())  # a class that is not among the first has at most this probability
        if any(abs(new[n] - p) > tolerance if n in new else p - least > tolerance for n, p in old.items()):
            raise UserError(
                f"--output {str(self.file.path)!r} has predictions of another checkpoint or precision: "
                f"{' '.join(before[:3])}, now {' '.join(now[1:3])}; give another file or remove it"
            )


# helpers


def class_names(module: LightningModule, expected: int | None = None) -> list[str]:
    """Class names of a classifier, or the class indices; empty for any other module.

    Args:
        module: Any module.
        expected: Number of classes; there are names for so many in any case.
    """
    if expected is not None:
        known = class_names(module)
        return known if len(known) == expected else [str(k) for k in range(expected)]
    names = getattr(module, "class_names", None)
    if isinstance(names, Sequence) and not isinstance(names, str):
        return [str(name) for name in names]
    count = getattr(module, "num_classes", None)
    return [str(k) for k in range(count)] if isinstance(count, int) else []


def is_classified(outputs: Any, batch: Any, num_classes: int) -> bool:
    """Whether a test step returned logits `B, K` for a batch with class indices `B`."""
    target = batch.get("target") if isinstance(batch, Mapping) else None
    if not isinstance(outputs, Tensor) or not isinstance(target, Tensor):
        return False
    shapes_fit = outputs.ndim == 2 and outputs.shape == (len(target), num_classes) and target.ndim == 1
    return shapes_fit and outputs.is_floating_point() and not target.is_floating_point()


def is_probability(outputs: Any) -> bool:
    """Whether a predict step returned class probabilities `B, K`."""
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or not outputs.is_floating_point():
        return False
    return bool((outputs >= 0).all() and ((outputs.sum(dim=1) - 1).abs() < 0.01).all())
