"""The work of each step, in its own process; a step writes its results to a file as it goes."""

import argparse
import importlib.metadata
import json
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import reference_models
from benchmarks.gpu import attention as attention_step
from benchmarks.gpu.plan import Case, Step
from benchmarks.timing import autocast, evaluation_step, timed, training_step
from swin_lightning.models import SwinTransformer, SwinTransformerV2
from swin_lightning.models.fused_attention import kernel_works, use_fused_attention
from swin_lightning.models.layers import DropPath

PACKAGES = ("torch", "triton", "timm", "lightning")
CATEGORIES = {  # of kernels, by parts of their names; the first that fits
    "attention": ("attention", "fmha", "flash", "_forward", "_backward"),
    "GEMM": ("gemm", "cutlass", "xmma", "nvjet", "cublas", "conv", "triton_tem"),
    "optimizer": ("adam", "multi_tensor"),
    "copies": ("memcpy", "memset"),
}


class Setting:
    """Sizes and device of all steps; `--rehearse` makes everything tiny."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.tiny: bool = options.rehearse
        self.device = torch.device(options.device)
        self.image_size, self.num_classes = (32, 10) if self.tiny else (224, 1000)
        self.batch_size = 2 if self.tiny else options.batch_size
        self.rounds, self.loss_steps = (1, 4) if self.tiny else (20, 300)
        self.folder = Path(options.output)
        reference_models.add_import_path(options.peers)

    def shape(self) -> dict[str, Any]:
        if self.tiny:
            return {"img_size": 32, "embed_dim": 32, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
        return {"img_size": 224, "embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "window_size": 7}

    def own(self, drop_path: float = 0.0, **options: Any) -> reference_models.Classifier:
        torch.manual_seed(0)
        network = SwinTransformer(num_classes=self.num_classes, drop_path_rate=drop_path, **self.shape(), **options)
        return reference_models.Classifier(network)

    def batch(self, factor: float = 1.0) -> tuple[Tensor, Tensor]:
        number = max(1, int(self.batch_size * factor))
        images = torch.randn(number, 3, self.image_size, self.image_size, device=self.device)
        return images, torch.randint(self.num_classes, (number,), device=self.device)

    def compile(self, model: nn.Module, mode: str) -> None:
        """In the rehearsal without a compiler of kernels, which takes minutes on a CPU."""
        if mode and self.tiny:
            model.compile(backend="aot_eager", dynamic=False)
        elif mode:
            model.compile(mode=mode, dynamic=False)

    def model(self, case: Case) -> nn.Module:
        """The network of a case on the device, not compiled."""
        if case.model == "vit":
            return build_vit(self, case).to(self.device)
        own = self.own(case.drop_path, half_residual=case.half_residual)
        if case.model != "own":
            return reference_models.build_reference(case.model, own, case.drop_path).to(self.device)
        use_fused_attention(own, case.operator)
        for module in own.modules():
            if isinstance(module, DropPath):
                module.dense = case.dense
        return own.to(self.device)


def run(step: Step, options: argparse.Namespace) -> None:
    """Do the work of a step and write its results."""
    setting = Setting(options)
    path = setting.folder / f"{step.file}.json"

    def write(result: Any) -> None:
        path.write_text(json.dumps(result, indent=1))

    functions: dict[str, Callable[..., None]] = {
        "correctness": correctness,
        "attention": attention,
        "case": case,
        "profile": profile,
        "losses": losses,
        "trainer": trainer,
    }
    functions[step.work](setting, step.argument, write)


def build_vit(setting: Setting, case: Case) -> nn.Module:
    """timm's ViT-S, of about as many multiply-adds as Swin-T."""
    reference_models.import_torchvision()
    timm = importlib.import_module("timm")
    name = "vit_tiny_patch16_224" if setting.tiny else "vit_small_patch16_224"
    model: nn.Module = timm.create_model(
        name, img_size=setting.image_size, num_classes=setting.num_classes, drop_path_rate=case.drop_path
    )
    return model


