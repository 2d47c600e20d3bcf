"""The position in the epoch is counted in samples: other ranks, accumulated batches and batch sizes on resume."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback

from swin_lightning.data import Digits
from swin_lightning.sample_position import KEY, SamplePosition
from tests.support.modules import Data, Plain
from tests.support.training import Scores, load, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
]
STEPS = 7  # optimizer steps of an epoch: 125 images in batches of 16


class Record(Callback):
    """The indices of every optimizer step, by epoch and step; keeps last.ckpt of every step as STEP.ckpt."""

    def __init__(self, folder):
        self.folder, self.steps = Path(folder), {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        key = (trainer.current_epoch, trainer.global_step)
        self.steps.setdefault(key, []).extend(batch["index"].tolist())
        last = self.folder / "last.ckpt"
        if last.is_file():
            (self.folder / f"{load(last)['global_step']}.ckpt").write_bytes(last.read_bytes())

    def sorted(self, first=0):
        return {key: sorted(indices) for key, indices in self.steps.items() if key[1] >= first}


class Few(Digits):
    def load(self, split):
        reader = super().load(split)
        return SimpleReader(reader, 125 if split == "train" else 20)


class SimpleReader:
    def __init__(self, reader, size):
        self.reader, self.size = reader, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return self.reader[index]


def fit(folder, ckpt_path=None, accumulate=1, batch_size=16, position=True, **options):
    torch.manual_seed(0)
    record = Record(folder)
    callbacks = [record, *([SamplePosition()] if position else [])]
    options = {"checkpoint": {"every_n_train_steps": 1}, "accumulate_grad_batches": accumulate} | options
    result = trainer(folder, callbacks, **options)
    data = Few(num_workers=0, batch_size=batch_size, eval_batch_size=8)
    result.fit(Scores([1.0] * 3), datamodule=data, ckpt_path=ckpt_path and str(ckpt_path), weights_only=True)
    return result, record


@pytest.fixture(scope="module", params=[1, 4], ids=["from1", "from4"])
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    result, record = fit(folder, accumulate=request.param)
    assert result.global_step == 2 * STEPS
    return folder, record


@pytest.mark.parametrize("accumulate", [1, 2, 8])
def test_accumulation_may_change_on_resume(whole, tmp_path, accumulate):
    folder, record = whole
    for step in (1, 3, STEPS, STEPS + 4, 2 * STEPS - 1):  # STEPS is the end of the first epoch
        resumed, again = fit(tmp_path / str(step), folder / f"{step}.ckpt", accumulate)
        assert resumed.global_step == 2 * STEPS and resumed.current_epoch == 2
        assert again.sorted() == record.sorted(step), step
        assert all(len(set(indices)) == 16 for indices in again.steps.values())


@pytest.mark.parametrize("val_check_interval", [0.5, 1.0])
def test_checkpoints_of_a_modelcheckpoint_may_change_accumulation(tmp_path, val_check_interval):
    """best.ckpt is written after a validation, within or at the end of an epoch."""
    _, record = fit(tmp_path / "a", max_epochs=2, val_check_interval=val_check_interval)
    best = tmp_path / "a" / "best.ckpt"
    step = load(best)["global_step"]
    resumed, again = fit(tmp_path / "b", best, 4, val_check_interval=val_check_interval)
    assert resumed.global_step == 2 * STEPS
    assert again.sorted() == record.sorted(step)


def test_batch_size_may_change_on_resume(tmp_path, caplog):
    fit(tmp_path / "a", batch_size=16)
    with caplog.at_level(logging.WARNING, "swin_lightning"):
        resumed, again = fit(tmp_path / "b", tmp_path / "a" / "4.ckpt", batch_size=32)  # 64 images: two steps
        assert "resuming at image" not in caplog.text
        assert resumed.global_step == 4 + 1 + 3
        order = [index for key in again.steps for index in again.steps[key]]
        assert len(set(order[:32])) == 32 and len(set(order[32:])) == 96
        resumed, again = fit(tmp_path / "c", tmp_path / "a" / "3.ckpt", batch_size=32)
    assert (
        "resuming at image 32 of the epoch instead of 48, where a batch of 32 images begins: 16 images" in caplog.text
    )
    assert resumed.global_step == 3 + 2 + 3
    resumed, again = fit(tmp_path / "d", tmp_path / "a" / f"{STEPS}.ckpt", batch_size=4)  # at the end of an epoch
    assert resumed.global_step == STEPS + 31
    assert len({index for key in again.steps for index in again.steps[key]}) == 124


def test_checkpoints_without_the_position_load(tmp_path):
    _, record = fit(tmp_path / "a", position=False)
    assert KEY not in load(tmp_path / "a" / "3.ckpt")
    resumed, again = fit(tmp_path / "b", tmp_path / "a" / "3.ckpt")
    assert resumed.global_step == 2 * STEPS
    assert again.steps == {key: indices for key, indices in record.steps.items() if key[1] >= 3}


def test_other_data_modules_keep_the_count_of_batches(tmp_path):
    options = {"limit_val_batches": 0, "checkpoint": {"every_n_train_steps": 1}}
    trainer(tmp_path, [SamplePosition()], max_epochs=1, **options).fit(Plain(), Data())
    checkpoint = load(tmp_path / "last.ckpt")
    assert KEY not in checkpoint and checkpoint["global_step"] == 4
    resumed = trainer(tmp_path, [SamplePosition()], max_epochs=2, accumulate_grad_batches=2, **options)
    resumed.fit(Plain(), Data(), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True)
    assert resumed.global_step == 6


def test_every_count_of_the_loop_is_rewritten():
    """Two epochs of 7 steps are behind; in the third 3 steps of 2 batches are done, and the last is not completed."""
    counts = {"ready": 6, "started": 6, "processed": 6, "completed": 5}
    progress = {"current": counts, "total": {k: v + 28 for k, v in counts.items()}, "is_last_batch": False}
    loops = {"fit_loop": {"epoch_loop.batch_progress": progress}}
    checkpoint = {"loops": loops, KEY: {"samples": 48, "per_batch": 8, "per_step": 16}}
    fake = SimpleNamespace(
        state=SimpleNamespace(fn="fit"),
        world_size=2,
        accumulate_grad_batches=4,
        datamodule=SimpleNamespace(micro_batch_size=lambda: 2),
    )
    SamplePosition().on_load_checkpoint(fake, None, checkpoint)
    assert progress["current"] == {"ready": 12, "started": 12, "processed": 12, "completed": 11}
    assert progress["total"] == {"ready": 68, "started": 68, "processed": 68, "completed": 67}
