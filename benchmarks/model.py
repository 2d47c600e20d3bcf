"""Compare our Swin with other implementations of the same weights, and with a ViT of about as many MACs.

In one process all models have the same precision, float32 by default. With `--processes` each has its own defaults:
ours the precision that `swin-lightning` would choose on this machine, the others float32.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import reference_models, results_table
from benchmarks.command import add_model_option, build_parser, parse, run
from benchmarks.environment import default_environment, describe_machine, package_versions
from benchmarks.reference_models import check_difference, logit_difference, max_difference
from benchmarks.timing import BenchmarkCase, evaluation_step, interleave, peak_performance, timed, training_step
from swin_lightning.benchmark.memory import peak_resident, reset_peak_resident, resident
from swin_lightning.errors import CommandParser, UserError
from swin_lightning.models.flops import count_params_and_macs
from swin_lightning.models.registry import model_info
from swin_lightning.trainer_precision import default_precision

OWN = "swin_lightning"
MODES = ("eval", "train")


def main(args: list[str]) -> None:
    """Measure, print a table, and write a JSON file and a bar chart.

    Raises:
        UserError: For wrong options, a missing folder or file, and for a reference whose logits differ.
    """
    options = parse(argument_parser(), args)
    reference_models.add_import_path(options.peers)
    if options.worker:
        print(json.dumps(measure_in_this_process(options)))
        return
    paths = ("peers", "official", "output", "worker")
    kept = {name: value for name, value in vars(options).items() if name not in paths}
    kept["precision"] = BenchmarkContext(options).precision(OWN)
    result: dict[str, Any] = {
        "title": _title(options, kept["precision"]),
        "options": kept,
        "versions": package_versions(),
    }
    for mode in [mode for mode in MODES if vars(options)[mode]] or MODES:
        rows = separate_processes(options, mode) if options.processes else one_process(options, mode)
        print("\n".join(results_table.format_table(f"{mode}: {result['title']}", rows)), flush=True)
        result[mode] = rows
    for path in results_table.save_results(result, Path(options.output)):
        print(f"wrote {path}")


def argument_parser() -> CommandParser:
    """Parser of `python -m benchmarks.model`."""
    parser = build_parser("model", __doc__)
    parser.set_defaults(precision=None)  # see BenchmarkContext.precision
    add_model_option(parser)
    add = parser.add_argument
    add("--eval", action="store_true", help="evaluation only (default: evaluation and training)")
    add("--train", action="store_true", help="training only")
    add("--drop-path", type=float, default=0.2, help="stochastic depth rate of the last block in training")
    add("--compile", action="store_true", help="apply torch.compile to every model")
    add("--peers", metavar="FOLDER", help="where timm, torchvision and transformers are, if not installed")
    add("--official", metavar="FILE", help="models/swin_transformer.py of the official repository (needs timm)")
    names = [*reference_models.BUILDERS, "vit", "plain"]
    add("--only", nargs="+", choices=names, metavar="NAME", help=f"some of {', '.join(names)}")
    add("--processes", action="store_true", help="one process per model, default settings (3 rounds instead of 12)")
    add("--output", default="runs/benchmark", metavar="FOLDER", help="folder for the JSON file and the bar chart")
    add("--worker", help=argparse.SUPPRESS)
    return parser


def one_process(options: argparse.Namespace, mode: str) -> list[results_table.Row]:
    """Time all models interleaved, with the same process, allocator and optimizer."""
    context = BenchmarkContext(options)
    cases, differences = [], {}
    for name, model in context.models():
        if not name.startswith("vit"):
            difference = max_difference(model, context.classifier, context.images[:2], context.precision(OWN))
            differences[name] = check_difference(name, difference, context.precision(OWN))
        cases.append(context.case(name, model, mode))
    device = context.images.device
    peak = peak_performance(device, context.precision(OWN))
    interleave([*cases, peak], options.rounds or 12, device)
    if device.type == "cpu":  # resident memory needs a process per model, with an allocator that returns freed memory
        for case in cases:
            case.memory = run_worker(options, mode, case.name, default_environment(), rounds=2)["memory"]
    return results_table.build_rows(cases, peak, options.batch_size, OWN, differences)


def separate_processes(options: argparse.Namespace, mode: str) -> list[results_table.Row]:
    """Time every model in its own process with its default settings: our allocator and fused AdamW only for our own."""
    context = BenchmarkContext(options)
    names = [name for name, _ in context.models() if not name.startswith("vit")]
    cases = [BenchmarkCase(name, lambda: None, context.flop(mode)) for name in names]
    device = context.images.device
    peak = peak_performance(device, context.precision(OWN))
    logits: dict[str, Tensor] = {}
    for _ in range(options.rounds or 3):
        peak.seconds.append(min(timed(peak.step, 1, device) for _ in range(5)))
        for case in cases:
            environment = dict(os.environ) if case.name == OWN else default_environment()
            found = run_worker(options, mode, case.name, environment, rounds=6)
            case.seconds.append(found["seconds"])
            case.memory, case.first = found["memory"], found["first"]
            logits[case.name] = torch.tensor(found["logits"])
    differences = {name: check_difference(name, logit_difference(logits[name], logits[OWN])) for name in names}
    return results_table.build_rows(cases, peak, options.batch_size, OWN, differences)


def measure_in_this_process(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one model, `options.worker`.

    Returns:
        `seconds`, median of a step; `first`, seconds of the first step; `memory`, peak resident bytes of the steps;
        `logits` of two images.
    """
    context, mode = BenchmarkContext(options), "train" if options.train else "eval"
    (model,) = [model for name, model in context.models([options.worker]) if name == options.worker]
    fused = options.worker == OWN or not options.processes
    case = context.case(options.worker, model, mode, fused)
    gc.collect()
    before = resident()
    reset_peak_resident()
    with torch.no_grad():
        logits = model.eval()(context.images[:2]).tolist()
    model.train(mode == "train")
    device = context.images.device
    first = timed(case.step, 1, device)
    seconds = [timed(case.step, 1, device) for _ in range(2 + options.rounds)][2:]
    return {"seconds": median(seconds), "first": first, "memory": peak_resident() - before, "logits": logits}


