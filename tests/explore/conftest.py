"""One finished run for all tests of explore."""

from pathlib import Path

import pytest
from filelock import FileLock

from swin_lightning.cli import main
from swin_lightning.explore.evaluation import evaluate, load_run
from swin_lightning.explore.runs import read_runs
from tests.support.cli import DIGITS, SHORT


@pytest.fixture(scope="session")
def run(tmp_path_factory, worker_id):
    """Folder of a short run with offline W&B files, trained once for all pytest-xdist workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "explore"
    with FileLock(f"{folder}.lock"):
        if not (folder / "run_dir").is_file():
            with pytest.MonkeyPatch.context() as patch:
                folder.mkdir()
                patch.chdir(folder)
                patch.setenv("WANDB_MODE", "offline")
                run_dir = main(
                    ["fit", "-c", DIGITS, *SHORT, "--trainer.max_epochs=2", "--test_after_fit=true"]
                ).run_dir.resolve()
                (folder / "run_dir").write_text(str(run_dir))
    return Path((folder / "run_dir").read_text())


@pytest.fixture(scope="session")
def loaded(run):
    """Model and data module of the run."""
    return load_run(run)


@pytest.fixture(scope="session")
def log(run):
    """Logged metrics of the run."""
    (log,) = read_runs(run)
    return log


@pytest.fixture(scope="session")
def evaluation(loaded):
    """The run's model evaluated on the test split."""
    return evaluate(*loaded)
