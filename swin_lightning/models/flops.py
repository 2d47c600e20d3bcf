"""Parameters and multiply-accumulate operations (MACs) of the models, and the table of `swin-lightning models`."""

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from swin_lightning.errors import CommandParser
from swin_lightning.models.registry import ModelInfo, list_models, model_info


def count_params_and_macs(
    builder: Callable[..., nn.Module], num_classes: int = 1000, image_size: int = 224
) -> tuple[int, int]:
    """Count the parameters of a model and its MACs for one image.

    Counted are the matrix products of a forward pass: linear layers, the convolution of the patch embedding, and the
    two products of attention in every window, including padding. As in the published numbers, norms, softmax and
    additions are not counted, and neither is the MLP of the position bias of V2, which runs once per batch. The model
    is built on the meta device: nothing is computed.

    Args:
        builder: Function that builds the model; called with `num_classes`.
        num_classes: Number of classes of the head.
        image_size: Side of the image in pixels.

    Returns:
        Number of parameters, number of MACs.
    """
    with torch.device("meta"), torch.no_grad():
        model = builder(num_classes=num_classes).eval()
        images = torch.empty(1, 3, image_size, image_size)
        with FlopCounterMode(display=False) as counter:
            model(images)
    flops = counter.get_total_flops()
    for name, operations in counter.get_flop_counts().items():
        if name.endswith(".cpb_mlp"):
            flops -= sum(operations.values())
    return sum(p.numel() for p in model.parameters()), flops // 2  # 2 FLOPs per MAC


def model_table() -> Iterator[str]:
    """Lines of the table of all models: counted and published parameters and MACs, published accuracy."""
    width = max(map(len, list_models()))
    yield f"{'model':{width}}  image  classes  parameters (published)  MACs (published)  top-1 / top-5"
    for name in list_models():
        yield _table_row(model_info(name), width)
    yield "MACs for one image: linear layers, patch embedding and attention; without the position bias MLP of V2."
    yield "Published accuracy in percent on the validation set of ImageNet-1K."


def models(args: list[str]) -> None:
    """Print all named models: parameters and MACs, both counted and published, and published accuracy."""
    CommandParser("swin-lightning models", description=models.__doc__).parse_args(args)
    for line in model_table():
        print(line, flush=True)


def _table_row(model: ModelInfo, width: int) -> str:
    """One line per published result, the first of them with name and counts."""
    params, macs = count_params_and_macs(model.builder, model.num_classes, model.image_size)
    published = model.published
    published_params, published_macs = (f"({published.params}M)", f"({published.gmacs}G)") if published else ("", "")
    row = f"{model.name:{width}}  {model.image_size:5}  {model.num_classes:7}"
    row += f"  {params / 1e6:9.2f}M {published_params:>11}  {macs / 1e9:7.2f}G {published_macs:>8}"
    results = [f"{r.top1} / {r.top5}  {r.setting}" for r in published.results] if published else []
    return f"\n{' ' * len(row)}  ".join(["  ".join([row, *results[:1]]), *results[1:]])
