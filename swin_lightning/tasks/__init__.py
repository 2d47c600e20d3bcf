"""Tasks: LightningModules that train a backbone."""

from swin_lightning.tasks.base import Task
from swin_lightning.tasks.classification import SwinClassifier
from swin_lightning.tasks.simmim import SimMIM

__all__ = ["SimMIM", "SwinClassifier", "Task"]
