"""metrics.csv, Weights & Biases without account and network, and loggers of other packages in the run folder."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger

from swin_lightning.cli import main
from swin_lightning.errors import UserError
from swin_lightning.loggers import CSVLogger, Ignored, WandbLogger, place_in_run_folder, without_logged
from swin_lightning.runs import RunFolder
from swin_lightning.wandb_runs import read_offline_run
from tests.support.cli import DIGITS, SHORT, environment, metrics

# metrics.csv


def rows(folder):
    with (Path(folder) / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def log(logger, *logged):
    for step, values in enumerate(logged):
        logger.log_metrics(values, step)
        logger.save()


def test_csv_has_the_same_content_as_lightnings(tmp_path):
    logged = [{"b": 1.0}, {"b": torch.tensor(0.1), "epoch": 0}, {"a": 2.5, "epoch": 1}, {"c": float("nan")}, {"b": 3}]
    log(CSVLogger(str(tmp_path / "ours")), *logged)
    log(LightningCSVLogger(str(tmp_path / "lightning"), name="", version=""), *logged)
    ours, lightnings = (tmp_path / name / "metrics.csv" for name in ("ours", "lightning"))
    assert ours.read_bytes() == lightnings.read_bytes()


def test_resumed_run_appends_to_the_csv(tmp_path):
    for values in ({"a": 1.0}, {"a": 2.0, "b": 3.0}, {"a": 4.0}):
        log(CSVLogger(str(tmp_path)), values)
    assert [(row["a"], row["b"]) for row in rows(tmp_path)] == [("1.0", ""), ("2.0", "3.0"), ("4.0", "")]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_resumed_run_removes_the_rows_behind_its_checkpoint(tmp_path):
    log(CSVLogger(str(tmp_path)), {"a": 0.0}, {"a": 1.0, "b": 1.0}, {"a": 2.0}, {"a": 3.0, "c": 3.0})
    with (tmp_path / "metrics.csv").open("a", newline="") as file:
        file.write("9.")  # killed during a write
    logger = CSVLogger(str(tmp_path))
    logger.continue_from(2)
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1"]
    logger.log_metrics({"b": 1.0, "epoch": 0}, 1)  # an interrupted validation is repeated
    logger.log_metrics({"a": 2.5, "d": 4.0}, 2)
    logger.save()
    assert [(row["a"], row["b"], row["d"]) for row in rows(tmp_path)] == [
        ("0.0", "", ""), ("1.0", "1.0", ""), ("2.5", "", "4.0"),
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_what_was_logged_before_is_left_out():
    logged = {(3, "a"), (3, "epoch"), (4, "b")}
    assert without_logged({"a": 1, "epoch": 0}, 3, logged) == {}
    assert without_logged({"a": 1, "b": 2, "epoch": 0}, 3, logged) == {"b": 2, "epoch": 0}
    assert without_logged({"a": 1}, 4, logged) == {"a": 1}
    assert without_logged({"epoch": 0}, 3, logged) == {"epoch": 0}


def test_row_that_was_cut_off_does_not_damage_the_rows_after_it(tmp_path):
    log(CSVLogger(str(tmp_path)), {"a": 1.0, "b": 2.0})
    with (tmp_path / "metrics.csv").open("a", newline="") as file:
        file.write("3.")  # killed during a write
    log(CSVLogger(str(tmp_path)), {"a": 5.0, "b": 6.0})
    assert [(row["a"], row["b"]) for row in rows(tmp_path)] == [("1.0", "2.0"), ("3.", ""), ("5.0", "6.0")]


def test_csv_is_written_at_the_flush_interval_without_a_trainer(tmp_path):
    logger = CSVLogger(str(tmp_path), flush_logs_every_n_steps=3)
    for step in range(5):
        logger.log_metrics({"a": step}, step)
    assert [row["a"] for row in rows(tmp_path)] == ["0", "1", "2"]
    logger.finalize("success")
    assert [row["a"] for row in rows(tmp_path)] == ["0", "1", "2", "3", "4"]


# loggers of the configuration


class RequiredFolder(LightningCSVLogger):
    """A user's logger whose arguments are passed on by **kwargs."""

    def __init__(self, label: str = "x", **kwargs):
        super().__init__(**kwargs)
        self.label = label


