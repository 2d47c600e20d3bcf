"""Checkpoints: atomic writes, exact resume from any step, interruptions, best and last checkpoint."""

import logging
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback

from swin_lightning import last_checkpoint
from swin_lightning.callbacks import BestMetric, EarlyStopping, TrainingMonitor
from swin_lightning.checkpointing import Checkpoint, PerStepSeed
from swin_lightning.cli import main
from swin_lightning.data import Digits
from swin_lightning.ema import EMA
from swin_lightning.errors import UserError
from swin_lightning.last_checkpoint import LastCheckpoint
from swin_lightning.loggers import CSVLogger
from swin_lightning.models import SwinTransformer
from swin_lightning.shutdown import Interrupted
from swin_lightning.tasks.classification import SwinClassifier
from tests.support.cli import DIGITS, SHORT, environment, metrics
from tests.support.kills import STATES, compare, differences, write_parquet
from tests.support.training import Scores, fit_scores, load, trainer

pytestmark = [  # of Lightning, when a run is resumed; the command line ignores them too
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
]


def fit(folder, ckpt_path=None, callbacks=(), batch_size=156, num_workers=0, **options):
    """Train a Swin with everything that is random on digits, 8 optimizer steps per epoch. Returns the Trainer."""
    torch.manual_seed(0)
    backbone = SwinTransformer(
        patch_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4, drop_path_rate=0.5, num_classes=0
    )
    model = SwinClassifier(backbone, 10, lr=1e-2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    data = Digits(
        num_workers=num_workers,
        batch_size=batch_size,
        rand_augment="rand-m9-mstd0.5-inc1",
        mixup=0.8,
        random_erasing=0.3,
    )
    torch.manual_seed(torch.seed() % 2**31)  # a run may not depend on the state of torch's generator
    result = trainer(folder, [PerStepSeed(), EMA(0.9), *callbacks], limit_val_batches=1, **options)
    result.fit(model, datamodule=data, ckpt_path=ckpt_path and str(ckpt_path), weights_only=True)
    return result


class Record(Callback):
    """Keeps the batches of every optimizer step, and a copy of last.ckpt from each step that wrote one."""

    def __init__(self, folder):
        self.folder, self.batches = Path(folder), {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        key = (trainer.global_step, batch_idx)
        self.batches[key] = (batch["index"].tolist(), batch["image"].sum().item())
        last = self.folder / "last.ckpt"
        if last.is_file():
            step = load(last)["global_step"]
            (self.folder / f"{step}.ckpt").write_bytes(last.read_bytes())


CASES = [
    pytest.param({}, id="whole_data"),
    pytest.param({"num_workers": 2, "batch_size": 24, "limit_train_batches": 8}, id="workers"),
    pytest.param(
        {"accumulate_grad_batches": 3, "batch_size": 24, "limit_train_batches": 24},
        id="accumulation",
        marks=pytest.mark.slow,
    ),
]


@pytest.fixture(scope="module", params=CASES)
def reference(request, tmp_path_factory):
    """An uninterrupted run: its options, and a Record with its batches and its folder."""
    options = {**request.param, "checkpoint": {"every_n_train_steps": 3}}
    record = Record(tmp_path_factory.mktemp("reference"))
    assert fit(record.folder, callbacks=[record], **options).global_step == 16
    return options, record


# resuming


def test_resume_from_any_checkpoint_repeats_batches_and_weights(reference, tmp_path):
    options, record = reference
    end = load(record.folder / "last.ckpt")
    steps = {int(path.stem) for path in record.folder.glob("[0-9]*.ckpt")}
    assert steps == {3, 6, 8, 9, 12, 15}  # 8 is the end of the first epoch
    for step in (6, 8) if "num_workers" in options else (3, 6, 8, 12):
        again = Record(tmp_path / str(step))
        resumed = fit(again.folder, record.folder / f"{step}.ckpt", [again], **options)
        assert resumed.global_step == 16
        assert again.batches == {key: batch for key, batch in record.batches.items() if key[0] >= step}, step
        final = load(again.folder / "last.ckpt")
        assert [d for key in STATES for d in differences(end[key], final[key], key)] == [], step


def test_seed_of_a_step_does_not_depend_on_accumulation():
    def seed(batch_idx, accumulate, epoch=1, rank=0):
        fake = SimpleNamespace(
            datamodule=SimpleNamespace(seed=7),
            current_epoch=epoch,
            accumulate_grad_batches=accumulate,
            global_rank=rank,
        )
        PerStepSeed().on_train_batch_start(fake, None, None, batch_idx)
        return torch.initial_seed()

    assert seed(5, 1) == seed(10, 2) == seed(20, 4)
    others = [(6, 1), (11, 2), (21, 4), (22, 4), (5, 1, 2), (5, 1, 1, 1)]
    assert len({seed(5, 1), *(seed(*other) for other in others)}) == 6  # (11, 2) and (21, 4) are both batch 1 of step 5


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_run_killed_30_times_ends_with_the_same_weights(tmp_path):
    counts, steps, different = compare(write_parquet(tmp_path / "data", 2112), kills=30, epochs=6)
    assert different == []
    assert steps == 64 * 6
    assert sum(counts.values()) == 30 and min(counts.values()) >= 5


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("options", [
    ["--ranks=2", "--kills=6", "--epochs=3"],
    # sums are rounded differently: few steps, after which the weights are within 1e-4
    ["--accumulate", "1", "4", "2", "--kills=3", "--epochs=1"],
    ["--ranks=2", "--accumulate", "1", "2", "--kills=3", "--epochs=1"],
])  # fmt: skip
def test_run_killed_on_several_ranks_or_with_other_accumulation(options, tmp_path):
    command = [sys.executable, "-m", "tests.support.kills", "--images=704", "--folder", str(tmp_path / "out"), *options]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "differences at the end: none" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ranks_and_accumulated_batches_train_the_same_steps():
    """1, 2 and 3 ranks and 1, 2 and 4 accumulated batches, with mixup, CutMix, erasing and EMA."""
    command = [sys.executable, "-m", "tests.support.same_pixels"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": 0 of 20 steps with other pixels or targets") == 5


def test_resuming_a_finished_run_keeps_raw_and_averaged_weights(tmp_path):
    fit(tmp_path, max_epochs=1)
    before = load(tmp_path / "last.ckpt")
    fit(tmp_path, tmp_path / "last.ckpt", max_epochs=1)
    after = load(tmp_path / "last.ckpt")
    assert [d for key in STATES for d in differences(before[key], after[key], key)] == []
    assert differences(after["state_dict"], after["current_model_state"]) != []


# a small module, for what does not depend on the network


def test_resume_keeps_best_checkpoint_best_metric_and_patience(tmp_path):
    scores = [0.1, 0.9, 0.5, 0.6, 0.7]

    def run(folder, epochs, ckpt_path=None):
        callbacks = [BestMetric(), EarlyStopping(patience=3)]
        logger = CSVLogger(str(folder))
        return fit_scores(folder, Scores(scores), ckpt_path, callbacks, max_epochs=epochs, logger=logger)

    run(tmp_path, 2)
    resumed = run(tmp_path, 9, tmp_path / "last.ckpt")
    best = load(tmp_path / "best.ckpt")
    assert (best["epoch"], best["global_step"]) == (1, 8)
    assert resumed.checkpoint_callback.best_model_score == pytest.approx(0.9)
    assert resumed.global_step == 5 * 4  # stopped after three epochs without improvement
    assert metrics(tmp_path, "val/acc_best") == pytest.approx([0.1, 0.9, 0.9, 0.9, 0.9])


def test_resumed_run_logs_at_the_same_steps(tmp_path):
    def run(folder, ckpt_path=None, callbacks=()):
        options = {"logger": CSVLogger(str(folder)), "log_every_n_steps": 3, "accumulate_grad_batches": 2}
        options |= {"max_epochs": 3, "checkpoint": {"every_n_train_steps": 2}}
        return fit_scores(folder, Scores([1.0] * 3, batches=7), ckpt_path, [TrainingMonitor(), *callbacks], **options)

    def rows(folder, name):
        steps, values = metrics(folder, "step"), metrics(folder, name)
        assert len(values) == 4  # of 12 optimizer steps, every third
        return values, steps

    run(tmp_path / "whole")
    for step in (2, 5, 8):
        folder = tmp_path / str(step)
        with pytest.raises(SystemExit):
            run(folder, callbacks=[InterruptAtStep(step)])
        run(folder, folder / "last.ckpt")
        for name in ("train/grad_norm", "train/lr"):
            assert rows(folder, name) == rows(tmp_path / "whole", name)
        rows(folder, "train/images_per_s")


class InterruptAtStep(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise Interrupted(signal.SIGINT)


class InterruptAt(Callback):
    """Ctrl-C when a hook is called the second time."""

    def __init__(self, hook):
        self.calls = 0
        setattr(self, hook, self.count)

    def count(self, trainer, *_, **__):
        self.calls += trainer.state.fn == "fit"
        if self.calls == 2 and trainer.state.fn == "fit":
            raise Interrupted(signal.SIGINT)


HOOKS = [
    *("on_train_epoch_start", "on_train_batch_start", "on_validation_start", "on_validation_batch_start"),
    *("on_validation_batch_end", "on_validation_epoch_end", "on_validation_end", "on_train_epoch_end"),
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return fit_scores(folder, Scores([0.1, 0.4, 0.3, 0.2]), callbacks=[EMA(0.9)], max_epochs=4), folder


@pytest.mark.parametrize("every_n_epochs", [1, 3])
@pytest.mark.parametrize("hook", HOOKS)
def test_interruption_between_steps_loses_and_repeats_nothing(hook, every_n_epochs, uninterrupted, tmp_path):
    whole, whole_folder = uninterrupted
    options = {"max_epochs": 4, "checkpoint": {"every_n_epochs": every_n_epochs}}
    with pytest.raises(SystemExit):
        fit_scores(tmp_path, Scores([0.1, 0.4, 0.3, 0.2]), None, [EMA(0.9), InterruptAt(hook)], **options)
    resumed = fit_scores(tmp_path, Scores([0.1, 0.4, 0.3, 0.2]), tmp_path / "last.ckpt", [EMA(0.9)], **options)
    assert resumed.global_step == whole.global_step == 16
    assert resumed.current_epoch == whole.current_epoch == 4
    expected, final = load(whole_folder / "last.ckpt"), load(tmp_path / "last.ckpt")
    assert [d for key in STATES for d in differences(expected[key], final[key], key)] == []
    assert resumed.callback_metrics == whole.callback_metrics
    if every_n_epochs == 1 and hook != "on_train_epoch_end":
        assert load(tmp_path / "best.ckpt")["global_step"] == 8


class FailAt(Callback):
    def __init__(self, hook, batch):
        self.batch = batch
        setattr(self, hook, self.fail)

    def fail(self, trainer, *_):
        if trainer.fit_loop.total_batch_idx == self.batch:
            raise RuntimeError("in the step")


@pytest.mark.parametrize(
    "hook", ["on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step"]
)
def test_error_in_a_step_saves_the_state_before_it(tmp_path, hook):
    """Batch 6 is the second of the accumulated batches of the third step of the second epoch."""
    options = {"accumulate_grad_batches": 2, "limit_val_batches": 0}
    fit_scores(tmp_path / "whole", Scores(batches=4), None, [EMA(0.9)], **options)
    with pytest.raises(RuntimeError, match="in the step"):
        fit_scores(
            tmp_path, Scores(batches=4), None, [EMA(0.9), FailAt(hook, 7 if "zero" not in hook else 6)], **options
        )
    assert load(tmp_path / "last.ckpt")["global_step"] == 3
    fit_scores(tmp_path, Scores(batches=4), tmp_path / "last.ckpt", [EMA(0.9)], **options)
    whole, resumed = load(tmp_path / "whole" / "last.ckpt"), load(tmp_path / "last.ckpt")
    assert [d for key in STATES for d in differences(whole[key], resumed[key], key)] == []


def test_error_in_an_update_keeps_the_checkpoint_before_it(tmp_path, monkeypatch):
    step, calls = torch.optim.AdamW.step, []

    def fail(self, closure=None):
        loss = step(self, closure)
        calls.append(loss)
        if len(calls) == 7:
            raise RuntimeError("in the update")
        return loss

    monkeypatch.setattr(torch.optim.AdamW, "step", fail)
    with pytest.raises(RuntimeError, match="in the update"):
        fit_scores(tmp_path, Scores([1.0] * 2), None, checkpoint={"every_n_train_steps": 5})
    assert load(tmp_path / "last.ckpt")["global_step"] == 5


# which checkpoints are written, and when


class LastSteps(Callback):
    """The step of last.ckpt as found at the start of every batch and at the end of training."""

    def __init__(self, folder):
        self.path, self.steps = Path(folder) / "last.ckpt", []

    def on_train_batch_start(self, *_):
        step = load(self.path)["global_step"] if self.path.is_file() else None
        if step is not None and step not in self.steps:
            self.steps.append(step)

    def teardown(self, *_, **__):
        self.on_train_batch_start()


@pytest.mark.parametrize(("options", "last_steps", "best_step"), [
    ({}, [4, 8, 12, 16], 4),
    ({"limit_val_batches": 0}, [4, 8, 12, 16], None),
    ({"checkpoint": {"every_n_epochs": 3}}, [12, 16], 12),  # and at the end of training
    ({"checkpoint": {"every_n_train_steps": 3}}, [3, 4, 6, 8, 9, 12, 15, 16], 4),
    ({"checkpoint": {"every_n_epochs": 9, "every_n_train_steps": 5}}, [5, 10, 15, 16], None),
    ({"checkpoint": {"every_n_epochs": 9}, "max_epochs": -1, "max_steps": 6}, [6], None),
    ({"val_check_interval": 0.5}, [2, 4, 6, 8, 10, 12, 14, 16], 2),
    ({"check_val_every_n_epoch": 2}, [4, 8, 12, 16], 8),
    # 8 batches per epoch; at the validation after batch 3 half of a step is accumulated
    ({"val_check_interval": 3, "limit_train_batches": 8, "accumulate_grad_batches": 2},
     [3, 4, 7, 8, 11, 12, 15, 16], 1),
])  # fmt: skip
def test_checkpoints_are_written_when_due(tmp_path, options, last_steps, best_step):
    last = LastSteps(tmp_path)
    fit_scores(tmp_path, Scores([0.4, 0.3, 0.2, 0.1]), None, [last], **{"max_epochs": 4} | options)
    assert last.steps == last_steps
    best = tmp_path / "best.ckpt"
    assert (load(best)["global_step"] if best.is_file() else None) == best_step


def test_last_checkpoint_is_written_every_n_minutes(tmp_path, monkeypatch):
    clock, last = SimpleNamespace(now=0), LastSteps(tmp_path)
    monkeypatch.setattr(last_checkpoint, "time", SimpleNamespace(monotonic=lambda: clock.now))

    class Tick(Callback):
        def on_train_batch_start(self, *_):
            clock.now += 25  # seconds

    options = {"limit_val_batches": 0, "max_epochs": 1, "checkpoint": {"every_n_minutes": 1}}
    fit_scores(tmp_path, Scores(batches=8), None, [Tick(), last], **options)
    assert last.steps == [3, 6, 8]


@pytest.mark.parametrize("option", [{"every_n_train_steps": -1}, {"every_n_minutes": -0.5}])
def test_negative_intervals_are_rejected(option):
    ((name, value),) = option.items()
    with pytest.raises(UserError, match=f"checkpoint.{name} {value}: expected an? (integer|number) >= 0"):
        Checkpoint(**option)


def test_last_checkpoint_works_alone(tmp_path, make_trainer):
    options = {"enable_checkpointing": True, "default_root_dir": str(tmp_path), "limit_train_batches": 4}
    make_trainer(callbacks=[LastCheckpoint()], **options).fit(Scores(), Digits(num_workers=0, batch_size=16))
    assert load(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 4


@pytest.mark.parametrize("validates", [True, False])
def test_monitor_that_is_not_logged_is_reported_once(tmp_path, caplog, validates):
    with caplog.at_level(logging.WARNING, "swin_lightning"):
        result = fit_scores(tmp_path, Scores(), limit_val_batches=1.0 if validates else 0)
    logged = "val/loss" if validates else "nothing"
    assert [record.message for record in caplog.records if record.name.startswith("swin_lightning")] == [
        f"checkpoint.monitor val/acc is not logged by Scores; best.ckpt is not written. Logged: {logged}"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert load(tmp_path / "last.ckpt")["global_step"] == result.global_step == 8
    assert result.checkpoint_callback.best_model_path == ""


def test_without_a_best_checkpoint_the_last_weights_are_tested():
    cli = main(["fit", "-c", DIGITS, *SHORT, "--trainer.limit_val_batches=0", "--trainer.limit_test_batches=1",
                "--test_after_fit=true"])  # fmt: skip
    assert [path.name for path in cli.run.checkpoints.iterdir()] == ["last.ckpt"]
    args = ["--ckpt_path=last", "--trainer.limit_test_batches=1"]
    tested = main(["test", "-c", DIGITS, *args])
    assert metrics(cli.run_dir, "test/loss") == metrics(tested.run_dir, "test/loss")


def test_best_value_of_the_monitor_is_logged():
    cli = main(["fit", "-c", DIGITS, *SHORT, "--checkpoint.monitor=val/loss"])
    assert metrics(cli.run_dir, "val/loss_best") == metrics(cli.run_dir, "val/loss")
    assert metrics(cli.run_dir, "val/acc_best") == metrics(cli.run_dir, "val/acc")


@pytest.mark.parametrize("hook", ["validation_step", "on_validation_epoch_end", "on_train_epoch_end"])
def test_monitor_may_be_logged_in_any_hook(tmp_path, caplog, hook):
    checkpoint = {"monitor": "val/error", "mode": "min"}
    with caplog.at_level(logging.WARNING, "swin_lightning"):
        fit_scores(tmp_path, Scores([0.5, 0.2, 0.3], "val/error", hook), max_epochs=3, checkpoint=checkpoint)
    assert load(tmp_path / "best.ckpt")["epoch"] == 1
    assert not [record for record in caplog.records if record.name.startswith("swin_lightning")]
