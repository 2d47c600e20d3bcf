"""Measure models, kernels and options on a GPU, and print what should be changed by the rules of `report.py`.

Every step runs in a process of its own with a time limit, so that a crash, a hang or a missing package costs that step
alone. Written to the folder: `STEP.json` and `STEP.log` of every step, profile tables, `results.json` and `report.md`.
Needs torch, and triton, timm and lightning for the steps that use them; neither the command line nor data modules.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import Step, steps
from benchmarks.gpu.report import decisions, markdown
from swin_lightning.errors import CommandParser, UserError


def main(args: list[str]) -> int:
    """Run all steps within the time and write the report.

    Returns:
        0 if every step gave a result, else 1.

    Raises:
        UserError: For wrong options.
    """
    options = parse(args)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    if options.step:
        from benchmarks.gpu import work

        work.run(next(step for step in steps() if step.name == options.step), options)
        return 0
    end = time.monotonic() + 60 * options.minutes
    results: dict[str, dict[str, Any]] = {}
    for step in steps():
        if options.only and step.work not in options.only:
            continue
        results[step.name] = run_step(step, command(step, options), folder, end - time.monotonic())
        print(f"{step.name}: {results[step.name]['status']}", flush=True)
        (folder / "results.json").write_text(json.dumps(results, indent=1))
    text = markdown(results)
    (folder / "report.md").write_text(text)
    print(text)
    print("\n".join(["", "What should be changed:", *decisions(results)]))
    return 0 if all(result["status"] == "ok" for result in results.values()) else 1


def parse(args: list[str]) -> argparse.Namespace:
    """Options of the command.

    Raises:
        UserError: For unknown or wrong options.
    """
    parser = CommandParser("python -m benchmarks.gpu", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--minutes", type=float, default=28.0, help="time for everything; what does not fit is left out")
    add("--output", default="runs/benchmark/gpu", metavar="FOLDER", help="folder for the results")
    add("--device", default="cuda")
    add("--batch-size", type=int, default=128)
    add("--peers", metavar="FOLDER", help="where timm is, if not installed")
    add("--only", nargs="+", metavar="KIND", choices=sorted({step.work for step in steps()}), help="kinds of steps")
    add("--rehearse", action="store_true", help="tiny shapes, to try the command without a GPU (--device cpu)")
    add("--step", help=argparse.SUPPRESS)
    options = parser.parse_args(args)
    if options.minutes <= 0:
        raise UserError(f"--minutes {options.minutes:g} must be above 0")
    if options.batch_size < 2:
        raise UserError(f"--batch-size {options.batch_size} must be at least 2")
    if options.peers and not Path(options.peers).is_dir():
        raise UserError(f"--peers {options.peers}: no such folder")
    return options


def command(step: Step, options: argparse.Namespace) -> list[str]:
    """Command line of the process of a step."""
    found = [sys.executable, "-m", "benchmarks.gpu", "--step", step.name]
    for name in ("device", "output", "batch_size", "peers"):
        if vars(options)[name] is not None:
            found += [f"--{name.replace('_', '-')}", str(vars(options)[name])]
    return [*found, "--rehearse"] if options.rehearse else found


def run_step(step: Step, command: list[str], folder: Path, seconds_left: float) -> dict[str, Any]:
    """Run a step, whatever becomes of it.

    Returns:
        `status` (`ok`, or why there is no complete result), `seconds`, and `result`: what the step has written so far.
    """
    limit = min(60 * step.minutes, seconds_left)
    path = folder / f"{step.file}.json"
    path.unlink(missing_ok=True)
    if limit < 5:
        return {"status": "no time left", "seconds": 0.0, "result": None}
    start = time.monotonic()
    with open(folder / f"{step.file}.log", "wb") as log:
        try:
            # a process group of its own, which a compiler's workers belong to
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, process_group=0)
            code = process.wait(timeout=limit)
            status = "ok" if code == 0 else f"failed with exit code {code}; see {step.file}.log"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            status = f"stopped after {limit:.0f} s"
        except OSError as error:
            status = f"could not start: {error}"
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError):
        result, status = None, "no result" if status == "ok" else status
    return {"status": status, "seconds": time.monotonic() - start, "result": result}


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
