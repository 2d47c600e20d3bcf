"""The commands fit, validate, test and predict on the embedded digits."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from lightning import Callback
from PIL import Image

from swin_lightning import SwinClassifier
from swin_lightning.__main__ import console
from swin_lightning.cli import main
from swin_lightning.errors import UserError
from tests.support.cli import DIGITS, EXPERIMENTS, SHORT, environment, metrics
from tests.support.images import write_image

RUNS = Path("runs/digits_swin_micro")
TEST = "--test_after_fit=true"


def fit(*more):
    return main(["fit", "-c", DIGITS, *SHORT, *more])


def test_run_folder_contents(capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    first, second = fit(TEST), fit(TEST)
    assert first.run_dir != second.run_dir and first.run_dir.parent == RUNS
    for cli in (first, second):
        assert {p.name for p in cli.run_dir.iterdir()} >= {
            "config.yaml", "metrics.csv", "checkpoints", "curves.png", "predictions.png", "wandb",
        }  # fmt: skip
        assert {p.name for p in (cli.run_dir / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
        assert metrics(cli.run_dir, "test/acc") == [pytest.approx(float(cli.trainer.callback_metrics["test/acc"]))]
        assert len(metrics(cli.run_dir, "train/lr")) == len(metrics(cli.run_dir, "train/grad_norm")) == 3
        assert metrics(cli.run_dir, "val/acc_best") == metrics(cli.run_dir, "val/acc")
        assert all(speed > 0 for speed in metrics(cli.run_dir, "train/images_per_s"))
    # the same seed gives the same losses, and the result is printed
    assert metrics(first.run_dir, "train/loss") == metrics(second.run_dir, "train/loss")
    assert f"test/acc {metrics(first.run_dir, 'test/acc')[0]:.4f}" in capsys.readouterr().out


def test_run_repeats_from_its_config():
    first = fit()
    again = main(["fit", "-c", str(first.run_dir / "config.yaml")])
    assert again.run_dir.parent == RUNS  # the experiment keeps its name
    assert again.run_dir != first.run_dir
    assert metrics(first.run_dir, "train/loss") == metrics(again.run_dir, "train/loss")
    config = yaml.safe_load((first.run_dir / "config.yaml").read_text())
    assert config["checkpoint"]["dirpath"] is None  # otherwise the second run would write into the first


def test_overlays_and_options_merge_in_order(tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model:\n  lr: 0.5\n  weight_decay: 0.7\ndata:\n  init_args:\n    batch_size: 16\n")
    config = fit("-c", str(overlay), "--model.lr=0.25", "--checkpoint.save_top_k=2").config.fit
    model = config.model.init_args
    assert (model.lr, model.weight_decay, config.data.init_args.batch_size) == (0.25, 0.7, 16)
    assert config.data.init_args.crop == "pad"  # not named in the overlay
    assert config.checkpoint.save_top_k == 2
    assert config.trainer.gradient_clip_val == 5.0  # base.yaml


def test_overlay_appends_callbacks_and_loggers(tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        "trainer:\n  callbacks+:\n    - class_path: lightning.pytorch.callbacks.RichModelSummary\n"
        "  logger+:\n    - class_path: swin_lightning.loggers.CSVLogger\n      init_args: {save_dir: other}\n"
    )
    cli = fit("-c", str(overlay), "--ema.decay=0.9", "--early_stopping.patience=3")
    names = [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert {"RichModelSummary", "Checkpoint", "EMA", "EarlyStopping", "TrainingMonitor", "BestMetric"} <= set(names)
    assert len(cli.trainer.loggers) == 3
    assert "EMA" not in [type(callback).__name__ for callback in fit().trainer.callbacks]  # off by default


def test_resume_continues_the_same_run_exactly(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    whole = main(["fit", "-c", DIGITS, "--trainer.max_epochs=2", "--trainer.limit_train_batches=6"])
    args = ["fit", "-c", DIGITS, "--experiment=resumed", "--trainer.max_epochs=2", "--trainer.limit_train_batches=6"]
    with pytest.raises(SystemExit):
        main([*args, "--trainer.callbacks+=tests.test_cli.InterruptAtStep9"])
    resumed = main([*args, "--ckpt_path=last"])
    assert len(list(Path("runs/resumed").iterdir())) == 1
    assert {p.name for p in resumed.run_dir.glob("config*.yaml")} == {"config.yaml", "config-2.yaml"}
    ids = {p.name.rsplit("-", 1)[-1] for p in (resumed.run_dir / "wandb").glob("offline-run-*")}
    assert ids == {resumed.run_dir.name.rsplit("-", 1)[-1]}  # one run in W&B too
    assert resumed.trainer.global_step == whole.trainer.global_step == 12
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert len(metrics(resumed.run_dir, "val/acc")) == 2  # no row is lost or repeated


def test_job_that_is_started_again_continues_its_run(monkeypatch):
    for name, value in {"ENVIRONMENT": "BATCH", "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(name, value)
    first = fit("--trainer.max_steps=1")
    again = fit("--trainer.max_steps=1")
    assert first.run.id.startswith("slurm7_") and first.ckpt_path is None
    assert again.run_dir == first.run_dir and again.ckpt_path == str(first.run.last)
    first.run.last.unlink()  # as if it was killed before the first checkpoint
    again = fit("--trainer.max_steps=1")
    assert again.run_dir == first.run_dir and again.ckpt_path is None
    assert {p.name for p in first.run_dir.glob("config*.yaml")} == {"config.yaml", "config-2.yaml", "config-3.yaml"}


def test_run_in_use_is_not_resumed_but_tested():
    cli = fit()
    with cli.run.lock():
        with pytest.raises(UserError, match=rf"run {cli.run.name} is in use by process {os.getpid()} on "):
            fit("--ckpt_path=last")
        main(["validate", "-c", DIGITS, "--ckpt_path=last"])
    assert fit("--ckpt_path=last").run_dir == cli.run_dir


def test_options_overridden_by_the_checkpoint_are_printed(capsys):
    fit()
    fit("--ckpt_path=last", "--model.lr=0.5", "--trainer.max_epochs=2")
    assert "the checkpoint overrides model.lr: 0.5 -> 0.002" in capsys.readouterr().out


def test_checkpoint_loads_in_python_and_serves_as_weights(capsys):
    cli = fit()
    best = str(cli.run_dir / "checkpoints" / "best.ckpt")
    model = SwinClassifier.load_from_checkpoint(best)
    assert model.class_names == [str(k) for k in range(10)] and model.num_classes == 10
    tuned = fit(f"--model.weights={best}", "--model.lr=1e-30", "--model.warmup_epochs=0", "--model.min_lr=0")
    for name, value in model.state_dict().items():
        assert torch.equal(value, tuned.model.state_dict()[name]), name
    # the new checkpoint does not need the file it started from
    Path(best).unlink()
    SwinClassifier.load_from_checkpoint(tuned.run_dir / "checkpoints" / "best.ckpt")


def test_validate_test_and_predict_with_checkpoint_by_name(tmp_path):
    cli = fit(TEST)
    image = torch.zeros(32, 32, 3, dtype=torch.uint8).numpy()
    (tmp_path / "mine").mkdir()
    for i in range(3):
        Image.fromarray(image + 40 * i).save(tmp_path / "mine" / f"{i}.png")
    tested = main(["test", "-c", DIGITS, "--ckpt_path=best"])
    assert metrics(tested.run_dir, "test/acc") == metrics(cli.run_dir, "test/acc")
    validated = main(["validate", "-c", DIGITS, "--ckpt_path=best"])
    assert metrics(validated.run_dir, "val/acc") == metrics(cli.run_dir, "val/acc")
    predicted = main(["predict", "-c", DIGITS, "--ckpt_path=best", "--data.predict_path", str(tmp_path / "mine")])
    with (predicted.run_dir / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["path"]).name for row in rows] == ["0.png", "1.png", "2.png"]
    probabilities = [[float(row[f"probability_{i}"]) for i in range(1, 6)] for row in rows]
    assert all(row == sorted(row, reverse=True) and 0 < sum(row) <= 1 for row in probabilities)
    assert {row["class_1"] for row in rows} <= {str(k) for k in range(10)}


@pytest.mark.slow
def test_ema_weights_are_validated_saved_and_tested():
    # with this decay the average stays near the initial network while the raw weights learn
    args = [
        "--trainer.max_epochs=2",
        "--trainer.limit_train_batches=20",
        "--model.warmup_epochs=0",
        "--ema.decay=0.99999999",
    ]
    cli = main(["fit", "-c", DIGITS, *args])
    saved = torch.load(cli.run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    names = [name for name in saved["state_dict"] if name.startswith(("backbone.", "head."))]
    initial = main(["fit", "-c", DIGITS, "--trainer.max_epochs=0"]).model.state_dict()
    for name in names:
        torch.testing.assert_close(saved["state_dict"][name], initial[name], atol=3e-3, rtol=0)  # one step
    assert not torch.equal(saved["current_model_state"]["head.weight"], saved["state_dict"]["head.weight"])
    fresh = SwinClassifier.load_from_checkpoint(cli.run_dir / "checkpoints" / "last.ckpt")
    for ours, theirs in zip(cli.model.backbone.buffers(), fresh.backbone.buffers(), strict=True):
        assert torch.equal(ours, theirs)  # index buffers are not averaged
    # both the test at the end of fit and a later test use the average
    later = main(["test", "-c", DIGITS, "--ckpt_path=best", "--ema.decay=0.5"])
    assert metrics(cli.run_dir, "test/loss") == pytest.approx(metrics(later.run_dir, "test/loss"))
    assert metrics(cli.run_dir, "test/loss")[0] == pytest.approx(2.3, abs=0.2)


@pytest.mark.slow
def test_compiled_run_has_the_same_losses_and_parameter_names():
    plain, compiled = fit("--ema.decay=0"), fit("--model.compile=true", "--ema.decay=0")
    assert metrics(compiled.run_dir, "train/loss") == pytest.approx(metrics(plain.run_dir, "train/loss"), abs=1e-4)
    names = [
        list(torch.load(cli.run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
        for cli in (plain, compiled)
    ]
    assert names[0] == names[1]


def test_fast_dev_run_writes_nothing():
    main(["fit", "-c", DIGITS, "-c", str(EXPERIMENTS / "debug" / "fast.yaml")])
    assert not Path("runs").exists()


@pytest.mark.slow
def test_metrics_of_two_ranks_equal_those_of_one():
    # 360 test and 180 validation images in batches of 35: the last batches and the shares of the ranks are uneven
    arguments = ["fit", "-c", DIGITS, "--trainer.max_epochs=1", "--trainer.limit_train_batches=2",
                 "--trainer.accelerator=cpu", "--data.eval_batch_size=35"]  # fmt: skip
    main([*arguments, "--experiment=one"])
    ranks = ["--experiment=two", "--trainer.devices=2", "--trainer.strategy=ddp"]
    command = [sys.executable, "-m", "swin_lightning", *arguments, *ranks]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = []
    for name in ("one", "two"):
        (run_dir,) = Path("runs", name).iterdir()  # one folder for all ranks
        results.append([metrics(run_dir, key)[0] for key in ("val/acc", "test/acc", "test/acc5", "test/loss")])
    assert results[0] == pytest.approx(results[1], abs=1e-6)


INTERRUPTED = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


def resume(step):
    """Resume the interrupted run for two more steps."""
    (run_dir,) = RUNS.iterdir()
    done = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert done >= step
    resumed = main(
        ["fit", "-c", DIGITS, "--ckpt_path=last", f"--trainer.max_steps={done + 2}", "--test_after_fit=false"]
    )
    assert resumed.trainer.global_step == done + 2 and resumed.run_dir == run_dir


CALLBACKS = {
    "LearningRateFinder": "{num_training_steps: 30, min_lr: 1.0e-4, max_lr: 0.01, early_stop_threshold: null}",
    "BatchSizeFinder": "{mode: binsearch, max_trials: 1, steps_per_trial: 1}",
    "BackboneFinetuning": "{unfreeze_backbone_at_epoch: 1, should_align: false}",
    "StochasticWeightAveraging": "{swa_lrs: 0.001, swa_epoch_start: 1}",
    "GradientAccumulationScheduler": "{scheduling: {0: 1, 1: 2}}",
    "Timer": "{duration: '00:01:00:00'}",
    "EarlyStopping": "{monitor: val/loss}",
    "ModelCheckpoint": "{save_top_k: -1, save_last: true, save_weights_only: true}",
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "init_args"), CALLBACKS.items(), ids=CALLBACKS)
def test_callbacks_of_lightning_by_yaml(name, init_args, tmp_path):
    entry = f"{{class_path: lightning.pytorch.callbacks.{name}, init_args: {init_args}}}"
    Path("added.yaml").write_text(f"trainer:\n  callbacks+:\n    - {entry}\n")
    command = [sys.executable, "-m", "swin_lightning", "fit", "-c", DIGITS, "-c", "added.yaml", *SHORT, TEST]
    done = subprocess.run([*command, "--trainer.max_epochs=2"], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "epoch 2/2" in done.stdout and "test/acc 0." in done.stdout


def test_our_checkpoint_is_the_one_that_is_tested():
    cls = "class_path: lightning.pytorch.callbacks.ModelCheckpoint"
    added = f"[{{{cls}, init_args: {{monitor: val/loss}}}}, {{{cls}, init_args: {{save_last: true, save_top_k: -1}}}}]"
    cli = fit(f"--trainer.callbacks={added}", TEST, "--trainer.limit_test_batches=1")
    assert cli.trainer.checkpoint_callback is cli.checkpoint
    assert cli.trainer.checkpoint_callbacks[-1] is cli.checkpoint.last
    assert Path(cli.checkpoint.best_model_path).name == "best.ckpt"
    assert Path(cli.trainer.ckpt_path).samefile(cli.run.best)
    names = {path.name for path in cli.run.checkpoints.iterdir()}
    assert names == {"best.ckpt", "last.ckpt", "epoch=0-step=3.ckpt", "epoch=0-step=3-v1.ckpt"}
    assert "optimizer_states" in torch.load(cli.run.last, weights_only=True)
    with pytest.raises(UserError, match=r"ModelCheckpoint\.filename best is written by checkpoint"):
        fit(f"--trainer.callbacks=[{{{cls}, init_args: {{filename: best}}}}]")


def test_without_checkpoints_the_last_weights_are_tested():
    cli = fit("--trainer.enable_checkpointing=false", TEST, "--trainer.limit_test_batches=1")
    assert not cli.run.checkpoints.exists() and len(metrics(cli.run_dir, "test/acc")) == 1


@pytest.mark.filterwarnings("ignore:You are running in `Trainer.barebones")
@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_barebones_run(capsys):
    cli = fit("--trainer.barebones=true", TEST, "--checkpoint.monitor=val/loss")
    assert cli.trainer.global_step == 3 and "no test: trainer.barebones logs nothing" in capsys.readouterr().out


def test_finished_run_is_extended(capsys):
    fit()
    cli = fit("--ckpt_path=last", "--trainer.max_epochs=2")
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line.split("  ")[0] for line in shown] == ["epoch 1/1", "epoch 2/2"] and "val/acc" in shown[1]
    assert [int(row["step"]) for row in cli.run.read_metrics() if row["val/acc"]] == [2, 5]


@pytest.mark.parametrize(("number", "code"), INTERRUPTED)
def test_interrupted_run_resumes(number, code, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["swin-lightning", "fit", "-c", DIGITS, "--trainer.limit_train_batches=6",
                                      f"--trainer.callbacks+=tests.test_cli.{number.name}AtStep9"])  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        console()
    assert ended.value.code == code
    (run_dir,) = RUNS.iterdir()
    assert (run_dir / "curves.png").is_file() == (number == signal.SIGINT)
    resume(9)


def test_run_stopped_by_its_sweep_is_no_error(monkeypatch):
    monkeypatch.setattr("swin_lightning.cli.ended_by_sweep", lambda: True)
    arguments = ["fit", "-c", DIGITS, "--trainer.limit_train_batches=6"]
    assert main([*arguments, "--trainer.callbacks+=tests.test_cli.SIGTERMAtStep9"]) is None
    (run_dir,) = RUNS.iterdir()
    assert (run_dir / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow  # two processes with their imports
@pytest.mark.parametrize(("number", "code"), INTERRUPTED)
def test_interrupted_process_resumes(number, code):
    command = [sys.executable, "-m", "swin_lightning", "fit", "-c", DIGITS, "--trainer.max_epochs=200"]
    with open("log", "w") as log:
        process = subprocess.Popen(command, env=environment(), stdout=log, stderr=log)
    deadline = time.time() + 120
    while "epoch 1/" not in Path("log").read_text() and process.poll() is None and time.time() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)  # into the second epoch
    process.send_signal(number)
    assert process.wait(60) == code, Path("log").read_text()
    resume(20)  # more than the checkpoint at the end of the first epoch


SGD = "--model.optimizer=torch.optim.SGD"


def metric(name, cls, classes):
    spec = f"{{class_path: torchmetrics.classification.{cls}, init_args: {{num_classes: {classes}}}}}"
    return f"--model.metrics={{{name}: {spec}}}"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--trainer.max_epoch=3"], "unknown option trainer.max_epoch; did you mean trainer.max_epochs?"),
        (["--model.lrr=3"], "unknown option model.lrr; did you mean model.lr?"),
        (["--data.batchsize=3"], "did you mean data.batch_size?"),
        (["--data.batch_size=x"], "data.batch_size x: expected an integer >= 1"),
        (["--model.lr=abc"], "model.lr abc: expected a number > 0"),
        (["-c", "nowhere.yaml"], "nowhere.yaml"),
        (["--data.crop=padd"], "padd"),
        (["--data.batch_size=0"], "data.batch_size 0"),
        (["--data.batch_size=2000"], "data.batch_size 2000 is larger than the training set of 1257 images"),
        (["--trainer.accumulate_grad_batches=3"], "use a multiple of 3"),
        (["--data.rand_augment=randy"], "rand_augment 'randy'"),
        (["--model.layer_decay=0.5", "--model.backbone=tests.test_cli.Flat"], "layer_decay 0.5 needs a backbone"),
        ([SGD, "--model.optimizer.lr=0.1"], "unknown option model.optimizer.lr; did you mean model.lr?"),
        ([SGD, "--model.optimizer.momentum=-1"], "model.optimizer.momentum -1.0: expected a number >= 0 and < 1"),
        (["--model.lr_schedule=cosin"], "model.lr_schedule cosin: expected one of cosine, linear, constant, step, wsd"),
        (["--model.freeze=backbon"], "model.freeze 'backbon' matches no parameter; the modules are backbone, head"),
        ([metric("acc", "MulticlassF1Score", 10)], "name 'acc'"),
        ([metric("f1", "MulticlassF1Score", 4)], "model.metrics.f1: MulticlassF1Score does not fit 10 classes"),
        ([metric("m", "MulticlassConfusionMatrix", 10)], "gives (10, 10); only a scalar"),
        (["--model=nowhere.Mine"], "model nowhere.Mine: expected the path of a class (No module named 'nowhere')"),
        (["-c", "hardware/gpux"], "did you mean hardware/gpu?"),
        (["--lr=1"], "unknown option lr; did you mean model.lr?"),
        (["--model.weights=nowhere.pth"], "'nowhere.pth': no such file"),
        (["--ckpt_path=nowhere.ckpt"], "'nowhere.ckpt': no such file"),
        (["--ckpt_path=last"], "no run under runs/digits_swin_micro"),
    ],
)  # fmt: skip
def test_user_mistake_is_one_line_with_value_and_remedy(args, words):
    with pytest.raises(UserError) as caught:
        main(["fit", "-c", DIGITS, *args])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_mistakes_in_checkpoints(tmp_path):
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(UserError, match=r"text.ckpt' is not a checkpoint"):
        fit("--ckpt_path", str(tmp_path / "text.ckpt"))
    run = fit()
    before = {p: p.stat().st_mtime_ns for p in run.run_dir.rglob("*") if p.is_file()}
    folder = tmp_path / "mine"
    for name in ("train/a", "train/b", "val/a", "val/b"):
        write_image(folder / name / "1.png")
    data = ["--data.class_path=swin_lightning.data.ImageFolder", f"--data.path={folder}"]
    with pytest.raises(UserError, match="the checkpoint has 10 classes and the data has 2"):
        main(["validate", "-c", DIGITS, "--ckpt_path", str(run.run_dir / "checkpoints/best.ckpt"), *data])
    assert before == {p: p.stat().st_mtime_ns for p in run.run_dir.rglob("*") if p.is_file()}  # nothing overwritten


def test_console_prints_one_line_and_exits_with_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["swin-lightning", "fit", "-c", DIGITS, "--model.lrr=1"])
    with pytest.raises(SystemExit) as ended:
        console()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: unknown option model.lrr; did you mean model.lr?\n"


def test_hidden_arguments_of_the_wandb_agent_are_dropped():
    assert fit("--_wandb_extra=1").trainer.global_step == 3


class Flat(torch.nn.Module):
    """A backbone of a user."""

    num_features = 3

    def forward(self, images):
        return images.mean((2, 3))


def test_own_backbone_by_class_path():
    cli = fit("--model.backbone=tests.test_cli.Flat")
    assert isinstance(cli.model.backbone, Flat) and cli.model.head.weight.shape == (10, 3)


class InterruptAtStep9(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 9:  # the third of six steps of the second epoch
            raise KeyboardInterrupt


class SIGINTAtStep9(Callback):
    number = signal.SIGINT

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 9:
            signal.raise_signal(self.number)


class SIGTERMAtStep9(SIGINTAtStep9):
    number = signal.SIGTERM
