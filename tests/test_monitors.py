"""Direction of a monitored metric, and monitors that are never logged."""

import pytest
import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassCalibrationError, MulticlassF1Score, MulticlassRecall

from swin_lightning import SwinClassifier
from swin_lightning.callbacks import BestMetric, EarlyStopping
from swin_lightning.checkpointing import Checkpoint
from swin_lightning.cli import main
from swin_lightning.errors import UserError
from swin_lightning.monitors import MonitorCheck, check_monitor, find_mode, resolve_mode
from tests.support.cli import DIGITS, SHORT
from tests.support.modules import loader
from tests.support.training import Scores, fit_scores, load


class Flat(nn.Module):
    num_features = 3

    def forward(self, images):
        return images.mean((2, 3))


def classifier(**metrics):
    return SwinClassifier(Flat(), 3, metrics=metrics, class_names=["a", "b", "loss"])


@pytest.mark.parametrize(("metric", "mode"), [
    ("val/loss", "min"), ("val_loss", "min"), ("val/error", "min"), ("valPerplexity", "min"), ("top1_error", None),
    ("val/acc", "max"), ("val/acc5", "max"), ("val/top1", "max"), ("val_accuracy", "max"), ("val/mIoU", "max"),
    ("val/f1", "max"), ("val/f1/cat", "max"), ("epoch", "max"), ("val/score", None), ("train/grad_norm", None),
    ("val/closs", None), ("val/Rmse", "min"),
])  # fmt: skip
def test_direction_follows_from_the_name(metric, mode):
    assert find_mode(metric) == mode


def test_direction_follows_from_the_metric_of_the_module():
    class Odd(Metric):
        higher_is_better = False

        def update(self):
            pass

        compute = update

    module = classifier(f1=MulticlassF1Score(3), calib=MulticlassCalibrationError(3))
    module.metrics["val/odd"] = Odd()
    module.my_metric = Odd()
    assert (find_mode("val/f1", module), find_mode("val/calib", module)) == ("max", "min")
    assert (find_mode("val/odd", module), find_mode("my_metric", module)) == ("min", "min")
    recall = classifier(recall=MulticlassRecall(3, average=None))
    assert find_mode("val/recall/loss", recall) == "max"  # a class with this name


def test_contradicting_and_missing_modes_are_refused():
    assert resolve_mode("checkpoint.mode", "val/loss", None) == "min"
    assert resolve_mode("checkpoint.mode", "val/score", "min") == "min"
    with pytest.raises(UserError, match=r"checkpoint\.mode max contradicts val/loss, which is better when lower"):
        resolve_mode("checkpoint.mode", "val/loss", "max")
    with pytest.raises(UserError, match=r"checkpoint\.mode: it is not known whether val/score is better"):
        resolve_mode("checkpoint.mode", "val/score", None)


def test_callbacks_take_the_mode_from_the_metric():
    module = classifier(calib=MulticlassCalibrationError(3))
    checkpoint, stopping = Checkpoint("val/calib"), EarlyStopping(3, "val/calib", min_delta=0.5)
    for callback in (checkpoint, stopping):
        check_monitor(callback, module)
        assert callback.mode == "min"
    assert checkpoint.kth_value == stopping.best_score == torch.inf and stopping.min_delta == -0.5
    assert (BestMetric("val/loss").best, BestMetric().best) == (float("inf"), float("-inf"))
    with pytest.raises(UserError, match=r"trainer\.callbacks: EarlyStopping.mode min contradicts val/acc"):
        check_monitor(LightningEarlyStopping("val/acc"), module)
    check_monitor(ModelCheckpoint(), module)  # without a monitor


