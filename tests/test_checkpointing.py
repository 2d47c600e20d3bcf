"""Checkpoints: written whole or not at all, in the middle of an epoch, and continued to the last bit."""

import errno
from pathlib import Path

import pytest
import torch
from lightning import Callback

from swin_lightning import checkpointing
from swin_lightning.checkpointing import EMA, AtomicCheckpointIO, Checkpoint, PerStepSeed
from swin_lightning.cli import main
from swin_lightning.data import Digits
from swin_lightning.models import SwinTransformer
from swin_lightning.tasks.classification import SwinClassifier
from tests.support.cli import DIGITS
from tests.support.kills import compare, differences, write_parquet

# writing


def test_a_failed_write_keeps_the_previous_checkpoint_and_says_so(tmp_path, monkeypatch):
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def full_disk(content, file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpointing.torch, "save", full_disk)
    with pytest.raises(ValueError, match=f"{path} cannot be written .*No space left.*the previous one is kept"):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_is_on_the_disk_before_it_takes_the_place_of_the_previous(tmp_path, monkeypatch):
    path, calls = tmp_path / "last.ckpt", []
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    fsync, replace = checkpointing.os.fsync, checkpointing.os.replace
    monkeypatch.setattr(checkpointing.os, "fsync", lambda fd: calls.append("fsync") or fsync(fd))

    def watch(a, b):
        calls.append("replace")
        assert torch.load(a, weights_only=True) == {"step": 2}
        assert torch.load(b, weights_only=True) == {"step": 1}
        replace(a, b)

    monkeypatch.setattr(checkpointing.os, "replace", watch)
    AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert calls[:2] == ["fsync", "replace"]
    assert torch.load(path, weights_only=True) == {"step": 2}


# resuming

STATES = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers")


