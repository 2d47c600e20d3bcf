"""Non-finite losses, gradients and weights."""

import pytest
import torch
from lightning import Callback

from swin_lightning.errors import UserError
from swin_lightning.non_finite import NonFinite, non_finite_parameter
from tests.support.training import Scores, fit_scores, load

pytestmark = [  # of Lightning, when a run is resumed
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


class Spoil(Callback):
    """Makes the loss, a gradient or a weight non-finite at a step, counted from 0."""

    def __init__(self, what, step, value=float("nan")):
        self.what, self.step, self.value = what, step, value

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step and self.what == "image":
            batch["image"][3] = self.value

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == self.step and self.what == "gradient":
            pl_module.layer.weight.grad[0, 0] = self.value

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == self.step and self.what == "weight":
            pl_module.layer.weight.data[0, 0] = self.value


@pytest.mark.parametrize("what", ["image", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_run_stops_before_the_weights_change(tmp_path, what, value):
    module = Scores([1.0] * 2)
    with pytest.raises(
        UserError, match=r"not finite in step 6, epoch 2 with the samples \d+(, \d+){15}; lower model.lr"
    ):
        fit_scores(tmp_path, module, None, [NonFinite(), Spoil(what, 5, value)])
    assert non_finite_parameter(module) is None
    saved = load(tmp_path / "last.ckpt")
    assert saved["global_step"] in (4, 5) and torch.isfinite(saved["state_dict"]["layer.weight"]).all()


def test_checkpoints_stay_finite(tmp_path):
    with pytest.raises(
        UserError, match=r"layer\.weight is not finite at step 7, epoch 2; the previous checkpoint is kept"
    ):
        fit_scores(
            tmp_path,
            Scores([0.5, 1.0]),
            None,
            [NonFinite(), Spoil("weight", 7)],
            checkpoint={"every_n_train_steps": 7},
        )
    for name in ("last.ckpt", "best.ckpt"):
        assert torch.isfinite(load(tmp_path / name)["state_dict"]["layer.weight"]).all()
        assert load(tmp_path / name)["global_step"] == 4


def test_skipped_steps_leave_the_weights_and_are_counted(tmp_path):
    weights = {}

    class Record(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            weights[trainer.global_step] = pl_module.layer.weight.detach().clone()

    result = fit_scores(tmp_path, Scores([1.0] * 2), None, [NonFinite("skip"), Record(), Spoil("gradient", 2)])
    assert torch.equal(weights[3], weights[2]) and not torch.equal(weights[4], weights[3])
    assert result.global_step == 8 and result.callback_metrics["train/skipped_steps"] == 1
    resumed = fit_scores(tmp_path, Scores([1.0] * 3), tmp_path / "last.ckpt", [NonFinite("skip")], max_epochs=3)
    assert resumed.callback_metrics["train/skipped_steps"] == 1


def test_accumulated_batches_are_all_named(tmp_path):
    with pytest.raises(UserError, match=r"step 2, epoch 1 with the samples \d+(, \d+){15};"):
        fit_scores(tmp_path, Scores(), None, [NonFinite(), Spoil("image", 1)], accumulate_grad_batches=2)


def test_parameter_is_named():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    module[1].running_mean.fill_(float("-inf"))  # a buffer may be anything
    assert non_finite_parameter(module) is None
    module[1].weight.data[1] = float("-inf")
    assert non_finite_parameter(module) == "1.weight"
