"""Sweeps whose trials run a small script instead of a training."""

import os
import sys
from pathlib import Path

import yaml

from swin_lightning.sweep.driver import Driver, WorkerSlot
from swin_lightning.sweep.sweep_file import Sweep
from swin_lightning.sweep.trial_log import Trial
from tests.support.cli import DIGITS

CONFIG = {
    "method": "random",
    "metric": {"name": "val/acc_best", "goal": "maximize"},
    "run_cap": 3,
    "command": ["swin-lightning", "fit", "-c", DIGITS, "${args}"],
    "parameters": {"model.lr": {"values": [0.1, 0.2, 0.3]}, "data.batch_size": {"values": [16, 32]}},
}

# A trial logs val/acc_best = lr * 1/4, ..., lr * 4/4 and crashes if lr is 0.3. If the file `hold` contains its lr, the
# first process of the trial then runs until SIGTERM, as a long training would.
PROGRAM = r"""
import os, pathlib, signal, sys, time

options = dict(argument.split("=") for argument in sys.argv[1:])
lr = options["--model.lr"]
run = pathlib.Path(os.environ["SWIN_LIGHTNING_RUNS"], "fake", "0-" + os.environ["WANDB_RUN_ID"])
run.mkdir(parents=True, exist_ok=True)
log = run / "events.txt"

def note(event):
    with log.open("a") as file:
        file.write(event + " ")

def terminate(*_):
    note("terminated")
    sys.exit(143)

signal.signal(signal.SIGTERM, terminate)
note("started")
model = {"class_path": "SwinClassifier", "init_args": {"lr": float(lr)}}
data = {"class_path": "Digits", "init_args": {"batch_size": 16}}
(run / "config.yaml").write_text(f"model: {model}\ndata: {data}\n")
if lr == "0.3":
    sys.exit("invalid option")
rows = [f"{epoch},{float(lr) * (1 + epoch) / 4}\n" for epoch in range(4)]
(run / "metrics.csv").write_text("epoch,val/acc_best\n" + "".join(rows))
hold = pathlib.Path("hold")
if hold.exists() and hold.read_text() == lr and log.read_text() == "started ":
    time.sleep(600)
note("ended")
"""


def changed(**changes):
    """CONFIG with other values; None removes a key."""
    return {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}


def write(config, name="small.yaml"):
    Path(name).write_text(yaml.safe_dump(config, sort_keys=False))
    return name


def make_sweep(**changes):
    """A sweep of the fake program with changes to CONFIG; writes small.yaml and, for the summary, sweep.yaml."""
    config = changed(**changes)
    return FakeSweep(Path(write(config)), yaml.safe_load(Path(write(config, "sweep.yaml")).read_text()), ("fit",))


def make_four_trials():
    return make_sweep(method="grid", run_cap=None, parameters={"model.lr": {"values": [0.1, 0.11, 0.12, 0.13]}})


def fake_command(sweep, parameters):
    return [sys.executable, "-S", "-c", PROGRAM, *(f"--{key}={value}" for key, value in parameters.items())]


class FakeSweep(Sweep):
    command = fake_command


def drive(sweep, parallel=2):
    """Run a sweep in the working directory; returns its trials."""
    slots = [WorkerSlot({}, os.sched_getaffinity(0)) for _ in range(parallel)]
    with Driver(sweep, Path.cwd(), slots, sweep.num_trials()) as driver:
        return driver.run()


def finished(number, value, **parameters):
    """A finished trial with a value of val/acc_best."""
    return Trial(number, f"id{number}", parameters, "finished", {"val/acc_best": value})
