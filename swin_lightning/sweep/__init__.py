"""`swin-lightning sweep`: run W&B sweep files with or without a W&B account.

The files also work with `wandb sweep` and `wandb agent`. This command creates the sweep on the W&B server if you are
logged in. Otherwise the trials run on this machine, with W&B's search library `sweeps`.
"""

import os
import secrets
import shutil
import signal
import sys
import time
from pathlib import Path

from swin_lightning.errors import CommandParser, UserError
from swin_lightning.runs import runs_root
from swin_lightning.sweep.sweep_file import Sweep, find_sweep, read_sweep


def sweep(args: list[str]) -> None:
    """Run a sweep through the W&B server if you are logged in, on this machine otherwise."""
    parser = CommandParser("swin-lightning sweep", description=sweep.__doc__)
    parser.add_argument("file", metavar="FILE", help="sweep file in W&B's format: a path, or a name such as digits")
    parser.add_argument("--agents", type=int, metavar="N", help="parallel trials; default: one per GPU or CPU core")
    parser.add_argument("--count", type=int, metavar="N", help="total number of trials; default: run_cap of the file")
    parser.add_argument("--local", action="store_true", help="run on this machine even if logged in to W&B")
    parser.add_argument("--check", action="store_true", help="check the file and exit")
    options = parser.parse_args(args)
    for name in ("agents", "count"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name}: must be at least 1, got {value}")

    config = read_sweep(find_sweep(options.file))
    if options.check:
        trials = config.num_trials(options.count)
        amount = "no limit on trials" if trials is None else f"{trials} trials"
        print(f"{config.path}: OK; {config.method} search over {', '.join(config.parameters)}; {amount}")
        return
    from swin_lightning.wandb_runs import has_account

    if not options.local and os.environ.get("WANDB_MODE", "online") == "online" and has_account():
        from swin_lightning.sweep.driver import worker_slots
        from swin_lightning.sweep.wandb_backend import run_sweep

        if run_sweep(config.config, [slot.environment for slot in worker_slots(options.agents)], options.count):
            return
    _run_locally(config, options.agents, options.count)


def _run_locally(config: Sweep, agents: int | None, count: int | None) -> None:
    from swin_lightning.sweep.driver import Driver, worker_slots
    from swin_lightning.sweep.results import write_summary

    num_trials = config.num_trials(count)
    if num_trials is None:
        raise UserError(f"{config.path}: {config.method} search without a limit; add run_cap or pass --count N")
    folder = _sweep_folder(config, num_trials)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(config.path, folder / "sweep.yaml")
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with Driver(config, folder, worker_slots(agents), num_trials) as driver:
        try:
            driver.run()
        except KeyboardInterrupt:
            print("interrupted; run the same command again to resume", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
        finally:
            report = write_summary(config, folder)
            best = f"best: {folder / 'best.yaml'}\n" if (folder / "best.yaml").is_file() else ""
            print(f"{best}report: {report}" if report else "no trial finished with a metric value")
            print(folder, flush=True)
            signal.signal(signal.SIGTERM, previous)


def _sweep_folder(config: Sweep, num_trials: int) -> Path:
    """The newest folder of this sweep file if it has trials left, otherwise a new one."""
    from swin_lightning.sweep.trial_log import TrialLog

    parent = runs_root() / "sweeps" / config.path.stem
    for folder in sorted(parent.glob("*/"), reverse=True)[:1]:
        copy = folder / "sweep.yaml"
        if copy.is_file() and copy.read_bytes() == config.path.read_bytes():
            trials = TrialLog(folder).read()
            done = sum(trial.state != "running" for trial in trials)
            if done < max(num_trials, len(trials)):
                print(f"resuming {folder}: {done} of {num_trials} trials are done")
                return folder
    return parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
