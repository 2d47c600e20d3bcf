"""`swin-lightning results`: the table of measured results in experiments/README.md, made from the logs beside it.

A log is the `metrics.csv` of a run below a header in YAML, which states what else a result depends on.
"""

import io
import json
import os
import platform
import re
import statistics
import zlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any

import pandas as pd
import torch
import yaml

from swin_lightning.config import flatten, load
from swin_lightning.errors import CommandParser, UserError
from swin_lightning.experiment_files import find_experiment, installed_experiments
from swin_lightning.explore.runs import RunLog, read_runs
from swin_lightning.runs import RunFolder

BEGIN, END = "<!-- begin: swin-lightning results -->", "<!-- end: swin-lightning results -->"
# options that a result does not depend on, or that have a column of their own
IGNORED = r"config|seed_everything|data\.(seed|path|num_workers)|experiment|ckpt_path|allow_classes|weights_only"
IGNORED += r"|trainer\.(precision|logger.*|default_root_dir|enable_.*|accelerator|devices)|.*dirpath"
SORT_KEYS = ("data", "time", "accuracy")


@dataclass(frozen=True)
class Result:
    """A run in the table.

    Attributes:
        experiment: Name of its file in `experiments/`.
        data: Class of the data module.
        seed: `seed_everything`.
        options: Options that differ from the file.
        precision: As `trainer.precision`.
        hardware: Processor or GPU, and version of torch.
        log: File of the log.
        metrics: The logged metrics.
    """

    experiment: str
    data: str
    seed: int
    options: dict[str, Any]
    precision: str
    hardware: str
    log: Path
    metrics: RunLog


def results(args: list[str]) -> None:
    """Print the table of measured results, one row per experiment and machine, with mean and deviation over seeds.

    With RUN, record these runs first: copy their metrics into the logs and update the table in README.md beside them.
    """
    parser = CommandParser("swin-lightning results", description=results.__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="*", help="run folders to record")
    parser.add_argument("--sort", choices=SORT_KEYS, default="data", help="data set and time, time, or accuracy")
    parser.add_argument("--hardware", help="where RUN was trained; by default this machine")
    parser.add_argument("--folder", metavar="DIR", help="of experiments, with logs/ and README.md")
    options = parser.parse_args(args)
    folder = Path(options.folder) if options.folder else installed_experiments()
    logs = [make_log(run, options.hardware or describe_machine()) for run in options.runs]
    for name, text in logs:  # written after all were found complete
        path = folder / "logs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"recorded: {path}")
    if logs:
        update(folder)
    print(table(read_logs(folder / "logs"), options.sort))


def make_log(run: str | Path, hardware: str) -> tuple[str, str]:
    """Name and text of the log of a run: its metrics below a header.

    Args:
        run: Run folder.
        hardware: Where it was trained.

    Raises:
        UserError: If it was not tested, or its experiment does not exist.
    """
    opened = RunFolder.open(run)
    (log,) = read_runs(opened.path)
    if log.last("test/acc") is None and log.last("test/loss") is None:
        raise UserError(f"run {str(run)!r} has no test result; run `swin-lightning test --ckpt_path` on its checkpoint")
    experiment = str(log.config.get("experiment") or opened.name.split("/")[0])
    header = {
        "experiment": experiment,
        "data": str(log.config.get("data.class_path", "")).rsplit(".", 1)[-1],
        "seed": log.config.get("seed_everything", 0),
        "batch_size": log.config.get("data.batch_size"),
        "options": _differences(log.config, experiment),
        "precision": str(log.config.get("trainer.precision") or "32-true"),
        "hardware": f"{hardware}, torch {version('torch').partition('+')[0]}",
    }
    suffix = f"-{zlib.crc32(repr(header['options']).encode()):08x}" if header["options"] else ""
    lines = yaml.safe_dump(header, sort_keys=False, width=1000).splitlines()
    text = "".join(f"# {line}\n" for line in lines) + opened.metrics.read_text(encoding="utf-8")
    return f"{experiment}{suffix}-seed{header['seed']}.csv", text


def read_logs(folder: Path) -> list[Result]:
    """All logs of a folder, by name.

    Raises:
        UserError: If one has no header.
    """
    found = []
    for path in sorted(folder.glob("*.csv")):
        lines = path.read_text(encoding="utf-8").splitlines()
        header = yaml.safe_load("\n".join(line[2:] for line in lines if line.startswith("# ")))
        if not isinstance(header, dict):
            raise UserError(f"log {str(path)!r} has no header; write it with `swin-lightning results RUN`")
        batch_size = header.pop("batch_size")
        metrics = pd.read_csv(io.StringIO("\n".join(line for line in lines if not line.startswith("# "))))
        log = RunLog(path.stem, {"data.batch_size": batch_size}, metrics)
        found.append(Result(**header, log=path, metrics=log))
    return found