def run_worker(
    options: argparse.Namespace, mode: str, name: str, environment: Mapping[str, str], rounds: int
) -> dict[str, Any]:
    """`measure_in_this_process` in a new process with these environment variables.

    Raises:
        UserError: If the process fails.
    """
    command = ["-m", "benchmarks.model", f"--{mode}", "--worker", name, "--rounds", str(rounds)]
    for option in ("model", "batch_size", "drop_path", "precision", "device", "threads", "peers", "official"):
        if vars(options)[option] is not None:
            command += [f"--{option.replace('_', '-')}", str(vars(options)[option])]
    command += [f"--{flag}" for flag in ("compile", "processes") if vars(options)[flag]]
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"the process for {name} failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


class BenchmarkContext:
    """What all models share: architecture, random weights, and a batch of random images.

    Args:
        options: Parsed options of the command.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        info = model_info(options.model)
        self.options, self.num_classes, size = options, info.num_classes, info.image_size
        device = torch.device(options.device)
        self.classifier = reference_models.build_own(options.model, self.num_classes, options.drop_path)
        self.images = torch.randn(options.batch_size, 3, size, size).to(device)
        self.targets = torch.randint(self.num_classes, (options.batch_size,)).to(device)
        _, self.macs = count_params_and_macs(info.builder, self.num_classes, size)

    def models(self, only: list[str] | None = None) -> Iterator[tuple[str, nn.Module]]:
        """Our own model, the other implementations that are available, and the ViT; on the device."""
        only = only or self.options.only or [*reference_models.BUILDERS, "vit"]
        device = self.images.device
        yield OWN, self.classifier.to(device)
        for name in [name for name in reference_models.BUILDERS if name in only]:
            try:
                model = reference_models.build_reference(
                    name, self.classifier, self.options.drop_path, self.options.official
                )
            except ImportError as error:
                print(f"skipped {name}: {error}", file=sys.stderr)
                continue
            yield name, model.to(device)
        if "plain" in only:
            yield "plain", reference_models.build_plain(self.classifier)
        if any(name.startswith("vit") for name in only):
            try:
                vit = reference_models.build_vit(self.classifier, self.macs)
            except ImportError as error:
                print(f"skipped the ViT: {error}", file=sys.stderr)
                return
            if vit is not None:
                yield vit[0], vit[1].to(device)

    def flop(self, mode: str) -> float:
        """Nominal operations of a step: two per multiply-add, and twice as many backward as forward."""
        return 2.0 * self.macs * self.options.batch_size * (3 if mode == "train" else 1)

    def precision(self, name: str) -> str:
        """`32` or `bf16` of a model: as given, or its own default where every model has its default settings."""
        given: str | None = self.options.precision
        if given is None and name == OWN and self.options.processes:
            device, size = self.images.device.type, self.images.shape[-1]
            chosen, _ = default_precision(device, self.classifier, size, self.options.batch_size)
            return "bf16" if chosen == "bf16-mixed" else "32"
        return given or "32"

    def case(self, name: str, model: nn.Module, mode: str, fused: bool = True) -> BenchmarkCase:
        """A training or evaluation step of a model."""
        flop = self.flop(mode) * (reference_models.VIT_MACS.get(name, self.macs) / self.macs)
        if self.options.compile:
            model.compile()
        if mode == "eval":
            return BenchmarkCase(name, evaluation_step(model, self.images, self.precision(name)), flop)
        step = training_step(model, self.images, self.targets, self.precision(name), fused)
        return BenchmarkCase(name, step, flop)


# helpers


def _title(options: argparse.Namespace, own_precision: str) -> str:
    how = "compiled" if options.compile else "eager"
    how += ", separate processes" if options.processes else ""
    precision = {"32": "float32", "bf16": "bfloat16 autocast"}[own_precision]
    precision += ", others float32" if own_precision != (options.precision or "32") else ""
    machine = describe_machine(torch.device(options.device))
    return f"{options.model}, batch {options.batch_size}, {precision}, {how}; {machine}, torch {torch.__version__}"


if __name__ == "__main__":
    run(main)
