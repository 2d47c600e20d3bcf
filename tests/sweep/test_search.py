"""Proposed parameters and early termination, with the `sweeps` library."""

from pathlib import Path

from swin_lightning.sweep.progress_table import best_trial
from swin_lightning.sweep.search import next_parameters, trials_to_stop
from swin_lightning.sweep.sweep_file import Sweep
from swin_lightning.sweep.trial_log import Trial
from tests.sweep.fake_trials import changed, finished


def make_sweep(**changes):
    return Sweep(Path("small.yaml"), changed(**changes), ("fit",))


def test_grid_proposes_every_combination_once():
    sweep = make_sweep(method="grid", run_cap=None)
    trials = []
    while (parameters := next_parameters(sweep, trials)) is not None:
        trials.append(Trial(len(trials) + 1, str(len(trials)), parameters, "finished"))
    points = {(t.parameters["model.lr"], t.parameters["data.batch_size"]) for t in trials}
    assert len(trials) == sweep.num_trials() == 6
    assert points == {(lr, size) for lr in (0.1, 0.2, 0.3) for size in (16, 32)}


def test_random_search_depends_only_on_the_number_of_trials():
    sweep = make_sweep(parameters={"model.lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-1}})
    trials, values = [], []
    for number in range(6):
        assert next_parameters(sweep, trials) == next_parameters(sweep, trials)  # as after a restart
        values.append(next_parameters(sweep, trials)["model.lr"])
        trials.append(Trial(number + 1, str(number), {"model.lr": values[-1]}, "finished"))
    assert len(set(values)) == 6 and all(1e-5 <= value <= 1e-1 for value in values)


def test_bayesian_search_finds_the_maximum_and_ignores_crashed_trials():
    sweep = make_sweep(method="bayes", parameters={"model.lr": {"min": 0.0, "max": 1.0}})
    trials = [Trial(1, "a", {"model.lr": 0.9}, "crashed")]
    for number in range(2, 16):
        x = next_parameters(sweep, trials)["model.lr"]
        trials.append(finished(number, 1 - (x - 0.3) ** 2, **{"model.lr": x}))
    assert abs(best_trial(trials, "val/acc_best", "maximize").parameters["model.lr"] - 0.3) < 0.05


def test_hyperband_stops_the_worse_half_of_the_running_trials():
    sweep = make_sweep(early_terminate={"type": "hyperband", "min_iter": 2, "eta": 2, "strict": True})
    trials = [Trial(i, str(i), {}, state) for i, state in enumerate(["running", "running", "finished", "crashed"])]
    histories = {"0": [0.1, 0.1, 0.1, 0.1], "1": [0.1, 0.5, 0.9, 0.9], "2": [0.5, 0.7, 0.8, 0.8], "3": []}
    assert [t.id for t in trials_to_stop(sweep, trials, histories)] == ["0"]
    assert trials_to_stop(make_sweep(), trials, histories) == []
