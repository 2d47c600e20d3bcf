"""Runs of Weights & Biases: starting and closing its background process, and reading what was logged.

wandb is imported inside functions, so that importing this file is cheap.
"""

import contextlib
import json
import netrc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from swin_lightning.errors import UserError, summarize

FINISH_TIMEOUT = 120.0  # seconds to upload the rest at the end of a run; WANDB_FINISH_TIMEOUT sets another time


@dataclass(frozen=True)
class WandbRecord:
    """A run as stored by W&B: its name, its configuration, and the logged rows with W&B's keys."""

    name: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]


def read_offline_run(folder: str | Path) -> WandbRecord:
    """Read `wandb/offline-run-*`, without account or network.

    wandb has no Python function for these files; its command `leet inspect` prints them.

    Raises:
        UserError: If wandb cannot read the folder.
    """
    summary = json.loads(_inspect(folder, "--summary"))
    return WandbRecord(summary["name"], summary["config"], read_offline_history(folder))


def read_offline_history(folder: str | Path) -> list[dict[str, Any]]:
    """The logged rows of `wandb/offline-run-*`.

    Raises:
        UserError: If wandb cannot read the folder.
    """
    records = map(json.loads, _inspect(folder).splitlines())
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def _inspect(folder: str | Path, *options: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=600)
    if done.returncode:
        reason = " ".join(done.stderr.strip().splitlines()[-1:])
        raise UserError(f"W&B run {str(folder)!r} cannot be read: {reason}")
    return done.stdout


def read_project(project: str) -> list[WandbRecord]:
    """Read all runs of a project, `entity/project`, from the W&B server.

    Raises:
        UserError: If there is no account or no such project.
    """
    import wandb

    try:
        return [WandbRecord(run.name, dict(run.config), list(run.scan_history())) for run in wandb.Api().runs(project)]
    except (wandb.errors.CommError, wandb.errors.UsageError, wandb.errors.AuthenticationError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"W&B project {project!r}: {reason}; log in with `wandb login`, or give a folder") from error


def logged_before(run: Any, folder: Path) -> set[tuple[int, str]]:
    """Step and name of what earlier processes of this run have logged, so that a resumed run logs it only once.

    The history of a run cannot be shortened: rewinding needs the server and a feature that not every account has. But a
    resumed run repeats the steps behind its checkpoint exactly. Empty if the history cannot be read.

    Args:
        run: The W&B run of this process.
        folder: Folder that holds `wandb/offline-run-*`.
    """
    import wandb

    rows: list[dict[str, Any]] = []
    with contextlib.suppress(Exception):
        for part in offline_parts(folder, run.id):
            if part.resolve() != Path(run.settings.sync_dir).resolve():
                rows += read_offline_history(part)
    with contextlib.suppress(Exception):
        if run.resumed:
            rows += wandb.Api(timeout=30).run(run.path).scan_history()
    found = set()
    for row in rows:
        step = row.get("trainer/global_step")
        if isinstance(step, int | float):
            found |= {(int(step), name) for name, value in row.items() if value is not None}
    return found


def offline_parts(folder: Path, run_id: str) -> list[Path]:
    """The folders of a run that was recorded offline, one for each process, in order."""
    return sorted((folder / "wandb").glob(f"offline-run-*-{run_id}"))


# closing


def finish_wandb() -> None:
    """Finish the W&B run of this process, if there is one, and print its address or how to upload it.

    It neither raises nor waits for more than `WANDB_FINISH_TIMEOUT` seconds, whatever has become of the server and of
    W&B's background process.
    """
    run = sys.modules["wandb"].run if "wandb" in sys.modules else None
    if run is None:
        return
    mode, folder = run.settings.mode, Path(run.settings.sync_dir)
    url = run.url if mode == "online" else None
    if error := within(finish_timeout() + 10, run.finish):
        rest = f"; to upload what was logged: {command}" if (command := shut_down()) else ""
        warn(f"the run was not closed ({describe(error)}){rest}")
    elif mode == "offline":
        print(f"W&B: offline; to upload this run: {sync_command(folder)}", flush=True)
    elif url:
        print(f"W&B: {url}", flush=True)


