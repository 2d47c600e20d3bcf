"""EMA: values of the averages, buffers, use in validation and in checkpoints."""

import torch
from lightning import Callback

from swin_lightning.ema import EMA
from tests.support.training import Scores, fit_scores, load


def test_ema_starts_with_the_first_step_and_follows_by_its_decay(tmp_path):
    ema, seen = EMA(0.75), []

    class Weights(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):  # before the averages follow
            seen.append(pl_module.layer.weight.detach().clone())

    module = Scores(batches=5)
    fit_scores(tmp_path, module, None, [Weights(), ema], max_epochs=1, accumulate_grad_batches=2, limit_val_batches=0)
    first, second, third = seen[1], seen[3], seen[4]  # the last step of an epoch has one batch
    expected = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
    torch.testing.assert_close(load(tmp_path / "last.ckpt")["state_dict"]["layer.weight"], expected)
    torch.testing.assert_close(module.layer.weight.detach(), expected)  # after training
    assert int(load(tmp_path / "last.ckpt")["averaging_state"]["n_averaged"]) == 3 and not torch.equal(first, second)


def test_ema_copies_buffers_and_is_used_in_validation_only(tmp_path):
    class Normalised(Scores):
        def __init__(self):
            super().__init__()
            self.norm, self.weights = torch.nn.BatchNorm2d(3), {"train": [], "val": []}

        def forward(self, batch):
            self.weights["train" if self.training else "val"].append(self.layer.weight.detach().clone())
            return super().forward({"image": self.norm(batch["image"])})

        def on_validation_epoch_end(self):
            assert not self.norm.training and self.norm.num_batches_tracked == 4 * (self.current_epoch + 1)

    module = Normalised()
    fit_scores(tmp_path, module, None, [EMA(0.5)])
    saved = load(tmp_path / "last.ckpt")
    for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
        assert torch.equal(saved["state_dict"][name], saved["current_model_state"][name]), name
    assert saved["state_dict"]["norm.num_batches_tracked"] == 8
    _, first, *others, after_validation = module.weights["train"][:5]  # weights before each step
    average = first
    for weight in [*others, after_validation]:
        average = 0.5 * average + 0.5 * weight
    torch.testing.assert_close(module.weights["val"][0], average)
    assert not torch.equal(after_validation, average)
