"""W&B's own search engine, the package `sweeps`: which trial comes next, and which is stopped early."""

import random
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from swin_lightning.sweep.sweep_file import Sweep, import_engine, plain
from swin_lightning.sweep.trial_log import Trial

STATES = {"running": "running", "finished": "finished", "stopped": "killed", "crashed": "crashed"}


def next_parameters(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, Any] | None:
    """The options of the next trial; None where a grid is exhausted.

    The draw is seeded with the number of trials, so that a sweep taken up again neither repeats itself nor depends on
    where it was interrupted.
    """
    sweeps = import_engine()
    random.seed(len(trials))
    np.random.seed(len(trials))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the engine's own remarks on its regression
        run = sweeps.next_run(sweep.engine_config, [_as_run(sweep, trial) for trial in trials])
    return None if run is None else {name: plain(run.config[name]["value"]) for name in sweep.config["parameters"]}


def to_stop(sweep: Sweep, trials: Sequence[Trial], histories: dict[str, list[float]]) -> list[Trial]:
    """Running trials that Hyperband ends.

    Args:
        sweep: With `early_terminate`, or none is stopped.
        trials: All trials.
        histories: Id of a trial -> its values of the metric so far.
    """
    if "early_terminate" not in sweep.config:
        return []
    sweeps = import_engine()
    runs = [_as_run(sweep, trial, histories.get(trial.id, [])) for trial in trials]
    stopped = {run.name for run in sweeps.stop_runs(sweep.engine_config, runs)}
    return [trial for trial in trials if trial.id in stopped and trial.state == "running"]


def _as_run(sweep: Sweep, trial: Trial, history: Sequence[float] = ()) -> Any:
    sweeps = import_engine()
    value = trial.metrics.get(sweep.metric)
    return sweeps.SweepRun(
        name=trial.id,
        state=sweeps.RunState(STATES[trial.state]),
        config={name: {"value": value} for name, value in trial.parameters.items()},
        summaryMetrics={} if value is None else {sweep.metric: value},
        sampledHistory=[{sweep.metric: value} for value in history],
    )
