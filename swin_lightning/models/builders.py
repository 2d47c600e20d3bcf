"""Named models: the published Swin V1 and V2 models, and small ones for small images.

Each function returns a backbone without head and takes all other arguments of `SwinTransformer` or
`SwinTransformerV2`. Published metrics are those of microsoft/Swin-Transformer, README.md and configs/.
"""

from typing import Any

from swin_lightning.models.registry import PretrainedMetrics, PublishedResult, register_model
from swin_lightning.models.swin import SwinTransformer
from swin_lightning.models.swin_v2 import SwinTransformerV2
from swin_lightning.ranges import Rate

CROP_224 = "resize 256, crop 224"  # shorter side to 256 pixels, then centre crop
CROP_256 = "resize 292, crop 256"
RESIZE_384 = "resize 384 x 384"  # the whole image, without keeping the aspect ratio


@register_model(
    image_size=224,
    published=PretrainedMetrics(
        params=28,
        gmacs=4.5,
        results=(
            PublishedResult(81.2, 95.5, "ImageNet-1K", CROP_224),
            PublishedResult(80.9, 96.0, "ImageNet-22K", CROP_224),
        ),
    ),
)
def swin_tiny_patch4_window7_224(drop_path_rate: Rate = 0.2, **kwargs: Any) -> SwinTransformer:
    """Swin-T."""
    return _tiny(window_size=7, drop_path_rate=drop_path_rate, **kwargs)


@register_model(
    image_size=224,
    published=PretrainedMetrics(
        params=50,
        gmacs=8.7,
        results=(
            PublishedResult(83.2, 96.2, "ImageNet-1K", CROP_224),
            PublishedResult(83.2, 97.0, "ImageNet-22K", CROP_224),
        ),
    ),
)
def swin_small_patch4_window7_224(drop_path_rate: Rate = 0.3, **kwargs: Any) -> SwinTransformer:
    """Swin-S."""
    return _small(window_size=7, drop_path_rate=drop_path_rate, **kwargs)


@register_model(
    image_size=224,
    published=PretrainedMetrics(
        params=88,
        gmacs=15.4,
        results=(
            PublishedResult(83.5, 96.5, "ImageNet-1K", CROP_224),
            PublishedResult(85.2, 97.5, "ImageNet-22K", CROP_224),
        ),
    ),
)
def swin_base_patch4_window7_224(drop_path_rate: Rate = 0.5, **kwargs: Any) -> SwinTransformer:
    """Swin-B."""
    return _base(window_size=7, drop_path_rate=drop_path_rate, **kwargs)


@register_model(
    image_size=224,
    published=PretrainedMetrics(
        params=197, gmacs=34.5, results=(PublishedResult(86.3, 97.9, "ImageNet-22K", CROP_224),)
    ),
)
def swin_large_patch4_window7_224(drop_path_rate: Rate = 0.2, **kwargs: Any) -> SwinTransformer:
    """Swin-L."""
    return _large(window_size=7, drop_path_rate=drop_path_rate, **kwargs)


@register_model(
    image_size=384,
    published=PretrainedMetrics(
        params=88,
        gmacs=47.1,
        results=(
            PublishedResult(84.5, 97.0, "ImageNet-1K", RESIZE_384),
            PublishedResult(86.4, 98.0, "ImageNet-22K", RESIZE_384),
        ),
    ),
)
def swin_base_patch4_window12_384(drop_path_rate: Rate = 0.5, **kwargs: Any) -> SwinTransformer:
    """Swin-B at 384 pixels, pre-trained at 224."""
    return _base(img_size=384, window_size=12, drop_path_rate=drop_path_rate, **kwargs)


@register_model(
    image_size=384,
    published=PretrainedMetrics(
        params=197, gmacs=103.9, results=(PublishedResult(87.3, 98.2, "ImageNet-22K", RESIZE_384),)
    ),
)
def swin_large_patch4_window12_384(drop_path_rate: Rate = 0.2, **kwargs: Any) -> SwinTransformer:
    """Swin-L at 384 pixels, pre-trained at 224."""
    return _large(img_size=384, window_size=12, drop_path_rate=drop_path_rate, **kwargs)


