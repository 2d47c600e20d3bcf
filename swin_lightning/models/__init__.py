"""Swin Transformers in plain torch."""

from swin_lightning.models.swin import SwinTransformer
from swin_lightning.models.variants import (
    swin_base_patch4_window7_224,
    swin_large_patch4_window7_224,
    swin_micro_patch4_window4_32,
    swin_small_patch4_window7_224,
    swin_tiny_patch2_window4_32,
    swin_tiny_patch4_window7_224,
)

__all__ = [
    "SwinTransformer",
    "swin_base_patch4_window7_224",
    "swin_large_patch4_window7_224",
    "swin_micro_patch4_window4_32",
    "swin_small_patch4_window7_224",
    "swin_tiny_patch2_window4_32",
    "swin_tiny_patch4_window7_224",
]
