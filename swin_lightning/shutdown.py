"""The end of a run by a signal or an error: every rank ends, and `last.ckpt` is written.

After an error another rank may wait in a collective operation for a rank that never comes. So nothing here is
collective: the ranks exchange requests through a key-value store (`torch.distributed.TCPStore`) that a thread of every
rank reads. A rank that does not end by itself, because its main thread is stuck, is ended by this thread.
"""

import atexit
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from swin_lightning.errors import UserError, user_error
from swin_lightning.last_checkpoint import LastCheckpoint, is_replicated
from swin_lightning.rank_channel import RankChannel

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
GRACE = 20.0  # seconds from a request until a stuck rank is ended
FAILURE_GRACE = 5.0  # seconds from the error of another rank until rank 0 no longer waits for its own main thread
REPEATED = 1.0  # a signal that is sent again after so many seconds is not waited with


class Interrupted(SystemExit):
    """The run was ended by a signal. The exit code is 128 + the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signal = signal.Signals(signum)

    def __str__(self) -> str:
        return self.signal.name


class RankError(RuntimeError):
    """The error of another rank, with its traceback."""


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Raise `Interrupted` on SIGINT, SIGTERM and SIGHUP in this block.

    A signal that is ignored stays ignored, such as SIGHUP under `nohup`. Nothing is done outside of the main thread.
    """
    before = _handle(_raise)
    try:
        yield
    finally:
        _restore(before)


