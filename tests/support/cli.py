"""Running the command line in tests: experiments, short runs, processes of their own."""

import csv
import os
from pathlib import Path

RUN_DIR_ENV, CHECKPOINT_ENV = "SWIN_LIGHTNING_RUN_DIR", "SWIN_LIGHTNING_CHECKPOINT"
ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
DIGITS = str(EXPERIMENTS / "digits_swin_micro.yaml")
# three steps; tests of the test after fit add --test_after_fit=true
SHORT = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=3", "--trainer.log_every_n_steps=1",
         "--test_after_fit=false"]  # fmt: skip


def environment():
    """Environment of a process: this checkout on its path, one thread, no W&B account, no ranks of an earlier test."""
    ranks = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "LOCAL_RANK", RUN_DIR_ENV, CHECKPOINT_ENV)
    kept = {name: value for name, value in os.environ.items() if name not in ranks}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def metrics(run_dir, name):
    """The logged values of a metric in a run's metrics.csv."""
    with (run_dir / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]
