"""Running the command line in tests: experiments, short runs, processes of their own."""

import csv
import multiprocessing
import os
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
DIGITS = str(EXPERIMENTS / "digits_swin_micro.yaml")
SHORT = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=3", "--trainer.log_every_n_steps=1"]


def environment():
    """Environment of a process: this checkout on its path, one thread, no W&B account, no ranks of an earlier test."""
    ranks = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "LOCAL_RANK", "SWIN_LIGHTNING_RUN_DIR")
    kept = {name: value for name, value in os.environ.items() if name not in ranks}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def metrics(run_dir, name):
    """The logged values of a metric in a run's metrics.csv."""
    with (run_dir / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def start(*args, log):
    """Start the command line in a forked process, which has all imports already; its output goes to a file."""

    def target():
        sys.stdout = sys.stderr = open(log, "w", buffering=1)  # noqa: SIM115  closed at exit
        sys.argv = ["swin-lightning", *args]
        console()

    from swin_lightning.__main__ import console

    Path(log).touch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads; those of the test runner are idle
        process = multiprocessing.get_context("fork").Process(target=target)
        process.start()
    return process
