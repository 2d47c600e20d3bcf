"""Messages between ranks that no rank waits for: a rank may have ended, or be stuck in a collective operation."""

import json
import os
import time
from datetime import timedelta
from typing import Any

import torch.distributed
from lightning import Trainer

from swin_lightning.errors import UserError

TCPStore: Any = torch.distributed.TCPStore  # type: ignore[attr-defined]  # not in the stubs


class RankChannel:
    """Messages between ranks by a key-value store on rank 0; no call waits for another rank."""

    def __init__(self, store: Any, others: int) -> None:
        self._store, self._others = store, others

    @classmethod
    def open(cls, trainer: Trainer) -> "RankChannel":
        """Open the store on all ranks.

        Raises:
            UserError: If another rank has already ended.
        """
        host, timeout = os.environ.get("MASTER_ADDR", "127.0.0.1"), timedelta(seconds=60)
        store = None
        if trainer.is_global_zero:
            store = TCPStore(host, 0, is_master=True, timeout=timeout, wait_for_workers=False)  # on any free port
        try:
            port = trainer.strategy.broadcast(store.port if store is not None else 0)
        except RuntimeError as error:
            raise UserError("another rank has ended before the run began; see its error") from error
        store = store or TCPStore(host, port, timeout=timeout, wait_for_workers=False)
        return cls(store, trainer.world_size - 1)

    def set(self, key: str, value: str) -> None:
        self._store.set(key, value)

    def get(self, key: str) -> str | None:
        """The value of a key, None if it is not set.

        Raises:
            RuntimeError: If rank 0 has ended.
        """
        return self._store.get(key).decode() if self._store.check([key]) else None

    def report(self, failure: dict[str, Any]) -> dict[str, Any] | None:
        """Store a failure unless there is one. Returns the first failure."""
        try:
            self._store.compare_set("failure", "", json.dumps(failure))
        except RuntimeError:
            return failure
        return self.failure()

    def failure(self) -> dict[str, Any] | None:
        """The first failure of any rank: its `rank`, exit `code` and `text`. None also if rank 0 has ended."""
        try:
            value = self.get("failure")
        except RuntimeError:
            return None
        return json.loads(value) if value else None

    def wait_for_rank_zero(self, seconds: float) -> None:
        """Return when rank 0 ends, or after some seconds."""
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                if self.get("released"):
                    self._store.add("left", 1)
                    return
                time.sleep(0.05)
        except RuntimeError:
            return

    def release(self) -> None:
        """Let the other ranks end, as rank 0 does now: launchers kill all ranks when one has ended with an error."""
        self.set("released", "1")
        end = time.monotonic() + 1.0
        while self._store.add("left", 0) < self._others and time.monotonic() < end:
            time.sleep(0.02)