def test_every_logger_gets_the_run_folder_unless_it_names_another(tmp_path):
    overlay = tmp_path / "loggers.yaml"
    overlay.write_text(
        "trainer:\n  logger+:\n"
        "    - class_path: lightning.pytorch.loggers.CSVLogger\n"
        "    - class_path: lightning.pytorch.loggers.CSVLogger\n      init_args: {save_dir: null, name: second}\n"
        "    - class_path: tests.test_loggers.RequiredFolder\n      init_args: {name: third, label: y}\n"
        "    - class_path: lightning.pytorch.loggers.CSVLogger\n      init_args: {save_dir: elsewhere, name: fourth}\n"
    )
    cli = main(["fit", "-c", DIGITS, "-c", str(overlay), *SHORT])
    folders = [cli.run_dir / "lightning_logs", cli.run_dir / "second", cli.run_dir / "third", Path("elsewhere/fourth")]
    for folder in folders:
        logged = [row["train/loss"] for row in rows(folder / "version_0") if row["train/loss"]]
        assert len(logged) == 3, folder
        hparams = (folder / "version_0" / "hparams.yaml").read_text()
        assert "model.lr: 0.002" in hparams and "data.batch_size: 32" in hparams  # the options of the command line
    again = main(["fit", "-c", str(cli.run_dir / "config.yaml"), "--trainer.fast_dev_run=true"])
    assert [logger.init_args.save_dir for logger in again.config.fit.trainer.logger[2:5]] == [str(again.run_dir)] * 3


def test_a_single_logger_gets_the_run_folder():
    args = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.name=single"]
    cli = main(["fit", "-c", DIGITS, *SHORT, *args])
    assert len(metrics(cli.run_dir / "single" / "version_0", "train/loss")) == 3
    assert not (cli.run_dir / "metrics.csv").exists()


# Weights & Biases


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """A run in a process without an account: its run folder and its output. Imports do not import wandb."""
    folder = tmp_path_factory.mktemp("offline")
    env = {k: v for k, v in environment().items() if not k.startswith("WANDB")} | {"HOME": str(folder)}
    code = "import sys, swin_lightning.cli as cli; assert 'wandb' not in sys.modules; cli.main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "fit", "-c", DIGITS, *SHORT, "--test_after_fit=true", "--model.lr=0.003"]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "runs" / "digits_swin_micro").iterdir()
    return RunFolder(run), done.stdout


def test_run_without_an_account_is_offline_and_says_how_to_upload_it(offline):
    run, output = offline
    (line,) = [line for line in output.splitlines() if "wandb sync" in line]
    (folder,) = (run.path / "wandb").glob("offline-run-*")
    assert (run.path.parents[2] / line.split("wandb sync ")[1]).samefile(folder)
    assert list(folder.glob("run-*.wandb"))


def test_what_is_sent_to_wandb(offline):
    run, _ = offline
    (folder,) = (run.path / "wandb").glob("offline-run-*")
    assert folder.name.rsplit("-", 1)[-1] == run.id
    sent = read_offline_run(folder)
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", "--summary", str(folder)]
    printed = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout
    summary = json.loads(printed)["summary"]
    assert {"train/loss", "train/lr", "train/grad_norm", "train/images_per_s", "val/acc", "val/acc_best", "test/acc",
            "test/predictions", "test/confusion_matrix_table"} <= set(summary)  # fmt: skip
    assert summary["val/acc_best"] == pytest.approx(metrics(run.path, "val/acc_best")[-1])
    for name in ("train/loss", "val/acc_best"):
        assert [row[name] for row in sent.rows if name in row] == pytest.approx(metrics(run.path, name))
    assert sent.name == run.name == f"digits_swin_micro/{run.path.name}"
    assert (sent.config["model.lr"], sent.config["data.batch_size"]) == (0.003, 32)  # by the options' names
    assert "lr" not in sent.config and "batch_size" not in sent.config
    (table,) = folder.glob("files/media/table/test/predictions*.json")
    shown = json.loads(table.read_text(encoding="utf-8"))
    assert shown["columns"] == ["image", "label", "prediction", "probability"] and len(shown["data"]) == 32


def test_run_goes_offline_if_the_server_does_not_respond(monkeypatch, capsys):
    import wandb

    modes, init = [], wandb.init

    def unreachable(**kwargs):
        modes.append(kwargs["mode"])
        if kwargs["mode"] == "online":
            raise wandb.errors.CommError("no route")
        return init(**kwargs)

    monkeypatch.setattr(wandb, "init", unreachable)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    cli = main(["fit", "-c", DIGITS, *SHORT])
    assert modes == ["online", "offline"]
    assert "W&B: the server does not respond (no route); logging offline" in capsys.readouterr().err
    assert cli.trainer.global_step == 3


def test_wandb_run_has_the_id_of_the_run_folder():
    assert WandbLogger(save_dir="runs/digits/20260101-000000-0a1b2c3d").version == "0a1b2c3d"
    assert WandbLogger().version is None


def test_wandb_logger_continues_a_run_that_the_caller_has_started():
    import wandb

    with wandb.init(mode="disabled", id="mine") as run:
        assert WandbLogger(save_dir="runs/digits/20260101-000000-0a1b2c3d").experiment is run


# failures of W&B


def failing(*args, **kwargs):
    raise RuntimeError("W&B is\nill")


def lines(captured):
    return [line for line in captured.err.splitlines() if line.startswith("W&B")]


SLOW = [("wandb.Run", "define_metric"), ("wandb.Run", "finish"), ("wandb", "Table"),
        ("swin_lightning.loggers", "has_account"), ("wandb.sdk.wandb_config.Config", "update")]  # fmt: skip


