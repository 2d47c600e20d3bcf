"""What a sweep shows while it runs: a live table on a terminal, one line a change elsewhere."""

import sys
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from swin_lightning.sweep.sweep_file import Sweep
from swin_lightning.sweep.trial_log import Trial

STYLES = {"running": "cyan", "finished": "", "stopped": "yellow", "crashed": "red"}


class Board:
    """The trials of a sweep as they run.

    Args:
        sweep: Whose trials are shown.
        count: Trials in all, or None.
    """

    def __init__(self, sweep: Sweep, count: int | None) -> None:
        self.sweep, self.count = sweep, count
        self.live = Live(console=Console(), auto_refresh=False) if sys.stdout.isatty() else None
        self._shown: dict[str, str] = {}

    def __enter__(self) -> "Board":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def show(self, trials: Sequence[Trial], progress: dict[str, dict[str, float]]) -> None:
        """Show the trials.

        Args:
            trials: All so far.
            progress: Id of a running trial -> last value of its metrics.
        """
        if self.live:
            self.live.update(self.table(trials, progress), refresh=True)
            return
        for trial in trials:
            if self._shown.get(trial.id) != trial.state:
                self._shown[trial.id] = trial.state
                print(self.line(trial), flush=True)

    def table(self, trials: Sequence[Trial], progress: dict[str, dict[str, float]]) -> Table:
        """A row a trial; the best one in bold."""
        metric = self.sweep.metric
        done = sum(trial.state != "running" for trial in trials)
        table = Table(title=f"{self.sweep.path.stem}: {done} of {self.count or '?'} trials", title_justify="left")
        for name in ("#", "state", "epoch", metric, "time", *self.sweep.config["parameters"]):
            table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
        best = best_trial(trials, metric, self.sweep.goal)
        for trial in trials:
            metrics = {**trial.metrics, **progress.get(trial.id, {})}
            values = [f"{metrics[name]:.4g}" if name in metrics else "" for name in ("epoch", metric)]
            cells = [str(trial.number), trial.state, *values, f"{trial.seconds:.0f} s"]
            cells += [shown(trial.parameters[name]) for name in self.sweep.config["parameters"]]
            table.add_row(*cells, style="bold green" if trial is best else STYLES[trial.state])
        return table

    def line(self, trial: Trial) -> str:
        """A trial's state in one line."""
        parameters = "  ".join(f"{name}={shown(value)}" for name, value in trial.parameters.items())
        metric = self.sweep.metric
        value = f"  {metric} {trial.metrics[metric]:.4f}" if metric in trial.metrics else ""
        end = f"{value}  {trial.seconds:.0f} s" if trial.state != "running" else ""
        reason = f"  {trial.reason}" if trial.reason else ""
        return f"trial {trial.number}/{self.count or '?'}  {trial.id}  {trial.state}{end}  {parameters}{reason}"


def best_trial(trials: Sequence[Trial], metric: str, goal: str) -> Trial | None:
    """The trial with the best last value, the first of equals; crashed ones do not count."""
    ended = [trial for trial in trials if trial.state in ("finished", "stopped") and metric in trial.metrics]
    sign = 1 if goal == "maximize" else -1
    return max(ended, key=lambda trial: sign * trial.metrics[metric], default=None)


def shown(value: object) -> str:
    """A parameter's value, short: floats with four digits, import paths by their last part."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).rsplit(".", 1)[-1] if isinstance(value, str) else str(value)