def table(found: list[Result], sort: str = "data") -> str:
    """Results as a table in Markdown, one row per experiment, options, precision and hardware.

    Args:
        found: Runs.
        sort: `data`: by data set, then training time; `time`; or `accuracy`, best first.
    """
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in found:
        key = (result.data, result.experiment, repr(result.options), result.precision, result.hardware)
        groups.setdefault(key, []).append(result)
    rows = []
    for runs in groups.values():
        runs = sorted(runs, key=lambda run: run.seed)
        seconds = _values(run.metrics.training_seconds() for run in runs)
        accuracies = _values(run.metrics.last("test/acc") for run in runs)
        time = statistics.mean(seconds) if seconds else float("inf")
        accuracy = statistics.mean(accuracies) if accuracies else -1.0
        keys = {"data": (runs[0].data, time), "time": (time,), "accuracy": (-accuracy,)}
        rows.append((keys[sort], runs[0].experiment, _row(runs, time)))
    head = "| data | experiment | test | top-5 | seeds | training | precision, hardware | logs |\n|" + "---|" * 8
    return "\n".join([head, *(row for _, _, row in sorted(rows, key=lambda row: row[:2]))])


def update(folder: Path) -> None:
    """Replace the table in `README.md` of a folder with `logs/`.

    Raises:
        UserError: If the file has no place for it.
    """
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise UserError(f"{path} has no lines {BEGIN!r} and {END!r}")
    before, rest = text.split(BEGIN, 1)
    new = f"{before}{BEGIN}\n\n{table(read_logs(folder / 'logs'))}\n\n{END}{rest.split(END, 1)[1]}"
    path.write_text(new, encoding="utf-8")


def describe_machine() -> str:
    """The GPU's name, or the number of cores and the name of the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    names = re.findall(r"model name\s*: (.+)", text) or [platform.processor()]
    return f"{os.cpu_count()} cores {names[0]}"


# helpers


def _row(runs: list[Result], seconds: float) -> str:
    first, links = runs[0], [f"[{run.seed}](logs/{run.log.name})" for run in runs]
    name = " ".join([f"`{first.experiment}`", *(f"`--{key} {value}`" for key, value in first.options.items())])
    accuracies, top5, losses = (
        _values(run.metrics.last(metric) for run in runs) for metric in ("test/acc", "test/acc5", "test/loss")
    )
    time = "" if seconds == float("inf") else f"{seconds:.0f} s" if seconds < 300 else f"{seconds / 60:.1f} min"
    cells = [
        first.data,
        name,
        f"{_mean(accuracies, 100, 2)} %" if accuracies else f"loss {_mean(losses, 1, 4)}",
        f"{_mean(top5, 100, 2)} %" if top5 else "",
        str(len(runs)),
        time,
        f"{first.precision}, {first.hardware}",
        ", ".join(links),
    ]
    return f"| {' | '.join(cells)} |"


def _values(found: Any) -> list[float]:
    return [value for value in found if value is not None]


def _mean(values: list[float], scale: float, digits: int) -> str:
    """Mean, and the standard deviation of a sample if there are several."""
    mean = f"{scale * statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {scale * statistics.stdev(values):.{digits}f}"


def _differences(config: dict[str, Any], experiment: str) -> dict[str, Any]:
    """Options in which the configuration of a run differs from its experiment."""
    theirs = flatten(load(["-c", str(find_experiment(experiment))]).as_dict())
    kept = {key: value for key, value in config.items() if not re.fullmatch(IGNORED, key)}
    if kept.get("data.split_seed") == config.get("seed_everything"):
        kept.pop("data.split_seed", None)  # a seed that selects the training images as well
    changed = {key: value for key, value in kept.items() if _plain(value) != _plain(theirs.get(key))}
    return {key: _portable(key, value) for key, value in changed.items()}


def _plain(value: Any) -> str:
    """A value as text, the same for a tuple and a list, a namespace and a dict."""
    return json.dumps(value, default=vars, sort_keys=True)


def _portable(key: str, value: Any) -> Any:
    """A value without paths of this machine: weights of a run by the name of its experiment, others by their file."""
    if key != "model.weights":
        return value
    parts = PurePath(str(value)).parts
    return parts[-4] if len(parts) >= 4 and parts[-2] == "checkpoints" else parts[-1]
