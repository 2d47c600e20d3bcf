"""Run folders: layout, names, and how they are found."""

import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from swin_lightning.errors import UserError
from swin_lightning.runs import RunFolder, find_checkpoint, runs_root
from tests.support.cli import environment


def make_run(name, *files):
    run = RunFolder(runs_root() / name)
    for file in files:
        path = run.path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return run


def test_new_run_has_experiment_time_and_id():
    run = RunFolder.new("digits", "0a1b2c3d")
    assert run.path.parent == Path("runs/digits") and run.id == "0a1b2c3d"
    assert run.name == f"digits/{run.path.name}"
    assert not run.path.exists()


def test_root_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("SWIN_LIGHTNING_RUNS", str(tmp_path / "elsewhere"))
    assert RunFolder.new("digits", "1").path.parent == tmp_path / "elsewhere" / "digits"


def test_layout():
    run = RunFolder(Path("runs/digits/20260101-000000-1"))
    names = ("config", "best", "last", "metrics", "curves", "prediction_sheet", "predictions", "report")
    assert [str(getattr(run, name).relative_to(run.path)) for name in names] == [
        "config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "metrics.csv", "curves.png", "predictions.png",
        "predictions.csv", "report.html",
    ]  # fmt: skip


def test_resumed_run_keeps_its_first_configuration():
    run = make_run("digits/1-a")
    assert run.next_config() == run.config
    run = make_run("digits/1-a", "config.yaml")
    assert run.next_config() == run.path / "config-2.yaml"


def test_run_is_found_by_id_and_by_checkpoint():
    first, second = (
        make_run("digits/1-a", "config.yaml", "checkpoints/last.ckpt"),
        make_run("digits/2-a", "config.yaml"),
    )
    make_run("digits/3-b", "config.yaml")
    assert RunFolder.with_id("a") == second and RunFolder.with_id("c") is None
    assert RunFolder.with_id("a", experiment="cifar10") is None
    assert RunFolder.of_checkpoint(first.last) == first
    Path("loose.ckpt").write_text("")
    assert RunFolder.of_checkpoint("loose.ckpt") is None


def test_checkpoint_of_the_newest_run_that_has_one():
    first = make_run("digits/1-a", "checkpoints/last.ckpt", "checkpoints/best.ckpt")
    second = make_run("digits/2-b", "checkpoints/last.ckpt")
    assert find_checkpoint("digits", "last") == second.last and find_checkpoint("digits", "best") == first.best
    assert (first.checkpoint(), second.checkpoint()) == (first.best, second.last)
    with pytest.raises(UserError, match=r"--ckpt_path best: no run under runs/cifar10 has a checkpoints/best.ckpt"):
        find_checkpoint("cifar10", "best")
    with pytest.raises(UserError, match=r"has no checkpoints/best.ckpt and no checkpoints/last.ckpt"):
        make_run("digits/3-c", "config.yaml").checkpoint()


def test_newest_checkpoint_is_that_of_the_latest_time_whatever_the_folders_are_called():
    older, newer = make_run("digits/9-a", "checkpoints/last.ckpt"), make_run("digits/1-b", "checkpoints/last.ckpt")
    os.utime(older.last, (1, 1))  # these state no time of their own
    assert find_checkpoint("digits", "last") == newer.last


HOLD = """
import sys, time
from pathlib import Path
from swin_lightning.runs import RunFolder
with RunFolder(Path("runs/digits/1-a")).lock():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_run_has_one_writer_and_a_killed_one_does_not_block():
    run = make_run("digits/1-a")
    other = subprocess.Popen([sys.executable, "-c", HOLD], env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        message = rf"run digits/1-a is in use by process {other.pid} on {re.escape(os.uname().nodename)}; wait"
        with pytest.raises(UserError, match=message), run.lock():
            pass
        with pytest.raises(UserError, match="is in use by"), run.lock(wait=0.2):
            pass
    finally:
        other.kill()
        other.communicate()
    with run.lock():
        assert (run.path / ".writer").read_text() == f"process {os.getpid()} on {os.uname().nodename}"
    assert not (run.path / ".writer").exists()


def test_restart_waits_for_the_writer_that_it_replaces():
    run, start = make_run("digits/1-a"), time.monotonic()
    code = HOLD.replace("sleep(60)", "sleep(0.5)")
    with subprocess.Popen([sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with run.lock(wait=30):
            assert time.monotonic() - start > 0.5


def test_file_system_without_locks_is_used_with_a_warning(monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "swin_lightning")

    def acquire(*_, **__):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("swin_lightning.runs.FileLock.acquire", acquire)
    with make_run("digits/1-a").lock():
        assert "no lock for run digits/1-a (No locks available): do not start it twice" in caplog.text


def test_folder_without_configuration_is_no_run():
    with pytest.raises(UserError, match=r"'nowhere' is not a run folder: it has no config.yaml"):
        RunFolder.open("nowhere")


def test_metrics_and_configuration_are_read():
    run = make_run("digits/1-a")
    assert run.read_config() == {} and run.read_metrics() == []
    run.path.mkdir(parents=True)
    run.config.write_text("seed_everything: 3\n")
    run.metrics.write_text("step,val/acc\n0,\n1,0.5\n")
    assert run.read_config() == {"seed_everything": 3}
    assert run.read_metrics() == [{"step": "0", "val/acc": ""}, {"step": "1", "val/acc": "0.5"}]


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".hidden", "", "/tmp/x", "a\\b", "a\nb", "x" * 201, "a*"])
def test_names_cannot_leave_the_folder_of_runs(name):
    for refused in (
        lambda: RunFolder.new(name, "1"),
        lambda: RunFolder.new("digits", name),
        lambda: RunFolder.with_id(name),
        lambda: find_checkpoint(name, "last"),
    ):
        with pytest.raises(UserError, match="is not a name of a folder"):
            refused()


def test_usual_names_are_names():
    for name in ("digits_swin_micro", "größe-2.5e-4", "slurm7_0", "a=1,b=2 @home"):
        assert RunFolder.new(name, "1a2b").path.parent.name == name


@pytest.mark.parametrize("text", ["a: &a [*a]\n", "a: 1\na: 2\n", "a: !!python/name:os.system x\n", "[1, 2]\n"])
def test_configuration_of_a_run_from_others_is_read_with_limits(text):
    run = make_run("digits/1-a", "config.yaml")
    run.config.write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml"):
        run.read_config()
