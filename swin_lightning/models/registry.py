"""The published models by name, and small ones for small images. Each returns a backbone without head.

The `Published:` paragraph of a docstring is the one place where a model's figures stand: `summary.py` reads it, and
`swin-lightning models` prints it beside what the program counts. A line is top-1 / top-5 accuracy in percent on the
validation images of ImageNet-1K, the data of the training, and how the images were cut. "Resize 256, crop 224" takes
the centre; "resize 384 x 384" squeezes the whole image. Source: microsoft/Swin-Transformer, README.md and configs/.
Backbones made here take all other arguments of `SwinTransformer` and `SwinTransformerV2`.
"""

from typing import Any

from swin_lightning.models.swin import SwinTransformer
from swin_lightning.models.swin_v2 import SwinTransformerV2


def swin_tiny_patch4_window7_224(drop_path_rate: float = 0.2, **kwargs: Any) -> SwinTransformer:
    """Swin-T.

    Published: 28M parameters, 4.5G MACs.
        81.2 / 95.5: ImageNet-1K; resize 256, crop 224
        80.9 / 96.0: ImageNet-22K, then 1K; resize 256, crop 224
    """
    return _tiny(window_size=7, drop_path_rate=drop_path_rate, **kwargs)


def swin_small_patch4_window7_224(drop_path_rate: float = 0.3, **kwargs: Any) -> SwinTransformer:
    """Swin-S.

    Published: 50M parameters, 8.7G MACs.
        83.2 / 96.2: ImageNet-1K; resize 256, crop 224
        83.2 / 97.0: ImageNet-22K, then 1K; resize 256, crop 224
    """
    return _small(window_size=7, drop_path_rate=drop_path_rate, **kwargs)


def swin_base_patch4_window7_224(drop_path_rate: float = 0.5, **kwargs: Any) -> SwinTransformer:
    """Swin-B.

    Published: 88M parameters, 15.4G MACs.
        83.5 / 96.5: ImageNet-1K; resize 256, crop 224
        85.2 / 97.5: ImageNet-22K, then 1K; resize 256, crop 224
    """
    return _base(window_size=7, drop_path_rate=drop_path_rate, **kwargs)


def swin_large_patch4_window7_224(drop_path_rate: float = 0.2, **kwargs: Any) -> SwinTransformer:
    """Swin-L.

    Published: 197M parameters, 34.5G MACs.
        86.3 / 97.9: ImageNet-22K, then 1K; resize 256, crop 224
    """
    return _large(window_size=7, drop_path_rate=drop_path_rate, **kwargs)


def swin_base_patch4_window12_384(drop_path_rate: float = 0.5, **kwargs: Any) -> SwinTransformer:
    """Swin-B at 384 pixels, fine-tuned from 224.

    Published: 88M parameters, 47.1G MACs.
        84.5 / 97.0: ImageNet-1K; resize 384 x 384
        86.4 / 98.0: ImageNet-22K, then 1K; resize 384 x 384
    """
    return _base(img_size=384, window_size=12, drop_path_rate=drop_path_rate, **kwargs)


def swin_large_patch4_window12_384(drop_path_rate: float = 0.2, **kwargs: Any) -> SwinTransformer:
    """Swin-L at 384 pixels, fine-tuned from 224.

    Published: 197M parameters, 103.9G MACs.
        87.3 / 98.2: ImageNet-22K, then 1K; resize 384 x 384
    """
    return _large(img_size=384, window_size=12, drop_path_rate=drop_path_rate, **kwargs)


