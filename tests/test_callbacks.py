"""Metrics and progress, for SwinClassifier and for any other LightningModule."""

import re
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, LightningModule

from swin_lightning import callbacks
from swin_lightning.callbacks import (
    BestMetric,
    EarlyStopping,
    EpochSummary,
    ProgressBar,
    SaveConfig,
    TrainingMonitor,
    should_log,
    summary_order,
)
from swin_lightning.checkpointing import Checkpoint, PerStepSeed
from swin_lightning.ema import EMA
from swin_lightning.errors import UserError
from swin_lightning.loggers import CSVLogger
from swin_lightning.prediction_callbacks import PredictionReport, PredictionWriter
from swin_lightning.prediction_file import PredictionFile
from swin_lightning.runs import RunFolder
from tests.support.cli import metrics
from tests.support.modules import Data, Plain, TrainingData, TrainingOnly, TwoOptimizers, loader

MODULES = {
    "loss": lambda: Plain("loss"),
    "none": lambda: Plain("none"),
    "dict": lambda: Plain("dict"),
    "logits": lambda: Plain("logits"),
    "nothing logged in validation": lambda: Plain(metric=None),
    "two optimizers": TwoOptimizers,
    "training only": TrainingOnly,
}


def rows(folder):
    return RunFolder(folder).read_metrics()


# any module


@pytest.mark.filterwarnings("ignore:predict returned None")
@pytest.mark.parametrize("with_data_module", [True, False])
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_all_callbacks_accept_any_module(make, with_data_module, make_trainer, tmp_path, capsys):
    run, module = RunFolder(tmp_path), make()
    checkpoint = Checkpoint(dirpath=str(run.checkpoints), every_n_train_steps=3)
    added = [
        *(PerStepSeed(), TrainingMonitor(), BestMetric(), BestMetric("val_loss", "min"), EpochSummary(), EMA(0.9)),
        *(
            ProgressBar(),
            SaveConfig(run, "a: 1", {"a": 1}),
            PredictionReport(run),
            PredictionWriter(PredictionFile(run.predictions)),
        ),
        *(checkpoint, checkpoint.last),
    ]
    options = {"max_epochs": 2, "enable_checkpointing": True, "log_every_n_steps": 2, "enable_progress_bar": True}
    trainer = make_trainer(callbacks=added, logger=CSVLogger(str(tmp_path)), **options)
    validates = type(module).validation_step is not LightningModule.validation_step
    if with_data_module:
        trainer.fit(module, datamodule=Data() if validates else TrainingData())
    else:
        trainer.fit(module, loader(), loader() if validates else None)
    expected = {"config.yaml", "metrics.csv", "checkpoints"}
    if validates:
        evaluated = {"datamodule": Data()} if with_data_module else {"dataloaders": loader()}
        trainer.validate(module, **evaluated, verbose=False)
        trainer.test(module, **evaluated, verbose=False)
        trainer.predict(module, **evaluated)
        reason = f"predict_step of {type(module).__name__} does not return class probabilities B, K"
        assert capsys.readouterr().out.count(f"predictions are not written: {reason}\n") == 1
    assert {path.name for path in tmp_path.iterdir()} - {"curves.png"} == expected
    assert [path.name for path in run.checkpoints.iterdir()] == ["last.ckpt"]  # val/acc is not logged
    steps = 16 if isinstance(module, TwoOptimizers) else 8
    assert torch.load(run.last, weights_only=True)["global_step"] == steps
    assert len(metrics(tmp_path, "train/images_per_s")) == 4
    assert trainer.fit_loop.total_batch_idx == 7


def test_two_optimizers_have_their_own_columns(make_trainer, tmp_path):
    module, norms = TwoOptimizers(), []

    class Norms(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            layer = pl_module.layer if isinstance(optimizer, torch.optim.SGD) else pl_module.other
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in layer.parameters()]).item())

    logger = CSVLogger(str(tmp_path))
    trainer = make_trainer(callbacks=[Norms(), TrainingMonitor()], logger=logger, log_every_n_steps=2)
    trainer.fit(module, loader(), loader())
    assert metrics(tmp_path, "train/grad_norm") == pytest.approx([norms[2], norms[6]])  # every second batch
    assert metrics(tmp_path, "train/grad_norm/1") == pytest.approx([norms[3], norms[7]])
    assert metrics(tmp_path, "train/lr") == pytest.approx([0.1, 0.1])
    assert metrics(tmp_path, "train/lr/1") == pytest.approx([0.01, 0.01])


# training monitor


