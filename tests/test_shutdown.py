"""Signals and errors: every rank ends, `last.ckpt` is written, exit codes."""

import os
import pickle
import signal
import threading
import time
from types import SimpleNamespace

import pytest
from lightning import Callback
from torch.distributed import HashStore

from swin_lightning import shutdown
from swin_lightning.checkpointing import Checkpoint
from swin_lightning.cli import main
from swin_lightning.ema import EMA
from swin_lightning.non_finite import NonFinite
from swin_lightning.rank_channel import RankChannel
from swin_lightning.shutdown import Interrupted, Shutdown, raise_on_signals
from tests.support.cli import DIGITS, SHORT
from tests.support.faults import inject
from tests.support.training import Scores, fit_scores, load


@pytest.fixture(autouse=True)
def hangup_is_not_ignored():
    """As it is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


class SendAt(Callback):
    """Sends a signal to this process in a hook, at a step."""

    def __init__(self, hook, step, number=signal.SIGINT):
        setattr(self, hook, lambda trainer, *_: trainer.global_step == step and os.kill(os.getpid(), number))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_waits_for_the_end_of_the_step(tmp_path, number, capsys):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as raised:
        fit_scores(
            tmp_path, Scores([1.0] * 2), None, [Shutdown(), SendAt("on_before_optimizer_step", 5, number)], max_epochs=2
        )
    assert raised.value.code == 128 + number
    assert load(tmp_path / "last.ckpt")["global_step"] == 6
    assert signal.getsignal(number) is before
    path = os.path.relpath(tmp_path / "last.ckpt")
    assert f"stopped in epoch 2, step 6; {path} has step 6; resume with --ckpt_path {path}" in capsys.readouterr().err


def test_signal_waits_for_all_accumulated_batches(tmp_path):
    class Press(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 1 and trainer.current_epoch == 1:  # the second of two batches of the third step
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        fit_scores(tmp_path, Scores([1.0] * 2), None, [Shutdown(), Press()], accumulate_grad_batches=2)
    assert load(tmp_path / "last.ckpt")["global_step"] == 3


def test_the_same_signal_once_more_does_not_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(shutdown, "REPEATED", 0.01)
    reached = []

    class Press(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGTERM)  # another signal changes nothing
            reached.append("SIGTERM")
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("SIGINT")

    with pytest.raises(Interrupted, match="SIGINT"):
        fit_scores(tmp_path, Scores([1.0] * 2), None, [Shutdown(), Press()])
    assert reached == ["SIGTERM"] and not (tmp_path / "last.ckpt").exists()


def test_signal_in_a_test_ends_it_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["fit", "-c", DIGITS, *SHORT, "--trainer.logger=false"])
    (path,) = tmp_path.glob("runs/*/*/checkpoints/last.ckpt")
    monkeypatch.setattr("swin_lightning.tasks.SwinClassifier.test_step", lambda *_: os.kill(os.getpid(), signal.SIGHUP))
    with pytest.raises(Interrupted) as raised:
        main(["test", "-c", DIGITS, f"--ckpt_path={path}", "--trainer.logger=false"])
    assert raised.value.code == 129


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with raise_on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(Interrupted, match="SIGTERM"), raise_on_signals():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("callback", [Shutdown(), Checkpoint(), Checkpoint().last, NonFinite(), EMA(0.9)])
def test_callbacks_can_be_pickled_for_spawned_ranks(callback):
    assert type(pickle.loads(pickle.dumps(callback))) is type(callback)


def test_error_of_rank_1_ends_both_ranks_with_its_message(tmp_path):
    outcome = inject(tmp_path, fault="error", rank=1)
    assert outcome.code == 2 and not outcome.orphans and outcome.seconds < 30, outcome.output
    assert "error: rank 1: cannot read image 7\n" in outcome.output
    assert outcome.output.count("resume with --ckpt_path") == 1 and "Traceback" not in outcome.output
    assert outcome.last["global_step"] == 5


def test_watcher_has_ended_when_the_process_ends(monkeypatch):
    """A thread that is in the store while Python exits makes it abort (SIGABRT in place of the exit code)."""
    registered, store = [], HashStore()
    monkeypatch.setattr(shutdown.atexit, "register", registered.append)
    monkeypatch.setattr(RankChannel, "open", lambda trainer: RankChannel(store, others=0))
    trainer = SimpleNamespace(world_size=2, is_global_zero=True, global_rank=0, checkpoint_callbacks=[])
    callback = Shutdown()
    callback.setup(trainer, None, "fit")
    (watcher,) = (thread for thread in threading.enumerate() if thread.name == "shutdown")
    callback.on_exception(trainer, None, Interrupted(signal.SIGTERM))
    assert watcher.is_alive()
    for function in registered:
        function()
    assert not watcher.is_alive() and store.get("released") == b"1"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("fault", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("bug", 1)])
def test_all_ranks_end(tmp_path, fault, code, rank):
    outcome = inject(tmp_path, fault=fault, rank=rank)
    assert outcome.code == code and not outcome.orphans and outcome.seconds < 30, outcome.output
    assert outcome.last["global_step"] >= 5
    assert ("KeyError: 'a bug'" in outcome.output) == (fault == "bug")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_killed_rank_ends_the_others(tmp_path, rank):
    outcome = inject(tmp_path, fault="SIGKILL", rank=rank)
    assert outcome.code != 0 and not outcome.orphans and outcome.seconds < 30, outcome.output


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_stuck_rank_is_ended_after_a_signal(tmp_path, rank):
    outcome = inject(tmp_path, fault="hang", rank=rank, send=signal.SIGINT)
    assert outcome.code == 130 and not outcome.orphans and outcome.seconds < 30, outcome.output
    assert outcome.last["global_step"] == 5 and outcome.output.count("resume with --ckpt_path") == 1
