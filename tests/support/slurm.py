"""A real SLURM on the loopback interface: daemons in a temporary folder, jobs, signals.

It needs the packages `slurm-wlm` and `munge` and runs as root, since its daemons start the jobs.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/opt/slurm/bin", "/opt/slurm/sbin")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")

CONFIGURATION = """
ClusterName=loopback
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort=26817
SlurmdPort=26818
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/linear
ReturnToService=2
JobRequeue=1
KillWait=30
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2
PropagateResourceLimits=NONE
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


def search_path():
    """PATH with the folders in which SLURM may be; one more can be named as SLURM_BIN."""
    return os.pathsep.join([os.environ.get("SLURM_BIN", ""), os.environ["PATH"], *FOLDERS]).strip(os.pathsep)


def missing():
    """The programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]


class Slurm:
    """The commands of a user."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = {**os.environ, "PATH": search_path(), "SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *command):
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def submit(self, *command, environment):
        """Submit a job; its id. The job gets `environment`, with the commands of SLURM on its PATH."""
        job_environment = {**environment, **{name: self.environment[name] for name in ("PATH", "SLURM_CONF")}}
        done = subprocess.run(["sbatch", *command], env=job_environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return re.search(r"batch job (\d+)", done.stdout)[1]

    def job(self, job):
        """The fields of a job, such as JobState and Restarts."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", job)))

    def wait(self, job, *states, seconds=180):
        """Wait for a state of a job; its fields."""
        end = time.monotonic() + seconds
        while (fields := self.job(job))["JobState"] not in states:
            assert time.monotonic() < end, fields
            time.sleep(0.3)
        return fields

    def start_now(self, job):
        """Start a requeued job, which would otherwise wait for two minutes."""
        self.wait(job, "PENDING")
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now")
        self.wait(job, "RUNNING")


@contextmanager
def loopback(folder):
    """A SLURM with one node, this machine, whose daemons are stopped at the end."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder))
    slurm = Slurm(folder)
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid"}
    files |= {"log-file": "munged.log", "seed-file": "munged.seed"}
    try:
        slurm.run("munged", "--force", *(f"--{option}={folder / name}" for option, name in files.items()))
        slurm.run("slurmctld", "-i")
        slurm.run("slurmd", "-N", "localhost")
        end = time.monotonic() + 30
        while "idle" not in slurm.run("sinfo", "--noheader"):
            assert time.monotonic() < end, (folder / "slurmctld.log").read_text()
            time.sleep(0.3)
        yield slurm
    finally:
        if (folder / "slurmctld.pid").is_file():
            subprocess.run(["scancel", "--user=root"], env=slurm.environment, timeout=60)
            end = time.monotonic() + 40
            while slurm.run("squeue", "--noheader") and time.monotonic() < end:
                time.sleep(0.3)
        for name in ("slurmd", "slurmctld", "munged"):
            _stop(folder / f"{name}.pid")


def _stop(pid_file):
    if not pid_file.is_file():
        return
    pid, end = int(pid_file.read_text()), time.monotonic() + 20
    os.kill(pid, signal.SIGTERM)
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
