"""Sweeps on the W&B server. Only this file and `loggers.py` use wandb, which is imported inside functions."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from swin_lightning.errors import UserError, summarize
from swin_lightning.sweep.trial_log import State, Trial

STATES: dict[str, State] = {
    "running": "running", "pending": "running", "preempting": "running", "preempted": "running",
    "finished": "finished", "killed": "stopped",
}  # fmt: skip


def run_sweep(config: dict[str, Any], environments: Sequence[dict[str, str]], count: int | None) -> bool:
    """Create a sweep on the W&B server, run agents on this machine and wait for them.

    Args:
        config: Content of the sweep file.
        environments: Environment variables of each agent.
        count: Total number of trials of these agents; None for no limit.

    Returns:
        False if the server cannot be reached (reported on stderr), True otherwise.

    Raises:
        UserError: If an agent fails.
    """
    import wandb

    try:
        api = wandb.Api()
        entity = os.environ.get("WANDB_ENTITY") or config.get("entity") or api.default_entity
        project = os.environ.get("WANDB_PROJECT") or config.get("project") or api.settings["project"]
        path = f"{entity}/{project}/{wandb.sweep(config, entity=entity, project=project)}"
    except (wandb.errors.CommError, wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
        print(f"W&B: cannot create the sweep ({summarize(error)}); running it on this machine", file=sys.stderr)
        return False
    print(f"to add agents on other machines: wandb agent {path}", flush=True)
    n = len(environments)
    shares = [None] * n if count is None else [count // n + (i < count % n) for i in range(n)]
    agents = [
        subprocess.Popen(
            [sys.executable, "-m", "wandb", "agent", *(["--count", str(share)] if share else []), path],
            env={**os.environ, **environment},
        )
        for environment, share in zip(environments, shares, strict=True)
        if share != 0
    ]
    try:
        codes = [agent.wait() for agent in agents]
    except KeyboardInterrupt:  # the agents receive it as well and stop their runs
        for agent in agents:
            agent.wait()
        sys.exit(128 + signal.SIGINT)
    if any(codes):
        raise UserError(f"a W&B agent failed with exit code {max(codes)}; see its output above")
    return True


def load_trials(path: str) -> tuple[dict[str, Any], list[Trial], dict[str, str]]:
    """The trials of a sweep on the W&B server.

    Args:
        path: `entity/project/sweep`.

    Returns:
        The configuration of the sweep, its trials, and the URL of each trial by id.

    Raises:
        UserError: If the sweep does not exist or the server cannot be reached.
    """
    import wandb

    try:
        api: Any = wandb.Api()
        sweep = api.sweep(path)
        runs = sorted(sweep.runs, key=lambda run: run.created_at)
    except (wandb.errors.CommError, wandb.errors.AuthenticationError, wandb.errors.UsageError, ValueError) as error:
        raise UserError(f"sweep {path!r}: {summarize(error)}") from error
    trials, urls = [], {}
    for number, run in enumerate(runs, 1):
        parameters = {name: run.config.get(name) for name in sweep.config["parameters"]}
        metrics = {k: float(v) for k, v in run.summary.items() if isinstance(v, int | float) and not k.startswith("_")}
        seconds = float(run.summary.get("_runtime") or 0)
        trials.append(Trial(number, run.id, parameters, STATES.get(run.state, "crashed"), metrics, seconds))
        urls[run.id] = run.url
    return sweep.config, trials, urls