def sync_command(folder: Path) -> str:
    """The command that uploads a run. An offline run that was resumed has several folders."""
    run_id = folder.name.rsplit("-", 1)[-1]
    parts = offline_parts(folder.parents[1], run_id)
    return "wandb sync " + " ".join(os.path.relpath(part) for part in (parts if folder in parts else [*parts, folder]))


def finish_timeout() -> float:
    """Seconds that the end of a run waits for uploads."""
    return float(os.environ.get("WANDB_FINISH_TIMEOUT", FINISH_TIMEOUT))


def shut_down() -> str:
    """End W&B in this process after a failure, so that it neither hangs nor fails again when Python exits.

    Returns:
        The command that uploads what was recorded; empty if there is nothing.
    """
    wandb = sys.modules.get("wandb")
    if wandb is None:
        return ""
    folder = Path(wandb.run.settings.sync_dir) if wandb.run is not None else None
    if isinstance(within(10, wandb.teardown), TimeoutError):
        for process in _children("wandb-core"):  # it does not respond, and Python would wait for it
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
    wandb.run = None  # type: ignore[attr-defined]  # a later run of this process starts its own
    return sync_command(folder) if folder is not None and any(folder.glob("run-*.wandb")) else ""


def within(seconds: float, function: Callable[[], Any]) -> BaseException | None:
    """Call a function that may hang or fail. Returns its exception, or a TimeoutError."""
    result: list[BaseException | None] = [TimeoutError(f"no response for {seconds:.0f} s")]

    def call() -> None:
        try:
            function()
            result.append(None)
        except BaseException as error:  # also SystemExit
            result.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return result[-1]


def warn(message: str) -> None:
    """One line about W&B on stderr."""
    print(f"W&B: {message}", file=sys.stderr, flush=True)


def describe(error: BaseException) -> str:
    """Kind and message of an exception on one line."""
    return f"{type(error).__name__}: {summarize(error)}".rstrip(": ")[:200]


def _children(name: str) -> list[int]:
    """Ids of the child processes of this process with a name; empty where there is no /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            command, _, fields = stat.read_text(encoding="utf-8", errors="replace").partition("(")[2].rpartition(")")
            if command == name and int(fields.split()[1]) == os.getpid():
                found.append(int(stat.parent.name))
    return found


# sweeps


STOPPED = threading.Event()  # W&B has stopped this run: early termination in a sweep, or the stop button on its page


def stop_run() -> None:
    STOPPED.set()
    os.kill(os.getpid(), signal.SIGTERM)  # the Trainer stops after the current batch and saves a checkpoint


def ended_by_sweep() -> bool:
    """After a SIGTERM: whether a W&B sweep has stopped the run. A preempted run is marked for requeueing instead.

    The signal comes from W&B's agent in the first case and from the machine in the second; the client learns which it
    is within 15 seconds. An agent restarts a requeued run under the same id, so that its last checkpoint is resumed.
    """
    run = sys.modules["wandb"].run if "wandb" in sys.modules else None
    if run is None or not run.settings.sweep_id or run.settings.mode != "online":
        return False
    if STOPPED.wait(20):
        return True
    within(10, run.mark_preempting)
    if within(finish_timeout() + 10, lambda: run.finish(exit_code=128 + signal.SIGTERM)):
        shut_down()
    return False


def has_account() -> bool:
    """Whether W&B finds an API key in the environment, its settings or the netrc file."""
    import wandb

    settings = wandb.setup().settings
    if os.environ.get("WANDB_API_KEY") or settings.api_key or settings.identity_token_file:
        return True
    try:
        path = os.environ.get("NETRC") or next(
            (str(p) for p in (Path.home() / ".netrc", Path.home() / "_netrc") if p.is_file()), None
        )
        return (
            path is not None
            and netrc.netrc(path).authenticators(urlparse(settings.base_url).hostname or "") is not None
        )
    except (OSError, netrc.NetrcParseError):
        return False
