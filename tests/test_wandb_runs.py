"""Closing W&B, resumed runs, and faults of its background process, server and disk."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import wandb
from lightning import Callback

from swin_lightning.cli import main
from swin_lightning.runs import RunFolder
from swin_lightning.wandb_runs import (
    _children,
    describe,
    finish_wandb,
    offline_parts,
    read_offline_history,
    sync_command,
    within,
)
from tests.support.cli import DIGITS, SHORT, environment, metrics
from tests.support.wandb_server import Server


def test_upload_command_names_all_parts_of_a_resumed_run(tmp_path):
    names = ["offline-run-20260101_000000-aa", "offline-run-20260102_000000-aa", "offline-run-20260101_000000-bb"]
    for name in names:
        (tmp_path / "wandb" / name).mkdir(parents=True)
    assert sync_command(tmp_path / "wandb" / names[1]) == f"wandb sync wandb/{names[0]} wandb/{names[1]}"


def test_calls_that_fail_or_hang_are_ended():
    assert within(5, lambda: 1) is None
    assert isinstance(within(5, lambda: 1 / 0), ZeroDivisionError)
    start = time.monotonic()
    assert isinstance(within(0.1, lambda: time.sleep(3)), TimeoutError) and time.monotonic() - start < 2
    assert describe(OSError("a\nb")) == "OSError: a b" and describe(OSError()) == "OSError"


def test_without_a_run_there_is_nothing_to_close(capsys):
    finish_wandb()
    assert capsys.readouterr().out == ""


# resumed runs


def history(run, server):
    if server is None:
        return [row for part in offline_parts(run.path, run.id) for row in read_offline_history(part)]
    return server.runs[run.id]["history"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("online", [False, True])
def test_history_of_a_resumed_run_has_every_step_once(online, monkeypatch, tmp_path, capsys):
    with Server() as server:
        for name, value in (server.environment(tmp_path) if online else {"WANDB_MODE": "offline"}).items():
            monkeypatch.setenv(name, value)
        wandb.teardown()  # or the settings of an earlier test count
        arguments = ["fit", "-c", DIGITS, *SHORT, "--test_after_fit=true", "--trainer.max_epochs=2"]
        every = "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {save_top_k: -1}}"
        run = main([*arguments, f"--trainer.callbacks=[{every}]"]).run
        main([*arguments, f"--ckpt_path={run.checkpoints}/epoch=0-step=3.ckpt"])
        rows = history(run, server if online else None)
    logged = Counter((row.get("trainer/global_step"), name) for row in rows for name in row if "/" in name)
    for name in ("train/loss", "val/acc", "test/acc"):
        steps = sorted(step for step, key in logged if key == name)
        assert steps == [int(row["step"]) for row in run.read_metrics() if row.get(name)], name
        assert {logged[step, name] for step in steps} == {1}, name
    assert len(metrics(run.path, "train/loss")) == 6 and len(metrics(run.path, "test/acc")) == 1
    if not online:
        last = [line for line in capsys.readouterr().out.splitlines() if "wandb sync" in line][-1]
        assert last.count("offline-run-") == 2


# faults, each in a process of its own


class KillService(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1:
            for process in _children("wandb-core"):
                os.kill(process, signal.SIGKILL)
            time.sleep(0.3)


class StopService(Callback):
    def on_test_end(self, trainer, pl_module):
        for process in _children("wandb-core"):
            os.kill(process, signal.SIGSTOP)


class FillDisk(Callback):
    """A small, full file system over the folder of W&B."""

    def on_fit_start(self, trainer, pl_module):
        folder = Path(trainer.loggers[1].save_dir) / "wandb"
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], check=True)
        with contextlib.suppress(OSError):
            (folder / "file").write_bytes(bytes(2**17))


IN_NAMESPACE = ["unshare", "-m"]
can_mount = subprocess.run(["sh", "-c", "unshare -m mount -t tmpfs none /mnt"], capture_output=True).returncode == 0
FAULTS = {
    "killed": (["KillService"], {}, [], "logging to W&B has stopped (ConnectionResetError"),
    "hangs at the end": (["StopService"], {"WANDB_FINISH_TIMEOUT": "2"}, [], "the run was not closed (TimeoutError"),
    "full disk": (["FillDisk"], {}, IN_NAMESPACE, "logging to W&B has stopped ("),
    "server": ([], {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}, [], "does not respond"),
    "HOME": ([], {"HOME": "/nonexistent"}, [], None),
    "TMPDIR": ([], {"TMPDIR": "/proc"}, [], None),
}


@pytest.mark.slow
@pytest.mark.parametrize(("callbacks", "env", "prefix", "expected"), FAULTS.values(), ids=FAULTS)
def test_faults_cost_one_line_and_neither_run_nor_test(callbacks, env, prefix, expected, tmp_path):
    if prefix and not can_mount:
        pytest.skip("needs the right to mount")
    own = {k: v for k, v in environment().items() if not k.startswith("WANDB")} | {"HOME": str(tmp_path)} | env
    added = [f"--trainer.callbacks+=tests.test_wandb_runs.{name}" for name in callbacks]
    command = [*prefix, sys.executable, "-m", "swin_lightning", "fit", "-c", DIGITS, *SHORT, "--test_after_fit=true"]
    done = subprocess.run([*command, *added], env=own, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "test/acc 0." in done.stdout and "Traceback" not in done.stderr
    warned = [line for line in done.stderr.splitlines() if line.startswith("W&B")]
    assert len(warned) == (expected is not None) and all(expected in line for line in warned), done.stderr
    (folder,) = Path("runs/digits_swin_micro").iterdir()
    assert len(metrics(RunFolder(folder).path, "test/acc")) == 1
