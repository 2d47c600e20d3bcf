"""Inject a fault into a run of the command line, in a process group of its own.

`python -m tests.support.faults --help` repeats signals and errors on each of two ranks.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning import Callback

from swin_lightning.errors import UserError
from tests.support.cli import DIGITS, environment


class Faulty(Callback):
    """Fails on one rank before an optimizer step. The file `fault` in the working directory marks the moment.

    Args:
        fault: `error` (of the user), `bug`, `hang`, `nan` (a gradient), `weight` (NaN in the weights), or a signal.
        rank: Rank that fails.
        step: Optimizer steps before the fault.
    """

    def __init__(self, fault: str = "error", rank: int = 0, step: int = 5):
        self.fault, self.rank, self.step = fault, rank, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step != self.step or trainer.global_rank != self.rank or Path("fault").exists():
            return
        Path("fault").touch()
        if self.fault == "error":
            raise UserError("cannot read image 7")
        if self.fault == "bug":
            raise KeyError("a bug")
        if self.fault == "hang":
            time.sleep(1000)
        elif self.fault == "nan":
            batch["image"][3, 0, 0, 0] = float("nan")
        elif self.fault == "weight":
            next(pl_module.parameters()).data[0] = float("inf")
        else:
            os.kill(os.getpid(), getattr(signal, self.fault))


@dataclass
class Outcome:
    """How a run ended: exit code, seconds from the fault to the end of all processes, output, run folders."""

    code: int
    seconds: float
    output: str
    orphans: list[str]
    folder: Path

    @property
    def last(self):
        """The content of `last.ckpt`, None without one."""
        found = list(self.folder.glob("runs/*/*/checkpoints/last.ckpt"))
        return torch.load(found[0], weights_only=True) if found else None


def inject(folder, *options, fault="error", rank=0, step=5, devices=2, send=None, env=(), seconds=60):
    """Run `fit` on the digits with a fault. `send` is a signal for the whole process group a second after it."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "swin_lightning", "fit", "-c", DIGITS, "--trainer.accelerator=cpu"]
    command += [f"--trainer.devices={devices}", "--trainer.max_epochs=200", "--test_after_fit=false"]
    command += ["--trainer.strategy=ddp"] if devices > 1 else []
    if fault:
        command += ["--trainer.callbacks=tests.support.faults.Faulty", f"--trainer.callbacks.fault={fault}"]
        command += [f"--trainer.callbacks.rank={rank}", f"--trainer.callbacks.step={step}"]
    variables = {**environment(), "WANDB_MODE": "disabled", **dict(env)}
    process = subprocess.Popen(
        [*command, *options],
        **{"cwd": folder, "env": variables, "start_new_session": True},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "preexec_fn": default_signals},
    )
    try:
        while fault and not (folder / "fault").exists() and process.poll() is None:
            time.sleep(0.05)
        start = time.monotonic()
        if send is not None:
            time.sleep(1)
            os.killpg(process.pid, send)
        output, _ = process.communicate(timeout=seconds)
        while (orphans := group(process.pid)) and time.monotonic() - start < 30:
            time.sleep(0.1)
        return Outcome(process.returncode, time.monotonic() - start, output, orphans, folder)
    finally:
        for pid in group(process.pid):
            os.kill(int(pid), signal.SIGKILL)


def default_signals():
    """As in a terminal: background jobs and nohup ignore signals, and their processes inherit it."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def group(session):
    """The processes of a session that have not ended."""
    return subprocess.run(["pgrep", "-r", "R,S,D", "-s", str(session)], capture_output=True, text=True).stdout.split()


EXPECTED = {"error": 2, "SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGKILL": None}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", nargs="+", default=["error", "SIGINT", "SIGTERM", "SIGKILL"])
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--folder", type=Path, required=True, help="working folder; must not exist")
    options = parser.parse_args()
    good = total = 0
    for fault in options.faults:
        for rank in (0, 1):
            for number in range(options.times):
                folder = options.folder / f"{fault}-{rank}-{number}"
                outcome = inject(folder, fault=fault, rank=rank, step=5 + 3 * number)
                expected = EXPECTED[fault] in (None, outcome.code) and (folder / "fault").exists()
                saved = outcome.last is not None or (fault, rank) == ("SIGKILL", 0)
                ok = expected and saved and not outcome.orphans and outcome.seconds < 30
                good, total = good + ok, total + 1
                print(
                    f"{fault} rank {rank}: code {outcome.code}, {outcome.seconds:.1f} s{'' if ok else ' FAILED'}",
                    flush=True,
                )
                if ok:
                    shutil.rmtree(folder)
    print(f"{good} of {total} ended as they should")
    sys.exit(good != total)


if __name__ == "__main__":
    main()
