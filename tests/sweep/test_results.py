"""Results of a sweep: table, overlay of the best trial, figures and report."""

import csv
import re
from pathlib import Path

import pytest
import yaml

from swin_lightning import config
from swin_lightning.errors import UserError
from swin_lightning.sweep import sweep_figures
from swin_lightning.sweep.results import load_sweep, trials_frame, write_summary
from swin_lightning.sweep.trial_log import Trial, TrialLog, runs_folder
from tests.support.cli import DIGITS
from tests.sweep.fake_trials import finished, make_sweep

RUN_CONFIG = {
    "model": {
        "class_path": "swin_lightning.SwinClassifier",
        "init_args": {
            "lr": 0.2,
            "backbone": {"class_path": "swin_lightning.models.SwinTransformer", "init_args": {"depths": [2, 4]}},
            "loss": {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"label_smoothing": 0.1}},
        },
    },
    "data": {"class_path": "swin_lightning.data.Digits", "init_args": {"batch_size": 16}},
    "trainer": {"max_epochs": 3},
}


def write_sweep(*trials, **changes):
    """A finished sweep in the working directory, as the driver leaves it."""
    sweep = make_sweep(**changes)
    for trial in trials:
        TrialLog(Path()).write(trial)
    return sweep


def test_best_trial_becomes_an_overlay_of_the_experiment():
    values = {
        "model.lr": 0.2,
        "model.backbone.depths": "[2, 4]",
        "model.loss": "torch.nn.CrossEntropyLoss",
        "data.batch_size": 16,
        "trainer.max_epochs": 3,
        "model.unknown": 5,
    }
    trials = [Trial(1, "id1", values, "crashed"), finished(2, 0.25, **values)]
    sweep = write_sweep(*trials, parameters={name: {"value": value} for name, value in values.items()})
    run = runs_folder(Path()) / "digits" / "20260101-000000-id2"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(RUN_CONFIG))
    write_summary(sweep, Path())
    text = Path("best.yaml").read_text()
    assert text.startswith(
        "# Best of 2 trials of small.yaml: trial 2, val/acc_best 0.2500.\n# Command:  swin-lightning fit"
    )
    loss = RUN_CONFIG["model"]["init_args"]["loss"]
    init_args = {"lr": 0.2, "backbone": {"init_args": {"depths": [2, 4]}}, "loss": loss, "unknown": 5}
    assert yaml.safe_load(text) == {
        "model": {"init_args": init_args},  # class_path comes from the experiment
        "data": {"init_args": {"batch_size": 16}},
        "trainer": {"max_epochs": 3},
    }


def test_overlay_without_class_path_is_merged_into_the_experiment():
    backbone = {"init_args": {"drop_path_rate": 0.125}}
    overlay = {"model": {"init_args": {"lr": 0.25, "backbone": backbone}}, "data": {"init_args": {"batch_size": 17}}}
    Path("best.yaml").write_text(yaml.safe_dump(overlay))
    before = dict(config.load(["-c", DIGITS]).items())
    after = dict(config.load(["-c", DIGITS, "-c", "best.yaml"]).items())
    changed = {config.short_key(key): value for key, value in after.items() if before[key] != value}
    del changed["config"]
    assert changed == {"model.lr": 0.25, "model.backbone.drop_path_rate": 0.125, "data.batch_size": 17}


def test_summary_holds_all_trials_and_no_external_resources():
    trials = [
        finished(1, 0.25, **{"model.lr": 0.1, "data.batch_size": 16}),
        Trial(2, "id2", {"model.lr": 0.3, "data.batch_size": 16}, "crashed", reason="exit code 1: no data"),
        finished(3, 0.5, **{"model.lr": 0.2, "data.batch_size": 32}),
    ]
    report = write_summary(write_sweep(*trials), Path())
    assert report == Path("report.html")
    with Path("trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["number"], row["state"], row["model.lr"], row["val/acc_best"]) for row in rows] == [
        ("1", "finished", "0.1", "0.25"),
        ("2", "crashed", "0.3", ""),
        ("3", "finished", "0.2", "0.5"),
    ]
    html = report.read_text()
    assert "random search, maximize val/acc_best: 2 finished, 1 crashed. Best: trial 3 with 0.5000." in html
    assert html.count('src="data:image/png;base64,') == 3
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert yaml.safe_load(Path("best.yaml").read_text()) == {"model": {"lr": 0.2}, "data": {"batch_size": 32}}


def test_sweep_without_results_has_a_table_only():
    sweep = write_sweep(Trial(1, "id1", {"model.lr": 0.3, "data.batch_size": 16}, "crashed"))
    assert write_summary(sweep, Path()) is None
    assert Path("trials.csv").is_file() and not Path("best.yaml").exists()
    with pytest.raises(UserError, match=r"no trial of this sweep has a value of metric 'val/acc_best'"):
        sweep_figures.metric_over_trials(load_sweep("."))


def test_unknown_sweep_is_reported():
    with pytest.raises(UserError, match=r"sweep 'nowhere': no sweep.yaml in this folder; give a sweep folder or"):
        load_sweep("nowhere")


# figures


def frame_of(values, goal="maximize"):
    """Trials with these values of val/loss, a learning rate that decreases and a kind that alternates."""
    trials = [
        Trial(i + 1, str(i), {"model.lr": 10.0**-i, "model.kind": "ab"[i % 2]}, "finished", {"val/loss": value})
        for i, value in enumerate(values)
    ]
    metric = {"name": "val/loss", "goal": goal}
    return trials_frame(trials, {"metric": metric, "parameters": {"model.lr": {}, "model.kind": {}}}, {})


def test_figures_show_the_values_of_the_table():
    frame = frame_of([3.0, 1.0, 2.0, 5.0], goal="minimize")
    best, points = sweep_figures.metric_over_trials(frame).axes[0].lines
    assert list(best.get_ydata()) == [3.0, 1.0, 1.0, 1.0] and list(points.get_ydata()) == [3.0, 1.0, 2.0, 5.0]
    lines = sweep_figures.parallel_coordinates(frame).axes[0].lines[:4]
    metric_axis = [line.get_ydata()[-1] for line in lines]  # drawn from the worst to the best
    assert metric_axis == pytest.approx([1.0, 0.5, 0.25, 0.0])
    assert [line.get_ydata()[0] for line in lines] == pytest.approx([0.0, 1.0, 1 / 3, 2 / 3])  # logarithmic


@pytest.mark.parametrize(
    ("values", "name", "correlation"),
    [([0.0, 1.0] * 4, "model.kind", None), ([7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0], "model.lr", 1.0)],
)
def test_parameter_that_determines_the_metric_is_the_most_important(values, name, correlation):
    names, importances, correlations = sweep_figures.permutation_importances(frame_of(values))
    assert names[0] == name and importances[0] > 5 * abs(importances[1])
    assert correlation is None or correlations[0] == pytest.approx(correlation)
