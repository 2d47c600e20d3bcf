"""The time in checkpoints, and the agreement of ranks on the checkpoint that they resume from."""

from types import SimpleNamespace

import pytest

from swin_lightning.checkpoint_files import saved_at
from swin_lightning.errors import UserError
from swin_lightning.resume import CheckpointTime, SameCheckpoint, check_training_state
from swin_lightning.runs import RunFolder, find_checkpoint, runs_root
from tests.support.training import Scores, fit_scores, load
from tests.test_checkpoint_files import save


def train(name, **options):
    run = RunFolder(runs_root() / "digits" / name)
    fit_scores(run.checkpoints, Scores((0.1, 0.2)), callbacks=[CheckpointTime(run)], **options)
    return run


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_newest_checkpoint_is_found_after_the_clock_was_set_back(monkeypatch):
    monkeypatch.setattr("swin_lightning.resume.time.time", lambda: 2000.0)
    first = train("20300101-000000-a")
    monkeypatch.setattr("swin_lightning.resume.time.time", lambda: 1000.0)
    second = train("20200101-000000-b")
    assert find_checkpoint("digits", "last") == second.last and find_checkpoint("digits", "best") == second.best
    assert 2000 <= saved_at(first.best) < saved_at(first.last) < saved_at(second.best) < saved_at(second.last) < 2001
    resumed = fit_scores(first.checkpoints, Scores((0.1, 0.2, 0.3)), ckpt_path=first.last, max_epochs=3,
                         callbacks=[CheckpointTime(first)])  # fmt: skip
    assert resumed.global_step == 12 and find_checkpoint("digits", "last") == first.last
    assert load(first.last)["saved_at"] == saved_at(first.last)


def rank(first):
    """A Trainer of two ranks whose rank 0 sends `first`."""
    strategy = SimpleNamespace(broadcast=lambda own: first, reduce_boolean_decision=lambda ok, all: ok)
    return SimpleNamespace(world_size=2, global_rank=1, strategy=strategy)


def test_ranks_must_resume_from_the_same_checkpoint():
    path = str(save("runs/digits/1-a/checkpoints/last.ckpt", 3.0))
    SameCheckpoint(path).setup(rank(["1-a/checkpoints/last.ckpt", 3.0, 7]), None, "fit")
    with pytest.raises(UserError, match=r"rank 1 on .* would resume from no checkpoint and rank 0 from 1-a/.*step 7"):
        SameCheckpoint(None).setup(rank(["1-a/checkpoints/last.ckpt", 3.0, 7]), None, "fit")
    with pytest.raises(UserError, match="must be on a file system that all machines share"):  # an older copy
        SameCheckpoint(path).setup(rank(["1-a/checkpoints/last.ckpt", 4.0, 9]), None, "fit")
    SameCheckpoint(None).setup(rank([]), None, "fit")


def test_one_rank_agrees_with_itself(make_trainer):
    SameCheckpoint("nowhere").setup(make_trainer(), None, "fit")


GROUPS = {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]}
STATE = {
    "epoch": 1,
    "global_step": 3,
    "loops": {},
    "callbacks": {},
    "optimizer_states": [GROUPS],
    "lr_schedulers": [{}],
}


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": -5},
        {"global_step": "x"},
        {"loops": [1]},
        {"callbacks": "x"},
        {"optimizer_states": "x"},
        {"optimizer_states": [1]},
        {"optimizer_states": [{**GROUPS, "param_groups": []}]},
        {"optimizer_states": [{"param_groups": GROUPS["param_groups"]}]},
        {"optimizer_states": [{**GROUPS, "param_groups": [{"params": 1}]}]},
        {"lr_schedulers": [1]},
    ],
)
def test_damaged_training_state_is_refused(change):
    check_training_state(STATE, "checkpoint 'a'")
    check_training_state({}, "checkpoint 'a'")
    with pytest.raises(UserError, match=r"^checkpoint 'a' cannot be resumed"):
        check_training_state({**STATE, **change}, "checkpoint 'a'")
