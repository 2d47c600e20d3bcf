"""`swin-lightning benchmark model`: ours beside other projects' Swin with the same weights, and beside a ViT."""

import argparse
import gc
import importlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from swin_lightning.allocator import ENV_VAR, SETTINGS
from swin_lightning.benchmark import peers, report
from swin_lightning.benchmark.measure import Contestant, evaluation, matrix_product, take_turns, timed, training
from swin_lightning.errors import CommandParser, UserError
from swin_lightning.models.flops import count_params_and_macs
from swin_lightning.models.registry import list_models, model_info

OURS = "swin_lightning"
MODES = ("eval", "train")


def parser() -> CommandParser:
    """The options of `benchmark model`."""
    own = CommandParser("swin-lightning benchmark model", description=__doc__)
    add = own.add_argument
    add("--model", default="swin_tiny_patch4_window7_224", help="a name of `swin-lightning models`")
    add("--batch-size", type=int, default=8)
    add("--eval", action="store_true", help="evaluation only; by default evaluation and training")
    add("--train", action="store_true", help="training only")
    add("--drop-path", type=float, default=0.2, help="stochastic depth of the last block in training")
    add("--compile", action="store_true", help="torch.compile every model")
    add("--precision", choices=["32", "bf16"], default="32", help="bf16: autocast")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--rounds", type=int, help="times that each is measured; 12, or 3 with --processes")
    add("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    add("--peers", metavar="FOLDER", help="where timm, torchvision, transformers are, if not installed")
    add("--official", metavar="FILE", help="the official repository's models/swin_transformer.py (needs timm)")
    add("--only", nargs="+", metavar="NAME", help=f"of {', '.join(peers.BUILDERS)}, vit")
    add("--processes", action="store_true", help="each in a process of its own, as its user starts it")
    add("--output", default="runs/benchmark", metavar="FOLDER", help="for the result as JSON and picture")
    add("--trainer", action="store_true", help="only what the Trainer costs, against a bare loop")
    add("--attention", action="store_true", help="only the ways to compute attention, for windows of 49 to 256 tokens")
    add("--worker", help=argparse.SUPPRESS)
    return own


def main(args: list[str]) -> None:
    """Measure, and write table, JSON and picture.

    Raises:
        ValueError: For an unknown model, a folder or file that is not there, and where a peer's answers differ.
    """
    options = parser().parse_args(args)
    if options.batch_size < 1 or (options.rounds or 1) < 1:
        raise UserError(f"--batch-size {options.batch_size} and --rounds {options.rounds} must be at least 1")
    if options.model not in list_models():
        raise UserError(f"--model {options.model}: unknown; `swin-lightning models` lists the names")
    torch.set_num_threads(options.threads)
    if options.trainer:
        importlib.import_module("swin_lightning.benchmark.trainer").compare(options)
        return
    if options.attention:
        importlib.import_module("swin_lightning.benchmark.attention").compare(options)
        return
    peers.find_peers(options.peers)
    if options.worker:
        print(json.dumps(work(options)))
        return
    result: dict[str, Any] = {"title": title(options), "options": vars(options)}
    for mode in [mode for mode in MODES if vars(options)[mode]] or MODES:
        rows = in_processes(options, mode) if options.processes else in_one_process(options, mode)
        print("\n".join(report.table(f"{mode}: {result['title']}", rows)), flush=True)
        result[mode] = rows
    for path in report.write(result, Path(options.output)):
        print(f"wrote {path}")


def in_one_process(options: argparse.Namespace, mode: str) -> list[report.Row]:
    """All models in turns: the same process, allocator and optimizer."""
    setting = Setting(options)
    contestants, differences = [], {}
    for name, model in setting.models():
        if not name.startswith("vit"):
            differences[name] = setting.difference(name, model)
        contestants.append(setting.contestant(name, model, mode))
    peak = matrix_product(setting.images.device, options.precision)
    take_turns([*contestants, peak], options.rounds or 12, setting.images.device)
    if setting.images.device.type == "cpu":  # of a process each, which gives back what it frees
        environment = {**plain_environment(), ENV_VAR: "off"}
        for contestant in contestants:
            contestant.memory = run_worker(options, mode, contestant.name, environment, rounds=2)["memory"]
    return report.rows(contestants, peak, options.batch_size, OURS, differences)


def in_processes(options: argparse.Namespace, mode: str) -> list[report.Row]:
    """Each as its user starts it: ours through the command line, the others by plain Python and default AdamW."""
    setting = Setting(options)
    names = [name for name, _ in setting.models() if not name.startswith("vit")]
    contestants = [Contestant(name, lambda: None, setting.flop(mode)) for name in names]
    peak = matrix_product(setting.images.device, options.precision)
    logits: dict[str, Tensor] = {}
    for _ in range(options.rounds or 3):
        peak.seconds.append(min(timed(peak.step, 1, setting.images.device) for _ in range(5)))
        for contestant in contestants:
            environment = dict(os.environ) if contestant.name == OURS else plain_environment()
            found = run_worker(options, mode, contestant.name, environment, rounds=6)
            contestant.seconds.append(found["seconds"])
            contestant.memory, contestant.first = found["memory"], found["first"]
            logits[contestant.name] = torch.tensor(found["logits"])
    differences = {name: peers.accepted(name, float((logits[name] - logits[OURS]).abs().max())) for name in names}
    return report.rows(contestants, peak, options.batch_size, OURS, differences)


def work(options: argparse.Namespace) -> dict[str, Any]:
    """What a process of its own finds out about one model: median seconds of a step, memory in bytes, logits."""
    setting, mode = Setting(options), "train" if options.train else "eval"
    (model,) = [model for name, model in setting.models([options.worker]) if name == options.worker]
    fused = options.worker == OURS or not options.processes
    own = setting.contestant(options.worker, model, mode, fused)
    gc.collect()
    before = resident("VmRSS")
    forget_peak()
    with torch.no_grad():
        logits = model.eval()(setting.images[:2]).tolist()
    model.train(mode == "train")
    device = setting.images.device
    first = timed(own.step, 1, device)
    seconds = [timed(own.step, 1, device) for _ in range(2 + options.rounds)][2:]
    return {"seconds": median(seconds), "first": first, "memory": resident("VmHWM") - before, "logits": logits}


def run_worker(
    options: argparse.Namespace, mode: str, name: str, environment: Mapping[str, str], rounds: int
) -> dict[str, Any]:
    """`work` in a new process."""
    code = "import sys; from swin_lightning.benchmark.model import main; main(sys.argv[1:])"
    command = ["-m", "swin_lightning", "benchmark", "model"] if name == OURS else ["-c", code]
    for option in ("model", "batch_size", "drop_path", "precision", "device", "threads", "peers", "official"):
        if vars(options)[option] is not None:
            command += [f"--{option.replace('_', '-')}", str(vars(options)[option])]
    command += [f"--{flag}" for flag in ("compile", "processes") if vars(options)[flag]]
    command += [f"--{mode}", "--worker", name, "--rounds", str(rounds)]
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"the process of {name} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


class Setting:
    """One shape, one batch of random images, one set of random weights for all."""

    def __init__(self, options: argparse.Namespace) -> None:
        info = model_info(options.model)
        self.options, size = options, info.image_size
        self.classes = info.num_classes
        device = torch.device(options.device)
        self.classifier = peers.ours(options.model, self.classes, options.drop_path)
        self.images = torch.randn(options.batch_size, 3, size, size).to(device)
        self.targets = torch.randint(self.classes, (options.batch_size,)).to(device)
        self.macs = count_params_and_macs(info.builder, self.classes, size)[1]

    def models(self, only: list[str] | None = None) -> Iterator[tuple[str, nn.Module]]:
        """Ours, the peers that are there, and the ViT."""
        only = only or self.options.only or [*peers.BUILDERS, "vit"]
        yield OURS, self.classifier.to(self.images.device)
        for name in [name for name in peers.BUILDERS if name in only]:
            try:
                model = peers.peer(name, self.classifier, self.options.drop_path, self.options.official)
            except ImportError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                continue
            yield name, model.to(self.images.device)
        if any(name.startswith("vit") for name in only):
            try:
                found = peers.vit(self.classifier, self.macs)
            except ImportError as error:
                print(f"the ViT is left out: {error}", file=sys.stderr)
                return
            if found is not None:
                yield found[0], found[1].to(self.images.device)

    def difference(self, name: str, model: nn.Module) -> float:
        return peers.accepted(name, peers.difference(model, self.classifier, self.images[:2]))

    def flop(self, mode: str) -> float:
        """Nominal operations of a step: two a multiply-add, and twice as many backward as forward."""
        return 2.0 * self.macs * self.options.batch_size * (3 if mode == "train" else 1)

    def contestant(self, name: str, model: nn.Module, mode: str, fused: bool = True) -> Contestant:
        flop = self.flop(mode) * (peers.VITS[name] / self.macs if name in peers.VITS else 1)
        if self.options.compile:
            model.compile()
        if mode == "eval":
            return Contestant(name, evaluation(model, self.images, self.options.precision), flop)
        step = training(model, self.images, self.targets, self.options.precision, fused)
        return Contestant(name, step, flop)


# helpers


def title(options: argparse.Namespace) -> str:
    cuda = options.device.startswith("cuda")
    machine = torch.cuda.get_device_name() if cuda else f"{processor()}, threads: {options.threads}"
    how = "compiled" if options.compile else "eager"
    how += ", each in its own process" if options.processes else ""
    precision = {"32": "float32", "bf16": "bfloat16 autocast"}[options.precision]
    return f"{options.model}, batch {options.batch_size}, {precision}, {how}; {machine}, torch {torch.__version__}"


def processor() -> str:
    found = re.search(r"model name\s*: (.+)", _read("/proc/cpuinfo"))
    return found[1] if found else platform.processor()


def resident(field: str) -> int:
    """Bytes of this process in memory, now (`VmRSS`) or at most (`VmHWM`); 0 where there is no /proc."""
    found = re.search(rf"{field}:\s*(\d+) kB", _read("/proc/self/status"))
    return 1024 * int(found[1]) if found else 0


def forget_peak() -> None:
    """Let `VmHWM` begin anew."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).is_file() else ""


def plain_environment() -> dict[str, str]:
    """That of a user who starts Python: without what our command line has set for its own process."""
    ours = () if os.environ.get(ENV_VAR, "off") == "off" else SETTINGS
    return {name: value for name, value in os.environ.items() if name not in ours}