def swinv2_tiny_patch4_window8_256(drop_path_rate: float = 0.2, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-T, windows of 8 x 8 tokens.

    Published: 28M parameters, 5.9G MACs.
        81.8 / 95.9: ImageNet-1K; resize 292, crop 256
    """
    return _tiny_v2(img_size=256, window_size=8, drop_path_rate=drop_path_rate, **kwargs)


def swinv2_small_patch4_window8_256(drop_path_rate: float = 0.3, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-S, windows of 8 x 8 tokens.

    Published: 50M parameters, 11.5G MACs.
        83.7 / 96.6: ImageNet-1K; resize 292, crop 256
    """
    return _small_v2(img_size=256, window_size=8, drop_path_rate=drop_path_rate, **kwargs)


def swinv2_base_patch4_window8_256(drop_path_rate: float = 0.5, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-B, windows of 8 x 8 tokens.

    Published: 88M parameters, 20.3G MACs.
        84.2 / 96.9: ImageNet-1K; resize 292, crop 256
    """
    return _base_v2(img_size=256, window_size=8, drop_path_rate=drop_path_rate, **kwargs)


def swinv2_tiny_patch4_window16_256(drop_path_rate: float = 0.2, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-T, windows of 16 x 16 tokens.

    Published: 28M parameters, 6.6G MACs.
        82.8 / 96.2: ImageNet-1K; resize 292, crop 256
    """
    return _tiny_v2(img_size=256, window_size=16, drop_path_rate=drop_path_rate, **kwargs)


def swinv2_small_patch4_window16_256(drop_path_rate: float = 0.3, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-S, windows of 16 x 16 tokens.

    Published: 50M parameters, 12.6G MACs.
        84.1 / 96.8: ImageNet-1K; resize 292, crop 256
    """
    return _small_v2(img_size=256, window_size=16, drop_path_rate=drop_path_rate, **kwargs)


def swinv2_base_patch4_window16_256(drop_path_rate: float = 0.5, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-B, windows of 16 x 16 tokens.

    Published: 88M parameters, 21.8G MACs.
        84.6 / 97.0: ImageNet-1K; resize 292, crop 256
    """
    return _base_v2(img_size=256, window_size=16, drop_path_rate=drop_path_rate, **kwargs)


def swinv2_base_patch4_window12_192(drop_path_rate: float = 0.2, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-B at 192 pixels: the start of the fine-tuned ones, published with the 21841 classes of ImageNet-22K."""
    return _base_v2(img_size=192, window_size=12, drop_path_rate=drop_path_rate, **kwargs)


def swinv2_large_patch4_window12_192(drop_path_rate: float = 0.2, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-L at 192 pixels: the start of the fine-tuned ones, published with the 21841 classes of ImageNet-22K."""
    return _large_v2(img_size=192, window_size=12, drop_path_rate=drop_path_rate, **kwargs)


def swinv2_base_patch4_window12to16_192to256(drop_path_rate: float = 0.2, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-B at 256 pixels, fine-tuned from windows of 12 x 12 tokens at 192.

    Published: 88M parameters, 21.8G MACs.
        86.2 / 97.9: ImageNet-22K, then 1K; resize 292, crop 256
    """
    return _base_v2(
        img_size=256, window_size=16, pretrained_window_sizes=(12, 12, 12, 6), drop_path_rate=drop_path_rate, **kwargs
    )


def swinv2_large_patch4_window12to16_192to256(drop_path_rate: float = 0.2, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-L at 256 pixels, fine-tuned from windows of 12 x 12 tokens at 192.

    Published: 197M parameters, 47.5G MACs.
        86.9 / 98.0: ImageNet-22K, then 1K; resize 292, crop 256
    """
    return _large_v2(
        img_size=256, window_size=16, pretrained_window_sizes=(12, 12, 12, 6), drop_path_rate=drop_path_rate, **kwargs
    )


def swinv2_base_patch4_window12to24_192to384(drop_path_rate: float = 0.2, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-B at 384 pixels, fine-tuned from windows of 12 x 12 tokens at 192.

    Published: 88M parameters, 54.7G MACs.
        87.1 / 98.2: ImageNet-22K, then 1K; resize 384 x 384
    """
    return _base_v2(
        img_size=384, window_size=24, pretrained_window_sizes=(12, 12, 12, 6), drop_path_rate=drop_path_rate, **kwargs
    )


def swinv2_large_patch4_window12to24_192to384(drop_path_rate: float = 0.2, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-L at 384 pixels, fine-tuned from windows of 12 x 12 tokens at 192.

    Published: 197M parameters, 115.4G MACs.
        87.6 / 98.3: ImageNet-22K, then 1K; resize 384 x 384
    """
    return _large_v2(
        img_size=384, window_size=24, pretrained_window_sizes=(12, 12, 12, 6), drop_path_rate=drop_path_rate, **kwargs
    )


def swin_tiny_patch2_window4_32(drop_path_rate: float = 0.1, **kwargs: Any) -> SwinTransformer:
    """Three stages for 32 x 32 images: 16 x 16 tokens of 2 x 2 pixels, 7.1 M parameters.

    The layout of aanna0701/SPT_LSA_ViT, published with 94.46 % on CIFAR-10 and 76.87 % on CIFAR-100.
    """
    return SwinTransformer(
        img_size=32,
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
        img_size=32,
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


# the four sizes of both papers


def _tiny(**kwargs: Any) -> SwinTransformer:
    return SwinTransformer(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), **kwargs)


def _small(**kwargs: Any) -> SwinTransformer:
    return SwinTransformer(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), **kwargs)


def _base(**kwargs: Any) -> SwinTransformer:
    return SwinTransformer(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), **kwargs)


def _large(**kwargs: Any) -> SwinTransformer:
    return SwinTransformer(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), **kwargs)


def _tiny_v2(**kwargs: Any) -> SwinTransformerV2:
    return SwinTransformerV2(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), **kwargs)


def _small_v2(**kwargs: Any) -> SwinTransformerV2:
    return SwinTransformerV2(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), **kwargs)


def _base_v2(**kwargs: Any) -> SwinTransformerV2:
    return SwinTransformerV2(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), **kwargs)


def _large_v2(**kwargs: Any) -> SwinTransformerV2:
    return SwinTransformerV2(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), **kwargs)
