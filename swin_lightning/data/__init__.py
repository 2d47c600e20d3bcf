"""Data modules (`lightning.LightningDataModule`) of the supported data sets."""

from swin_lightning.data.cifar import CIFAR10, CIFAR100
from swin_lightning.data.digits import Digits
from swin_lightning.data.folder import ImageFolder
from swin_lightning.data.image_datamodule import ImageDataModule
from swin_lightning.data.imagenet import ImageNet

__all__ = ["CIFAR10", "CIFAR100", "Digits", "ImageDataModule", "ImageFolder", "ImageNet"]
