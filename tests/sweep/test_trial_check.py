"""`sweep --check` refuses what a trial would refuse."""

import pytest

from swin_lightning.errors import UserError
from swin_lightning.sweep.sweep_file import read_sweep
from swin_lightning.sweep.trial_check import trial_error
from tests.support.cli import DIGITS
from tests.sweep.fake_trials import changed, write


def test_a_good_trial_passes():
    for metric, goal in (("val/loss", "minimize"), ("test/acc", "maximize"), ("train/loss", "minimize")):
        assert trial_error(["-c", DIGITS], metric, goal) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {"model.lr": {"min": -0.1, "max": 0.1}}}, "parameters.model.lr -0.1: model.lr -0.1: expected"),
        ({"parameters": {"model.lr": {"values": [0.1, 0.0]}}}, "parameters.model.lr 0.0: model.lr 0.0: expected"),
        ({"parameters": {"data.batch_size": {"values": [32, 5000]}}}, "data.batch_size 5000 is larger than the"),
        ({"parameters": {"model.min_lr": {"min": 1e-4, "max": 0.1}, "model.lr": {"min": 1e-3, "max": 0.2}}},
         "model.min_lr 0.1 is above model.lr 0.001"),
        ({"parameters": {"model.warmup_epochs": {"values": [1, 400]}}}, "model.warmup_epochs 400: the run has 40"),
        ({"metric": {"name": "val/nope", "goal": "maximize"}}, "metric.name val/nope is not logged by SwinClassifier"),
        ({"metric": {"name": "val/acc", "goal": "minimize"}}, "metric.goal minimize contradicts val/acc"),
        ({"run_cap": True}, "run_cap: expected a positive integer, got true"),
    ],
)  # fmt: skip
def test_what_a_trial_would_refuse(changes, message):
    with pytest.raises(UserError) as caught:
        read_sweep(write(changed(**changes)))
    assert message in str(caught.value) and "\n" not in str(caught.value)