class Shutdown(Callback):
    """Ends all ranks after a signal to, or an error of, any of them.

    - A signal waits until the weights, averages and counters of all ranks belong to the same optimizer step; the same
      signal once more does not wait. Then `Interrupted` is raised in all of them.
    - After an error, rank 0 writes `last.ckpt` alone, and raises or prints the error of the rank that failed first.
    - A rank that is stuck is ended after 20 seconds, with `last.ckpt` written from another thread.

    It comes first among the callbacks: it raises before a batch begins, when all callbacks have seen the one before.
    """

    def __init__(self) -> None:
        self._signal: int | None = None  # requested on this rank or on another one
        self._requested_at = 0.0
        self._stop_at: int | None = None  # optimizer step at which all ranks stop
        self._ending = False  # an exception was raised
        self._channel: RankChannel | None = None
        self._done: threading.Event | None = None  # ends the watcher; ddp_spawn pickles callbacks, and not events
        self._watcher: threading.Thread | None = None
        self._before: dict[int, Any] = {}  # handlers to be restored
        self._wakeup: socket.socket | None = None  # gets the numbers of signals
        self._last: LastCheckpoint | None = None
        self._trainer: Trainer | None = None

    # Lightning's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = trainer
        self._last = next((c for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)), None)
        self._stop_at, self._ending, self._done = None, False, threading.Event()
        if trainer.world_size > 1:
            self._channel = RankChannel.open(trainer)
            self._watcher = threading.Thread(target=self._watch, args=(self._done,), daemon=True, name="shutdown")
            self._watcher.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._finish()
        if self._signal is not None:  # it came too late for a batch
            self._raise()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_over()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_over()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_over()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_over()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_over()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop after a signal, all ranks before the same optimizer step.

        Rank 0 chooses the step after the current one: the others cannot finish the current one without rank 0, and
        rank 0 begins it when the choice can be read.
        """
        if self._channel is None:
            if self._signal is not None and self._consistent():
                self._raise()
            return
        step = trainer.global_step
        if trainer.is_global_zero:
            if self._signal is not None and self._stop_at is None:
                self._stop_at = step + 1
                self._channel.set("stop_at", json.dumps([self._stop_at, self._signal]))
        elif self._stop_at is None and (value := self._channel.get("stop_at")):
            self._stop_at, self._signal = json.loads(value)
        if self._stop_at is not None and step >= self._stop_at:
            self._raise()

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._stop_evaluation(trainer)

    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._stop_evaluation(trainer)

    def on_predict_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._stop_evaluation(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell the other ranks. On rank 0 `LastCheckpoint` then writes `last.ckpt`; the others wait until it has."""
        self._ending = True
        if self._channel is None:
            return self._finish()
        failure = self._channel.failure()
        if failure is None and not isinstance(exception, Interrupted) and self._signal is None:
            failure = _describe(exception, trainer.global_rank)
            failure = self._channel.report(failure)
        if trainer.is_global_zero:
            atexit.register(self._release)  # until then the watcher ends this rank if its main thread is stuck
            if self._signal is not None and not isinstance(exception, Interrupted):
                exception.__cause__ = Interrupted(self._signal)  # an error because another rank has stopped already
            elif failure is not None and failure["rank"] != 0:
                exception.__cause__ = _as_error(failure)
            return
        self._stop_watching()
        if failure is None:
            self._channel.wait_for_rank_zero(GRACE)
            self._leave(128 + (self._signal or signal.SIGTERM))
        else:
            self._leave(failure["code"])  # its closed connections end what the other ranks wait for, with gloo at least

    # helpers

    def _take_over(self) -> None:
        """Replace the handlers of the Trainer: its handler of SIGTERM calls a collective operation."""
        if not self._before:
            self._before = _handle(self._on_signal)
            if self._before and self._channel is not None:
                # Python calls a handler when the main thread returns from C++, which it does not in a collective
                # operation that is stuck; the number of the signal is written to this socket at once
                self._wakeup, writer = socket.socketpair()
                self._wakeup.setblocking(False)
                writer.setblocking(False)
                signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)

    def _on_signal(self, signum: int, frame: Any) -> None:
        if self._signal is None:
            self._request(signum, time.monotonic())
            if self._channel is None and self._consistent():
                self._raise()
            return
        repeated = signum == self._signal and time.monotonic() - self._requested_at > REPEATED
        if repeated and (signum == signal.SIGINT or not self._ending):  # launchers send SIGTERM again
            self._raise()

    def _raise(self) -> None:
        signum = self._signal
        assert signum is not None
        raise Interrupted(signum)

    def _consistent(self) -> bool:
        return self._last is None or self._last.between_steps

    def _stop_evaluation(self, trainer: Trainer) -> None:
        """In evaluation the ranks need not stop at the same batch, unless every forward pass is collective."""
        if self._signal is not None and (self._channel is None or is_replicated(trainer)):
            self._raise()

    def _release(self) -> None:
        if self._channel is not None:
            self._channel.release()
        self._stop_watching()

    def _stop_watching(self) -> None:
        """End the watcher; Python would abort if it left a thread within the store behind."""
        if self._done is not None:
            self._done.set()
        if self._watcher is not None:
            self._watcher.join(timeout=5)
            self._watcher = None

    def _finish(self) -> None:
        self._stop_watching()
        if self._wakeup is not None and threading.current_thread() is threading.main_thread():
            os.close(signal.set_wakeup_fd(-1))
            self._wakeup = None
        _restore(self._before)
        self._before = {}

    def _watch(self, done: threading.Event) -> None:
        """Pass requests between the ranks, and end this rank if its main thread does not.

        Args:
            done: Set when the Trainer has finished.
        """
        trainer, channel = self._trainer, self._channel
        assert trainer is not None and channel is not None
        sent, failure, since, alone_since = False, None, 0.0, 0.0
        while not done.wait(0.2):
            now = time.monotonic()
            self._request(self._received(), now)
            try:
                if self._signal is not None and not sent:
                    channel.set("signal", str(self._signal))
                    sent = True
                elif self._signal is None and (value := channel.get("signal")):
                    self._request(int(value), now)
                if failure is None and (failure := channel.failure()) is not None:
                    since = now
            except RuntimeError:  # rank 0 has ended
                alone_since = alone_since or now
                if now - alone_since > FAILURE_GRACE:
                    self._leave(failure["code"] if failure else 1)
                continue
            extra = FAILURE_GRACE if self._ending else 0.0  # the main thread is saving
            if (
                failure is not None
                and failure["rank"] != trainer.global_rank
                and now - since > FAILURE_GRACE + 3 * extra
            ):
                self._end(trainer, f"error: {failure['text']}", int(failure["code"]))
            elif self._signal is not None and now - self._requested_at > GRACE + extra:
                self._end(trainer, f"{signal.Signals(self._signal).name}: a rank is stuck", 128 + self._signal)

    def _request(self, signum: int | None, now: float) -> None:
        """Stop the run by a signal, unless it is being stopped already."""
        if signum is not None and self._signal is None:
            self._signal, self._requested_at = signum, now

    def _received(self) -> int | None:
        """The first of `SIGNALS` that this process has received, None if there is none."""
        try:
            numbers = self._wakeup.recv(64) if self._wakeup is not None else b""
        except BlockingIOError:
            return None
        return next((number for number in numbers if number in SIGNALS), None)

    def _end(self, trainer: Trainer, message: str, code: int) -> None:
        """End this rank from the thread of the watcher."""
        if trainer.is_global_zero:
            if self._last is not None and is_replicated(trainer):
                self._last.save_from_thread(trainer)
            print(message, file=sys.stderr, flush=True)
            assert self._channel is not None
            self._channel.release()
        self._leave(code)

    def _leave(self, code: int) -> None:
        """End this process now, whatever its main thread waits for."""
        environment = getattr(self._trainer and self._trainer.strategy, "cluster_environment", None)
        rank_zero = self._trainer is None or self._trainer.is_global_zero
        # Lightning's launcher kills rank 0 when another rank ends with a code other than 0
        _exit(0 if isinstance(environment, LightningEnvironment) and not rank_zero else code)


def end_with_parent() -> None:
    """End this process when the process that started it has ended: ranks that Lightning starts would be orphans."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        time.sleep(2 * FAILURE_GRACE)  # an ordinary end needs no help
        _exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()


# helpers


def _raise(signum: int, frame: Any) -> None:
    raise Interrupted(signum)


def _handle(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Set the handler of all signals that are not ignored. Returns the handlers before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in numbers}


def _restore(handlers: dict[int, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _describe(exception: BaseException, rank: int) -> dict[str, Any]:
    mistake = user_error(exception)
    text = f"rank {rank}: {mistake}" if mistake else f"rank {rank}\n{''.join(traceback.format_exception(exception))}"
    return {"rank": rank, "code": 2 if mistake else 1, "text": text}


def _as_error(failure: dict[str, Any]) -> Exception:
    return UserError(failure["text"]) if failure["code"] == 2 else RankError(failure["text"])


def _exit(code: int) -> None:
    """End the process now, whatever its main thread waits for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
