"""Checkpoint files: atomic writes."""

import errno
import os

import pytest

from swin_lightning import checkpoint_io
from swin_lightning.checkpoint_io import AtomicCheckpointIO
from swin_lightning.errors import UserError
from tests.support.training import load


def test_failed_write_keeps_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def full_disk(content, file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_io.torch, "save", full_disk)
    with pytest.raises(UserError, match=f"{path} cannot be written .*No space left.*the previous one is kept"):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert load(path) == {"step": 1}
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_checkpoint_is_flushed_to_disk_before_it_replaces_the_previous_one(tmp_path, monkeypatch):
    path, calls = tmp_path / "last.ckpt", []
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    fsync, replace = os.fsync, os.replace

    def recorded_replace(a, b):
        calls.append("replace")
        assert load(a) == {"step": 2}
        assert load(b) == {"step": 1}
        replace(a, b)

    monkeypatch.setattr(checkpoint_io.os, "fsync", lambda fd: calls.append("fsync") or fsync(fd))
    monkeypatch.setattr(checkpoint_io.os, "replace", recorded_replace)
    AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert calls[:2] == ["fsync", "replace"]
    assert load(path) == {"step": 2}
