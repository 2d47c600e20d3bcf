"""The trials of a sweep and the journal that survives a kill at any moment."""

import csv
import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

State = Literal["running", "finished", "stopped", "crashed"]


@dataclass
class Trial:
    """One run of a sweep.

    Args:
        number: From 1, in the order of the starts.
        id: End of the run folder's name, and the run's id in W&B.
        parameters: Options by their dotted keys.
        state: `stopped` is by early termination.
        metrics: Last value of every metric.
        seconds: Time of its process, the last one where it was taken up again.
        reason: Why it crashed.
    """

    number: int
    id: str
    parameters: dict[str, Any]
    state: State = "running"
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    reason: str | None = None


class Journal:
    """`trials.jsonl`: one line a change of a trial, the last line of a trial counts."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "trials.jsonl"

    def read(self) -> list[Trial]:
        """All trials in the order of their numbers; a line that a kill has cut off does not count."""
        trials: dict[int, Trial] = {}
        for line in self.path.read_text().splitlines() if self.path.is_file() else []:
            try:
                trial = Trial(**json.loads(line))
            except (json.JSONDecodeError, TypeError):
                continue
            trials[trial.number] = trial
        return [trials[number] for number in sorted(trials)]

    def write(self, trial: Trial) -> None:
        """Append the trial as it is now; after the return no kill can undo it."""
        whole = not self.path.is_file() or self.path.read_bytes().endswith(b"\n")
        with self.path.open("a") as file:
            file.write(("" if whole else "\n") + json.dumps(asdict(trial)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def run_folder(folder: Path, trial: Trial) -> Path | None:
    """Where a trial's run lives; None before it has one."""
    return next(iter(sorted(folder.glob(f"runs/*/*-{trial.id}"))), None)


def read_metrics(folder: Path, trial: Trial) -> dict[str, list[float]]:
    """All finite values of each metric that a trial has logged so far, in order."""
    run = run_folder(folder, trial)
    values: dict[str, list[float]] = {}
    if run is not None and (run / "metrics.csv").is_file():
        with (run / "metrics.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                for name, text in row.items():
                    number = _number(text)
                    if number is not None:
                        values.setdefault(name, []).append(number)
    return values


def _number(text: Any) -> float | None:
    try:
        number = float(text)
    except (TypeError, ValueError):  # empty, or a line that is being written
        return None
    return number if math.isfinite(number) else None
