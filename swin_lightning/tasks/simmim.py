"""SimMIM: masked image modelling, a pre-training without labels (Xie et al., 2022, arXiv:2111.09886)."""

from typing import Annotated, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swin_lightning.batch import Batch
from swin_lightning.errors import UserError
from swin_lightning.models.precision import disable_autocast
from swin_lightning.models.swin import SwinTransformer
from swin_lightning.ranges import PositiveInt, Range, check_arguments
from swin_lightning.tasks.base import Task
from swin_lightning.tasks.classification import WeightedMean
from swin_lightning.tasks.masks import block_masks


class SimMIM(Task):
    """Reconstruct the pixels of masked blocks, from features of the last stage through a single linear layer.

    Patch embeddings of masked blocks are replaced by a learned token, and the loss is the mean absolute error of the
    masked pixels. Labels are not used. `SwinClassifier` and `load_weights` read the backbone from a checkpoint.

    The masks of training are a function of seed, epoch and index of the image; those of evaluation do not change with
    the epoch, so that `val/loss` is comparable between epochs.

    Args:
        backbone: A `SwinTransformer` or `SwinTransformerV2`.
        mask_patch_size: Side of a masked block in pixels, a multiple of the backbone's patch size.
        mask_ratio: Share of the blocks that are masked, rounded up to a whole number of blocks.
        norm_target: Normalise the pixels to be predicted by mean and standard deviation of their neighbourhood, a
            square of this odd side in pixels; by default they are not normalised.
        **task: Arguments of `Task`.

    Raises:
        UserError: As `Task`; also if the backbone has no patch embeddings to mask, or a size does not fit it.

    Source: microsoft/SimMIM d3e29bc, models/simmim.py; target normalisation: microsoft/Swin-Transformer f82860b.
    """

    def __init__(
        self,
        backbone: nn.Module,
        mask_patch_size: PositiveInt = 32,
        mask_ratio: Annotated[float, Range(gt=0, lt=1)] = 0.6,
        norm_target: Annotated[int, Range(ge=3)] | None = None,
        **task: object,
    ) -> None:
        check_arguments(SimMIM.__init__, locals(), "model.")
        super().__init__(backbone, **task)  # type: ignore[arg-type]
        if not isinstance(backbone, SwinTransformer):
            raise UserError(
                f"model.backbone: SimMIM needs a SwinTransformer or SwinTransformerV2, got {type(backbone).__name__}"
            )
        patch_size = backbone.patch_size[0]
        if backbone.patch_size[1] != patch_size or mask_patch_size % patch_size:
            raise UserError(
                f"model.mask_patch_size {mask_patch_size} must be a multiple of the backbone's patch size {patch_size}"
            )
        if norm_target is not None and norm_target % 2 == 0:
            raise UserError(f"model.norm_target {norm_target} must be odd: a square with the pixel in its centre")
        self.mask_patch_size, self.mask_ratio, self.norm_target = mask_patch_size, mask_ratio, norm_target
        self.patch_size, self.stride = patch_size, patch_size << (len(backbone.layers) - 1)
        backbone.head = nn.Identity()
        channels, width = backbone.patch_embed.proj.in_channels, backbone.patch_embed.proj.out_channels
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.decoder = nn.Conv2d(backbone.num_features, channels * self.stride**2, kernel_size=1)
        self.metrics = nn.ModuleDict({f"{split}/loss": WeightedMean() for split in ("val", "test")})
        self.finish_init()

    def logged_metrics(self) -> list[str]:
        """Names of the metrics that training and validation log."""
        return ["train/loss", "val/loss"]

    def compiled_modules(self) -> list[nn.Module]:
        """Patch embedding and stages, between which the mask token is inserted."""
        backbone = self._swin()
        return [backbone.patch_embed, *backbone.layers]

    def masks(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """The masks of an epoch for images with these indices.

        Args:
            images: `B, 3, height, width`.
            indices: `B`.
            epoch: The epoch.

        Returns:
            Masked patches, `B, H, W` bool; H and W are height and width in patches.

        Raises:
            UserError: If the images cannot be divided into blocks, or the last feature map into its patches.
        """
        height, width = images.shape[-2:]
        for option, size in (("model.mask_patch_size", self.mask_patch_size), ("the backbone's stride", self.stride)):
            if height % size or width % size:
                raise UserError(
                    f"{option} {size} does not divide images of {height} x {width} pixels; set data.image_size to a "
                    f"multiple of {size}"
                )
        size, scale = self.mask_patch_size, self.mask_patch_size // self.patch_size
        blocks = block_masks(indices, self.seed, epoch, height // size, width // size, self.mask_ratio)
        return blocks.repeat_interleave(scale, 1).repeat_interleave(scale, 2)

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """Reconstruct masked images.

        Args:
            images: Normalised images, `B, 3, height, width`.
            masks: Masked patches, `B, H, W` bool.

        Returns:
            All pixels, `B, 3, height, width`, normalised as the images; with `norm_target` by their neighbourhoods.
        """
        backbone = self._swin()
        x = backbone.patch_embed(images)  # B, H, W, C
        x = torch.where(masks[..., None], self.mask_token.to(x.dtype), x)
        x = backbone.norm(backbone.forward_stages(x)[-1])  # B, H/stride, W/stride, num_features
        return F.pixel_shuffle(self.decoder(x.permute(0, 3, 1, 2)), self.stride)

    def compute_loss(self, images: Tensor, masks: Tensor, reconstruction: Tensor) -> Tensor:
        """Mean absolute error over the masked pixels of each image, `B` float32. Arguments as in `forward`."""
        with disable_autocast(images):
            target, found = images.float(), reconstruction.float()
            if self.norm_target is not None:
                target = normalize_locally(target, self.norm_target)
            errors = (target - found).abs().mean(dim=1)  # B, height, width
            pixels = masks.repeat_interleave(self.patch_size, 1).repeat_interleave(self.patch_size, 2)
            return (errors * pixels).sum(dim=(1, 2)) / pixels.sum(dim=(1, 2))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images = batch["image"]
        masks = self.masks(images, batch["index"], self.current_epoch)
        loss = self.compute_loss(images, masks, self(images, masks)).mean()
        self.log_step_mean("train/loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    # helpers

    def _swin(self) -> SwinTransformer:
        assert isinstance(self.backbone, SwinTransformer)
        return self.backbone

    def _evaluate(self, batch: Batch, split: str) -> None:
        images, known = batch["image"], batch["index"] >= 0
        masks = self.masks(images, batch["index"], 0)
        losses = self.compute_loss(images, masks, self(images, masks))
        metric = cast(WeightedMean, self.metrics[f"{split}/loss"])
        metric.update(losses.where(known, 0.0).sum(), known.sum())
        self.log(f"{split}/loss", metric, prog_bar=True)


def normalize_locally(images: Tensor, size: int) -> Tensor:
    """Remove the mean and standard deviation of the neighbourhood of each pixel, per channel.

    Args:
        images: `B, 3, height, width`.
        size: Side of the neighbourhood in pixels, odd; at the border it ends with the image.

    Source: microsoft/Swin-Transformer f82860b, models/simmim.py, `norm_targets`.
    """

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, size, stride=1, padding=size // 2, count_include_pad=False)

    inside = F.avg_pool2d(torch.ones_like(images[:1, :1]), size, stride=1, padding=size // 2) * size**2  # pixels
    centre = mean(images)
    variance = (mean(images.square()) - centre.square()).clamp(min=0) * inside / (inside - 1)  # unbiased
    return (images - centre) / (variance + 1e-6).sqrt()