@pytest.mark.parametrize(
    ("target", "name"),
    [("wandb", "init"), ("wandb.Run", "log"), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_any_failure_of_wandb_is_one_line_and_the_run_is_tested(target, name, monkeypatch, capsys):
    import wandb  # noqa: F401  before it is patched

    monkeypatch.setattr(f"{target}.{name}", failing)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "")
    arguments = ["--test_after_fit=true", "--trainer.limit_test_batches=1", "--trainer.limit_val_batches=1"]
    cli = main(["fit", "-c", DIGITS, *SHORT, *arguments])
    assert len(metrics(cli.run_dir, "test/acc")) == 1 and len(metrics(cli.run_dir, "train/loss")) == 3
    (line,) = lines(capsys.readouterr())
    assert "RuntimeError: W&B is ill" in line


def test_use_after_a_failure_is_ignored(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("wandb.init", failing)
    logger = WandbLogger(save_dir=str(tmp_path / "a-1"), mode="offline")
    logger.experiment.log({"a": 1})
    logger.experiment.config["a"] = 1
    logger.experiment.summary.update({"a": 1})
    logger.log_table("t", columns=["a"], data=[[1]])
    logger.log_hyperparams({"lr": 1})
    logger.finalize("success")
    assert isinstance(logger.experiment, Ignored) and len(lines(capsys.readouterr())) == 1


def test_only_our_checkpoint_is_uploaded(tmp_path, monkeypatch):
    from lightning.pytorch.callbacks import ModelCheckpoint

    from swin_lightning.checkpointing import Checkpoint

    seen = []
    monkeypatch.setattr(LightningWandbLogger, "after_save_checkpoint", lambda self, callback: seen.append(callback))
    logger, ours = WandbLogger(save_dir=str(tmp_path), log_model=True), Checkpoint()
    for callback in (ModelCheckpoint(), ours):
        logger.after_save_checkpoint(callback)
    assert seen == [ours]


# other loggers


class Uninstalled(LightningCSVLogger):
    def __init__(self):
        raise ModuleNotFoundError(
            "Neither `x` nor `tensorboard` is available.\n"
            "Requirement 'x' not met. HINT: Try running `pip install -U 'x'`\n"
            "Requirement 'tensorboard' not met. HINT: Try running `pip install -U 'tensorboard'`"
        )


@pytest.mark.parametrize("option", ["--trainer.logger+", "--trainer.logger"])
def test_logger_whose_package_is_missing_is_one_line(option):
    with pytest.raises(UserError) as error:
        main(["fit", "-c", DIGITS, *SHORT, f"{option}=tests.test_loggers.Uninstalled"])
    message = "tests.test_loggers.Uninstalled needs a package that is not installed: pip install tensorboard"
    assert str(error.value) == message


def placed(class_path, **arguments):
    logger = Namespace(class_path=class_path, init_args=Namespace(**arguments))
    place_in_run_folder(logger, RunFolder(Path("runs/x/1-a")))
    return vars(logger.init_args)


def test_loggers_get_the_run_folder_unless_they_name_another(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert placed("a.B", save_dir=None, x=None) == {"save_dir": "runs/x/1-a", "x": None}
    assert placed("a.B", save_dir="logs") == {"save_dir": "logs"}
    assert placed("a.B") == {}
    assert placed("l.TensorBoardLogger", save_dir=None, version=None) == {"save_dir": "runs/x/1-a", "version": 0}
    mlflow = {"save_dir": None, "tracking_uri": None, "artifact_location": None, "run_name": None}
    assert placed("l.MLFlowLogger", **mlflow) == {
        "save_dir": "runs/x/1-a",
        "tracking_uri": f"sqlite:///{Path.cwd()}/runs/x/1-a/mlflow.db",
        "artifact_location": f"file://{Path.cwd()}/runs/x/1-a/mlflow",
        "run_name": "x/1-a",
    }
    assert placed("l.MLFlowLogger", tracking_uri="http://host") == {"tracking_uri": "http://host"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other")
    assert placed("l.MLFlowLogger", tracking_uri=None) == {"tracking_uri": None}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "package", "files"), [
    ("TensorBoardLogger", "tensorboard", "lightning_logs/version_0/events.out.tfevents.*"),
    ("MLFlowLogger", "mlflow", "mlflow.db"),
])  # fmt: skip
def test_loggers_of_lightning_write_into_the_run_folder(name, package, files):
    pytest.importorskip(package)
    command = [sys.executable, "-m", "swin_lightning", "fit", "-c", DIGITS, *SHORT, "--trainer.logger+", name]
    subprocess.run(command, env=environment(), check=True)
    (run,) = Path("runs/digits_swin_micro").iterdir()
    subprocess.run([*command, "--ckpt_path=last", "--trainer.max_epochs=2"], env=environment(), check=True)
    assert list(run.glob(files)) and [path.name for path in Path().iterdir()] == ["runs"]
