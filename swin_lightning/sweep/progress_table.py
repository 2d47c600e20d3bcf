"""Progress of a sweep: a live table in a terminal, otherwise one line per state change."""

import sys
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from swin_lightning.sweep.repeats import repeats
from swin_lightning.sweep.sweep_file import Sweep
from swin_lightning.sweep.trial_log import Trial

STYLES = {"running": "cyan", "finished": "", "stopped": "yellow", "crashed": "red"}


class ProgressTable:
    """Shows the trials of a sweep while they run. Use as a context manager.

    Args:
        sweep: The sweep.
        num_trials: Total number of trials.
    """

    def __init__(self, sweep: Sweep, num_trials: int) -> None:
        self.sweep, self.num_trials = sweep, num_trials
        self.live = Live(console=Console(), auto_refresh=False) if sys.stdout.isatty() else None
        self._printed: dict[str, str] = {}  # trial id -> last printed state

    def __enter__(self) -> "ProgressTable":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def update(self, trials: Sequence[Trial], progress: dict[str, dict[str, float]]) -> None:
        """Refresh the table, or print the trials whose state has changed.

        Args:
            trials: All trials so far.
            progress: Id of a running trial -> last value of each metric.
        """
        if self.live:
            self.live.update(self.table(trials, progress), refresh=True)
            return
        for trial in trials:
            if self._printed.get(trial.id) != trial.state:
                self._printed[trial.id] = trial.state
                print(self.line(trial), flush=True)

    def table(self, trials: Sequence[Trial], progress: dict[str, dict[str, float]]) -> Table:
        """One row per trial, the best one in bold unless trials repeat a configuration. Arguments as in `update`."""
        metric = self.sweep.metric
        done = sum(trial.state != "running" for trial in trials)
        table = Table(title=f"{self.sweep.path.stem}: {done} of {self.num_trials} trials", title_justify="left")
        for name in ("#", "state", "epoch", metric, "time", *self.sweep.parameters):
            table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
        best = None if repeats(self.sweep.config["parameters"]) else best_trial(trials, metric, self.sweep.goal)
        for trial in trials:
            metrics = {**trial.metrics, **progress.get(trial.id, {})}
            values = [f"{metrics[name]:.4g}" if name in metrics else "" for name in ("epoch", metric)]
            cells = [str(trial.number), trial.state, *values, f"{trial.seconds:.0f} s"]
            cells += [format_value(trial.parameters[name]) for name in self.sweep.parameters]
            table.add_row(*cells, style="bold green" if trial is best else STYLES[trial.state])
        return table

    def line(self, trial: Trial) -> str:
        """The state of a trial on one line."""
        parameters = "  ".join(f"{name}={format_value(value)}" for name, value in trial.parameters.items())
        metric = self.sweep.metric
        value = f"  {metric} {trial.metrics[metric]:.4f}" if metric in trial.metrics else ""
        result = f"{value}  {trial.seconds:.0f} s" if trial.state != "running" else ""
        reason = f"  {trial.reason}" if trial.reason else ""
        return f"trial {trial.number}/{self.num_trials}  {trial.id}  {trial.state}{result}  {parameters}{reason}"


def best_trial(trials: Sequence[Trial], metric: str, goal: str) -> Trial | None:
    """The trial with the best last value, the first one on a tie. Crashed and running trials are excluded."""
    candidates = [trial for trial in trials if trial.state in ("finished", "stopped") and metric in trial.metrics]
    sign = 1 if goal == "maximize" else -1
    return max(candidates, key=lambda trial: sign * trial.metrics[metric], default=None)


def format_value(value: object) -> str:
    """A parameter value in short form: floats with four digits, import paths without their module."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).rsplit(".", 1)[-1] if isinstance(value, str) else str(value)
