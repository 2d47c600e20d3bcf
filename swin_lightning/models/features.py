"""Feature pyramid of a Swin backbone as a module, for necks and heads of detection and segmentation."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from swin_lightning.errors import UserError
from swin_lightning.models.swin import SwinTransformer


@dataclass(frozen=True)
class FeatureInfo:
    """Shapes of the feature maps, as in timm's `features_only` models.

    Args:
        num_chs: Channels of each map.
        reductions: Height and width of an image in proportion to each map.
        out_indices: Stage of each map.
    """

    num_chs: tuple[int, ...]
    reductions: tuple[int, ...]
    out_indices: tuple[int, ...]

    def channels(self) -> list[int]:
        """Channels of each map."""
        return list(self.num_chs)

    def reduction(self) -> list[int]:
        """Stride of each map in pixels."""
        return list(self.reductions)


class FeaturePyramid(nn.Module):
    """A backbone that returns the feature maps of some stages, for a neck such as FPN or UPerNet.

    Parameters of the backbone that the maps do not depend on (final norm, head, later stages) are frozen, so that
    distributed training finds no unused parameters. Keys of the backbone stay as they are:
    `load_weights(pyramid, FILE)` reads any file that the backbone reads.

    Args:
        backbone: The backbone.
        out_indices: Stages to return, counted from 0; all by default.
        norm: Apply a LayerNorm to each map, as mmdetection and mmsegmentation do.

    Attributes:
        channels: Channels of each map.
        strides: Stride of each map in pixels (height).
        feature_info: The same with timm's interface, `channels()` and `reduction()`.

    Raises:
        UserError: If the backbone does not have a stage of `out_indices`.
    """

    def __init__(self, backbone: SwinTransformer, out_indices: Sequence[int] | None = None, norm: bool = True) -> None:
        super().__init__()
        stages = len(backbone.layers)
        self.out_indices = tuple(range(stages) if out_indices is None else out_indices)
        if not self.out_indices or not all(0 <= stage < stages for stage in self.out_indices):
            raise UserError(f"out_indices {list(self.out_indices)} must name stages from 0 to {stages - 1}")
        self.backbone = backbone
        dim = backbone.num_features >> (stages - 1)
        self.channels = tuple(dim << stage for stage in self.out_indices)
        self.strides = tuple(backbone.patch_size[0] << stage for stage in self.out_indices)
        self.feature_info = FeatureInfo(self.channels, self.strides, self.out_indices)
        self.norms = nn.ModuleList(nn.LayerNorm(n) if norm else nn.Identity() for n in self.channels)
        last = max(self.out_indices)
        unused = [backbone.norm, backbone.head, *backbone.layers[last + 1 :], backbone.layers[last].downsample]
        for module in unused:
            if isinstance(module, nn.Module):
                module.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images `B, in_chans, height, width` -> one map `B, C, H, W` per stage of `out_indices`."""
        maps = self.backbone.forward_intermediates(images, max(self.out_indices) + 1)  # B, H, W, C
        normed = [norm(maps[stage]) for stage, norm in zip(self.out_indices, self.norms, strict=True)]
        return [x.permute(0, 3, 1, 2).contiguous() for x in normed]
