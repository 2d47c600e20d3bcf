"""Checksums of checkpoints, what checkpoints state, and the next best one."""

import os
from pathlib import Path

import pytest
import torch

from swin_lightning.checkpoint_files import header, next_best, saved_at, verify
from swin_lightning.checkpoint_io import AtomicCheckpointIO
from swin_lightning.errors import UserError
from swin_lightning.models.weights import read_checkpoint


def save(path, saved_at=1.0, **more):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))])
    content = {"state_dict": {"w": torch.arange(4096.0)}, "optimizer_states": [optimizer.state_dict()]}
    torch.save({**content, "global_step": 7, "saved_at": saved_at, **more}, path)
    return path


def damage(path):
    """Change bytes in the data of a tensor."""
    content = bytearray(path.read_bytes())
    at = content.find(torch.arange(100.0, 110.0).numpy().tobytes())
    assert at > 0
    content[at : at + 20] = bytes(20)
    path.write_bytes(content)


READERS = [verify, read_checkpoint, AtomicCheckpointIO().load_checkpoint]


@pytest.mark.parametrize("read", READERS)
def test_damaged_checkpoint_is_refused_and_the_next_best_named(read):
    last = save("runs/digits/1-a/checkpoints/last.ckpt", 3.0)
    best = save("runs/digits/1-a/checkpoints/best.ckpt", 2.0)
    read(last)
    damage(last)
    with pytest.raises(UserError, match=rf"last.ckpt\' is corrupt \(wrong CRC-32 of .*/data/\d+\); .* is \'{best}\'"):
        read(last)
    damage(best)
    with pytest.raises(UserError, match=r"wrong CRC-32 of [^;]*$"):  # now neither is intact, and there is no other run
        read(best)


def test_truncated_checkpoint_is_refused():
    path = save("last.ckpt")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"last.ckpt' is not a checkpoint file or is corrupt \(incomplete archive\)$"):
        verify(path)


def test_checksums_are_computed_once_per_version(monkeypatch):
    path = save("last.ckpt")
    verify(path)
    monkeypatch.setattr("zipfile.ZipFile.testzip", lambda self: "every member")
    verify(path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match="every member"):
        verify(path)


def test_files_without_checksums_are_not_checked():
    torch.save({"a": torch.zeros(2)}, "old.pth", _use_new_zipfile_serialization=False)
    verify("old.pth")
    assert header(Path("old.pth")) == {}


def test_next_best_is_of_the_same_run_then_of_another_and_intact():
    broken = save("runs/digits/1-a/checkpoints/last.ckpt", 9.0)
    assert next_best(broken) is None
    other = save("runs/digits/2-b/checkpoints/last.ckpt", 2.0)
    save("runs/digits/2-b/checkpoints/best.ckpt", 1.0)
    assert next_best(broken) == other
    newer = save("runs/digits/3-c/checkpoints/last.ckpt", 8.0)
    damage(newer)
    assert next_best(broken) == other
    best = save("runs/digits/1-a/checkpoints/best.ckpt", 0.5)
    assert next_best(broken) == best


def test_header_has_plain_values_and_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "evil"),))

    path = save("last.ckpt", 5.5, evil=Evil(), device=torch.device("cpu"), size=torch.Size([2]), dtype=torch.float16)
    content = header(path)
    assert (content["global_step"], content["saved_at"], saved_at(path)) == (7, 5.5, 5.5)
    assert set(content) >= {"state_dict", "optimizer_states", "evil"} and not (tmp_path / "evil").exists()


def test_checkpoint_that_says_nothing_has_the_time_of_its_file():
    torch.save({"state_dict": {}}, "other.ckpt")
    os.utime("other.ckpt", (12, 34))
    assert saved_at(Path("other.ckpt")) == 34
    Path("broken.ckpt").write_bytes(b"PK\3\4 and nothing else")
    assert header(Path("broken.ckpt")) == {}
