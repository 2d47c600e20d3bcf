"""Sweeps on the W&B server: the real wandb client and agent with real runs, against a fake server."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import wandb
import yaml

from swin_lightning.cli import main
from swin_lightning.errors import UserError
from swin_lightning.sweep.results import load_sweep
from swin_lightning.sweep.wandb_backend import run_sweep
from tests.support.cli import DIGITS, EXPERIMENTS, ROOT, SHORT, environment, metrics
from tests.support.wandb_server import Server

PATH = "tester/swin_lightning/sweep001"
# The command `wandb` with an agent that polls its runs and the server every 0.2 s instead of every 5 s.
PROGRAM = """
from wandb.cli.cli import cli
from wandb.wandb_agent import Agent
Agent.POLL_INTERVAL = 0.2
cli(prog_name="wandb")
"""
WANDB = [sys.executable, "-c", PROGRAM]


@pytest.fixture
def server(tmp_path):
    with Server() as server:
        clean = {k: v for k, v in environment().items() if not k.startswith("WANDB")}
        scripts = str(Path(sys.executable).parent)  # the agent looks up `swin-lightning` in PATH
        paths = {"PATH": f"{scripts}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        server.env = {**clean, **server.environment(tmp_path), **paths}
        yield server
        assert server.unknown_operations == []


@pytest.fixture
def as_client(server, monkeypatch):
    """Lets this process be a client of the server."""
    wandb.teardown()  # wandb reads the environment once per process
    for name in ("WANDB_BASE_URL", "WANDB_API_KEY", "WANDB_MODE", "WANDB_ENTITY", "WANDB_PROJECT", "HOME"):
        monkeypatch.setenv(name, server.env[name])
    yield
    wandb.teardown()


def run(server, *command):
    """Run a command as a client of the server; returns its output."""
    done = subprocess.run(command, env=server.env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def sweep_file(**changes):
    """experiments/sweeps/digits.yaml with short runs."""
    config = yaml.safe_load((EXPERIMENTS / "sweeps" / "digits.yaml").read_text())
    config["command"] = ["swin-lightning", "fit", "-c", DIGITS, *SHORT, "--test_after_fit=true", "${args}"]
    config.update(changes)
    Path("digits.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return "digits.yaml"


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_wandb_sweep_and_agent_run_a_sweep_file(server, as_client):
    output = run(server, *WANDB, "sweep", sweep_file(run_cap=2))
    assert f"wandb agent {PATH}" in output
    parameters = {"model.lr": 0.001, "model.weight_decay": 0.1, "model.label_smoothing": 0.1, "data.rotate": 5.0}
    server.add_finished_run("first", parameters, {"val/loss": 1.5})
    run(server, *WANDB, "agent", PATH)
    first, name = server.runs
    seen = server.runs[name]
    assert (seen["state"], seen["exitcode"]) == ("finished", 0)
    (folder,) = Path("runs/digits_swin_micro").glob(f"*-{name}")  # the folder's name ends with the run id
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert seen["args"].keys() == parameters.keys()
    for key, given in seen["args"].items():
        part, option = key.split(".")
        assert saved[part]["init_args"][option] == given["value"] == seen["config"][key]["value"]
    assert not [key for key in seen["config"] if "init_args" in key]  # one column per option
    assert {"val/acc_best", "test/acc"} <= seen["summary"].keys()
    assert len([row for row in seen["history"] if "train/loss" in row]) == 3
    # load_sweep reads the same values
    frame = load_sweep(PATH)
    assert list(frame["id"]) == [first, name] and set(frame["state"]) == {"finished"}
    assert frame.attrs["metric"] == "val/loss"
    assert list(frame["val/loss"]) == pytest.approx([1.5, seen["summary"]["val/loss"]])
    assert list(frame["model.lr"]) == [0.001, seen["args"]["model.lr"]["value"]]
    with pytest.raises(UserError, match=r"sweep 'tester/swin_lightning/other': .*other"):
        load_sweep("tester/swin_lightning/other")


@pytest.mark.slow
def test_offline_run_is_synced_later(server, as_client, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_MODE", "offline")
    fit = main(["fit", "-c", DIGITS, *SHORT, "--test_after_fit=true"])
    (command,) = re.findall(r"wandb sync (\S+)", capfd.readouterr().out)
    assert server.runs == {}
    run(server, *WANDB, "sync", command)
    (seen,) = server.runs.values()
    assert [seen["summary"]["test/acc"]] == pytest.approx(metrics(fit.run_dir, "test/acc"))
    assert [row["train/loss"] for row in seen["history"] if "train/loss" in row] == pytest.approx(
        metrics(fit.run_dir, "train/loss")
    )


def test_sweep_is_not_created_without_an_account(server, as_client, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert not run_sweep({"method": "grid", "parameters": {}}, [{}], None)
    assert re.fullmatch(r"W&B: cannot create the sweep \(.+\); running it on this machine\n", capsys.readouterr().err)


@pytest.mark.slow
def test_sweep_command_uses_the_server_when_logged_in(server):
    output = run(server, sys.executable, "-m", "swin_lightning", "sweep", sweep_file(run_cap=2), "--agents", "1")
    assert f"to add agents on other machines: wandb agent {PATH}" in output
    assert [seen["state"] for seen in server.runs.values()] == ["finished", "finished"]
    assert not Path("runs/sweeps").exists()


@pytest.mark.slow
def test_run_stopped_by_hyperband_keeps_a_checkpoint_and_is_not_a_failure(server):
    server.stop_after = 12
    long = ["swin-lightning", "fit", "-c", DIGITS, "--trainer.max_epochs=2000", "${args}"]
    run(server, *WANDB, "sweep", sweep_file(run_cap=1, command=long))
    run(server, *WANDB, "agent", PATH)
    ((name, seen),) = server.runs.items()
    assert (seen["state"], seen["exitcode"]) == ("finished", 0)  # the agent gives up after failures
    assert name not in server.preempting
    (folder,) = Path("runs/digits_swin_micro").glob(f"*-{name}")
    assert (folder / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
def test_preempted_run_is_requeued_and_continues_from_its_checkpoint(server):
    args = {"model.lr": {"value": 0.001}}
    name = "run00000"
    server.sweep = yaml.safe_load(Path(sweep_file(run_cap=1)).read_text())
    server.sweep["command"] = ["swin-lightning", "fit", "-c", DIGITS, "--trainer.max_epochs=6", "${args}"]
    server.queue = [{"type": "run", "run_id": name, "program": "swin-lightning", "args": args}]
    server.runs[name] = {"history": [], "summary": {}, "config": {}, "state": "running", "args": args}
    agent = subprocess.Popen([*WANDB, "agent", "--count", "1", PATH], env=server.env)
    folders = Path("runs/digits_swin_micro")
    wait_for(lambda: list(folders.glob(f"*-{name}/checkpoints/last.ckpt")))
    # preemption: the run receives SIGTERM
    (pid,) = subprocess.run(
        ["pgrep", "-P", str(agent.pid), "-f", "digits_swin_micro"], capture_output=True, text=True
    ).stdout.split()
    os.kill(int(pid), signal.SIGTERM)
    agent.wait(120)
    assert name in server.preempting and server.runs[name]["exitcode"] == 128 + signal.SIGTERM
    (folder,) = folders.glob(f"*-{name}")
    steps = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < steps < 6 * 39
    logged = len(server.runs[name]["history"])
    # an agent on another machine resumes it
    server.queue = [{"type": "resume", "run_id": name, "program": "swin-lightning", "args": args}]
    run(server, *WANDB, "agent", "--count", "1", PATH)
    seen = server.runs[name]
    assert seen["state"] == "finished" and len(seen["history"]) > logged
    assert [p.name for p in folders.iterdir()] == [folder.name]  # the same run folder
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6 * 39
    steps = [row["trainer/global_step"] for row in seen["history"]]
    assert steps == sorted(steps)


def test_slurm_script_starts_an_agent(tmp_path):
    script = EXPERIMENTS / "slurm" / "agents.sh"
    (tmp_path / "srun").write_text('#!/bin/sh\necho "srun $@"\n')
    (tmp_path / "srun").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(script), "me/project/id"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "srun wandb agent --forward-signals me/project/id\n")
    done = subprocess.run(["bash", str(script)], env=env, capture_output=True, text=True)
    assert done.returncode != 0 and "usage: sbatch" in done.stderr
