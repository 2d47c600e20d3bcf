import csv
import math

import pandas as pd
import pytest

from swin_lightning.errors import UserError
from swin_lightning.explore.runs import (
    RunLog,
    all_metrics,
    config_differences,
    read_runs,
    read_wandb,
    results,
)


def make_log(name="experiment/run", config=None, **columns):
    return RunLog(name, {"data.batch_size": 10, "seed_everything": 3} | (config or {}), pd.DataFrame(columns))


def test_run_folder_and_offline_wandb_files_agree(run, log, tmp_path):
    (offline,) = read_runs(run / "wandb")
    assert [entry.name for entry in read_runs(run.parent)] == [log.name]
    assert log.name == offline.name == f"digits_swin_micro/{run.name}"
    pd.testing.assert_frame_equal(log.metrics, offline.metrics, check_dtype=False, rtol=1e-5)
    keys = ("model.lr", "data.batch_size", "seed_everything", "trainer.max_epochs")
    assert [log.config[key] for key in keys] == [offline.config[key] for key in keys] == [0.002, 32, 0, 2]
    assert log.images_per_second() == pytest.approx(offline.images_per_second(), rel=1e-4)
    both = all_metrics([log, RunLog("other/run", offline.config, offline.metrics)])
    both.to_csv(tmp_path / "all.csv", index=False)
    with (tmp_path / "all.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["run"] for row in rows} == {log.name, "other/run"} and len(rows) == 2 * len(log.metrics)


def test_throughput_covers_the_images_since_the_previous_row():
    nan = math.nan
    log = make_log(
        step=[4, 9, 9, 11], **{"train/images_per_s": [50.0, nan, nan, 20.0], "val/loss": [nan, 1.0, nan, nan]}
    )
    # 5 steps at 50 images/s and, after the validation at step 9, 2 steps at 20: 70 images in 2 s
    assert log.images_per_second() == pytest.approx(35.0)
    assert log.training_seconds() == pytest.approx(12 * 10 / 35.0)
    assert make_log(step=[1]).training_seconds() is None


def test_results_show_differing_options_and_metrics():
    logs = [
        make_log("e/a", {"model.lr": 0.1, "model.weight_decay": 0.05}, step=[0, 1, 2], **{"val/acc": [0.1, 0.9, 0.8]}),
        make_log("e/b", {"model.lr": 0.2, "model.weight_decay": 0.05}, step=[0], **{"test/acc": [0.7]}),
    ]
    assert config_differences(logs) == [{"model.lr": 0.1}, {"model.lr": 0.2}]
    table = results(logs)
    assert table.loc["e/a", ["model.lr", "best val/acc", "last val/acc"]].tolist() == [0.1, 0.9, 0.8]
    assert math.isnan(table.loc["e/a", "test/acc"]) and table.loc["e/b", "test/acc"] == 0.7


def test_read_wandb_reads_the_runs_of_a_project(monkeypatch):
    import wandb

    class FakeRun:
        name, config = "e/run", {"model.lr": 0.5}

        def scan_history(self):
            yield {"_step": 0, "_runtime": 1.0, "trainer/global_step": 4, "epoch": 0, "val/acc": 0.5}

    class FakeApi:
        def runs(self, path):
            if path != "team/project":
                raise ValueError(f"Could not find project {path}")
            return [FakeRun()]

    monkeypatch.setattr(wandb, "Api", FakeApi)
    (log,) = read_wandb("team/project")
    assert (log.name, log.config, log.metrics.to_dict("list")) == (
        "e/run", {"model.lr": 0.5}, {"step": [4], "epoch": [0], "val/acc": [0.5]},
    )  # fmt: skip
    with pytest.raises(UserError, match="W&B project 'nobody/x': Could not find project nobody/x; log in with"):
        read_wandb("nobody/x")


def test_read_runs_without_runs_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"no run below .*: found neither metrics\.csv nor offline W&B files"):
        read_runs(tmp_path)