def case(setting: Setting, argument: dict[str, Any], write: Callable[[Any], None]) -> None:
    """Images per second, milliseconds, memory and time to the first step of a network."""
    found = Case(**argument)
    images, targets = setting.batch(found.batch)
    model = setting.model(found)
    setting.compile(model, found.compile)
    if found.mode == "train":
        step = training_step(model, images, targets, "bf16")
    else:
        step = evaluation_step(model, images, "bf16")
    first = timed(step, 1, setting.device)
    for _ in range(3):
        step()
    if setting.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = [timed(step, 1 if setting.tiny else 3, setting.device) for _ in range(setting.rounds)]
    memory = torch.cuda.max_memory_allocated() / 2**20 if setting.device.type == "cuda" else 0.0
    middle = median(seconds)
    write({"images_per_s": len(images) / middle, "ms": 1e3 * middle, "memory_mib": memory, "first_s": first})


def profile(setting: Setting, argument: dict[str, Any], write: Callable[[Any], None]) -> None:
    """Table of the kernels of three training steps, and shares by category."""
    found = Case(**argument)
    images, targets = setting.batch(found.batch)
    model = setting.model(found)
    setting.compile(model, found.compile)
    step = training_step(model, images, targets, "bf16")
    for _ in range(1 if setting.tiny else 5):
        step()
    kind = torch.profiler.ProfilerActivity
    cuda = setting.device.type == "cuda"
    with torch.profiler.profile(activities=[kind.CPU, *([kind.CUDA] if cuda else [])]) as profiler:
        for _ in range(3):
            step()
        if cuda:
            torch.cuda.synchronize()
    averages = profiler.key_averages()
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    table = averages.table(sort_by=key, row_limit=60, max_name_column_width=100)
    (setting.folder / f"profile_{found.name}.txt".replace(" ", "_")).write_text(table)
    shares: dict[str, float] = {}
    for event in averages:
        name = event.key.lower()
        category = next((c for c, parts in CATEGORIES.items() if any(part in name for part in parts)), "pointwise")
        shares[category] = shares.get(category, 0.0) + getattr(event, key) / 3e3
    write({"ms": dict(sorted(shares.items(), key=lambda item: -item[1]))})