@register_model(
    image_size=256,
    published=PretrainedMetrics(params=28, gmacs=5.9, results=(PublishedResult(81.8, 95.9, "ImageNet-1K", CROP_256),)),
)
def swinv2_tiny_patch4_window8_256(drop_path_rate: Rate = 0.2, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-T, window size 8."""
    return _tiny_v2(img_size=256, window_size=8, drop_path_rate=drop_path_rate, **kwargs)


@register_model(
    image_size=256,
    published=PretrainedMetrics(params=50, gmacs=11.5, results=(PublishedResult(83.7, 96.6, "ImageNet-1K", CROP_256),)),
)
def swinv2_small_patch4_window8_256(drop_path_rate: Rate = 0.3, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-S, window size 8."""
    return _small_v2(img_size=256, window_size=8, drop_path_rate=drop_path_rate, **kwargs)


@register_model(
    image_size=256,
    published=PretrainedMetrics(params=88, gmacs=20.3, results=(PublishedResult(84.2, 96.9, "ImageNet-1K", CROP_256),)),
)
def swinv2_base_patch4_window8_256(drop_path_rate: Rate = 0.5, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-B, window size 8."""
    return _base_v2(img_size=256, window_size=8, drop_path_rate=drop_path_rate, **kwargs)


@register_model(
    image_size=256,
    published=PretrainedMetrics(params=28, gmacs=6.6, results=(PublishedResult(82.8, 96.2, "ImageNet-1K", CROP_256),)),
)
def swinv2_tiny_patch4_window16_256(drop_path_rate: Rate = 0.2, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-T, window size 16."""
    return _tiny_v2(img_size=256, window_size=16, drop_path_rate=drop_path_rate, **kwargs)


@register_model(
    image_size=256,
    published=PretrainedMetrics(params=50, gmacs=12.6, results=(PublishedResult(84.1, 96.8, "ImageNet-1K", CROP_256),)),
)
def swinv2_small_patch4_window16_256(drop_path_rate: Rate = 0.3, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-S, window size 16."""
    return _small_v2(img_size=256, window_size=16, drop_path_rate=drop_path_rate, **kwargs)


@register_model(
    image_size=256,
    published=PretrainedMetrics(params=88, gmacs=21.8, results=(PublishedResult(84.6, 97.0, "ImageNet-1K", CROP_256),)),
)
def swinv2_base_patch4_window16_256(drop_path_rate: Rate = 0.5, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-B, window size 16."""
    return _base_v2(img_size=256, window_size=16, drop_path_rate=drop_path_rate, **kwargs)


@register_model(image_size=192, num_classes=21841)
def swinv2_base_patch4_window12_192(drop_path_rate: Rate = 0.2, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-B at 192 pixels, pre-trained on the 21841 classes of ImageNet-22K; the starting point for fine-tuning."""
    return _base_v2(img_size=192, window_size=12, drop_path_rate=drop_path_rate, **kwargs)


@register_model(image_size=192, num_classes=21841)
def swinv2_large_patch4_window12_192(drop_path_rate: Rate = 0.2, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-L at 192 pixels, pre-trained on the 21841 classes of ImageNet-22K; the starting point for fine-tuning."""
    return _large_v2(img_size=192, window_size=12, drop_path_rate=drop_path_rate, **kwargs)


@register_model(
    image_size=256,
    published=PretrainedMetrics(
        params=88, gmacs=21.8, results=(PublishedResult(86.2, 97.9, "ImageNet-22K", CROP_256),)
    ),
)
def swinv2_base_patch4_window12to16_192to256(drop_path_rate: Rate = 0.2, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-B at 256 pixels, pre-trained with window size 12 at 192 pixels."""
    return _base_v2(
        img_size=256, window_size=16, pretrained_window_sizes=(12, 12, 12, 6), drop_path_rate=drop_path_rate, **kwargs
    )


@register_model(
    image_size=256,
    published=PretrainedMetrics(
        params=197, gmacs=47.5, results=(PublishedResult(86.9, 98.0, "ImageNet-22K", CROP_256),)
    ),
)
def swinv2_large_patch4_window12to16_192to256(drop_path_rate: Rate = 0.2, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-L at 256 pixels, pre-trained with window size 12 at 192 pixels."""
    return _large_v2(
        img_size=256, window_size=16, pretrained_window_sizes=(12, 12, 12, 6), drop_path_rate=drop_path_rate, **kwargs
    )


@register_model(
    image_size=384,
    published=PretrainedMetrics(
        params=88, gmacs=54.7, results=(PublishedResult(87.1, 98.2, "ImageNet-22K", RESIZE_384),)
    ),
)
def swinv2_base_patch4_window12to24_192to384(drop_path_rate: Rate = 0.2, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-B at 384 pixels, pre-trained with window size 12 at 192 pixels."""
    return _base_v2(
        img_size=384, window_size=24, pretrained_window_sizes=(12, 12, 12, 6), drop_path_rate=drop_path_rate, **kwargs
    )


@register_model(
    image_size=384,
    published=PretrainedMetrics(
        params=197, gmacs=115.4, results=(PublishedResult(87.6, 98.3, "ImageNet-22K", RESIZE_384),)
    ),
)
def swinv2_large_patch4_window12to24_192to384(drop_path_rate: Rate = 0.2, **kwargs: Any) -> SwinTransformerV2:
    """Swin V2-L at 384 pixels, pre-trained with window size 12 at 192 pixels."""
    return _large_v2(
        img_size=384, window_size=24, pretrained_window_sizes=(12, 12, 12, 6), drop_path_rate=drop_path_rate, **kwargs
    )


@register_model(image_size=32, num_classes=10)
def swin_tiny_patch2_window4_32(drop_path_rate: Rate = 0.1, **kwargs: Any) -> SwinTransformer:
    """Three stages for 32 x 32 images: 16 x 16 patches of 2 x 2 pixels, 7.1M parameters.

    Architecture of aanna0701/SPT_LSA_ViT, with a published accuracy of 94.46 % on CIFAR-10 and 76.87 % on CIFAR-100.
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


@register_model(image_size=32, num_classes=10)
def swin_micro_patch4_window4_32(drop_path_rate: Rate = 0.0, **kwargs: Any) -> SwinTransformer:
    """Two stages of two blocks for 32 x 32 images on a CPU: 8 x 8 patches of 4 x 4 pixels, 0.4M parameters."""
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


# the four model sizes of both papers


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
