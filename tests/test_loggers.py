"""Weights & Biases without account or network, and the CSV file."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from swin_lightning.cli import main
from swin_lightning.loggers import CSVLogger, WandbLogger
from tests.support.cli import DIGITS, SHORT, environment, metrics


def inspect(run_dir, *options):
    """What an offline run holds, read from its transaction log by wandb's own command."""
    (folder,) = run_dir.glob("wandb/offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(folder)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_without_an_account_the_run_goes_on_offline_and_says_how_to_send_it(tmp_path):
    env = {k: v for k, v in environment().items() if not k.startswith("WANDB")} | {"HOME": str(tmp_path)}
    command = [sys.executable, "-m", "swin_lightning", "fit", "-c", DIGITS, *SHORT]
    done = subprocess.run(command, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "wandb sync" in line]
    folder = Path(line.split("wandb sync ")[1])
    assert list(folder.glob("run-*.wandb"))


def test_a_server_that_does_not_answer_ends_in_an_offline_run(monkeypatch, capsys):
    import wandb

    calls = []
    init = wandb.init

    def unreachable(**kwargs):
        calls.append(kwargs["mode"])
        if kwargs["mode"] == "online":
            raise wandb.errors.CommError("no route")
        return init(**kwargs)

    monkeypatch.setattr(wandb, "init", unreachable)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    cli = main(["fit", "-c", DIGITS, *SHORT])
    assert calls == ["online", "offline"]
    assert "W&B: the server does not answer (no route); going on offline" in capsys.readouterr().err
    assert cli.trainer.global_step == 3


def test_what_is_sent(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    cli = main(["fit", "-c", DIGITS, *SHORT, "--model.lr=0.003"])
    sent = json.loads(inspect(cli.run_dir, "--summary"))
    assert {"train/loss", "train/lr", "train/grad_norm", "train/images_per_s", "val/acc", "val/acc_best", "test/acc",
            "test/predictions", "test/confusion_matrix_table"} <= set(sent["summary"])  # fmt: skip
    assert sent["summary"]["val/acc_best"] == pytest.approx(metrics(cli.run_dir, "val/acc_best")[-1])
    config = sent["config"]  # under the command line's keys, once each
    assert (config["model.lr"], config["data.batch_size"]) == (0.003, 32)
    assert "lr" not in config and "batch_size" not in config
    (table,) = cli.run_dir.glob("wandb/offline-run-*/files/media/table/test/predictions*.json")
    rows = json.loads(table.read_text())
    assert rows["columns"] == ["image", "label", "prediction", "probability"] and len(rows["data"]) == 32


def test_metrics_csv_grows_when_a_run_is_resumed(tmp_path):
    for step, values in enumerate([{"a": 1.0}, {"a": 2.0, "b": 3.0}]):
        logger = CSVLogger(str(tmp_path))
        logger.log_metrics(values, step)
        logger.save()
    with (tmp_path / "metrics.csv").open() as file:
        assert [(row["a"], row["b"]) for row in csv.DictReader(file)] == [("1.0", ""), ("2.0", "3.0")]


def test_the_runs_id_is_the_end_of_its_folders_name():
    logger = WandbLogger(save_dir="runs/digits/20260101-000000-0a1b2c3d")
    assert logger.version == "0a1b2c3d"
    assert logger._wandb_init["name"] == "digits/20260101-000000-0a1b2c3d"


def test_importing_does_not_import_wandb():
    code = "import sys, swin_lightning, swin_lightning.cli; assert 'wandb' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment()}, check=True)
