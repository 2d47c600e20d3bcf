"""What SLURM and torchrun say about a process: the job that it belongs to, its ranks, and the signal to requeue."""

import hashlib
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only

TCPStore: Any = torch.distributed.TCPStore  # type: ignore[attr-defined]  # not in the stubs
STORE_TIMEOUT = timedelta(seconds=300)
OPEN_STORES: list[Any] = []  # of rank 0, open as long as this process

log = logging.getLogger(__name__)


def run_id(args: Sequence[str]) -> str | None:
    """The id of the run that every start of a command in the same job has, in all of its ranks.

    It consists of the job and a hash of the command, so that several commands in one job are several runs:

    - SLURM: the id of a batch job (and of the task of an array), which a requeued job keeps. The same command in the
      same job is the same run. Interactive jobs (`salloc`, `srun --pty`) have none: they are not requeued, and a
      command that is repeated there is meant to start a new run.
    - torchrun: the id of the rendezvous, which its restarts keep. If it is torchrun's default for several machines,
      which is `none`, the workers agree on a random one in the store of their launchers.

    Args:
        args: Arguments of the command line.

    Returns:
        The id, of letters, digits and underscores; None for a process that nothing restarts.
    """
    job = slurm_job()
    if job is not None:
        return f"slurm{job}_{_hash(*args)}"
    if not TorchElasticEnvironment.detect():
        return None
    rendezvous: str | None = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if rendezvous == "none":
        rendezvous = _agreed_rendezvous()
    if rendezvous is None:
        return None
    if not re.fullmatch("[A-Za-z0-9]{1,40}", rendezvous):  # a UUID on one machine, or whatever the user has given
        rendezvous = _hash(rendezvous)
    return f"torchrun_{rendezvous}_{_hash(*args)}"


def slurm_job() -> str | None:
    """The id of the batch job of SLURM that this process belongs to, `<array job>_<task>` in an array; None without."""
    if os.environ.get("ENVIRONMENT") != "BATCH":  # set by sbatch, and passed on by srun
        return None
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")


def launched_processes(plugins: Any, devices: Any) -> dict[str, int]:
    """The Trainer's `devices` and `num_nodes` for the processes that torchrun or srun has started; else empty.

    Args:
        plugins: The Trainer's plugins; one of them may be a cluster environment.
        devices: The Trainer's devices; a list of indices is kept.
    """
    given = _cluster_environment(plugins)
    kind = type(given) if given else _detected_environment()
    env = os.environ
    if kind is TorchElasticEnvironment:
        local, world = int(env["LOCAL_WORLD_SIZE"]), int(env["WORLD_SIZE"])
        nodes = world // local
        if nodes * local != world:
            return {}  # machines with different numbers of processes, which Lightning refuses
    elif kind is SLURMEnvironment and "SLURM_NTASKS" in env:
        nodes = int(env.get("SLURM_NNODES", 1))
        local = int(env.get("SLURM_NTASKS_PER_NODE", 1))
    else:
        return {}
    listed = isinstance(devices, list) or (isinstance(devices, str) and "," in devices)
    return {"num_nodes": nodes, **({} if listed else {"devices": local})}


def open_own_store() -> None:
    """Let the ranks of a restart by torchrun exchange addresses through a new store, which rank 0 opens.

    The workers of torchrun share a store with their launcher. It outlives them, so that a rank of a restart can read
    the address of a killed one and fails to connect (https://github.com/pytorch/pytorch/issues/135712).
    """
    elastic = TorchElasticEnvironment.detect() and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if not elastic or int(os.environ["WORLD_SIZE"]) == 1 or torch.distributed.is_initialized():
        return
    shared = _launcher_store()
    if shared is None:
        return
    host, key = os.environ["MASTER_ADDR"], "swin_lightning/port"
    if os.environ["RANK"] == "0":
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        OPEN_STORES.append(store)
        shared.set(key, str(store.port))
        port = store.port
    else:
        end = time.monotonic() + STORE_TIMEOUT.total_seconds()
        while True:
            port = int(shared.get(key))
            try:
                socket.create_connection((host, port), timeout=5).close()
                break
            except OSError:  # the port of a killed rank 0: the new one has not begun yet
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)
    os.environ["MASTER_PORT"] = str(port)


@contextmanager
def requeue_on_signal(plugins: Any) -> Iterator[None]:
    """In a batch job of SLURM, end this block on SIGUSR1 like on SIGTERM, and requeue the job.

    SIGTERM lets the run write `last.ckpt`. When the block has been left, rank 0 asks SLURM to requeue the job.
    Lightning would write another checkpoint, `hpc_ckpt_1.ckpt`, and train on until SLURM kills it.

    Args:
        plugins: The Trainer's plugins. A `SLURMEnvironment` among them may name another `requeue_signal`, or turn
            this off with `auto_requeue: false`.
    """
    environment, job = _cluster_environment(plugins), slurm_job()
    signum = getattr(environment, "requeue_signal", None) or getattr(signal, "SIGUSR1", None)
    main_thread = threading.current_thread() is threading.main_thread()
    if job is None or signum is None or not main_thread or not getattr(environment, "auto_requeue", True):
        yield
        return
    requested = False

    def on_signal(*_: Any) -> None:
        nonlocal requested
        requested = True
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signum, on_signal)
    try:
        yield
    except BaseException:
        if requested and getattr(rank_zero_only, "rank", 0) == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # SLURM sends it now; there are 30 s to finish the logs
            _requeue(job)
        raise
    finally:
        signal.signal(signum, before)


# helpers


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]


def _cluster_environment(plugins: Any) -> ClusterEnvironment | None:
    listed = plugins if isinstance(plugins, list | tuple) else [plugins]
    return next((plugin for plugin in listed if isinstance(plugin, ClusterEnvironment)), None)


def _detected_environment() -> type[ClusterEnvironment] | None:
    """As Lightning detects it: torchrun also within SLURM."""
    return next((kind for kind in (TorchElasticEnvironment, SLURMEnvironment) if kind.detect()), None)


def _launcher_store() -> Any:
    """A client of the store of torchrun's launchers; None if they do not share it."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(host, port, is_master=False, timeout=STORE_TIMEOUT, wait_for_workers=False)


def _agreed_rendezvous() -> str | None:
    """A random id that all workers of a launch and of its restarts agree on."""
    store = _launcher_store()
    return store and bytes(store.compare_set("swin_lightning/run", "", secrets.token_hex(4))).decode()


def _requeue(job: str) -> None:
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        problem = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        problem = str(error)
    log.info(f"SLURM job {job} was not requeued: {problem}" if problem else f"requeued SLURM job {job}")
