"""`swin-lightning sweep`: W&B's sweep files, with or without W&B's server.

A sweep file runs with `wandb sweep` and `wandb agent` as it is. Here the same file runs with one command: with an
account through W&B, without one by W&B's own search engine on this machine.
"""

import os
import secrets
import shutil
import signal
import sys
import time
from pathlib import Path

from swin_lightning.errors import CommandParser, UserError
from swin_lightning.sweep.sweep_file import Sweep, read_sweep


def sweep(args: list[str]) -> None:
    """Run a sweep file: through W&B where there is an account, else on this machine."""
    parser = CommandParser("swin-lightning sweep", description=sweep.__doc__)
    parser.add_argument("file", metavar="FILE", help="a sweep in W&B's format, such as experiments/sweeps/digits.yaml")
    parser.add_argument("--agents", type=int, metavar="N", help="trials side by side; one a GPU or core without it")
    parser.add_argument("--count", type=int, metavar="N", help="trials in all; run_cap of the file without it")
    parser.add_argument("--local", action="store_true", help="on this machine, account or not")
    parser.add_argument("--check", action="store_true", help="check the file and start nothing")
    options = parser.parse_args(args)
    for name in ("agents", "count"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)} must be at least 1")

    found = read_sweep(options.file)
    if options.check:
        print(f"{found.path}: {found.config['method']} over {', '.join(found.config['parameters'])}; it fits")
        return
    from swin_lightning.loggers import has_account

    if not options.local and os.environ.get("WANDB_MODE", "online") == "online" and has_account():
        from swin_lightning.sweep.driver import slots
        from swin_lightning.sweep.wandb_backend import run_sweep

        if run_sweep(found.config, [slot.environment for slot in slots(options.agents)], options.count):
            return
    _run_here(found, options.agents, options.count)


def _run_here(found: Sweep, agents: int | None, count: int | None) -> None:
    from swin_lightning.sweep.driver import Driver, slots
    from swin_lightning.sweep.results import write_summary

    count = count or found.config.get("run_cap")
    if count is None and found.config["method"] != "grid":
        raise UserError(f"{found.path}: a {found.config['method']} search has no end; add run_cap or pass --count N")
    folder = _folder(found, count)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(found.path, folder / "sweep.yaml")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with Driver(found, folder, slots(agents), count) as driver:
        try:
            driver.run()
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
        finally:
            page = write_summary(found, folder)
            print(f"best: {folder / 'best.yaml'}\nreport: {page}" if page else "no trial has ended with a value")
            print(folder, flush=True)


def _folder(found: Sweep, count: int | None) -> Path:
    """The newest sweep of this file where it has trials to go; else a new one."""
    from swin_lightning.sweep.search import next_parameters
    from swin_lightning.sweep.trial_log import Journal

    parent = Path("runs") / "sweeps" / found.path.stem
    for folder in sorted(parent.glob("*/"), reverse=True)[:1]:
        copy = folder / "sweep.yaml"
        if copy.is_file() and copy.read_text() == found.path.read_text():
            trials = Journal(folder).read()
            ended = sum(trial.state != "running" for trial in trials)
            more = len(trials) < count if count else next_parameters(found, trials) is not None
            if more or ended < len(trials):
                print(f"going on with {folder}: {ended} trials have ended")
                return folder
    return parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
