"""The trials of a sweep, and the log from which an interrupted sweep is restored."""

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from swin_lightning.runs import RunFolder

State = Literal["running", "finished", "stopped", "crashed"]


@dataclass
class Trial:
    """One run of a sweep.

    Args:
        number: Starts at 1, in order of creation.
        id: Run id, here and in W&B; the end of the run folder's name.
        parameters: Option values by dotted key.
        state: `stopped` means early termination.
        metrics: Last value of every metric.
        seconds: Run time of the process; of the last one if the trial was resumed.
        reason: Why it crashed.
    """

    number: int
    id: str
    parameters: dict[str, Any]
    state: State = "running"
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    reason: str | None = None


class TrialLog:
    """`trials.jsonl`: one line per change of a trial; the last line of a trial is its current state."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "trials.jsonl"

    def read(self) -> list[Trial]:
        """All trials in order of their numbers. Incomplete lines, left by a killed process, are ignored."""
        trials: dict[int, Trial] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []:
            try:
                trial = Trial(**json.loads(line))
            except (json.JSONDecodeError, TypeError, RecursionError):
                continue
            trials[trial.number] = trial
        return [trials[number] for number in sorted(trials)]

    def write(self, trial: Trial) -> None:
        """Append the current state of a trial and flush it to disk."""
        complete = not self.path.is_file() or self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("" if complete else "\n") + json.dumps(asdict(trial)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def runs_folder(folder: Path) -> Path:
    """Root of the runs of a sweep, in the sweep's folder."""
    return folder / "runs"


def run_of(folder: Path, trial: Trial) -> RunFolder | None:
    """The run of a trial, None before it has been created."""
    return RunFolder.with_id(trial.id, runs_folder(folder))


def read_metrics(folder: Path, trial: Trial) -> dict[str, list[float]]:
    """All finite values that a trial has logged so far: metric -> values in order."""
    run = run_of(folder, trial)
    values: dict[str, list[float]] = {}
    for row in run.read_metrics() if run else []:
        for name, text in row.items():
            number = _parse_number(text)
            if number is not None:
                values.setdefault(name, []).append(number)
    return values


def _parse_number(text: Any) -> float | None:
    try:
        number = float(text)
    except (TypeError, ValueError):  # an empty cell, or a row that is being written
        return None
    return number if math.isfinite(number) else None
