"""Saliency maps of a model: attention rollout and Grad-CAM; principal components of its features.

Shapes: B batch, H W token map, C channels.
"""

from typing import cast

import torch
from torch import Tensor, nn

from swin_lightning.errors import UserError
from swin_lightning.explore.attention_maps import record_attention, swin_blocks
from swin_lightning.models.swin import SwinTransformer


def attention_rollout(model: nn.Module, images: Tensor, residual: float = 0.5) -> Tensor:
    """Contribution of each token of the first stage to the pooled feature, by attention alone.

    Relevance starts uniform on the last map, because the network averages it, and is propagated back block by block:
    a token keeps the share of the residual connection and passes the rest on to the tokens it attends to. The
    relevance of a merged token is split among the tokens it was merged from.

    Args:
        model: A Swin Transformer, or a module that contains one.
        images: `B, 3, height, width`, normalised.
        residual: Share of a block's output that is attributed to its residual connection.

    Returns:
        `B, H, W`; every map sums to 1. Source: Abnar and Zuidema, 2020, arXiv:2005.00928 (for global attention).
    """
    with torch.no_grad(), record_attention(model) as record:
        model(images)
    blocks = list(record.values())
    H, W = blocks[-1].size
    relevance = blocks[-1].weights.new_full((len(images), H, W), 1 / (H * W))
    for block in reversed(blocks):
        if block.size != relevance.shape[1:]:
            relevance = _undo_patch_merging(relevance, block.size)
        relevance = residual * relevance + (1 - residual) * block.propagate(relevance)
    return relevance


def grad_cam(model: nn.Module, images: Tensor, classes: Tensor | None = None, stage: int = -1) -> Tensor:
    """Grad-CAM: features of a stage weighted by the mean gradient of a class logit.

    Implemented here because the libraries do not fit: `captum` expects channels in dimension 1 and would average over
    the wrong dimensions, and `grad-cam` depends on torchvision and OpenCV.

    Args:
        model: A classifier that contains a Swin Transformer and returns logits.
        images: `B, 3, height, width`, normalised.
        classes: The class to explain for each image, `B`; the predicted one by default.
        stage: Index of the stage whose output is used.

    Returns:
        `B, H, W`, at least 0, in units of the logit. Source: Selvaraju et al., 2017, arXiv:1610.02391.
    """
    block = cast(nn.ModuleList, find_backbone(model).layers[stage].blocks)[-1]
    outputs: list[Tensor] = []
    handle = block.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    try:
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            logits = model(images.detach().requires_grad_())
            classes = logits.argmax(dim=1) if classes is None else classes
            (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), outputs[-1])
    finally:
        handle.remove()
    features = outputs[-1].detach()  # B, H, W, C
    weights = gradient.mean(dim=(1, 2), keepdim=True)  # B, 1, 1, C
    return (weights * features).sum(dim=-1).relu()


def principal_components_rgb(features: Tensor) -> Tensor:
    """The first three principal components of a feature map as red, green and blue: `C, H, W` -> `H, W, 3` in [0, 1].

    Tokens of similar colour have similar features. Colours of different maps are not comparable. Signs are chosen such
    that the largest deviation is bright.
    """
    H, W = features.shape[1:]
    tokens = features.detach().float().flatten(1).T  # H*W, C
    tokens = tokens - tokens.mean(dim=0)
    components = torch.linalg.svd(tokens, full_matrices=False)[2][:3]
    scores = tokens @ components.T
    extreme = scores.gather(0, scores.abs().argmax(dim=0, keepdim=True))
    scores = scores * extreme.sign()
    low, high = scores.min(dim=0).values, scores.max(dim=0).values
    rgb: Tensor = (scores - low) / (high - low).clamp(min=1e-12)
    return rgb.view(H, W, -1)


def find_backbone(model: nn.Module) -> SwinTransformer:
    """The Swin Transformer in a module.

    Raises:
        UserError: If there is none.
    """
    for module in model.modules():
        if isinstance(module, SwinTransformer):
            return module
    swin_blocks(model)  # raises the error for a model without any Swin block
    raise UserError(f"{type(model).__name__} has Swin Transformer blocks, but no SwinTransformer")


def _undo_patch_merging(relevance: Tensor, size: tuple[int, int]) -> Tensor:
    """Split the relevance of a merged token equally among its source tokens: 4, or fewer at the border of odd maps."""

    def upsample(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)[..., : size[0], : size[1]]

    H, W = relevance.shape[1:]
    rows, columns = (torch.full((n,), 2.0) for n in (H, W))
    rows[-1], columns[-1] = 2 - size[0] % 2, 2 - size[1] % 2
    return upsample(relevance / (rows[:, None] * columns[None, :]).to(relevance))