@pytest.mark.parametrize(("accumulate", "every", "expected"), [
    (1, 3, [2, 5, 8]),
    (2, 2, [1, 3, 5]),  # 12 batches are 6 optimizer steps
    (1, 1, list(range(10))),
    (1, 0, []),
])  # fmt: skip
def test_values_are_logged_at_the_steps_of_the_trainer(accumulate, every, expected, make_trainer, tmp_path):
    logger, options = CSVLogger(str(tmp_path)), {"log_every_n_steps": every, "accumulate_grad_batches": accumulate}
    trainer = make_trainer(callbacks=[TrainingMonitor()], logger=logger, limit_val_batches=0, **options)
    trainer.fit(Plain(), loader(batches=10 if accumulate == 1 else 12), loader())
    for name in ("train/lr", "train/grad_norm", "train/images_per_s"):
        assert [int(row["step"]) for row in rows(tmp_path) if row.get(name)] == expected, name


@pytest.mark.parametrize(("batches", "accumulate", "every", "expected"), [
    (3, 1, 20, [0, 1, 2, 3, 4, 5]),  # every step
    (3, 2, 20, [0, 1, 2, 3]),  # two steps an epoch
    (45, 1, 50, list(range(1, 90, 2))),  # about 20 times an epoch
    (3, 1, 0, []),
])  # fmt: skip
def test_epoch_shorter_than_the_interval_is_logged(batches, accumulate, every, expected, make_trainer, tmp_path):
    options = {"log_every_n_steps": every, "accumulate_grad_batches": accumulate, "max_epochs": 2}
    logger = CSVLogger(str(tmp_path))
    trainer = make_trainer(callbacks=[TrainingMonitor()], logger=logger, limit_val_batches=0, **options)
    trainer.fit(Plain(), loader(batches=batches), loader())
    assert [int(row["step"]) for row in rows(tmp_path) if row.get("train/lr")] == expected


def test_gradient_norm_is_that_before_clipping(make_trainer, tmp_path):
    norms = []

    class Norms(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters()]).item())

    options = {"gradient_clip_val": 0.001, "log_every_n_steps": 1, "limit_val_batches": 0}
    trainer = make_trainer(callbacks=[Norms(), TrainingMonitor()], logger=CSVLogger(str(tmp_path)), **options)
    trainer.fit(Plain(), loader(), loader())
    assert metrics(tmp_path, "train/grad_norm") == pytest.approx(norms) and min(norms) > 0.001


def test_throughput_counts_the_images_of_accumulated_batches_and_excludes_validation(
    make_trainer, tmp_path, monkeypatch
):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    class Slow(Callback):
        def on_train_batch_start(self, *_):
            clock.now += 2

        def on_validation_batch_start(self, *_):
            clock.now += 1000

    options = {"log_every_n_steps": 1, "accumulate_grad_batches": 2, "max_epochs": 2}
    trainer = make_trainer(callbacks=[Slow(), TrainingMonitor()], logger=CSVLogger(str(tmp_path)), **options)
    trainer.fit(Plain(), loader(batch_size=6), loader())
    assert metrics(tmp_path, "train/images_per_s") == pytest.approx([3.0] * 4)  # 6 images in 2 s


