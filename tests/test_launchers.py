"""Jobs of SLURM and torchrun: ids of runs, processes, and the signal to requeue."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

from swin_lightning import launchers
from swin_lightning.launchers import launched_processes, requeue_on_signal, run_id, slurm_job

BATCH = {"ENVIRONMENT": "BATCH", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "4",
         "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2", "SLURM_PROCID": "0"}  # fmt: skip
ELASTIC = {"TORCHELASTIC_RUN_ID": "job12", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0",
           "TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_USE_AGENT_STORE": "True"}  # fmt: skip


@pytest.fixture
def env(monkeypatch):
    """Set the variables of a launcher in place of those of this machine."""
    for name in os.environ:
        if name.startswith(("SLURM", "TORCHELASTIC")) or name in ("ENVIRONMENT", "WORLD_SIZE", "MASTER_PORT"):
            monkeypatch.delenv(name)

    def set_variables(values, **more):
        for name, value in {**values, **more}.items():
            monkeypatch.setenv(name, value)

    return set_variables


def test_process_without_launcher(env):
    assert run_id(["fit"]) is None and slurm_job() is None and launched_processes(None, "auto") == {}


def test_id_of_a_batch_job_stays_and_differs_between_commands_and_array_tasks(env):
    env(BATCH)
    first = run_id(["fit", "-c", "a"])
    assert first.startswith("slurm7_") and first.replace("_", "").isalnum()
    env(BATCH, SLURM_RESTART_COUNT="1", SLURM_PROCID="3", SLURM_STEP_ID="2")
    assert run_id(["fit", "-c", "a"]) == first
    assert run_id(["fit", "-c", "b"]) != first
    env(BATCH, SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="3")
    assert slurm_job() == "5_3" and run_id(["fit", "-c", "a"]).startswith("slurm5_3_")


def test_interactive_job_has_no_id(env):
    env({name: value for name, value in BATCH.items() if name != "ENVIRONMENT"}, SLURM_JOB_NAME="interactive")
    assert run_id(["fit"]) is None


def test_id_of_torchrun_follows_from_the_rendezvous(env):
    env(ELASTIC)
    first = run_id(["fit"])
    assert first.startswith("torchrun_job12_")
    env(ELASTIC, TORCHELASTIC_RESTART_COUNT="2", RANK="1", WORLD_SIZE="2", MASTER_PORT="1234")
    assert run_id(["fit"]) == first
    env(ELASTIC, TORCHELASTIC_RUN_ID="f2b1-44/x y")
    assert run_id(["fit"]).replace("_", "").isalnum()
    env(ELASTIC, **BATCH)  # torchrun within a batch job, whose requeueing changes the rendezvous
    assert run_id(["fit"]).startswith("slurm7_")


@pytest.fixture
def launcher_store(env):
    """The store of torchrun's agent."""
    store = launchers.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    env(ELASTIC, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port))
    return store


def test_default_rendezvous_id_is_replaced_by_one_of_the_launch(env, launcher_store):
    env({"TORCHELASTIC_RUN_ID": "none"})
    first = run_id(["fit"])
    env({"RANK": "1", "TORCHELASTIC_RESTART_COUNT": "1"})
    assert run_id(["fit"]) == first and first is not None
    other = launchers.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    env({"MASTER_PORT": str(other.port)})  # another launch
    assert run_id(["fit"]) != first
    env({"TORCHELASTIC_USE_AGENT_STORE": "False"})
    assert run_id(["fit"]) is None


def test_ranks_of_a_restart_meet_in_a_new_store(env, launcher_store, monkeypatch):
    agent = str(launcher_store.port)
    monkeypatch.setattr(launchers, "OPEN_STORES", [])
    launchers.open_own_store()
    first = os.environ["MASTER_PORT"]
    env({"RANK": "1", "MASTER_PORT": agent})
    launchers.open_own_store()
    assert os.environ["MASTER_PORT"] == first != agent
    env({"TORCHELASTIC_MAX_RESTARTS": "0", "MASTER_PORT": agent})
    launchers.open_own_store()
    assert os.environ["MASTER_PORT"] == agent


def test_trainer_gets_the_processes_of_the_launcher(env):
    env(BATCH)
    assert launched_processes(None, "auto") == launched_processes(None, 8) == {"devices": 2, "num_nodes": 2}
    assert launched_processes([SLURMEnvironment(auto_requeue=False)], 1) == {"devices": 2, "num_nodes": 2}
    assert launched_processes(LightningEnvironment(), 1) == {}  # the user's own choice
    assert launched_processes(None, [1, 3]) == launched_processes(None, "1,3") == {"num_nodes": 2}
    env(ELASTIC, WORLD_SIZE="6", LOCAL_WORLD_SIZE="3")
    assert launched_processes(None, "auto") == {"devices": 3, "num_nodes": 2}
    env(ELASTIC, WORLD_SIZE="5", LOCAL_WORLD_SIZE="3")  # machines with 3 and 2 processes
    assert launched_processes(None, "auto") == {}


@pytest.fixture
def requeued(env, monkeypatch):
    """Jobs that SLURM was asked to requeue. SIGTERM ends a block with SystemExit, as within a run."""
    jobs = []
    monkeypatch.setattr(launchers, "_requeue", jobs.append)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    yield jobs
    signal.signal(signal.SIGTERM, before)


def test_signal_ends_the_run_and_requeues_the_job(env, requeued):
    env(BATCH, SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="3")
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(SystemExit), requeue_on_signal(None):
        signal.raise_signal(signal.SIGUSR1)
    assert requeued == ["5_3"] and signal.getsignal(signal.SIGUSR1) is before


def test_only_the_signal_requeues(env, requeued):
    env(BATCH)
    with pytest.raises(SystemExit), requeue_on_signal(None):
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), requeue_on_signal(None):
        1 / 0  # noqa: B018
    assert requeued == []


def test_plugin_of_the_user_decides_about_requeueing(env, requeued):
    env(BATCH)
    before = signal.getsignal(signal.SIGUSR1)
    with requeue_on_signal([SLURMEnvironment(auto_requeue=False)]):
        assert signal.getsignal(signal.SIGUSR1) is before
    with pytest.raises(SystemExit), requeue_on_signal(SLURMEnvironment(requeue_signal=signal.SIGUSR2)):
        signal.raise_signal(signal.SIGUSR2)
    assert requeued == ["7"]


def test_failed_requeue_is_reported(monkeypatch, tmp_path, caplog):
    program = tmp_path / "scontrol"
    program.write_text('#!/bin/sh\necho "$@" > called; echo Access denied >&2; exit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    caplog.set_level("INFO", "swin_lightning")
    launchers._requeue("7")
    assert Path("called").read_text() == "requeue 7\n" and "job 7 was not requeued: Access denied" in caplog.text


def test_script_starts_one_fit_per_task(tmp_path):
    script = Path(__file__).parents[1] / "experiments" / "slurm" / "train.sbatch"
    program = tmp_path / "srun"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "4"}
    done = subprocess.run([script, "-c", "digits_swin_micro"], env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["--cpus-per-task=4", "--kill-on-bad-exit=0", "--wait=300", "swin-lightning", "fit",
                                   "-c", "digits_swin_micro"]  # fmt: skip
    assert "usage: sbatch" in subprocess.run([script], env=env, capture_output=True, text=True).stderr
