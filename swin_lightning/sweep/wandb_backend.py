"""A sweep on W&B's server. Here and in `tracking.py` stands all that knows W&B; it is imported inside functions."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from swin_lightning.errors import UserError
from swin_lightning.sweep.trial_log import State, Trial

STATES: dict[str, State] = {
    "running": "running", "pending": "running", "preempting": "running", "preempted": "running",
    "finished": "finished", "killed": "stopped",
}  # fmt: skip


def run_sweep(config: dict[str, Any], environments: Sequence[dict[str, str]], count: int | None) -> bool:
    """Create a sweep on W&B's server and run its agents on this machine to their end.

    Args:
        config: The sweep file's content.
        environments: Environment variables of each agent.
        count: Trials of all these agents together, or None.

    Returns:
        Whether it has run; False where the server does not answer, which is said.
    """
    import wandb

    try:
        api = wandb.Api()
        entity = os.environ.get("WANDB_ENTITY") or config.get("entity") or api.default_entity
        project = os.environ.get("WANDB_PROJECT") or config.get("project") or api.settings["project"]
        path = f"{entity}/{project}/{wandb.sweep(config, entity=entity, project=project)}"
    except (wandb.errors.CommError, wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
        print(f"W&B: the server does not answer ({str(error).splitlines()[0]}); the sweep runs here", file=sys.stderr)
        return False
    print(f"more machines join with: wandb agent {path}", flush=True)
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
    except KeyboardInterrupt:  # the agents have it too, and end their runs
        for agent in agents:
            agent.wait()
        sys.exit(128 + signal.SIGINT)
    if any(codes):
        raise UserError(f"W&B's agent ended with exit code {max(codes)}; its output above says why")
    return True


def load_trials(path: str) -> tuple[dict[str, Any], list[Trial], dict[str, str]]:
    """The trials of a sweep on W&B's server.

    Args:
        path: `entity/project/sweep`.

    Returns:
        The sweep's configuration, its trials, and the address of each by its id.

    Raises:
        ValueError: If there is no such sweep, or the server does not answer.
    """
    import wandb

    try:
        found = wandb.Api().sweep(path)
        runs = sorted(found.runs, key=lambda run: run.created_at)
    except (wandb.errors.CommError, wandb.errors.AuthenticationError, wandb.errors.UsageError, ValueError) as error:
        raise UserError(f"sweep {path!r}: {str(error).splitlines()[0]}") from error
    trials, urls = [], {}
    for number, run in enumerate(runs, 1):
        options = {name: run.config.get(name) for name in found.config["parameters"]}
        metrics = {k: float(v) for k, v in run.summary.items() if isinstance(v, int | float) and not k.startswith("_")}
        seconds = float(run.summary.get("_runtime") or 0)
        trials.append(Trial(number, run.id, options, STATES.get(run.state, "crashed"), metrics, seconds))
        urls[run.id] = run.url
    return found.config, trials, urls
