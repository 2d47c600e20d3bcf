"""A sweep without W&B's server: trials in processes of their own, in parallel, taken up again after a kill."""

import contextlib
import fcntl
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from swin_lightning.errors import UserError
from swin_lightning.sweep.progress_table import Board
from swin_lightning.sweep.search import next_parameters, to_stop
from swin_lightning.sweep.sweep_file import Sweep
from swin_lightning.sweep.trial_log import Journal, Trial, read_metrics

POLL = 0.5  # seconds
CRASHES = 5  # as many trials crashed and none finished: the sweep itself is wrong


@dataclass
class Slot:
    """What one trial at a time computes on: environment variables that say so, and cores."""

    environment: dict[str, str]
    cores: set[int]
    trial: "Running | None" = None


@dataclass
class Running:
    """A trial whose process is alive."""

    trial: Trial
    process: subprocess.Popen[bytes]
    since: float
    stopping: bool = False


def slots(agents: int | None = None) -> list[Slot]:
    """Room for trials side by side: one a GPU; without a GPU one a core, at most 4, each with its share of the cores.

    Args:
        agents: That many in place of it; they share the GPUs in turn.
    """
    import torch

    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    n = agents or len(gpus) or min(4, len(cores))
    share = max(1, len(cores) // n)
    found = []
    for i in range(n):
        group = {cores[(i * share + k) % len(cores)] for k in range(share)}
        environment = {"OMP_NUM_THREADS": str(share)}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[i % len(gpus)]
        found.append(Slot(environment, group))
    return found


class Driver:
    """Runs the trials of a sweep in its folder until `count` of them have ended.

    Every change of a trial is in the journal before anything follows from it. A driver that takes the folder over ends
    the processes that another left behind, and their trials go on from their checkpoints under the same ids.

    Args:
        sweep: What to run.
        folder: The sweep's folder.
        room: Where trials run side by side.
        count: Trials in all; None runs until a grid is exhausted.

    Raises:
        ValueError: Where another driver is at work in the folder, or only crashes came.
    """

    def __init__(self, sweep: Sweep, folder: Path, room: Sequence[Slot], count: int | None) -> None:
        self.sweep, self.folder, self.slots, self.count = sweep, folder, room, count
        self.journal = Journal(folder)
        self.board = Board(sweep, count)
        self.logged: dict[str, dict[str, list[float]]] = {}  # id of a trial -> its metrics; of ended ones read once

    def __enter__(self) -> "Driver":
        self.lock = (self.folder / "driver.lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"sweep {self.folder} is being run by another process; wait for it, or end it") from None
        self.trials = self.journal.read()
        self.interrupted = [trial for trial in self.trials if trial.state == "running"]
        for trial in self.interrupted:
            self._end_orphan(trial)
        if "early_terminate" in self.sweep.config:
            self.logged = {t.id: read_metrics(self.folder, t) for t in self.trials if t.state != "running"}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End what still runs; the trials save their checkpoints and go on when the sweep does."""
        running = [slot.trial for slot in self.slots if slot.trial]
        for run in running:
            run.process.send_signal(signal.SIGTERM)
        for run in running:
            try:
                run.process.wait(30)
            except subprocess.TimeoutExpired:
                run.process.kill()
        self.lock.close()

    def run(self) -> list[Trial]:
        """Run to the end; returns all trials."""
        with self.board:
            exhausted = False
            while True:
                for slot in self.slots:
                    if slot.trial is not None:
                        self._look_after(slot)
                    if slot.trial is None and not exhausted:
                        trial = self._next()
                        exhausted = trial is None
                        if trial is not None:
                            self._start(trial, slot)
                running = [slot.trial.trial for slot in self.slots if slot.trial]
                self.logged.update({trial.id: read_metrics(self.folder, trial) for trial in running})
                self._stop_early()
                self.board.show(self.trials, {t.id: _last(self.logged[t.id]) for t in running})
                if exhausted and not any(slot.trial for slot in self.slots):
                    return self.trials
                time.sleep(POLL)

    # helpers

    def _next(self) -> Trial | None:
        if self.interrupted:
            return self.interrupted.pop(0)
        if self.count is not None and len(self.trials) >= self.count:
            return None
        parameters = next_parameters(self.sweep, self.trials)
        if parameters is None:
            return None
        trial = Trial(len(self.trials) + 1, secrets.token_hex(4), parameters)
        self.trials.append(trial)
        return trial

    def _start(self, trial: Trial, slot: Slot) -> None:
        self.journal.write(trial)
        log = self._log(trial)
        log.parent.mkdir(exist_ok=True)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("WANDB_SWEEP")},
            "SWIN_LIGHTNING_RUNS": str(self.folder / "runs"),
            "WANDB_RUN_ID": trial.id,
            "WANDB_RUN_GROUP": self.folder.name,
            **slot.environment,
        }
        with log.open("ab") as output, self._process_file(trial).open("w") as alive:
            # the trial inherits the lock: as long as it is held, the process is alive, whoever started it
            fcntl.flock(alive, fcntl.LOCK_EX)
            whole = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else None
            if whole is not None:
                os.sched_setaffinity(0, slot.cores)  # inherited as well
            try:
                process = subprocess.Popen(
                    self.sweep.command(trial.parameters),
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=[alive.fileno()],
                    process_group=0,  # Ctrl-C reaches the driver, and the driver tells its trials
                )
            finally:
                if whole is not None:
                    os.sched_setaffinity(0, whole)
            alive.write(str(process.pid))
        slot.trial = Running(trial, process, time.monotonic())

    def _look_after(self, slot: Slot) -> None:
        """Note how a trial has ended, if it has."""
        run = slot.trial
        assert run is not None
        trial = run.trial
        trial.seconds = round(time.monotonic() - run.since, 1)
        code = run.process.poll()
        if code is None:
            return
        self.logged[trial.id] = read_metrics(self.folder, trial)
        trial.metrics = _last(self.logged[trial.id])
        if run.stopping:
            trial.state = "stopped"
        elif code == 0 and self.sweep.metric in trial.metrics:
            trial.state = "finished"
        else:
            trial.state, trial.reason = "crashed", self._reason(trial, code)
        self.journal.write(trial)
        self._process_file(trial).unlink(missing_ok=True)
        slot.trial = None
        if code == 0 and self.sweep.metric not in trial.metrics:
            raise UserError(f"metric {trial.reason}")
        crashed = [t for t in self.trials if t.state == "crashed"]
        if len(crashed) >= CRASHES and not any(t.state in ("finished", "stopped") for t in self.trials):
            raise UserError(f"the first {len(crashed)} trials crashed: {crashed[-1].reason}; see {self._log(trial)}")

    def _reason(self, trial: Trial, code: int) -> str:
        if code == 0:
            return f"{self.sweep.metric!r} was never logged; the runs log {', '.join(sorted(trial.metrics))}"
        lines = self._log(trial).read_text(errors="replace").strip().splitlines()
        return f"exit code {code}: {lines[-1][:300] if lines else 'no output'}"

    def _stop_early(self) -> None:
        if "early_terminate" not in self.sweep.config:
            return
        histories = {id: metrics.get(self.sweep.metric, []) for id, metrics in self.logged.items()}
        chosen = {trial.id for trial in to_stop(self.sweep, self.trials, histories)}
        for slot in self.slots:
            if slot.trial and slot.trial.trial.id in chosen and not slot.trial.stopping:
                slot.trial.stopping = True
                slot.trial.process.send_signal(signal.SIGTERM)

    def _end_orphan(self, trial: Trial) -> None:
        """End the process that a killed driver has left behind; it saves its checkpoint on SIGTERM."""
        path = self._process_file(trial)
        if not path.is_file():
            return
        with path.open("r+") as alive:
            for attempt in range(120):
                try:
                    fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except OSError:
                    if attempt in (0, 100):
                        _signal(alive, signal.SIGTERM if attempt == 0 else signal.SIGKILL)
                    time.sleep(POLL)
        raise UserError(f"trial {trial.number} of {self.folder} still runs and cannot be ended; end it by hand")

    def _log(self, trial: Trial) -> Path:
        return self.folder / "logs" / f"{trial.number:03d}-{trial.id}.log"

    def _process_file(self, trial: Trial) -> Path:
        return self.folder / f"{trial.id}.pid"


def _last(metrics: dict[str, list[float]]) -> dict[str, float]:
    return {name: values[-1] for name, values in metrics.items()}


def _signal(file: IO[Any], number: signal.Signals) -> None:
    file.seek(0)
    with contextlib.suppress(ProcessLookupError, ValueError):  # gone, or killed before it wrote its number
        os.kill(int(file.read()), number)
