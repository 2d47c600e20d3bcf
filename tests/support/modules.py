"""LightningModules as users write them: other outputs, other metrics, several optimizers, no data module."""

import torch
import torch.nn.functional as F
from lightning import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset


def loader(batches=4, batch_size=4):
    """Batches of inputs `B, 4` and class indices `B` of three classes, as tuples."""
    count = batches * batch_size
    inputs, targets = torch.arange(4.0 * count).view(count, 4) / count, torch.arange(count) % 3
    return DataLoader(TensorDataset(inputs, targets), batch_size=batch_size)


class TrainingData(LightningDataModule):
    """A data module without class names, `denormalize` or `sample_name`."""

    def train_dataloader(self):
        return loader()


class Data(TrainingData):
    val_dataloader = test_dataloader = predict_dataloader = TrainingData.train_dataloader


class Plain(LightningModule):
    """A classifier whose steps return what a user's may: the loss, None, a dict, or logits of tuples."""

    def __init__(self, result="loss", metric="val_loss"):
        super().__init__()
        self.layer, self.result, self.metric = torch.nn.Linear(4, 3), result, metric

    def evaluate(self, batch):
        logits = self.layer(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        results = {"loss": loss, "none": None, "dict": {"loss": loss, "logits": logits}, "logits": logits}
        return loss, results[self.result]

    def training_step(self, batch, batch_idx):
        loss, result = self.evaluate(batch)
        self.log("train_loss", loss)
        return result if self.result == "dict" else loss

    def validation_step(self, batch, batch_idx):
        loss, result = self.evaluate(batch)
        if self.metric:
            self.log(self.metric, loss)
        return result

    def test_step(self, batch, batch_idx):
        return self.evaluate(batch)[1]

    def predict_step(self, batch, batch_idx):
        return self.evaluate(batch)[1]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TwoOptimizers(Plain):
    """Manual optimization with two optimizers, both of which step for every batch."""

    def __init__(self):
        super().__init__()
        self.other = torch.nn.Linear(4, 3)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer, layer in zip(self.optimizers(), (self.layer, self.other), strict=True):
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(layer(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.layer.parameters(), 0.1), torch.optim.AdamW(self.other.parameters(), 0.01)


class TrainingOnly(LightningModule):
    """No validation, no test, nothing logged."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Labelled(Plain):
    """A classifier with class names that returns logits for batches as `swin_lightning.batch.Batch`."""

    def __init__(self, class_names=("a", "b", "c")):
        super().__init__("logits", "val/acc")
        self.class_names = list(class_names) if class_names else None

    def evaluate(self, batch):
        return super().evaluate((batch["image"].mean((2, 3)), batch["target"].clamp(min=0)))

    def predict_step(self, batch, batch_idx):
        return super().predict_step(batch, batch_idx).softmax(dim=1)
