"""Search with W&B's library `sweeps`: proposes the next trial and selects trials for early termination."""

import random
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from swin_lightning.sweep.sweep_file import Sweep, import_sweeps, to_python
from swin_lightning.sweep.trial_log import Trial

STATES = {"running": "running", "finished": "finished", "stopped": "killed", "crashed": "crashed"}


def next_parameters(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, Any] | None:
    """The parameters of the next trial; None if a grid is exhausted.

    The random state is seeded with the number of trials, so a resumed sweep proposes the same parameters as an
    uninterrupted one.
    """
    sweeps = import_sweeps()
    random.seed(len(trials))
    np.random.seed(len(trials))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence warnings of the Gaussian process
        run = sweeps.next_run(sweep.search_config, [_to_sweep_run(sweep, trial) for trial in trials])
    return None if run is None else {name: to_python(run.config[name]["value"]) for name in sweep.parameters}


def trials_to_stop(sweep: Sweep, trials: Sequence[Trial], histories: dict[str, list[float]]) -> list[Trial]:
    """Running trials that Hyperband stops; none without `early_terminate`.

    Args:
        sweep: The sweep.
        trials: All trials.
        histories: Trial id -> values of the metric so far.
    """
    if "early_terminate" not in sweep.config:
        return []
    sweeps = import_sweeps()
    runs = [_to_sweep_run(sweep, trial, histories.get(trial.id, [])) for trial in trials]
    stopped = {run.name for run in sweeps.stop_runs(sweep.search_config, runs)}
    return [trial for trial in trials if trial.id in stopped and trial.state == "running"]


def _to_sweep_run(sweep: Sweep, trial: Trial, history: Sequence[float] = ()) -> Any:
    sweeps = import_sweeps()
    value = trial.metrics.get(sweep.metric)
    return sweeps.SweepRun(
        name=trial.id,
        state=sweeps.RunState(STATES[trial.state]),
        config={name: {"value": value} for name, value in trial.parameters.items()},
        summaryMetrics={} if value is None else {sweep.metric: value},
        sampledHistory=[{sweep.metric: value} for value in history],
    )
