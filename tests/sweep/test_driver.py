"""Sweeps on this machine: parallel trials, crashes, early stopping, and resuming after a kill."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from filelock import lock_descriptor

from swin_lightning.cli import main
from swin_lightning.errors import UserError
from swin_lightning.sweep import driver as driver_module
from swin_lightning.sweep import sweep
from swin_lightning.sweep.driver import Driver, worker_slots
from swin_lightning.sweep.results import load_sweep
from swin_lightning.sweep.sweep_file import Sweep
from swin_lightning.sweep.trial_log import Trial, TrialLog
from tests.support.cli import DIGITS, ROOT, SHORT, environment, metrics
from tests.sweep.fake_trials import CONFIG, changed, drive, fake_command, make_four_trials, make_sweep, write


@pytest.fixture(autouse=True)
def short_poll_interval(monkeypatch):
    monkeypatch.setattr(driver_module, "POLL_INTERVAL", 0.02)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# with a fake program


def test_grid_runs_every_combination_and_a_crash_does_not_end_the_sweep(capsys):
    trials = drive(make_sweep(method="grid", run_cap=None))
    assert [t.number for t in trials] == [1, 2, 3, 4, 5, 6]
    assert {(t.parameters["model.lr"], t.parameters["data.batch_size"], t.state) for t in trials} == {
        (lr, size, "crashed" if lr == 0.3 else "finished") for lr in (0.1, 0.2, 0.3) for size in (16, 32)
    }
    for trial in trials:
        if trial.state == "crashed":
            assert trial.reason == "exit code 1: invalid option" and trial.metrics == {}
        else:
            assert trial.metrics == {"epoch": 3.0, "val/acc_best": pytest.approx(trial.parameters["model.lr"])}
    assert trials == TrialLog(Path()).read()
    out = capsys.readouterr().out
    assert out.count("running") == 6 and out.count("finished") == 4 and out.count("crashed") == 2


def test_sweep_fails_if_the_first_trials_crash():
    crashing = make_sweep(parameters={"model.lr": {"value": 0.3}}, run_cap=50)
    with pytest.raises(UserError, match=r"the first 5 trials crashed: exit code 1: invalid option; see .*logs"):
        drive(crashing, parallel=1)


def test_sweep_fails_if_the_metric_is_not_logged():
    misspelt = make_sweep(metric={"name": "val/accuracy", "goal": "maximize"}, parameters={"model.lr": {"value": 0.1}})
    with pytest.raises(UserError, match=r"metric 'val/accuracy' was not logged; logged metrics: epoch, val/acc_best"):
        drive(misspelt, parallel=1)


def test_hyperband_terminates_a_running_trial():
    Path("hold").write_text("0.05")  # this trial does not end by itself
    trials = drive(
        make_sweep(
            method="grid", parameters={"model.lr": {"values": [0.1, 0.2, 0.05]}}, run_cap=None,
            early_terminate={"type": "hyperband", "min_iter": 1, "eta": 2},
        ),
        parallel=1,
    )  # fmt: skip
    assert [(t.parameters["model.lr"], t.state) for t in trials] == [
        (0.1, "finished"),
        (0.2, "finished"),
        (0.05, "stopped"),
    ]
    assert events(trials[2]) == ["started", "terminated"]


def events(trial):
    return Path(f"runs/fake/0-{trial.id}/events.txt").read_text().split()


DRIVE = """
import sys
sys.path.insert(0, sys.argv[1])
from swin_lightning.sweep import driver
driver.POLL_INTERVAL = 0.02
from tests.sweep.fake_trials import drive, make_four_trials
drive(make_four_trials())
"""


def test_sweep_resumes_after_a_killed_driver():
    Path("hold").write_text("0.12")  # the third trial is running when the driver is killed
    killed = subprocess.Popen([sys.executable, "-c", DRIVE, str(ROOT)], env=environment())
    wait_for(lambda: [t.state for t in TrialLog(Path()).read()] == ["finished", "finished", "running", "finished"])
    wait_for(lambda: len(list(Path().glob("runs/fake/*/metrics.csv"))) == 4)
    killed.kill()
    killed.wait()
    before = TrialLog(Path()).read()
    assert events(before[2]) == ["started"]  # left running
    Path(f"{before[3].id}.pid").touch()  # the driver may be killed between the end of a trial and its removal
    after = drive(make_four_trials())
    assert [(t.number, t.state) for t in after] == [(number, "finished") for number in (1, 2, 3, 4)]
    assert [(t.id, t.parameters) for t in after] == [(t.id, t.parameters) for t in before]
    assert [after[i] for i in (0, 1, 3)] == [before[i] for i in (0, 1, 3)]
    assert [events(t) for t in after] == [
        ["started", "ended"],
        ["started", "ended"],
        ["started", "terminated", "started", "ended"],
        ["started", "ended"],
    ]
    assert not list(Path().glob("*.pid"))


def test_running_trials_are_terminated_with_the_driver():
    Path("hold").write_text("0.1")
    held = make_sweep(parameters={"model.lr": {"value": 0.1}}, run_cap=1)
    driver = Driver(held, Path.cwd(), worker_slots(1), 1)

    def interrupt(trials, progress):
        if list(Path().glob("runs/fake/*/metrics.csv")):
            raise KeyboardInterrupt

    driver.progress_table.update = interrupt
    with pytest.raises(KeyboardInterrupt), driver:
        driver.run()
    (trial,) = TrialLog(Path()).read()
    assert trial.state == "running" and events(trial) == ["started", "terminated"]
    (trial,) = drive(held)
    assert trial.state == "finished" and events(trial) == ["started", "terminated", "started", "ended"]


@pytest.fixture
def interrupted():
    """A sweep with one trial that was running when its driver was killed."""
    TrialLog(Path()).write(Trial(1, "0a1b2c3d", {"model.lr": 0.1}))
    return make_sweep(parameters={"model.lr": {"value": 0.1}}, run_cap=1)


def test_orphan_that_ignores_sigterm_is_killed(interrupted):
    with Path("0a1b2c3d.pid").open("w") as pid_file:
        lock_descriptor(pid_file.fileno())
        command = ["sh", "-c", "trap '' TERM; echo ready; exec sleep 600"]
        orphan = subprocess.Popen(command, pass_fds=[pid_file.fileno()], stdout=subprocess.PIPE)
        assert orphan.stdout.readline() == b"ready\n"
        pid_file.write(str(orphan.pid))
    (trial,) = drive(interrupted)
    assert trial.state == "finished" and orphan.wait(10) == -signal.SIGKILL
    orphan.stdout.close()


def test_pid_of_another_process_is_ignored(interrupted):
    other = subprocess.Popen(["sleep", "600"])
    Path("0a1b2c3d.pid").write_text(str(other.pid))  # reused after the trial had ended
    (trial,) = drive(interrupted)
    assert trial.state == "finished" and other.poll() is None
    other.kill()
    other.wait()


def test_only_one_driver_runs_in_a_folder():
    with (
        Driver(make_sweep(), Path.cwd(), [], 1),
        pytest.raises(UserError, match=r"sweep .* is already running in another process; wait for it or stop it"),
        Driver(make_sweep(), Path.cwd(), [], 1),
    ):
        pass


def test_worker_slots_divide_the_cores_and_assign_the_gpus(monkeypatch):
    cores = sorted(os.sched_getaffinity(0))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if not torch.cuda.is_available():
        slots = worker_slots()
        assert len(slots) == min(4, len(cores)) and set().union(*(slot.cores for slot in slots)) <= set(cores)
        assert all(int(slot.environment["OMP_NUM_THREADS"]) == len(slot.cores) for slot in slots)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in worker_slots()] == ["3", "5"]
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in worker_slots(3)] == ["3", "5", "3"]


# the command


@pytest.mark.slow
def test_command_resumes_an_unfinished_sweep_and_starts_a_new_one_after_it(monkeypatch, capsys):
    monkeypatch.setattr(Sweep, "command", fake_command)
    path = write(changed(method="grid", run_cap=None, parameters={"model.lr": {"values": [0.1, 0.2]}}))
    handler = signal.getsignal(signal.SIGTERM)
    sweep([path, "--count", "1", "--agents", "1"])
    (folder,) = Path("runs/sweeps/small").iterdir()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [f"best: {folder}/best.yaml", f"report: {folder}/report.html", str(folder)]
    assert len(TrialLog(folder).read()) == 1
    sweep([path])
    assert f"resuming {folder}: 1 of 2 trials are done" in capsys.readouterr().out
    assert [t.state for t in TrialLog(folder).read()] == ["finished", "finished"]
    sweep([path, "--count", "1"])
    assert "resuming" not in capsys.readouterr().out and len(list(Path("runs/sweeps/small").iterdir())) == 2
    assert signal.getsignal(signal.SIGTERM) == handler


def test_interrupted_command_says_how_to_resume(monkeypatch, capsys):
    def interrupt(driver):
        raise KeyboardInterrupt

    monkeypatch.setattr(Driver, "run", interrupt)
    with pytest.raises(SystemExit) as caught:
        sweep([write(CONFIG)])
    out, err = capsys.readouterr()
    assert caught.value.code == 130 and err == "interrupted; run the same command again to resume\n"
    assert out.startswith("no trial finished with a metric value\n")


# with a real training


@pytest.fixture(scope="module")
def real_sweep(tmp_path_factory):
    """Folder of a sweep with one short training of the digits."""
    config = changed(
        command=["swin-lightning", "fit", "-c", DIGITS, *SHORT, "--test_after_fit=true", "${args}"], run_cap=1,
        parameters={"model.backbone.drop_path_rate": {"min": 0.0, "max": 0.2}, "data.batch_size": {"values": [16]}},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("sweep"))
        sweep([write(config)])
        (folder,) = Path("runs/sweeps/small").iterdir()
        return folder.absolute()


def real_fit(folder):
    """Arguments with the options of the trial of `real_sweep`."""
    return ["fit", "-c", DIGITS, *SHORT, "-c", str(folder / "best.yaml")]


def test_options_of_a_trial_are_those_of_its_run_and_the_overlay_reproduces_it(real_sweep):
    frame = load_sweep(real_sweep)
    assert frame.attrs["parameters"] == ["model.backbone.drop_path_rate", "data.batch_size"]
    (row,) = frame.to_dict("records")
    assert row["state"] == "finished" and row["run"].endswith(row["id"]) and 0 <= row["test/acc"] <= 1
    saved = yaml.safe_load((Path(row["run"]) / "config.yaml").read_text())
    backbone = saved["model"]["init_args"]["backbone"]["init_args"]
    assert backbone["drop_path_rate"] == row["model.backbone.drop_path_rate"] > 0
    assert saved["data"]["init_args"]["batch_size"] == row["data.batch_size"] == 16
    repeated = main(real_fit(real_sweep))
    assert metrics(repeated.run_dir, "val/loss") == [pytest.approx(row["val/loss"])]


def test_restarted_trial_continues_from_its_checkpoint(real_sweep, monkeypatch):
    (run,) = real_sweep.glob("runs/digits_swin_micro/*")
    shutil.copytree(run, Path("elsewhere/digits_swin_micro") / run.name)
    other = Path("runs/digits_swin_micro") / run.name / "checkpoints/last.ckpt"  # of the same id below another root
    other.parent.mkdir(parents=True)
    other.touch()
    monkeypatch.setenv("WANDB_RUN_ID", run.name.rsplit("-", 1)[-1])
    monkeypatch.setenv("SWIN_LIGHTNING_RUNS", "elsewhere")
    resumed = main([*real_fit(real_sweep), "--trainer.max_epochs=2"])
    assert resumed.run_dir == Path("elsewhere/digits_swin_micro") / run.name
    assert resumed.trainer.global_step == 6 and len(metrics(resumed.run_dir, "val/loss")) == 2
