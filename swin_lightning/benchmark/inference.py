"""`swin-lightning benchmark inference RUN`: PyTorch, compiled, torch.export and ONNX Runtime on this machine.

Every variant runs in a process of its own, so that its peak memory is its own: the network alone, on normalised images.
"""

import multiprocessing
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from swin_lightning.batch import IGNORE_INDEX, find_preprocessing
from swin_lightning.checkpoint_classes import Allowed
from swin_lightning.data.sampling import channels_first
from swin_lightning.errors import UserError
from swin_lightning.explore.figures import COLORS, subplots
from swin_lightning.export.accuracy import calibration_images, run_data, split_images
from swin_lightning.export.programs import write_program
from swin_lightning.export.quantization import quantize
from swin_lightning.inference import find_checkpoint_file
from swin_lightning.models.weights import read_checkpoint
from swin_lightning.prediction_callbacks import class_names
from swin_lightning.program_files import Program, ProgramInfo
from swin_lightning.tasks.classification import load_classifier

BATCHES = (1, 8, 32)
ACCURACY_LOSS = 0.005  # a recommended variant may be less accurate by this much
VARIANTS = {
    "eager": "PyTorch",
    "compiled": "PyTorch, torch.compile",
    "pt2": "torch.export",
    "onnx": "ONNX Runtime, fp32",
    "int8": "ONNX Runtime, int8",
}


class Result(NamedTuple):
    """What was measured of one variant."""

    name: str
    median_ms: float  # at batch 1
    p99_ms: float
    images_per_s: float  # at the best batch
    best_batch: int
    memory_mib: float  # peak above that of the process before the network was loaded
    accuracy: float | None


