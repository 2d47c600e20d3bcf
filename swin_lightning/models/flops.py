"""The named models as a table: what the program counts, beside what was published."""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from swin_lightning.models import registry as variants
from swin_lightning.models.swin import SwinTransformer

Builder = Callable[..., SwinTransformer]


@dataclass(frozen=True)
class Published:
    """A model's figures as printed by its authors: millions of parameters, 10^9 MACs, and (top-1, top-5, how)."""

    parameters: str
    macs: str
    results: list[tuple[str, str, str]]


def builders() -> dict[str, Builder]:
    """Every named model, in the order of `variants.py`."""
    members = vars(variants).items()
    return {name: member for name, member in members if inspect.isfunction(member) and name.startswith("swin")}


def published(builder: Builder) -> Published | None:
    """Read the `Published:` paragraph of a builder's docstring; None where there is none."""
    text = inspect.getdoc(builder) or ""
    figures = re.search(r"Published: (\d+)M parameters, ([\d.]+)G MACs", text)
    results = re.findall(r"^ +([\d.]+) / ([\d.]+): (.+)$", text, re.MULTILINE)
    return Published(figures[1], figures[2], results) if figures else None


def compare_to_published(class_path: str, experiment: str, top1: float, top5: float, protocol: str) -> str | None:
    """Two lines, a measured accuracy and the published one of the same model; None where none was published.

    Args:
        class_path: Backbone as in a configuration.
        experiment: Name of the experiment; one in `_ft_22k` is compared with the training on ImageNet-22K, then 1K.
        top1: Measured accuracy in [0, 1].
        top5: The same for the five best guesses.
        protocol: How the measured images were cut.
    """
    path, _, name = class_path.rpartition(".")
    builder = builders().get(name) if path.startswith("swin_lightning.models") else None
    figures = published(builder) if builder else None
    if figures is None:
        return None
    more_data = experiment.endswith("_ft_22k")
    theirs1, theirs5, how = min(figures.results, key=lambda result: ("22K" in result[2]) != more_data)
    measured = f"measured   top-1 {100 * top1:4.1f}  top-5 {100 * top5:4.1f}  {protocol}"
    return f"{measured}\npublished  top-1 {theirs1}  top-5 {theirs5}  {how}"


def image_size(name: str) -> int:
    """The image a model is named after, in pixels: the last number of the name."""
    return int(re.findall(r"\d+", name)[-1])


def num_classes(name: str) -> int:
    """Classes that a model is counted with: ImageNet-1K, but 22K where only that was published, and CIFAR-10 at 32."""
    return {32: 10, 192: 21841}.get(image_size(name), 1000)


def count(builder: Builder, num_classes: int, image_size: int) -> tuple[int, int]:
    """Parameters, and multiply-accumulates (MACs) for one image.

    Counted are the products that a forward pass makes: linear layers, the convolution of the patch embedding, and
    queries with keys and weights with values in every window, pads included. Left out, as in the published figures,
    are norms, softmax and sums, and V2's network that makes the position bias: its work is the same for any number
    of images. The pass runs on the meta device: it takes shapes through the network and computes nothing.
    """
    with torch.device("meta"), torch.no_grad():
        model: nn.Module = builder(num_classes=num_classes).eval()
        counter = FlopCounterMode(display=False)
        with counter:
            model(torch.empty(1, 3, image_size, image_size))
    flops = counter.get_total_flops()
    for name, operations in counter.get_flop_counts().items():
        if name.endswith(".cpb_mlp"):
            flops -= sum(operations.values())
    return sum(p.numel() for p in model.parameters()), flops // 2  # a MAC is two operations


def table() -> Iterator[str]:
    """The lines of the table, each as soon as it is counted."""
    width = max(map(len, builders()))
    yield f"{'model':{width}}  classes  parameters (published)  MACs (published)  top-1 / top-5"
    for name, builder in builders().items():
        parameters, macs = count(builder, num_classes(name), image_size(name))
        figures = published(builder)
        theirs = (f"({figures.parameters}M)", f"({figures.macs}G)") if figures else ("", "")
        line = f"{name:{width}}  {num_classes(name):7}  {parameters / 1e6:9.2f}M {theirs[0]:>11}"
        line += f"  {macs / 1e9:7.2f}G {theirs[1]:>8}"
        results = [f"{top1} / {top5}  {how}" for top1, top5, how in figures.results] if figures else []
        yield f"\n{' ' * len(line)}  ".join(["  ".join([line, *results[:1]]), *results[1:]])
    yield "MACs of one image: linear layers, patch embedding, attention products; without the bias network of V2."
    yield "Top-1 and top-5 in percent, as published; ImageNet-1K validation, image size at the end of the name."
