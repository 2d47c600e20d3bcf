"""The published models by name, and small ones for small images. Each returns a backbone without head."""

from typing import Any

from swin_lightning.models.swin import SwinTransformer


def swin_tiny_patch4_window7_224(drop_path_rate: float = 0.2, **kwargs: Any) -> SwinTransformer:
    """Swin-T: 28 M parameters, 4.5 G MACs; ImageNet-1K 81.2 / 95.5 % (resize 256, centre crop 224)."""
    return SwinTransformer(
        embed_dim=96,
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        window_size=7,
        drop_path_rate=drop_path_rate,
        **kwargs,
    )


def swin_small_patch4_window7_224(drop_path_rate: float = 0.3, **kwargs: Any) -> SwinTransformer:
    """Swin-S: 50 M parameters, 8.7 G MACs; ImageNet-1K 83.2 / 96.2 % (resize 256, centre crop 224)."""
    return SwinTransformer(
        embed_dim=96,
        depths=(2, 2, 18, 2),
        num_heads=(3, 6, 12, 24),
        window_size=7,
        drop_path_rate=drop_path_rate,
        **kwargs,
    )


def swin_base_patch4_window7_224(drop_path_rate: float = 0.5, **kwargs: Any) -> SwinTransformer:
    """Swin-B: 88 M parameters, 15.4 G MACs; ImageNet-1K 83.5 / 96.5 % (resize 256, centre crop 224)."""
    return SwinTransformer(
        embed_dim=128,
        depths=(2, 2, 18, 2),
        num_heads=(4, 8, 16, 32),
        window_size=7,
        drop_path_rate=drop_path_rate,
        **kwargs,
    )


def swin_large_patch4_window7_224(drop_path_rate: float = 0.2, **kwargs: Any) -> SwinTransformer:
    """Swin-L: 197 M parameters, 34.5 G MACs; ImageNet-22K to 1K 86.3 / 97.9 % (resize 256, centre crop 224)."""
    return SwinTransformer(
        embed_dim=192,
        depths=(2, 2, 18, 2),
        num_heads=(6, 12, 24, 48),
        window_size=7,
        drop_path_rate=drop_path_rate,
        **kwargs,
    )


def swin_tiny_patch2_window4_32(drop_path_rate: float = 0.1, **kwargs: Any) -> SwinTransformer:
    """Three stages for 32 x 32 images: 16 x 16 tokens of 2 x 2 pixels, 7.0 M parameters.

    The layout of aanna0701/SPT_LSA_ViT, published with 94.46 % on CIFAR-10 and 76.87 % on CIFAR-100.
    """
    return SwinTransformer(
        patch_size=2,
        embed_dim=96,
        depths=(2, 6, 4),
        num_heads=(3, 6, 12),
        window_size=4,
        mlp_ratio=2.0,
        drop_path_rate=drop_path_rate,
        **kwargs,
    )


def swin_micro_patch4_window4_32(drop_path_rate: float = 0.0, **kwargs: Any) -> SwinTransformer:
    """Two stages of two blocks for 32 x 32 images on a CPU: 8 x 8 tokens of 4 x 4 pixels, 0.4 M parameters."""
    return SwinTransformer(
        patch_size=4,
        embed_dim=64,
        depths=(2, 2),
        num_heads=(2, 4),
        window_size=4,
        mlp_ratio=2.0,
        init_std=0.1,
        drop_path_rate=drop_path_rate,
        **kwargs,
    )
