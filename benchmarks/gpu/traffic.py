"""Cost model: memory that a compiled training step reads and writes, counted without a GPU.

Inductor lowers and fuses the forward and the backward graph for a fake GPU; counted are the bytes of the buffers that
its kernels, matrix products and operators read and write. The optimizer is not included. Fused attention of torch is
counted as its memory-efficient kernel, which CUDA devices use for a bias with a gradient.

    python -m benchmarks.gpu.traffic [--batch-size 128]
"""

import argparse
import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import config
from torch._inductor.compile_fx import _recursive_post_grad_passes, compile_fx, record_original_output_strides
from torch._inductor.debug import DebugContext
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from benchmarks.command import build_parser, parse
from swin_lightning.models import SwinTransformer
from swin_lightning.models.fused_attention import use_fused_attention

DEVICE = SimpleNamespace(  # an H100
    name="fake",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=80 * 2**30,
    shared_memory_per_block=48 * 2**10,
    shared_memory_per_block_optin=227 * 2**10,
    L2_cache_size=50 * 2**20,
    gcnArchName="",
)


class PatchLinear(nn.Module):
    """The convolution of the patch embedding as a linear layer: PyTorch without CUDA has no convolution for a GPU."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.size = convolution.kernel_size[0]
        self.linear = nn.Linear(convolution.in_channels * self.size**2, convolution.out_channels)

    def forward(self, x: Tensor) -> Tensor:  # B, C, height, width -> B, embed_dim, H, W
        B, C, height, width = x.shape
        x = x.view(B, C, height // self.size, self.size, width // self.size, self.size)
        return self.linear(x.permute(0, 2, 4, 1, 3, 5).flatten(3)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Let Inductor generate code for a GPU that does not exist."""
    with (
        patch("torch.cuda.get_device_properties", lambda *args: DEVICE),
        patch.object(CudaInterface, "get_device_properties", lambda *args: DEVICE),
        patch.object(CudaInterface, "get_compute_capability", lambda *args: 90),
        patch.object(CudaInterface, "current_device", lambda *args: 0),
        patch.object(CudaInterface, "is_available", lambda *args: True),
        patch.object(CudaInterface, "synchronize", lambda *args: None),
        patch("torch.cuda.get_device_capability", lambda *args: (9, 0)),
        patch("torch.cuda.current_device", lambda: 0),
        patch("torch.cuda.device_count", lambda: 1),
        patch("swin_lightning.models.attention.fused_attention_serves", lambda *args: True),
        patch.object(F, "scaled_dot_product_attention", efficient_attention),
        # copies between fake tensors of a GPU, which PyTorch without CUDA does not have; one of many passes
        patch("torch._inductor.fx_passes.post_grad.reinplace_inplaceable_ops", lambda *args: None),
        patch.object(nn.LayerNorm, "forward", float32_layer_norm),
    ):
        yield


def efficient_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor, dropout_p: float, scale: float) -> Tensor:
    """The memory-efficient kernel, with the bias padded to a multiple of 8 columns as it requires."""
    padding = -attn_mask.shape[-1] % 8
    if padding:
        attn_mask = F.pad(attn_mask, (0, padding))[..., :-padding]
    attn_mask = attn_mask.expand(q.shape[0], q.shape[1], -1, -1)
    grad = torch.is_grad_enabled()
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    return kernel(q, k, v, attn_mask, grad, dropout_p, False, scale=scale)[0]


def float32_layer_norm(self: nn.LayerNorm, x: Tensor) -> Tensor:
    """As under autocast on a GPU; on a CPU autocast leaves the dtype alone."""
    with torch.autocast("cpu", enabled=False):
        return torch.layer_norm(x.float(), self.normalized_shape, self.weight, self.bias, self.eps)


def move_to_gpu(graph: torch.fx.GraphModule, inputs: list[Any], fake_mode: FakeTensorMode) -> list[Any]:
    """Change the device of a traced graph: autograd of PyTorch without CUDA cannot trace one for a GPU."""
    for node in graph.graph.nodes:
        if isinstance(node.kwargs.get("device"), torch.device):
            node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
    graph.recompile()
    with fake_mode:
        moved = [
            torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device="cuda:0") if isinstance(x, Tensor) else x
            for x in inputs
        ]
    FakeTensorProp(graph, fake_mode).propagate_dont_convert_inputs(*moved)
    return moved


def traffic(model: nn.Module, batch_size: int, image_size: int) -> tuple[int, int, int]:
    """Bytes of a training step of a model on the fake GPU.

    Returns:
        Bytes, and the number of kernels of the forward and of the backward graph.
    """
    found: list[tuple[int, int]] = []

    def count(graph: torch.fx.GraphModule, inputs: list[Any], **options: Any) -> Any:
        fake_mode = next(x.fake_mode for x in inputs if hasattr(x, "fake_mode"))
        moved = copy.deepcopy(graph)
        inputs_on_gpu = move_to_gpu(moved, inputs, fake_mode)
        with V.set_fake_mode(fake_mode):
            record_original_output_strides(moved)
            _recursive_post_grad_passes(moved, is_inference=False)
            lowered = GraphLowering(moved, shape_env=fake_mode.shape_env)
            with V.set_graph_handler(lowered), V.set_debug_handler(DebugContext()):
                lowered.run(*inputs_on_gpu)
                lowered._update_scheduler()
                found.append((lowered.count_bytes()[0], len(lowered.scheduler.nodes)))
        run = lambda args: graph(*args)  # noqa: E731
        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        return compile_fx(graph, inputs, inner_compile=count)

    torch.compiler.reset()
    with (
        fake_gpu(),
        config.patch(fx_graph_cache=False, fallback_random=True),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        model.to_empty(device="cpu").train()
        images = torch.empty(batch_size, 3, image_size, image_size, device="cpu")
        targets = torch.empty(batch_size, dtype=torch.int64, device="cpu")
        compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=False)
        with torch.autocast("cpu", torch.bfloat16):
            logits = compiled(images)
        F.cross_entropy(logits.float(), targets).backward()
    (forward, kernels), (backward, backward_kernels) = found
    return forward + backward, kernels, backward_kernels


def main(args: list[str]) -> None:
    """Print a line for the general path, the operator, and the operator with the residual in half precision."""
    parser = build_parser("gpu.traffic", __doc__)
    parser.set_defaults(batch_size=128)
    options: argparse.Namespace = parse(parser, args)
    for name, operator, half_residual in (
        ("general path", False, False),
        ("operator", True, False),
        ("operator, half_residual", True, True),
    ):
        with torch.device("meta"):
            model = SwinTransformer(num_classes=1000, drop_path_rate=0.2, half_residual=half_residual)
            model.patch_embed.proj = PatchLinear(model.patch_embed.proj)
            use_fused_attention(model, operator)
        total, forward, backward = traffic(model, options.batch_size, 224)
        megabytes = total / options.batch_size / 1e6
        print(f"{name}: {megabytes:.0f} MB per image, {forward} + {backward} kernels", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