def test_should_log_agrees_with_the_trainer_in_manual_optimization(make_trainer, tmp_path):
    due = []

    class Due(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            due.append(should_log(trainer))

    class Logged(TwoOptimizers):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            self.log("train_loss", 1.0)

    options = {"log_every_n_steps": 3, "max_epochs": 2, "limit_val_batches": 0}
    trainer = make_trainer(callbacks=[Due()], logger=CSVLogger(str(tmp_path)), **options)
    trainer.fit(Logged(), loader(batches=5), loader())
    assert [index for index, value in enumerate(due) if value] == [2, 5, 8]
    assert [int(row["step"]) for row in rows(tmp_path)] == [2, 5, 8]


# best metric and early stopping


class Scores(Plain):
    """Logs given values, one per epoch, in `validation_step` or at the end of the validation."""

    def __init__(self, scores, name="val/acc", at_end=False):
        super().__init__(metric=None)
        self.scores, self.name, self.at_end = scores, name, at_end

    def validation_step(self, batch, batch_idx):
        if not self.at_end:
            self.log(self.name, self.scores[self.current_epoch])

    def on_validation_epoch_end(self):
        if self.at_end:
            self.log(self.name, self.scores[self.current_epoch])


def fit_scores(make_trainer, folder, module, *added):
    options = {"max_epochs": len(module.scores), "num_sanity_val_steps": 1}
    trainer = make_trainer(callbacks=list(added), logger=CSVLogger(str(folder)), **options)
    trainer.fit(module, loader(), loader())
    return trainer


@pytest.mark.parametrize(("mode", "expected"), [("max", [0.3, 0.3, 0.5, 0.5]), ("min", [0.3, 0.2, 0.2, 0.2])])
def test_best_metric_respects_its_mode_and_ignores_nan(mode, expected, make_trainer, tmp_path):
    scores = Scores([0.3, 0.2, 0.5, float("nan")], "val/score")
    fit_scores(make_trainer, tmp_path, scores, BestMetric("val/score", mode), BestMetric())
    assert metrics(tmp_path, "val/score_best") == pytest.approx(expected)
    assert "val/acc_best" not in rows(tmp_path)[0]


def test_best_metric_follows_a_metric_that_is_logged_at_the_end_of_validation(make_trainer, tmp_path):
    callback = BestMetric()
    fit_scores(make_trainer, tmp_path, Scores([0.3, 0.2, 0.5, 0.6], at_end=True), callback)
    assert metrics(tmp_path, "val/acc_best")[-1] == callback.best == pytest.approx(0.6)


def test_best_metrics_keep_separate_states(make_trainer, tmp_path):
    first, second = BestMetric(), BestMetric("val/loss", "min")
    first.best, second.best = 0.9, 0.1
    module = Plain()
    trainer = make_trainer(callbacks=[first, second])
    trainer.fit(module, loader(), loader())
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    first, second = BestMetric(), BestMetric("val/loss", "min")
    trainer = make_trainer(callbacks=[first, second], max_epochs=2)
    trainer.fit(module, loader(), loader(), ckpt_path=tmp_path / "run.ckpt", weights_only=True)
    assert (first.best, second.best) == (0.9, 0.1)


def test_early_stopping_stops_after_patience(make_trainer, tmp_path):
    trainer = fit_scores(make_trainer, tmp_path, Scores([0.3, 0.5, 0.4, 0.4, 0.9]), EarlyStopping(patience=2))
    assert trainer.current_epoch == 4
    assert EarlyStopping(patience=2).enabled and not EarlyStopping().enabled


def test_early_stopping_on_a_metric_that_is_not_logged(make_trainer, tmp_path):
    message = "early_stopping.monitor val/f1 is not logged by Scores; did you mean val/acc? Logged: train_loss"
    with pytest.raises(UserError, match=re.escape(message)):
        fit_scores(make_trainer, tmp_path, Scores([0.3, 0.2]), EarlyStopping(2, monitor="val/f1"))


# progress


def test_summary_shows_losses_and_monitor_first_and_no_metric_per_class():
    names = ["val/acc", "val/acc5", "val/f1/cat", "val/f1", "val/loss", "train/loss"]
    assert summary_order(names, "val/f1") == ["train/loss", "val/loss", "val/f1", "val/acc", "val/acc5"]


@pytest.mark.parametrize(("options", "pattern"), [
    ({"max_epochs": 2}, r"epoch 1/2  train_loss \d\.\d+  val_loss \d\.\d+  \d+\.\d s\nepoch 2/2 .*"),
    ({"max_epochs": -1, "max_steps": 3}, r"epoch 1  train_loss .*"),
    ({"limit_val_batches": 0}, r"epoch 1/1  train_loss \d\.\d+  \d+\.\d s\n"),
])  # fmt: skip
def test_epoch_summary_is_one_line_per_epoch(options, pattern, make_trainer, capsys):
    make_trainer(callbacks=[EpochSummary()], **options).fit(Plain(), loader(), loader())
    assert re.fullmatch(pattern, capsys.readouterr().out, re.S)


def test_epoch_summary_shows_the_monitor_of_the_run(make_trainer, tmp_path, capsys):
    fit_scores(make_trainer, tmp_path, Scores([0.25], "score"), EpochSummary("score"))
    assert re.match(r"epoch 1/1  train_loss \S+  score 0.25  ", capsys.readouterr().out)


def test_progress_bar_reads_metrics_at_logged_steps_only(make_trainer, tmp_path):
    shown = []

    class Shown(ProgressBar):
        def get_metrics(self, trainer, pl_module):
            result = super().get_metrics(trainer, pl_module)
            shown.append(result.get("train_loss"))
            return result

    class Counting(Plain):
        def training_step(self, batch, batch_idx):
            self.log("train_loss", float(batch_idx))
            return super().evaluate(batch)[0]

    options = {"enable_progress_bar": True, "log_every_n_steps": 3, "limit_val_batches": 0}
    make_trainer(callbacks=[Shown()], **options).fit(Counting(), loader(batches=8), loader())
    assert shown[:8] == [0, 0, 2, 2, 2, 5, 5, 7]  # the first, every third, and the last