def fit(make_trainer, tmp_path, ckpt_path=None, callbacks=(), num_workers=0, **kwargs):
    """A Swin with stochastic depth on digits with all that is random; returns the trainer."""
    torch.manual_seed(torch.seed() % 2**31)  # whatever torch's generator was before
    backbone = SwinTransformer(
        patch_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4, drop_path_rate=0.5, num_classes=0
    )
    torch.manual_seed(0)
    model = SwinClassifier(backbone, 10, lr=1e-2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    data = Digits(
        num_workers=num_workers, batch_size=40, rand_augment="rand-m9-mstd0.5-inc1", mixup=0.8, random_erasing=0.3
    )
    trainer = make_trainer(
        callbacks=[PerStepSeed(), EMA(0.9), Checkpoint(dirpath=str(tmp_path), every_n_train_steps=10), *callbacks],
        enable_checkpointing=True,
        **{"max_epochs": 2, "limit_val_batches": 1, "num_sanity_val_steps": 0} | kwargs,
    )
    torch.manual_seed(torch.seed() % 2**31)
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return trainer


class Keep(checkpointing.Callback):
    """Keeps a copy of every checkpoint, and the batches that training saw."""

    def __init__(self, folder):
        self.folder, self.batches = Path(folder), {}
        self.folder.mkdir(exist_ok=True)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches[trainer.global_step] = (batch["index"].tolist(), batch["image"].sum().item())
        for path in self.folder.parent.glob("last.ckpt"):
            (self.folder / f"{trainer.global_step}.ckpt").write_bytes(path.read_bytes())


@pytest.mark.parametrize(("accumulate", "num_workers"), [(1, 0), (1, 2), (2, 0)])
def test_from_every_tenth_step_of_an_epoch_the_same_batches_and_the_same_end(
    make_trainer, tmp_path, accumulate, num_workers
):
    keep = Keep(tmp_path / "kept")
    options = {"accumulate_grad_batches": accumulate, "max_epochs": 1 if accumulate == 2 else 2}
    options["num_workers"] = num_workers
    whole = fit(make_trainer, tmp_path, callbacks=[keep], **options)
    end = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert whole.global_step == end["global_step"] == 31 * options["max_epochs"]
    assert sorted(int(p.stem) for p in keep.folder.iterdir() if int(p.stem) % 10 == 0)[:3] == [10, 20, 30]
    for step in (10, 20, 30, *((31, 40) if accumulate == 1 else ())):
        again = Keep(tmp_path / f"again{step}")
        folder = tmp_path / f"from{step}"
        resumed = fit(make_trainer, folder, str(keep.folder / f"{step}.ckpt"), [again], **options)
        assert resumed.global_step == whole.global_step
        assert again.batches == {s: b for s, b in keep.batches.items() if s >= step}, step
        final = torch.load(folder / "last.ckpt", weights_only=True)
        assert [d for key in STATES for d in differences(end[key], final[key], key)] == [], step


def test_a_run_that_was_killed_after_its_last_step_keeps_the_weights_beside_the_averages(make_trainer, tmp_path):
    fit(make_trainer, tmp_path)
    before = torch.load(tmp_path / "last.ckpt", weights_only=True)
    fit(make_trainer, tmp_path, ckpt_path=str(tmp_path / "last.ckpt"))
    after = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert [d for key in STATES for d in differences(before[key], after[key], key)] == []
    assert differences(after["state_dict"], after["current_model_state"]) != []


@pytest.mark.parametrize("limit_val_batches", [0, 1])
def test_an_epoch_that_is_not_the_best_is_still_the_last(make_trainer, tmp_path, limit_val_batches):
    class Worse(checkpointing.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            pl_module.log("val/acc", float(-trainer.current_epoch))

    options = {"limit_val_batches": limit_val_batches, "limit_train_batches": 3, "max_epochs": 3}
    (tmp_path / "whole").mkdir()
    whole = fit(make_trainer, tmp_path / "whole", callbacks=[Worse(), Keep(tmp_path / "whole" / "kept")], **options)
    last = torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)
    assert last["global_step"] == whole.global_step == 9
    if limit_val_batches:
        assert torch.load(tmp_path / "whole" / "best.ckpt", weights_only=True)["global_step"] == 3
    # from the end of the second epoch
    resumed = fit(make_trainer, tmp_path / "rest", str(tmp_path / "whole" / "kept" / "6.ckpt"), [Worse()], **options)
    assert resumed.global_step == 9
    final = torch.load(tmp_path / "rest" / "last.ckpt", weights_only=True)
    assert [d for key in STATES[:4] for d in differences(last[key], final[key], key)] == []


def test_minutes_write_the_last_checkpoint_within_an_epoch(make_trainer, tmp_path, monkeypatch):
    clock, written = iter(range(0, 100000, 25)), []  # every look at it is 25 s later
    monkeypatch.setattr(checkpointing.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(Checkpoint, "_write_last", lambda self, trainer: written.append(trainer.global_step))
    callback = Checkpoint(dirpath=str(tmp_path), every_n_minutes=2)
    callback._written_at = 0
    trainer = make_trainer(callbacks=[callback], enable_checkpointing=True, limit_val_batches=0, max_steps=8)
    backbone = SwinTransformer(embed_dim=8, depths=(1,), num_heads=(1,), num_classes=0)
    trainer.fit(SwinClassifier(backbone, 10), datamodule=Digits(num_workers=0, batch_size=40))
    assert written[0] in (5, 6)  # 120 s are over


@pytest.mark.parametrize("option", [{"every_n_train_steps": -1}, {"every_n_minutes": -0.5}])
def test_intervals_below_zero_are_refused(option):
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"checkpoint.{name} {value} must be at least 0"):
        Checkpoint(**option)


def test_an_error_in_the_middle_of_a_step_keeps_the_checkpoint_before_it(make_trainer, tmp_path):
    class Fail(checkpointing.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 12:
                raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fit(make_trainer, tmp_path, callbacks=[Fail()])
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 10


def test_ctrl_c_waits_for_the_end_of_the_step(make_trainer, tmp_path):
    import os
    import signal

    class Press(checkpointing.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 12:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        fit(make_trainer, tmp_path, callbacks=[Press()])
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 13
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_that_is_killed_30_times_ends_with_the_same_weights(tmp_path):
    counts, steps, different = compare(write_parquet(tmp_path / "data", 2112), kills=30, epochs=6)
    assert different == []
    assert steps == 64 * 6
    assert sum(counts.values()) == 30 and min(counts.values()) >= 5


class InterruptAt(Callback):
    """Ctrl-C when a hook is called the second time."""

    def __init__(self, hook="on_train_epoch_start"):
        self.calls = 0
        setattr(self, hook, self.count)

    def count(self, trainer, *_, **__):
        self.calls += trainer.state.fn == "fit"
        if self.calls == 2 and trainer.state.fn == "fit":
            raise KeyboardInterrupt


@pytest.mark.parametrize("every_n_epochs", [1, 3])
@pytest.mark.parametrize(
    "hook",
    [
        "on_train_epoch_start",
        "on_train_batch_start",
        "on_validation_batch_end",
        "on_validation_end",
        "on_train_epoch_end",
    ],
)
def test_an_interruption_at_any_place_between_steps_loses_and_repeats_none(hook, every_n_epochs):
    args = ["fit", "-c", DIGITS, "--trainer.max_epochs=4", "--data.batch_size=320", "--test_after_fit=false",
            f"--checkpoint.every_n_epochs={every_n_epochs}"]  # fmt: skip
    whole = main([*args, "--experiment=whole"])
    callback = ["--trainer.callbacks+=tests.test_checkpointing.InterruptAt", f"--trainer.callbacks.hook={hook}"]
    with pytest.raises(SystemExit):
        main([*args, *callback])
    resumed = main([*args, "--ckpt_path=last"])
    assert resumed.trainer.global_step == whole.trainer.global_step == 4 * 3
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_averages_start_with_the_first_step_and_follow_by_the_decay(make_trainer):
    ema, seen = EMA(0.75), []

    class Record(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):  # before the averages follow
            seen.append(pl_module.head.bias.detach().clone())

    limits = {"limit_train_batches": 5, "limit_val_batches": 0, "accumulate_grad_batches": 2}
    trainer = make_trainer(callbacks=[Record(), ema], **limits)
    backbone = SwinTransformer(patch_size=4, embed_dim=8, depths=(1,), num_heads=(1,), window_size=4)
    trainer.fit(SwinClassifier(backbone, 10), Digits(batch_size=8, num_workers=0))
    first, second, third = seen[1], seen[3], seen[4]  # the epoch's end makes a step of one batch
    expected = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
    torch.testing.assert_close(ema._average_model.module.head.bias, expected)
    assert int(ema._average_model.n_averaged) == 3 and not torch.equal(first, second)
