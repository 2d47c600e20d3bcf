"""The online path: the real wandb client, its agent and our runs against a stand-in for the server."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from swin_lightning.sweep.results import load_sweep
from tests.support.cli import DIGITS, EXPERIMENTS, ROOT, SHORT, environment
from tests.support.wandb_server import Server

WANDB = [sys.executable, "-m", "wandb"]
PATH = "tester/swin_lightning/sweep001"


@pytest.fixture
def server(tmp_path):
    with Server() as server:
        clean = {k: v for k, v in environment().items() if not k.startswith("WANDB")}
        scripts = str(Path(sys.executable).parent)  # where the agent finds `swin-lightning`
        paths = {"PATH": f"{scripts}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        server.env = {**clean, **server.environment(tmp_path), **paths}
        yield server
        assert server.unanswered == []


def run(server, *command):
    done = subprocess.run(command, env=server.env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def sweep_file(**changes):
    """experiments/sweeps/digits.yaml with short runs."""
    config = yaml.safe_load((EXPERIMENTS / "sweeps" / "digits.yaml").read_text())
    config["command"] = ["swin-lightning", "fit", "-c", DIGITS, *SHORT, "${args}"]
    config.update(changes)
    Path("digits.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return "digits.yaml"


def wait(what, seconds=120):
    deadline = time.time() + seconds
    while not what() and time.time() < deadline:
        time.sleep(0.2)
    assert what()


def test_wandb_sweep_and_agent_run_the_file(server, monkeypatch):
    output = run(server, *WANDB, "sweep", sweep_file(run_cap=3))
    assert f"wandb agent {PATH}" in output
    run(server, *WANDB, "agent", PATH)
    assert len(server.runs) == 3
    for name, seen in server.runs.items():
        assert (seen["state"], seen["exitcode"]) == ("finished", 0)
        (folder,) = Path("runs/digits_swin_micro").glob(f"*-{name}")  # the run's id is the end of its folder's name
        saved = yaml.safe_load((folder / "config.yaml").read_text())
        for key, given in seen["args"].items():
            part, option = key.split(".")
            block = saved[part] if part == "model" else saved[part]["init_args"]
            assert block[option] == given["value"] == seen["config"][key]["value"]
        assert not [key for key in seen["config"] if "init_args" in key]  # each option has one column
        assert {"val/acc_best", "test/acc"} <= seen["summary"].keys()
        assert [row["train/loss"] for row in seen["history"] if "train/loss" in row]
    # and back into a notebook
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    frame = load_sweep(PATH)
    assert list(frame["id"]) == list(server.runs) and set(frame["state"]) == {"finished"}
    assert frame.attrs["metric"] == "val/loss"
    for row, seen in zip(frame.to_dict("records"), server.runs.values(), strict=True):
        assert row["val/loss"] == pytest.approx(seen["summary"]["val/loss"])
        assert row["model.lr"] == seen["args"]["model.lr"]["value"]
    with pytest.raises(ValueError, match=r"sweep 'tester/swin_lightning/other': .*other"):
        load_sweep("tester/swin_lightning/other")


def test_an_offline_run_is_sent_later(server):
    env = {**server.env, "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-m", "swin_lightning", "fit", "-c", DIGITS, *SHORT], env=env, capture_output=True, text=True
    )
    (line,) = [line for line in done.stdout.splitlines() if "wandb sync" in line]
    run(server, *WANDB, "sync", line.split("wandb sync ")[1])
    (seen,) = server.runs.values()
    assert seen["summary"]["test/acc"] == pytest.approx(float(done.stdout.split("test/acc ")[1].split()[0]), abs=1e-4)
    assert len([row for row in seen["history"] if "train/loss" in row]) == 3


@pytest.mark.slow
def test_swin_lightning_sweep_goes_through_wandb_where_there_is_an_account(server):
    output = run(server, sys.executable, "-m", "swin_lightning", "sweep", sweep_file(run_cap=2), "--agents", "1")
    assert f"more machines join with: wandb agent {PATH}" in output
    assert [seen["state"] for seen in server.runs.values()] == ["finished", "finished"]
    assert not Path("runs/sweeps").exists()


@pytest.mark.slow
def test_hyperbands_stop_ends_a_run_with_a_checkpoint_and_no_failure(server):
    server.stop_after = 12
    long = ["swin-lightning", "fit", "-c", DIGITS, "--trainer.max_epochs=2000", "${args}"]
    run(server, *WANDB, "sweep", sweep_file(run_cap=1, command=long))
    run(server, *WANDB, "agent", PATH)
    ((name, seen),) = server.runs.items()
    assert (seen["state"], seen["exitcode"]) == ("finished", 0)  # or the agent would count it as a failure and give up
    assert name not in server.preempting
    (folder,) = Path("runs/digits_swin_micro").glob(f"*-{name}")
    assert (folder / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
def test_a_preempted_run_goes_back_into_the_queue_and_goes_on_from_its_checkpoint(server):
    args = {"model.lr": {"value": 0.001}}
    name = "run00000"
    server.sweep = yaml.safe_load(Path(sweep_file(run_cap=1)).read_text())
    server.sweep["command"] = ["swin-lightning", "fit", "-c", DIGITS, "--trainer.max_epochs=6", "${args}"]
    server.queue = [{"type": "run", "run_id": name, "program": "swin-lightning", "args": args}]
    server.runs[name] = {"history": [], "summary": {}, "config": {}, "state": "running", "args": args}
    agent = subprocess.Popen([*WANDB, "agent", "--count", "1", PATH], env=server.env)
    folders = Path("runs/digits_swin_micro")
    wait(lambda: list(folders.glob(f"*-{name}/checkpoints/last.ckpt")))
    # the machine is taken away: the run and the agent are told at once
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
    # another machine asks for work
    server.queue = [{"type": "resume", "run_id": name, "program": "swin-lightning", "args": args}]
    run(server, *WANDB, "agent", "--count", "1", PATH)
    seen = server.runs[name]
    assert seen["state"] == "finished" and len(seen["history"]) > logged
    assert [p.name for p in folders.iterdir()] == [folder.name]  # the same run folder
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6 * 39
    marks = [row["trainer/global_step"] for row in seen["history"]]
    assert marks == sorted(marks)
