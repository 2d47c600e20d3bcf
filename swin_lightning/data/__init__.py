"""Data sets as LightningDataModules."""

from swin_lightning.data.cifar import CIFAR10, CIFAR100
from swin_lightning.data.digits import Digits
from swin_lightning.data.image_datamodule import ImageDataModule
from swin_lightning.data.imagenet import ImageFolder, ImageNet

__all__ = ["CIFAR10", "CIFAR100", "Digits", "ImageDataModule", "ImageFolder", "ImageNet"]
