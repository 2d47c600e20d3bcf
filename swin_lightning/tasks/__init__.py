"""Tasks: LightningModules that train a backbone."""

from swin_lightning.tasks.base import Task
from swin_lightning.tasks.classification import SwinClassifier

__all__ = ["SwinClassifier", "Task"]
