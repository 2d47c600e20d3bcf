"""Maps over the image that say what a model looks at: attention rollout, Grad-CAM, principal components.

Shapes: B batch, H W map, C channels.
"""

from typing import cast

import torch
from torch import Tensor, nn

from swin_lightning.errors import UserError
from swin_lightning.explore.attention_maps import record_attention, swin_blocks
from swin_lightning.models.swin import SwinTransformer


def rollout(model: nn.Module, images: Tensor, residual: float = 0.5) -> Tensor:
    """From which tokens of the first stage the pooled feature comes, if attention were all that moves information.

    Relevance starts equal on the last map, since the network takes its mean, and goes back block by block: a token
    keeps the share of the residual path and hands the rest to the tokens it attends to. A merged token is four.

    Args:
        model: A Swin Transformer, or a module that holds one.
        images: `B, 3, height, width`, normalised.
        residual: Share of a block's output that is its input.

    Returns:
        `B, H, W`; every map sums to 1. Source: Abnar and Zuidema, 2020, arXiv:2005.00928, there for global attention.
    """
    with torch.no_grad(), record_attention(model) as record:
        model(images)
    blocks = list(record.values())
    H, W = blocks[-1].size
    relevance = blocks[-1].weights.new_full((len(images), H, W), 1 / (H * W))
    for block in reversed(blocks):
        if block.size != relevance.shape[1:]:
            relevance = _unmerge(relevance, block.size)
        relevance = residual * relevance + (1 - residual) * block.trace_back(relevance)
    return relevance


def grad_cam(model: nn.Module, images: Tensor, classes: Tensor | None = None, stage: int = -1) -> Tensor:
    """Where a stage's features speak for a class.

    Written here, since the method is these few lines: of the libraries, `captum` takes channels to be a layer's second
    dimension and would average over the wrong ones, `grad-cam` needs torchvision and OpenCV.

    Args:
        model: A classifier that holds a Swin Transformer and returns logits.
        images: `B, 3, height, width`, normalised.
        classes: The class of each image, `B`; the predicted one by default.
        stage: Stage whose output is weighed.

    Returns:
        `B, H, W`, at least 0, in units of the logit. Source: Selvaraju et al., 2017, arXiv:1610.02391.
    """
    block = cast(nn.ModuleList, backbone_of(model).layers[stage].blocks)[-1]
    outputs: list[Tensor] = []
    handle = block.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    try:
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            logits = model(images.detach().requires_grad_())
            classes = logits.argmax(dim=1) if classes is None else classes
            (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), outputs[-1])
    finally:
        handle.remove()
    weights = gradient.mean(dim=(1, 2), keepdim=True)  # B, 1, 1, C
    return (weights * outputs[-1]).sum(dim=-1).relu().detach()


def principal_colours(features: Tensor) -> Tensor:
    """The three strongest components of a map's channels as red, green, blue: `C, H, W` -> `H, W, 3` in [0, 1].

    Tokens of one colour are alike to the network. Colours of two maps cannot be compared; signs are chosen so that the
    largest deviation is bright.
    """
    H, W = features.shape[1:]
    tokens = features.detach().float().flatten(1).T  # H*W, C
    tokens = tokens - tokens.mean(dim=0)
    components = torch.linalg.svd(tokens, full_matrices=False)[2][:3]
    scores = tokens @ components.T
    extreme = scores.gather(0, scores.abs().argmax(dim=0, keepdim=True))
    scores = scores * extreme.sign()
    low, high = scores.min(dim=0).values, scores.max(dim=0).values
    return ((scores - low) / (high - low).clamp(min=1e-12)).view(H, W, -1)


def backbone_of(model: nn.Module) -> SwinTransformer:
    """The Swin Transformer inside a module.

    Raises:
        ValueError: If there is none.
    """
    for module in model.modules():
        if isinstance(module, SwinTransformer):
            return module
    swin_blocks(model)  # names the model and the cure
    raise UserError(f"{type(model).__name__} holds Swin blocks, but no Swin Transformer")


def _unmerge(relevance: Tensor, size: tuple[int, int]) -> Tensor:
    """Give a merged token's relevance in equal parts to the tokens it was made of: 4, fewer at the rim of odd maps."""

    def spread(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)[..., : size[0], : size[1]]

    H, W = relevance.shape[1:]
    rows, columns = (torch.full((n,), 2.0) for n in (H, W))
    rows[-1], columns[-1] = 2 - size[0] % 2, 2 - size[1] % 2
    return spread(relevance / (rows[:, None] * columns[None, :]).to(relevance))
