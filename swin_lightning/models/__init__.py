"""Swin Transformer V1 and V2 in plain PyTorch."""

from swin_lightning.models.builders import (
    swin_base_patch4_window7_224,
    swin_base_patch4_window12_384,
    swin_large_patch4_window7_224,
    swin_large_patch4_window12_384,
    swin_micro_patch4_window4_32,
    swin_small_patch4_window7_224,
    swin_tiny_patch2_window4_32,
    swin_tiny_patch4_window7_224,
    swinv2_base_patch4_window8_256,
    swinv2_base_patch4_window12_192,
    swinv2_base_patch4_window12to16_192to256,
    swinv2_base_patch4_window12to24_192to384,
    swinv2_base_patch4_window16_256,
    swinv2_large_patch4_window12_192,
    swinv2_large_patch4_window12to16_192to256,
    swinv2_large_patch4_window12to24_192to384,
    swinv2_small_patch4_window8_256,
    swinv2_small_patch4_window16_256,
    swinv2_tiny_patch4_window8_256,
    swinv2_tiny_patch4_window16_256,
)
from swin_lightning.models.registry import list_models, register_model
from swin_lightning.models.swin import SwinTransformer
from swin_lightning.models.swin_v2 import SwinTransformerV2

__all__ = [
    "SwinTransformer",
    "SwinTransformerV2",
    "list_models",
    "register_model",
    "swin_base_patch4_window7_224",
    "swin_base_patch4_window12_384",
    "swin_large_patch4_window7_224",
    "swin_large_patch4_window12_384",
    "swin_micro_patch4_window4_32",
    "swin_small_patch4_window7_224",
    "swin_tiny_patch2_window4_32",
    "swin_tiny_patch4_window7_224",
    "swinv2_base_patch4_window8_256",
    "swinv2_base_patch4_window12_192",
    "swinv2_base_patch4_window12to16_192to256",
    "swinv2_base_patch4_window12to24_192to384",
    "swinv2_base_patch4_window16_256",
    "swinv2_large_patch4_window12_192",
    "swinv2_large_patch4_window12to16_192to256",
    "swinv2_large_patch4_window12to24_192to384",
    "swinv2_small_patch4_window8_256",
    "swinv2_small_patch4_window16_256",
    "swinv2_tiny_patch4_window8_256",
    "swinv2_tiny_patch4_window16_256",
]
