"""Restarts by SLURM and torchrun end with the weights of an undisturbed run."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import slurm
from tests.support.cli import EXPERIMENTS, environment
from tests.support.kills import STATES, differences
from tests.support.training import load

COMMAND = ["-c", "digits_swin_micro", "-c", "hardware/cpu", "--trainer.max_epochs=6", "--test_after_fit=false",
           "--ema.decay=0.9", "--checkpoint.every_n_train_steps=3"]  # fmt: skip


def wait_for(log, text, count=1, seconds=120):
    """Wait until a text stands in a log so many times."""
    end = time.monotonic() + seconds
    while not log.is_file() or log.read_text().count(text) < count:
        assert time.monotonic() < end, log.read_text()[-3000:] if log.is_file() else f"no {log}"
        time.sleep(0.1)


def run_folder(experiment):
    (folder,) = Path("runs", experiment).iterdir()  # one for all restarts
    return folder


def assert_same_end(first, second):
    a, b = (load(run_folder(name) / "checkpoints" / "last.ckpt") for name in (first, second))
    assert a["global_step"] == b["global_step"] > 0
    assert [name for key in STATES for name in differences(a[key], b[key], key)] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(bool(slurm.missing()), reason=f"not installed: {', '.join(slurm.missing())}")
@pytest.mark.skipif(os.geteuid() != 0, reason="the daemons of SLURM start jobs as root")
def test_slurm_job_continues_after_signal_requeue_and_cancellation(tmp_path):
    script = str(EXPERIMENTS / "slurm" / "train.sbatch")
    size = ["--nodes=1", "--ntasks-per-node=2", "--gres=none", "--cpus-per-task=1", "--overcommit"]
    variables = {**environment(), "WANDB_MODE": "offline"}

    with slurm.loopback(tmp_path / "slurm") as cluster:

        def submit(experiment, log, *more):
            command = [*size, f"--output={log.resolve()}", script, *COMMAND, f"--experiment={experiment}", *more]
            return cluster.submit(*command, environment=variables)

        whole, log = submit("whole", Path("whole.log")), Path("log")
        assert cluster.wait(whole, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", Path("whole.log").read_text()

        job = submit("disturbed", log)
        wait_for(log, "epoch 1/6")
        cluster.run("scancel", "--signal=USR1", job)  # as before the time limit
        cluster.start_now(job)
        assert f"requeued SLURM job {job}" in log.read_text()
        wait_for(log, "epoch 2/6")
        time.sleep(1)
        cluster.run("scontrol", "requeue", job)  # as by an administrator, or on preemption
        cluster.start_now(job)
        wait_for(log, "epoch 3/6")
        time.sleep(1)
        cluster.run("scancel", job)
        cluster.wait(job, "CANCELLED")
        second = submit("disturbed", Path("log2"), "--ckpt_path=last")
        assert cluster.wait(second, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", Path("log2").read_text()

    text = log.read_text() + Path("log2").read_text()
    assert [text.count(f"epoch {epoch}/6") for epoch in range(1, 7)] == [1] * 6, text  # no epoch is repeated
    folder = run_folder("disturbed")
    assert folder.name.split("-")[-1].startswith(f"slurm{job}_")
    assert not list(folder.rglob("hpc_ckpt*"))
    assert {path.name.split("-")[-1] for path in folder.glob("wandb/offline-run-*")} == {folder.name.split("-")[-1]}
    assert_same_end("whole", "disturbed")


def torchrun(log, experiment, *options):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *options, "-m", "swin_lightning"]
    command += ["fit", *COMMAND, f"--experiment={experiment}"]
    with log.open("w") as output:
        return subprocess.Popen(command, env={**environment(), "WANDB_MODE": "disabled"}, stdout=output, stderr=output)


def workers(launcher):
    """The processes of the ranks: the children of torchrun that are not its helpers."""
    children = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(launcher)], capture_output=True, text=True
    ).stdout
    return [int(line.split()[0]) for line in children.splitlines() if re.search(r"-m swin_lightning fit", line)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_torchrun_restarts_continue_after_kills():
    whole = torchrun(Path("whole.log"), "whole")
    assert whole.wait(300) == 0, Path("whole.log").read_text()
    log = Path("log")
    process = torchrun(log, "disturbed", "--max-restarts=3")
    try:
        for kill in range(3):
            wait_for(log, f"epoch {kill + 1}/6")
            time.sleep(0.5 + 0.2 * kill)
            os.kill(workers(process.pid)[kill % 2], signal.SIGKILL)
        assert process.wait(300) == 0, log.read_text()
    finally:
        process.terminate()
        process.wait(60)
    assert len(list(run_folder("disturbed").glob("config*.yaml"))) == 4  # the start and three restarts
    assert_same_end("whole", "disturbed")
