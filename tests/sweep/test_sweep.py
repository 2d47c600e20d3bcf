"""Sweeps without a server: files are checked, trials run in parallel, survive kills, and end in a summary."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from swin_lightning.cli import main
from swin_lightning.errors import UserError
from swin_lightning.sweep import sweep_figures as plots
from swin_lightning.sweep.driver import Driver, Slot, slots
from swin_lightning.sweep.progress_table import Board, best_trial
from swin_lightning.sweep.results import load_sweep, trials_frame, write_summary
from swin_lightning.sweep.search import next_parameters, to_stop
from swin_lightning.sweep.sweep_file import Sweep, read_sweep
from swin_lightning.sweep.trial_log import Journal, Trial
from tests.support.cli import DIGITS, EXPERIMENTS, ROOT, SHORT, environment, metrics

FILES = sorted((EXPERIMENTS / "sweeps").glob("*.yaml"))
SMALL = {
    "method": "random",
    "metric": {"name": "val/acc_best", "goal": "maximize"},
    "run_cap": 3,
    "command": ["swin-lightning", "fit", "-c", DIGITS, "${args}"],
    "parameters": {"model.lr": {"values": [0.1, 0.2, 0.3]}, "data.batch_size": {"values": [16, 32]}},
}


def write(config, name="small.yaml"):
    Path(name).write_text(yaml.safe_dump(config, sort_keys=False))
    return name


# files


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_sweep_file_fits_the_program_and_wandbs_format(path, monkeypatch):
    monkeypatch.chdir(ROOT)  # where commands name experiments/
    sweep = read_sweep(path)
    assert f"swin-lightning sweep experiments/sweeps/{path.name}" in path.read_text()
    trial = next_parameters(sweep, [])
    assert set(trial) == set(sweep.config["parameters"])
    command = sweep.command(trial)
    assert command[1:4] == ["-m", "swin_lightning", "fit"]
    assert [f"--{key}={value}" for key, value in trial.items()] == command[-len(trial) :]


def changed(**changes):
    return {key: value for key, value in {**SMALL, **changes}.items() if value is not None}


def parameter(name, **spec):
    return changed(parameters={name: spec})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (changed(metod="grid"), "key 'metod' is unknown; did you mean method?"),
        (changed(method="baies"), "method 'baies' is unknown; did you mean bayes?"),
        (changed(method=None), "method is missing"),
        (changed(metric={"name": "val/acc", "goal": "maximise"}), "'maximise' is unknown; did you mean maximize?"),
        (changed(metric="val/acc"), "metric 'val/acc' needs a name and a goal"),
        (changed(run_cap=0), "run_cap 0 must be a whole number above 0"),
        (parameter("model.lrr", values=[0.1]), "model.lrr 0.1: unknown option model.lrr; did you mean model.lr?"),
        (parameter("model.lr", values=[0.1, None]), "parameters.model.lr.values [0.1, None]: null reaches the program"),
        (parameter("data.batch_size", values=[16, 64.0]), "batch_size 64.0: data.batch_size: expected int, got"),
        (parameter("data.batch_size", min=16.0, max=64.0), "expected int, got"),
        (parameter("model.lr", min="1e-4", max=0.1), "parameters.model.lr.min '1e-4' is text to YAML"),
        (parameter("model.lr", min=0.1, max=0.01), "min 0.1 is not less than max 0.01"),
        (parameter("model.lr", mn=0.1, max=1.0), "parameters.model.lr: key 'mn' is unknown; did you mean min?"),
        (parameter("model.lr", distribution="loguniform", min=0.1, max=1.0), "does not fit W&B's format"),
        (parameter("model", parameters={"lr": {"value": 1}}), "parameters.model is nested; write each"),
        (parameter("data.init_args.batch_size", values=[16]), "write data.batch_size"),
        (changed(method="grid", parameters={"model.lr": {"min": 0.1, "max": 0.2}}), "a grid needs values"),
        (changed(command=["python", "train.py", "${args}"]), "must run `swin-lightning fit ...` and hold ${args} once"),
        (changed(command=["swin-lightning", "fit", "-c", DIGITS]), "hold ${args} once"),
        (changed(command=["swin-lightning", "fit", "${args_json}", "${args}"]), "${args_json} is not known here"),
        (changed(command=["swin-lightning", "fit", "-c", "nowhere.yaml", "${args}"]), "nowhere.yaml"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_sweep_file_is_one_line_before_anything_starts(config, words):
    path = write(config)
    with pytest.raises(UserError) as caught:
        main(["sweep", path])
    text = str(caught.value)
    assert words in text and text.startswith("small.yaml: ")
    assert "\n" not in text and len(text) < 400
    assert not Path("runs").exists()


def test_other_mistakes():
    with pytest.raises(UserError, match=r"nowhere.yaml: there is no such file; .* experiments/sweeps"):
        main(["sweep", "nowhere.yaml"])
    Path("broken.yaml").write_text("method: [")
    with pytest.raises(UserError, match=r"broken.yaml: cannot be read as YAML"):
        main(["sweep", "broken.yaml"])
    with pytest.raises(UserError, match=r"random search has no end; add run_cap or pass --count N"):
        main(["sweep", write(changed(run_cap=None)), "--local"])
    with pytest.raises(UserError, match=r"--agents 0 must be at least 1"):
        main(["sweep", write(SMALL), "--agents", "0"])


def test_checking_starts_nothing(capsys):
    main(["sweep", write(SMALL), "--check"])
    assert "small.yaml: random over model.lr, data.batch_size; it fits" in capsys.readouterr().out
    assert not Path("runs").exists()


# the engine


def sweep_of(**changes):
    config = changed(**changes)
    return Sweep(Path("small.yaml"), config, ("fit",))


def test_a_grid_gives_every_point_once_and_ends():
    sweep = sweep_of(method="grid", run_cap=None)
    trials = []
    while (parameters := next_parameters(sweep, trials)) is not None:
        trials.append(Trial(len(trials) + 1, str(len(trials)), parameters, "finished"))
    points = {(t.parameters["model.lr"], t.parameters["data.batch_size"]) for t in trials}
    assert len(trials) == 6 and points == {(lr, size) for lr in (0.1, 0.2, 0.3) for size in (16, 32)}


def test_random_draws_follow_the_number_of_trials_and_differ():
    sweep = sweep_of(parameters={"model.lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-1}})
    trials, draws = [], []
    for number in range(6):
        assert next_parameters(sweep, trials) == next_parameters(sweep, trials)  # a resumed sweep draws the same
        draws.append(next_parameters(sweep, trials)["model.lr"])
        trials.append(Trial(number + 1, str(number), {"model.lr": draws[-1]}, "finished"))
    assert len(set(draws)) == 6 and all(1e-5 <= draw <= 1e-1 for draw in draws)


def test_bayes_finds_the_peak_and_survives_crashes():
    sweep = sweep_of(method="bayes", parameters={"model.lr": {"min": 0.0, "max": 1.0}})
    trials = [Trial(1, "a", {"model.lr": 0.9}, "crashed")]
    for number in range(2, 16):
        x = next_parameters(sweep, trials)["model.lr"]
        trials.append(Trial(number, str(number), {"model.lr": x}, "finished", {"val/acc_best": 1 - (x - 0.3) ** 2}))
    assert abs(best_trial(trials, "val/acc_best", "maximize").parameters["model.lr"] - 0.3) < 0.05


def test_hyperband_stops_the_worse_half_of_what_runs():
    sweep = sweep_of(early_terminate={"type": "hyperband", "min_iter": 2, "eta": 2, "strict": True})
    trials = [Trial(i, str(i), {}, state) for i, state in enumerate(["running", "running", "finished", "crashed"])]
    histories = {"0": [0.1, 0.1, 0.1, 0.1], "1": [0.1, 0.5, 0.9, 0.9], "2": [0.5, 0.7, 0.8, 0.8], "3": []}
    assert [t.id for t in to_stop(sweep, trials, histories)] == ["0"]
    assert to_stop(sweep_of(), trials, histories) == []


# the journal


def test_the_journal_keeps_the_last_word_on_each_trial_and_ignores_a_torn_line():
    journal = Journal(Path())
    first, second = Trial(1, "a", {"x": 1}), Trial(2, "b", {"x": [2, 2]})
    for trial in (first, second):
        journal.write(trial)
    first.state, first.metrics = "finished", {"val/acc": 0.5}
    journal.write(first)
    with journal.path.open("a") as file:
        file.write('{"number": 2, "id": "b", "sta')  # killed while writing
    assert journal.read() == [first, second]
    second.state = "crashed"
    journal.write(second)
    assert journal.read() == [first, second]


# the driver, with trials that are quick

QUICK = """
import csv, os, pathlib, sys, time
lr = float(next(a for a in sys.argv if a.startswith("--model.lr=")).split("=")[1])
run = pathlib.Path(os.environ["SWIN_LIGHTNING_RUNS"]) / "quick" / f"0-{os.environ['WANDB_RUN_ID']}"
attempts = run / "attempts"
run.mkdir(parents=True, exist_ok=True)
with attempts.open("a") as file:
    file.write("x")