def report_inference(
    checkpoint: str,
    seconds: float = 3.0,
    images: int = 500,
    output: str | None = None,
    variants: Sequence[str] = tuple(VARIANTS),
    allow: Allowed = (),
) -> None:
    """Measure all variants, print a table and a recommendation, and draw a figure.

    Args:
        checkpoint: A run folder or a `.ckpt` file.
        seconds: Time per measurement.
        images: Validation images to measure the accuracy with.
        output: A `.png` file for the figure.
        variants: Names of `VARIANTS`.
        allow: Classes that the checkpoint may name besides those of `swin_lightning`.

    Raises:
        UserError: If the checkpoint cannot be loaded, or states no preprocessing.
    """
    path = find_checkpoint_file(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        names = _prepare(path, Path(folder), images, allow)
        context = multiprocessing.get_context("spawn")
        results = []
        for name in filter(variants.__contains__, names):
            with context.Pool(1) as pool:
                arguments = (name, str(path), folder, seconds, torch.get_num_threads(), allow)
                results.append(pool.apply(measure, arguments))
            print(f"measured {VARIANTS[name]}", file=sys.stderr, flush=True)
    print(results_table(results))
    print(recommendation(results))
    if output is not None:
        results_figure(results).savefig(output, dpi=120)
        print(f"figure: {output}")


def measure(name: str, checkpoint: str, folder: str, seconds: float, threads: int, allow: Allowed) -> Result:
    """Measure one variant in this process."""
    torch.set_num_threads(threads)
    samples = torch.load(Path(folder, "samples.pt"), weights_only=True)
    images, labels = samples["images"], samples["labels"]
    before = _peak_memory()
    run = _open(name, checkpoint, Path(folder), allow)
    with torch.inference_mode():
        times = _time(run, images[:1], seconds)
        rates = {1: 1 / float(np.mean(times))}
        for batch in BATCHES[1:]:
            inputs = images.repeat(-(-batch // len(images)), 1, 1, 1)[:batch]
            rates[batch] = batch / float(np.median(_time(run, inputs, seconds)))
        best = max(rates, key=lambda batch: rates[batch])
        memory = _peak_memory() - before
        accuracy = None
        known = labels != IGNORE_INDEX
        if known.any():
            pad = -len(images) % best  # whole batches: other sizes would be compiled again
            padded = torch.cat([images, images[:1].expand(pad, -1, -1, -1)])
            predictions = torch.cat([run(part.contiguous()).argmax(dim=1) for part in torch.split(padded, best)])
            accuracy = float((predictions[: len(images)] == labels)[known].double().mean())
    median, p99 = np.percentile(1000 * np.array(times), [50, 99]).tolist()
    return Result(name, median, p99, rates[best], best, memory, accuracy)


def results_table(results: list[Result]) -> str:
    """One row per variant."""
    header = ["variant", "median (ms)", "p99 (ms)", "images/s", "at batch", "memory (MiB)", "top-1, val"]
    rows = [
        [
            VARIANTS[r.name],
            f"{r.median_ms:.2f}",
            f"{r.p99_ms:.2f}",
            f"{r.images_per_s:.1f}",
            str(r.best_batch),
            f"{r.memory_mib:.0f}",
            "" if r.accuracy is None else f"{100 * r.accuracy:.2f} %",
        ]
        for r in results
    ]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ["  ".join(f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True)))
             for row in [header, *rows]]  # fmt: skip
    return "\n".join(lines)


def recommendation(results: list[Result]) -> str:
    """The fastest variants that keep the accuracy of the first one, in a sentence."""
    limit = (results[0].accuracy or 0.0) - ACCURACY_LOSS
    kept = [r for r in results if r.accuracy is None or r.accuracy >= limit]
    single = min(kept, key=lambda r: r.median_ms)
    many = max(kept, key=lambda r: r.images_per_s)
    of = "" if results[0].accuracy is None else f" with an accuracy within {100 * ACCURACY_LOSS:g} points"
    if single is many:
        return f"Recommended here{of}: {VARIANTS[single.name]}, for single images and for batches."
    return (
        f"Recommended here{of}: {VARIANTS[single.name]} for single images, {VARIANTS[many.name]} in batches of "
        f"{many.best_batch}."
    )


def results_figure(results: list[Result]) -> Figure:
    """Latency and throughput as bars."""
    figure, ((left, right),) = subplots(1, 2, 4.5, 0.6 + 0.4 * len(results))
    labels = [VARIANTS[r.name] for r in results][::-1]
    left.barh(labels, [r.median_ms for r in results][::-1], color=COLORS[0], label="median")
    left.plot([r.p99_ms for r in results][::-1], labels, "|", color=COLORS[5], markersize=12, label="p99")
    left.set(xlabel="latency of one image (ms)")
    left.legend(fontsize=8)
    right.barh(labels, [r.images_per_s for r in results][::-1], color=COLORS[2])
    right.set(xlabel="images/s at the best batch", yticklabels=[])
    return figure


# helpers


def _prepare(path: Path, folder: Path, count: int, allow: Allowed) -> list[str]:
    """Write programs and samples; returns the variants that can be measured."""
    preprocessing = find_preprocessing(read_checkpoint(path))
    if preprocessing is None:
        raise UserError(f"checkpoint {str(path)!r} does not state its preprocessing")
    classifier = load_classifier(path, allow).eval()
    data, size = run_data(path, allow), preprocessing.image_size
    if data is None:
        images, labels = torch.randn(32, 3, size, size), torch.full((32,), IGNORE_INDEX)
    else:
        transform = data.eval_transform()
        pairs = list(split_images(data, "val", count))
        pixels = [channels_first(transform(image, (0, 0, 0))) for image, _ in pairs]
        images = preprocessing.normalize(torch.stack(pixels))
        labels = torch.tensor([label for _, label in pairs])
    torch.save({"images": images, "labels": labels}, folder / "samples.pt")
    info = ProgramInfo(class_names(classifier), (size, size), preprocessing)
    write_program(classifier, folder / "pt2.pt2", info)
    names = ["eager", "compiled", "pt2"]
    try:
        write_program(classifier, folder / "onnx.onnx", info)
    except UserError as error:
        print(f"not measured: {error}")
        return names
    names.append("onnx")
    if data is None:
        print("not measured: int8 needs training images, and the checkpoint is not in a run folder")
        return names
    quantize(classifier, folder / "int8.onnx", replace(info, precision="int8"), calibration_images(None, data))
    return [*names, "int8"]


def _open(name: str, checkpoint: str, folder: Path, allow: Allowed) -> Callable[[Tensor], Tensor]:
    if name in ("eager", "compiled"):
        model = load_classifier(checkpoint, allow).eval().requires_grad_(False)
        return torch.compile(model.forward) if name == "compiled" else model.forward
    return Program(folder / f"{name}.{'pt2' if name == 'pt2' else 'onnx'}")


def _time(run: Callable[[Tensor], Tensor], inputs: Tensor, seconds: float) -> list[float]:
    """Seconds of each call, after a warm-up; at least 10 calls."""
    inputs = inputs.contiguous()
    for _ in range(3):
        run(inputs)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 10:
        start = time.perf_counter()
        run(inputs)
        times.append(time.perf_counter() - start)
    return times


def _peak_memory() -> float:
    """Peak resident memory of this process in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux, ru_maxrss includes that of the process which started this one
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8"))
        if found:
            return int(found[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
