"""Values for the whole global batch: means over accumulated batches."""

import pytest
import torch
from torch import nn

from swin_lightning.loggers import CSVLogger
from swin_lightning.tasks.base import Task
from tests.support.cli import metrics
from tests.support.modules import TrainingData


class Probe(Task):
    """Logs 1, 2, 3, ... by `log_step_mean`."""

    def __init__(self):
        super().__init__(nn.Linear(4, 1), lr=0.1, lr_schedule="constant")
        self.batches = 0
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.batches += 1
        self.log_step_mean("train/value", torch.tensor(float(self.batches)), prog_bar=True)
        return self.backbone(batch[0]).mean()

    def on_train_batch_end(self, *_):
        self.seen.append(self.trainer.callback_metrics["train/value"].item())


@pytest.mark.parametrize(("accumulate", "every", "expected"), [
    (1, 1, [1, 2, 3, 4, 5, 6, 7, 8]),
    (1, 3, [3, 6]),
    (2, 1, [1.5, 3.5, 5.5, 7.5]),
    (2, 2, [3.5, 7.5]),
    (4, 1, [2.5, 6.5]),
    (3, 1, [2, 4, 6, 8]),  # the last batch of an epoch is a step by itself
])  # fmt: skip
def test_logged_value_is_the_mean_over_accumulated_batches(make_trainer, tmp_path, accumulate, every, expected):
    options = {"max_epochs": 2, "accumulate_grad_batches": accumulate, "log_every_n_steps": every}
    logger = CSVLogger(str(tmp_path))
    make_trainer(logger=logger, **options).fit(model := Probe(), TrainingData())
    assert metrics(tmp_path, "train/value") == expected
    assert model.seen[-1] == (8 if accumulate in (1, 3) else expected[-1])  # at the end of an epoch it is whole too


def test_devices_are_asked_at_logged_steps_and_at_the_end_of_an_epoch(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer(
        logger=CSVLogger(str(tmp_path)), max_epochs=2, accumulate_grad_batches=2, log_every_n_steps=3
    )
    asked, model = [], Probe()

    def reduce(tensor, reduce_op):
        asked.append(model.batches)
        return tensor + 100 * (reduce_op == "mean")

    monkeypatch.setattr(trainer.strategy, "reduce", reduce)
    trainer.fit(model, TrainingData())
    # 2 epochs of 4 batches; the third step is that of batches 5 and 6
    assert [batch for batch in asked if batch] == [4, 6, 8]
    assert metrics(tmp_path, "train/value") == [105.5]


def test_training_step_works_without_a_trainer():
    assert Probe().training_step([torch.zeros(2, 4)], 0).shape == ()