@pytest.mark.parametrize(("args", "message"), [
    (["--checkpoint.monitor=val/los"], "checkpoint.monitor val/los is not logged by SwinClassifier; did you mean "
                                       "val/loss? Logged: train/loss, val/acc, val/acc5, val/acc_balanced, "
                                       "val/f1_macro, val/loss"),
    (["--checkpoint.mode=min"], "checkpoint.mode min contradicts val/acc, which is better when higher; set max"),
    (["--early_stopping.patience=2", "--early_stopping.monitor=acc"], "early_stopping.monitor acc is not logged"),
    (["--checkpoint.monitor=val/loss", "--trainer.limit_val_batches=0"],
     "checkpoint.monitor val/loss is never logged: trainer.limit_val_batches is 0"),
    (["--checkpoint.monitor=val/loss", "--trainer.check_val_every_n_epoch=9"], "check_val_every_n_epoch 9 is more"),
])  # fmt: skip
def test_wrong_monitors_are_refused_before_training(args, message, capsys):
    with pytest.raises(UserError) as caught:
        main(["fit", "-c", DIGITS, *SHORT, *args])
    assert message in str(caught.value) and "epoch 1/1" not in capsys.readouterr().out


def test_early_stopping_that_is_off_is_not_checked():
    main(["fit", "-c", DIGITS, *SHORT, "--early_stopping.monitor=val/nothing", "--early_stopping.mode=max"])


# a module that does not tell what it logs


class ValidationOnly(Scores):
    on_train_epoch_end = LightningModule.on_train_epoch_end


def steps_until_refused(folder, monitor, match, cls=ValidationOnly, **module):
    module, checkpoint = cls([0.5] * 9, **module), {"monitor": monitor, "mode": "max"}
    with pytest.raises(UserError, match=match):
        fit_scores(folder, module, callbacks=[MonitorCheck()], checkpoint=checkpoint, max_epochs=9)
    return module.trainer.global_step


def test_one_validation_batch_shows_what_is_logged(tmp_path):
    match = (
        r"checkpoint.monitor val/ac is not logged by ValidationOnly; did you mean val/acc\? Logged: val/acc, val/loss"
    )
    assert steps_until_refused(tmp_path, "val/ac", match) == 0


def test_other_metrics_are_refused_after_the_first_epoch(tmp_path):
    assert steps_until_refused(tmp_path / "1", "scor", "checkpoint.monitor scor is not logged") == 4
    assert steps_until_refused(tmp_path / "2", "val/ac", "val/ac is not logged", Scores, hook="on_train_epoch_end") == 4


@pytest.mark.parametrize("hook", ["validation_step", "on_validation_epoch_end", "on_train_epoch_end"])
@pytest.mark.parametrize("options", [{}, {"check_val_every_n_epoch": 2}])
def test_a_monitor_that_is_logged_is_accepted(tmp_path, hook, options):
    if options and hook == "on_train_epoch_end":
        pytest.skip("Lightning's checkpoint reads the metrics when a validation ends")
    module, checkpoint = Scores([0.1, 0.4, 0.3, 0.2], "val/mine", hook), {"monitor": "val/mine", "mode": "max"}
    fit_scores(tmp_path, module, callbacks=[MonitorCheck()], checkpoint=checkpoint, max_epochs=4, **options)
    assert load(tmp_path / "best.ckpt")["epoch"] == 1


def test_run_ended_before_its_first_validation_keeps_its_result(tmp_path):
    options = {"checkpoint": {"monitor": "val/loss"}, "max_epochs": 3, "max_steps": 2}
    assert fit_scores(tmp_path, Scores(), callbacks=[MonitorCheck()], **options).global_step == 2


def test_monitor_of_a_schedule(make_trainer):
    class Plateau(LightningModule):
        def __init__(self, monitor, mode):
            super().__init__()
            self.layer, self.monitor, self.mode = nn.Linear(4, 3), monitor, mode

        def training_step(self, batch, batch_idx):
            return self.layer(batch[0]).square().mean()

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self.layer(batch[0]).mean())

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode=self.mode)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": self.monitor}}

    for monitor, mode, options, message in (
        ("val/los", "min", {}, "ReduceLROnPlateau val/los is not logged by Plateau; did you mean val/loss"),
        ("val/loss", "max", {}, "the mode of ReduceLROnPlateau max contradicts val/loss"),
        ("val/loss", "min", {"limit_val_batches": 0}, "ReduceLROnPlateau val/loss is never logged"),
    ):  # fmt: skip
        module = Plateau(monitor, mode)
        with pytest.raises(UserError, match=message):
            make_trainer(callbacks=[MonitorCheck()], **options).fit(module, loader(), loader())
        assert module.trainer.global_step == 0
