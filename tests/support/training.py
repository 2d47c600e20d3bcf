"""A silent Trainer with checkpoints, and a module that is trained in milliseconds."""

import torch
from lightning import LightningModule, Trainer

from swin_lightning.checkpointing import Checkpoint, PerStepSeed
from swin_lightning.data import Digits


def load(path):
    return torch.load(path, weights_only=True)


def trainer(folder, callbacks=(), **options):
    """A silent Trainer that writes checkpoints to a folder. `checkpoint` has options of Checkpoint."""
    checkpoint = Checkpoint(dirpath=str(folder), **options.pop("checkpoint", {}))
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "num_sanity_val_steps": 0}
    return Trainer(**quiet | defaults | options, callbacks=[*callbacks, checkpoint, checkpoint.last])


class Scores(LightningModule):
    """Logs given values as val/acc, one per epoch, and draws a dropout mask per step. Four batches per epoch."""

    def __init__(self, scores=(), metric="val/acc", hook="validation_step", batches=4):
        super().__init__()
        self.layer, self.dropout = torch.nn.Linear(4, 1), torch.nn.Dropout(0.5)
        self.scores, self.metric, self.hook, self.batches = scores, metric, hook, batches

    def forward(self, batch):
        return self.layer(self.dropout(batch["image"][:, 0, 14:18, 14]))

    def training_step(self, batch, batch_idx):
        return self(batch).square().mean()

    def log_score(self, hook):
        if hook == self.hook and self.scores:
            self.log(self.metric, self.scores[self.current_epoch])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self(batch).square().mean(), batch_size=len(batch["image"]))
        self.log_score("validation_step")

    def on_validation_epoch_end(self):
        self.log_score("on_validation_epoch_end")

    def on_train_epoch_end(self):
        self.log_score("on_train_epoch_end")

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def fit_scores(folder, module, ckpt_path=None, callbacks=(), **options):
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    data = Digits(num_workers=0, batch_size=16, eval_batch_size=8)
    limits = {"limit_train_batches": module.batches, "limit_val_batches": 2}
    result = trainer(folder, [PerStepSeed(), *callbacks], **limits | options)
    result.fit(module, datamodule=data, ckpt_path=ckpt_path and str(ckpt_path), weights_only=True)
    return result