(run / "config.yaml").write_text(f"model: {{lr: {lr}}}\\ndata: {{init_args: {{batch_size: 16}}}}\\n")
if lr == 0.3:
    sys.exit("a bad option")
time.sleep(float(os.environ.get("SECONDS_EACH", 0)))
with (run / "metrics.csv").open("w") as file:
    rows = [{"epoch": i, "val/acc_best": lr * (1 + i) / 4} for i in range(4)]
    writer = csv.DictWriter(file, rows[0].keys())
    writer.writeheader()
    for row in rows:
        writer.writerow(row)
        file.flush()
        time.sleep(float(os.environ.get("SECONDS_A_STEP", 0)))
"""


class Quick(Sweep):
    def command(self, parameters):
        Path("quick.py").write_text(QUICK)
        arguments = [f"--{key}={value}" for key, value in parameters.items()]
        return [sys.executable, str(Path("quick.py").resolve()), *arguments]


def quick(**changes):
    config = changed(**changes)
    Path("small.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    Path("sweep.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return Quick(Path("small.yaml"), config, ("fit", "-c", DIGITS))


def drive(sweep, count=None, side_by_side=2):
    room = [Slot({}, os.sched_getaffinity(0)) for _ in range(side_by_side)]
    with Driver(sweep, Path().resolve(), room, count or sweep.config.get("run_cap")) as driver:
        return driver.run()


def test_a_crashed_trial_ends_by_itself_and_the_summary_shows_the_best(capsys):
    sweep = quick(method="grid", run_cap=None)
    trials = drive(sweep)
    assert [t.number for t in trials] == [1, 2, 3, 4, 5, 6]
    assert {(t.parameters["model.lr"], t.state) for t in trials} == {
        (0.1, "finished"),
        (0.2, "finished"),
        (0.3, "crashed"),
    }
    assert all(t.reason == "exit code 1: a bad option" for t in trials if t.state == "crashed")
    assert trials == Journal(Path()).read()
    page = write_summary(sweep, Path().resolve())
    best = yaml.safe_load(Path("best.yaml").read_text())
    assert best == {"model": {"lr": 0.2}, "data": {"init_args": {"batch_size": 16}}}  # in the nesting of config.yaml
    with Path("trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows].count("crashed") == 2 and rows[0]["model.lr"] in "0.10.20.3"
    html = page.read_text()
    assert html.count('src="data:image/png;base64,') == 3
    assert not re.search(r'(src|href)="(?!data:)', html)  # nothing from anywhere else
    out = capsys.readouterr().out
    assert out.count("running") == out.count("finished") + out.count("crashed") == 6


def test_only_crashes_end_the_sweep_and_name_the_last_output():
    sweep = quick(parameters={"model.lr": {"value": 0.3}}, run_cap=50)
    with pytest.raises(ValueError, match=r"the first 5 trials crashed: exit code 1: a bad option; see .*logs"):
        drive(sweep, side_by_side=1)
    assert write_summary(sweep, Path().resolve()) is None


def test_a_metric_that_nobody_logs_ends_the_sweep_at_once():
    sweep = quick(metric={"name": "val/accuracy", "goal": "maximize"}, parameters={"model.lr": {"value": 0.1}})
    with pytest.raises(ValueError, match=r"metric 'val/accuracy' was never logged; the runs log epoch, val/acc_best"):
        drive(sweep, side_by_side=1)


def test_hyperband_ends_a_running_trial(monkeypatch):
    monkeypatch.setenv("SECONDS_A_STEP", "0.8")
    sweep = quick(
        method="grid", parameters={"model.lr": {"values": [0.05, 0.1, 0.2]}}, run_cap=None,
        early_terminate={"type": "hyperband", "min_iter": 1, "eta": 2},
    )  # fmt: skip
    trials = drive(sweep, side_by_side=3)
    states = {t.parameters["model.lr"]: t.state for t in trials}
    assert states == {0.05: "stopped", 0.1: "finished", 0.2: "finished"}


DRIVE = """
import sys
sys.path[:0] = sys.argv[1:2]
from tests.sweep.test_sweep import drive, quick
drive(quick(run_cap=6, parameters={"model.lr": {"min": 0.05, "max": 0.2}}))
"""


def test_a_killed_driver_loses_and_repeats_no_trial():
    def start():
        return subprocess.Popen([sys.executable, "-c", DRIVE, str(ROOT)], env={**environment(), "SECONDS_EACH": "1"})

    killed = start()
    journal, deadline = Journal(Path()), time.time() + 120
    while sum(t.state == "finished" for t in journal.read()) < 2 and time.time() < deadline:
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = journal.read()
    orphans = [t for t in before if t.state == "running"]
    assert orphans
    again = start()
    assert again.wait(120) == 0
    after = journal.read()
    assert [t.number for t in after] == list(range(1, 7)) and {t.state for t in after} == {"finished"}
    assert len({t.id for t in after}) == len({t.parameters["model.lr"] for t in after}) == 6
    for trial in before:
        assert after[trial.number - 1].parameters == trial.parameters
        if trial.state == "finished":
            assert after[trial.number - 1] == trial
    attempts = {t.id: Path(f"runs/quick/0-{t.id}/attempts").read_text() for t in after}
    assert all(len(text) == (2 if trial in orphans else 1) for trial in before for text in [attempts[trial.id]])


def test_two_drivers_do_not_share_a_folder():
    sweep = quick()
    with Driver(sweep, Path().resolve(), [], 1), pytest.raises(ValueError, match="is being run by another process"):  # noqa: SIM117
        with Driver(sweep, Path().resolve(), [], 1):
            pass


def test_room_for_trials(monkeypatch):
    cores = sorted(os.sched_getaffinity(0))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    room = slots()
    assert len(room) == min(4, len(cores)) and set().union(*(slot.cores for slot in room)) <= set(cores)
    assert all(int(slot.environment["OMP_NUM_THREADS"]) == len(slot.cores) for slot in room)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots()] == ["3", "5"]
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots(3)] == ["3", "5", "3"]


# the whole way


def test_a_sweep_of_real_runs_goes_on_and_its_best_is_an_overlay(capsys):
    config = changed(
        command=["swin-lightning", "fit", "-c", DIGITS, *SHORT, "${args}"], run_cap=2,
        parameters={"model.backbone.drop_path_rate": {"min": 0.0, "max": 0.2}, "data.batch_size": {"values": [16]}},
    )  # fmt: skip
    path = write(config)
    main(["sweep", path, "--count", "1"])
    main(["sweep", path])  # one of two is missing: the same sweep goes on
    out = capsys.readouterr().out
    (folder,) = Path("runs/sweeps/small").iterdir()
    assert out.splitlines()[-1] == str(folder)
    frame = load_sweep(folder)
    assert list(frame["state"]) == ["finished", "finished"]
    assert frame.attrs == {"metric": "val/acc_best", "goal": "maximize", "parameters": list(config["parameters"])}
    for row in frame.to_dict("records"):
        saved = yaml.safe_load((Path(row["run"]) / "config.yaml").read_text())
        assert saved["data"]["init_args"]["batch_size"] == row["data.batch_size"]
        assert row["run"].endswith(row["id"]) and 0 <= row["test/acc"] <= 1
    best = main(["fit", "-c", DIGITS, *SHORT, "-c", str(folder / "best.yaml")])
    row = frame.loc[frame["val/acc_best"].idxmax()]  # the first of equals
    rate = best.model.backbone.layers[-1].blocks[-1].drop_path.p
    assert rate == pytest.approx(row["model.backbone.drop_path_rate"])
    assert best.datamodule.batch_size == row["data.batch_size"]
    assert metrics(best.run_dir, "val/acc")[-1] == pytest.approx(row["val/acc"])  # the same run again


def test_a_trial_that_was_killed_goes_on_from_its_checkpoint(monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "0a1b2c3d")
    main(["fit", "-c", DIGITS, *SHORT])
    monkeypatch.setenv("SWIN_LIGHTNING_RUNS", "elsewhere")
    fresh = main(["fit", "-c", DIGITS, *SHORT])
    assert fresh.run_dir.parts[0] == "elsewhere" and fresh.run_dir.name.endswith("-0a1b2c3d")
    again = main(["fit", "-c", DIGITS, *SHORT, "--trainer.max_epochs=2"])
    assert again.run_dir == fresh.run_dir and again.trainer.global_step == 6


# what is seen


def frame_of(values, goal="maximize"):
    trials = [
        Trial(i + 1, str(i), {"model.lr": 10.0**-i, "model.kind": "ab"[i % 2]}, "finished", {"val/loss": v})
        for i, v in enumerate(values)
    ]
    return trials_frame(
        trials, {"metric": {"name": "val/loss", "goal": goal}, "parameters": {"model.lr": {}, "model.kind": {}}}, {}
    )


def test_pictures_show_what_is_in_the_table():
    frame = frame_of([3.0, 1.0, 2.0, 5.0], goal="minimize")
    figure = plots.metric_over_trials(frame)
    best, dots = figure.axes[0].lines
    assert list(best.get_ydata()) == [3.0, 1.0, 1.0, 1.0] and list(dots.get_ydata()) == [3.0, 1.0, 2.0, 5.0]
    lines = plots.parallel_coordinates(frame).axes[0].lines[:4]
    ends = [line.get_ydata()[-1] for line in lines]  # the best on top, which is drawn last
    assert ends == pytest.approx([1.0, 0.5, 0.25, 0.0])
    assert [line.get_ydata()[0] for line in lines] == pytest.approx([0.0, 1.0, 1 / 3, 2 / 3])  # logarithmic


def test_importance_finds_the_option_that_matters():
    frame = frame_of([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0])  # by kind alone
    names, shares, _ = plots.importances(frame)
    assert names[0] == "model.kind" and shares[0] > 5 * abs(shares[1])
    frame = frame_of([7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    names, _, correlations = plots.importances(frame)
    assert names[0] == "model.lr" and correlations[0] == pytest.approx(1.0)


def test_the_live_table_shows_state_and_progress():
    board = Board(sweep_of(), 3)
    done, runs = ({"data.batch_size": size, "model.lr": lr} for lr, size in ((0.1, 16), (0.2, 32)))  # in any order
    trials = [Trial(1, "a", done, "finished", {"val/acc_best": 0.5, "epoch": 4.0}, 12.3), Trial(2, "b", runs)]
    table = board.table(trials, {"b": {"val/acc_best": 0.25, "epoch": 1.0}})
    cells = list(zip(*(column.cells for column in table.columns), strict=True))
    assert cells[0] == ("1", "finished", "4", "0.5", "12 s", "0.1", "16")
    assert cells[1] == ("2", "running", "1", "0.25", "0 s", "0.2", "32")
    assert "1 of 3 trials" in str(table.title)


# clusters


def test_the_slurm_script_starts_an_agent_of_the_sweep(tmp_path):
    script = EXPERIMENTS / "slurm" / "agents.sh"
    (tmp_path / "srun").write_text('#!/bin/sh\necho "srun $@"\n')
    (tmp_path / "srun").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(script), "me/project/id"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "srun wandb agent --forward-signals me/project/id\n")
    done = subprocess.run(["bash", str(script)], env=env, capture_output=True, text=True)
    assert done.returncode != 0 and "give the sweep" in done.stderr
