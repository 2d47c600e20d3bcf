"""Runs a sweep without the W&B server: parallel trials in separate processes, resumable after a kill."""

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout, lock_descriptor

from swin_lightning.errors import UserError
from swin_lightning.runs import RUNS_ENV
from swin_lightning.sweep.progress_table import ProgressTable
from swin_lightning.sweep.search import next_parameters, trials_to_stop
from swin_lightning.sweep.sweep_file import Sweep
from swin_lightning.sweep.trial_log import Trial, TrialLog, read_metrics, runs_folder

POLL_INTERVAL = 0.5  # seconds
MAX_CRASHES = 5  # the sweep fails if this many trials have crashed and none has finished


@dataclass
class RunningTrial:
    """A trial and its process."""

    trial: Trial
    process: subprocess.Popen[bytes]
    started: float
    stopping: bool = False  # terminated by early stopping


@dataclass
class WorkerSlot:
    """The resources of one of several parallel trials: environment variables (GPU, threads) and CPU cores."""

    environment: dict[str, str]
    cores: set[int]
    running: RunningTrial | None = None


def worker_slots(agents: int | None = None) -> list[WorkerSlot]:
    """Slots for parallel trials: one per GPU, or one per CPU core (at most 4) without a GPU. They share the cores.

    Args:
        agents: Number of slots instead; GPUs are assigned in turn.
    """
    import torch

    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    n = agents or len(gpus) or min(4, len(cores))
    share = max(1, len(cores) // n)
    slots = []
    for i in range(n):
        environment = {"OMP_NUM_THREADS": str(share)}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[i % len(gpus)]
        slots.append(WorkerSlot(environment, {cores[(i * share + k) % len(cores)] for k in range(share)}))
    return slots


class Driver:
    """Runs the trials of a sweep until `num_trials` are done. Use as a context manager.

    Every state change is written to the trial log first. A driver that resumes a sweep terminates the processes that a
    killed driver left running and restarts their trials from their checkpoints, with the same run ids.

    Args:
        sweep: The sweep.
        folder: Its folder.
        slots: Resources of the parallel trials.
        num_trials: Total number of trials.

    Raises:
        UserError: If another driver runs in the folder, the metric is not logged, or only crashes occur.
    """

    def __init__(self, sweep: Sweep, folder: Path, slots: Sequence[WorkerSlot], num_trials: int) -> None:
        self.sweep, self.folder, self.slots, self.num_trials = sweep, folder, slots, num_trials
        self.lock = FileLock(folder / "driver.lock", timeout=0)
        self.trial_log = TrialLog(folder)
        self.progress_table = ProgressTable(sweep, num_trials)
        self.metrics: dict[str, dict[str, list[float]]] = {}  # trial id -> metric -> values

    def __enter__(self) -> "Driver":
        try:
            self.lock.acquire()
        except Timeout:
            raise UserError(
                f"sweep {self.folder} is already running in another process; wait for it or stop it"
            ) from None
        self.trials = self.trial_log.read()
        self.interrupted = [trial for trial in self.trials if trial.state == "running"]
        for trial in self.trials:
            if trial.state == "running":
                self._terminate_orphan(trial)
            else:  # the driver may have been killed before it removed the file
                self._pid_file(trial).unlink(missing_ok=True)
        if "early_terminate" in self.sweep.config:
            self.metrics = {t.id: read_metrics(self.folder, t) for t in self.trials if t.state != "running"}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Terminate running trials; they save a checkpoint on SIGTERM and continue when the sweep is resumed."""
        running = [slot.running for slot in self.slots if slot.running]
        for run in running:
            run.process.send_signal(signal.SIGTERM)
        for run in running:
            try:
                run.process.wait(30)
            except subprocess.TimeoutExpired:
                run.process.kill()
        self.lock.release()

    def run(self) -> list[Trial]:
        """Run the remaining trials; returns all trials."""
        with self.progress_table:
            exhausted = False
            while True:
                for slot in self.slots:
                    if slot.running is not None:
                        self._poll(slot)
                    if slot.running is None and not exhausted:
                        trial = self._next_trial()
                        exhausted = trial is None
                        if trial is not None:
                            self._start(trial, slot)
                running = [slot.running.trial for slot in self.slots if slot.running]
                self.metrics.update({trial.id: read_metrics(self.folder, trial) for trial in running})
                self._stop_early()
                self.progress_table.update(self.trials, {t.id: _last_values(self.metrics[t.id]) for t in running})
                if exhausted and not any(slot.running for slot in self.slots):
                    return self.trials
                time.sleep(POLL_INTERVAL)

    # helpers

    def _next_trial(self) -> Trial | None:
        """An interrupted trial, else a new one; None if all trials have been started."""
        if self.interrupted:
            return self.interrupted.pop(0)
        if len(self.trials) >= self.num_trials:
            return None
        parameters = next_parameters(self.sweep, self.trials)
        if parameters is None:
            return None
        trial = Trial(len(self.trials) + 1, secrets.token_hex(4), parameters)
        self.trials.append(trial)
        return trial

    def _start(self, trial: Trial, slot: WorkerSlot) -> None:
        self.trial_log.write(trial)
        log = self._log_file(trial)
        log.parent.mkdir(exist_ok=True)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("WANDB_SWEEP")},
            RUNS_ENV: str(runs_folder(self.folder)),
            "WANDB_RUN_ID": trial.id,
            "WANDB_RUN_GROUP": self.folder.name,
            **slot.environment,
        }
        with log.open("ab") as output, self._pid_file(trial).open("w", encoding="utf-8") as pid_file:
            # The process inherits the locked descriptor, so the file stays locked for as long as the process lives.
            lock_descriptor(pid_file.fileno())
            all_cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else None
            if all_cores is not None:
                os.sched_setaffinity(0, slot.cores)  # inherited as well
            try:
                process = subprocess.Popen(
                    self.sweep.command(trial.parameters),
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=[pid_file.fileno()],
                    process_group=0,  # Ctrl-C only reaches the driver, which terminates the trials
                )
            finally:
                if all_cores is not None:
                    os.sched_setaffinity(0, all_cores)
            pid_file.write(str(process.pid))
        slot.running = RunningTrial(trial, process, time.monotonic())

    def _poll(self, slot: WorkerSlot) -> None:
        """Update a running trial; if its process has ended, record the result and free the slot."""
        run = slot.running
        assert run is not None
        trial = run.trial
        trial.seconds = round(time.monotonic() - run.started, 1)
        code = run.process.poll()
        if code is None:
            return
        self.metrics[trial.id] = read_metrics(self.folder, trial)
        trial.metrics = _last_values(self.metrics[trial.id])
        not_logged = code == 0 and not run.stopping and self.sweep.metric not in trial.metrics
        if run.stopping:
            trial.state = "stopped"
        elif code == 0 and not not_logged:
            trial.state = "finished"
        else:
            trial.state, trial.reason = "crashed", self._crash_reason(trial, code)
        self.trial_log.write(trial)
        self._pid_file(trial).unlink(missing_ok=True)
        slot.running = None
        if not_logged:
            raise UserError(trial.reason)
        crashed = [t for t in self.trials if t.state == "crashed"]
        if len(crashed) >= MAX_CRASHES and not any(t.state in ("finished", "stopped") for t in self.trials):
            log = self._log_file(trial)
            raise UserError(f"the first {len(crashed)} trials crashed: {crashed[-1].reason}; see {log}")

    def _crash_reason(self, trial: Trial, code: int) -> str:
        if code == 0:
            return f"metric {self.sweep.metric!r} was not logged; logged metrics: {', '.join(sorted(trial.metrics))}"
        lines = self._log_file(trial).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"exit code {code}: {lines[-1][:300] if lines else 'no output'}"

    def _stop_early(self) -> None:
        if "early_terminate" not in self.sweep.config:
            return
        histories = {trial_id: metrics.get(self.sweep.metric, []) for trial_id, metrics in self.metrics.items()}
        chosen = {trial.id for trial in trials_to_stop(self.sweep, self.trials, histories)}
        for slot in self.slots:
            if slot.running and slot.running.trial.id in chosen and not slot.running.stopping:
                slot.running.stopping = True
                slot.running.process.send_signal(signal.SIGTERM)

    def _terminate_orphan(self, trial: Trial) -> None:
        """Terminate the process of a trial left running by a killed driver: SIGTERM, SIGKILL after 50 s."""
        path = self._pid_file(trial)
        if not path.is_file():
            return
        with path.open(encoding="utf-8") as pid_file:
            for attempt in range(120):
                if lock_descriptor(pid_file.fileno(), blocking=False):
                    return
                if attempt in (0, 100):
                    with contextlib.suppress(ProcessLookupError, ValueError):  # already gone, or no pid written
                        os.kill(
                            int(path.read_text(encoding="utf-8")), signal.SIGTERM if not attempt else signal.SIGKILL
                        )
                time.sleep(POLL_INTERVAL)
        raise UserError(f"trial {trial.number} of {self.folder} is still running; kill its process, {path.name}, first")

    def _log_file(self, trial: Trial) -> Path:
        return self.folder / "logs" / f"{trial.number:03d}-{trial.id}.log"

    def _pid_file(self, trial: Trial) -> Path:
        return self.folder / f"{trial.id}.pid"


def _last_values(metrics: dict[str, list[float]]) -> dict[str, float]:
    return {name: values[-1] for name, values in metrics.items()}