def correctness(setting: Setting, _: None, write: Callable[[Any], None]) -> None:
    """Versions, and errors of logits and gradients in bfloat16 against float32 on the CPU."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    if setting.device.type == "cuda":
        versions |= {"GPU": torch.cuda.get_device_name(), "CUDA": str(torch.version.cuda)}
        versions["cuDNN"] = str(torch.backends.cudnn.version())
    else:
        versions["GPU"] = "none: a rehearsal on the CPU"
    for window, cosine in (((7, 7), False), ((8, 8), False), ((8, 8), True)):
        works = setting.device.type == "cuda" and kernel_works(0, torch.bfloat16, window, 32, cosine)
        versions[f"operator for windows {window}{', cosine' * cosine}"] = "used" if works else "NOT used"
    errors: dict[str, float] = {}
    result = {"versions": versions, "errors": errors}
    write(result)
    for version in (SwinTransformer, SwinTransformerV2):
        torch.manual_seed(0)
        shape = setting.shape() | ({"window_size": 8} if version is SwinTransformerV2 else {})
        model = version(num_classes=setting.num_classes, drop_path_rate=0.0, **shape)
        images = torch.randn(2, 3, setting.image_size, setting.image_size)
        expected = logits_and_gradients(model, images, "32")
        model.to(setting.device)
        for operator in (False, True):
            use_fused_attention(model, operator)
            actual = logits_and_gradients(model, images.to(setting.device), "bf16")
            for part, a, b in zip(("logits", "gradients"), actual, expected, strict=True):
                name = f"{version.__name__}, {'operator' if operator else 'general path'}, {part}"
                errors[name] = float((a - b).norm() / b.norm())
            write(result)


def logits_and_gradients(model: nn.Module, images: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of all parameters as one vector, in float32 on the CPU."""
    model.zero_grad()
    with autocast(images, precision):
        logits = model(images)
    logits.float().square().mean().backward()
    gradients = [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
    return logits.detach().float().cpu(), torch.cat(gradients).cpu()


def attention(setting: Setting, _: None, write: Callable[[Any], None]) -> None:
    """Every way to compute window attention, stage by stage."""
    batch = 1 if setting.tiny else setting.batch_size
    stages = [(8, 2)] if setting.tiny else [(56, 3), (28, 6), (14, 12)]
    rows: list[dict[str, Any]] = []
    for row in attention_step.compare(setting.device, batch, stages, 4 if setting.tiny else 7, setting.rounds):
        rows.append(row)
        write(rows)


def losses(setting: Setting, _: None, write: Callable[[Any], None]) -> None:
    """Mean training loss of the last tenth of the steps for every precision, on the same cached images."""
    generator = torch.Generator().manual_seed(0)
    number, classes, size = 8 * min(setting.batch_size, 64), 10, setting.image_size
    targets = torch.arange(number) % classes
    patterns = torch.randn(classes, 3, size // 8, size // 8, generator=generator)
    images = F.interpolate(patterns, scale_factor=8)[targets]
    images = (images + 2 * torch.randn(images.shape, generator=generator)).to(setting.device)
    targets = targets.to(setting.device)
    found: dict[str, float] = {}
    ways = {
        "float32": ("32", Case("own"), 0),
        "float32, other order": ("32", Case("own"), 1),
        "bf16": ("bf16", Case("own"), 0),
        "bf16, compiled with the operator": ("bf16", Case("own", compile="default", operator=True), 0),
        "half residual": ("bf16", Case("own", compile="default", operator=True, half_residual=True), 0),
    }
    for name, (precision, way, seed) in ways.items():
        model = setting.model(way).train()
        setting.compile(model, way.compile)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05)
        order = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        values = []
        for _ in range(setting.loss_steps):
            batch = torch.randperm(number, generator=order)[: min(setting.batch_size, 64)].to(setting.device)
            optimizer.zero_grad()
            with autocast(images, precision):
                logits = model(images[batch])
            loss = F.cross_entropy(logits.float(), targets[batch])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            values.append(loss.detach())
        found[name] = float(torch.stack(values[-max(1, len(values) // 10) :]).mean())
        write(found)


def trainer(setting: Setting, _: None, write: Callable[[Any], None]) -> None:
    """A step of Lightning's Trainer beside a bare loop, and the synchronisations that it causes."""
    from lightning import LightningModule, Trainer
    from torch.utils.data import DataLoader

    images, targets = (tensor.cpu() for tensor in setting.batch())
    steps, warmup = (6, 2) if setting.tiny else (40, 10)
    starts: list[float] = []

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = setting.model(Case("own", operator=True))

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            if batch_idx in (warmup, steps - 1):
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
                starts.append(time.perf_counter())
            loss = F.cross_entropy(self.network(batch[0]).float(), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-4, fused=True)

    cuda = setting.device.type == "cuda"
    arguments: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    arguments |= {"accelerator": "gpu" if cuda else "cpu", "devices": 1, "precision": "bf16-mixed"}
    loader: DataLoader[Any] = DataLoader([(images, targets)] * steps, batch_size=None, pin_memory=cuda)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if cuda:
            torch.cuda.set_sync_debug_mode("warn")
        Trainer(max_steps=steps, enable_checkpointing=False, **arguments).fit(Module(), loader)
        if cuda:
            torch.cuda.set_sync_debug_mode("default")
    syncs = [str(warning.message) for warning in caught if "synchroniz" in str(warning.message)]
    print(*sorted(set(syncs)), sep="\n")
    in_trainer = (starts[1] - starts[0]) / (steps - 1 - warmup)

    model = setting.model(Case("own", operator=True))
    step = training_step(model, images.to(setting.device), targets.to(setting.device), "bf16")
    for _ in range(warmup):
        step()
    bare = timed(step, steps - warmup, setting.device)
    write({"trainer_ms": 1e3 * in_trainer, "bare_ms": 1e3 * bare, "ratio": in_trainer / bare, "syncs": len(syncs)})
