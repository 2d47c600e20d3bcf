"""Seeds and folds: means, deviations and intervals per configuration, and their ranks."""

import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from swin_lightning.sweep import repeats
from swin_lightning.sweep.results import trials_frame, write_summary
from swin_lightning.sweep.trial_log import Trial, TrialLog
from tests.sweep.fake_trials import finished, make_sweep

METRIC = "val/acc_best"
# the luckiest seed (0.95) is one of the worse configuration; 0.003 has lost a trial
VALUES = {0.001: [0.90, 0.91, 0.92], 0.002: [0.80, 0.85, 0.95], 0.003: [0.99, None, 0.99]}
PARAMETERS = {"model.lr": {"values": list(VALUES)}, "seed_everything": {"values": [0, 1, 2]}}


@pytest.fixture
def trials():
    found = []
    for lr, values in VALUES.items():
        for seed, value in enumerate(values):
            parameters = {"model.lr": lr, "seed_everything": seed}
            number = len(found) + 1
            if value is None:
                found.append(Trial(number, f"id{number}", parameters, "crashed", metrics={METRIC: 1.0}))
            else:
                found.append(finished(number, value, **parameters))
    return found


def frame_of(trials, parameters=PARAMETERS):
    config = {"parameters": parameters, "metric": {"name": METRIC, "goal": "maximize"}}
    return trials_frame(trials, config, {})


def test_configurations_are_ranked_by_their_means_and_incomplete_ones_last(trials):
    frame = frame_of(trials)
    assert repeats.repeated(frame) == ["seed_everything"]
    table = repeats.configurations(frame, [METRIC])
    assert table["model.lr"].tolist() == [0.001, 0.002, 0.003]
    assert table["trials"].tolist() == [3, 3, 2] and table["first"].tolist() == [1, 4, 7]
    for i, values in enumerate(([0.90, 0.91, 0.92], [0.80, 0.85, 0.95], [0.99, 0.99])):
        assert table[METRIC][i] == pytest.approx(np.mean(values))
        assert table[f"{METRIC} deviation"][i] == pytest.approx(np.std(values, ddof=1))
    low, high = stats.t.interval(0.95, 2, 0.91, stats.sem([0.90, 0.91, 0.92]))
    assert (table[f"{METRIC} low"][0], table[f"{METRIC} high"][0]) == pytest.approx((low, high))
    assert repeats.describe(table.to_dict("records")[0], METRIC) == (
        "val/acc_best 0.9100 ± 0.0100, 95 % interval 0.8852 to 0.9348 (3 trials)"
    )


def test_one_trial_has_no_deviation():
    table = repeats.configurations(frame_of([finished(1, 0.5, **{"model.lr": 0.1, "seed_everything": 0})]), [METRIC])
    assert math.isnan(table[f"{METRIC} deviation"][0]) and math.isnan(table[f"{METRIC} high"][0])
    assert repeats.describe(table.to_dict("records")[0], METRIC) == "val/acc_best 0.5000 (1 trial)"


def test_page_and_overlay_show_the_best_mean_and_not_the_luckiest_seed(trials):
    sweep = make_sweep(parameters=PARAMETERS)
    for trial in trials:
        TrialLog(Path()).write(trial)
    page = write_summary(sweep, Path()).read_text(encoding="utf-8")
    assert "0.9100 ± 0.0100 [0.8852, 0.9348]" in page and "repeated over seed_everything" in page
    assert "importance" not in page.lower() and page.count("data:image/png;base64,") == 1
    overlay = Path("best.yaml").read_text(encoding="utf-8")
    assert "Best mean of 3 configurations: val/acc_best 0.9100 ± 0.0100" in overlay
    assert yaml.safe_load(overlay) == {"model": {"lr": 0.001}}  # no seed
    assert Path("configurations.csv").read_text(encoding="utf-8").startswith("model.lr,trials,first,val/acc_best,")


def test_folds_alone_offer_no_best_configuration():
    parameters = {"data.folds": {"value": 5}, "data.fold": {"values": [0, 1, 2]}}
    sweep = make_sweep(parameters=parameters)
    for i, value in enumerate((0.7, 0.8, 0.9)):
        TrialLog(Path()).write(finished(i + 1, value, **{"data.folds": 5, "data.fold": i}))
    page = write_summary(sweep, Path()).read_text(encoding="utf-8")
    assert "Mean over the trials: val/acc_best 0.8000 ± 0.1000" in page and "(3 trials)" in page
    assert not Path("best.yaml").exists()


@pytest.mark.parametrize(
    ("entry", "expected"),
    [({"values": [0, 1]}, True), ({"values": [0]}, False), ({"value": 0}, False), ({"min": 0, "max": 9}, True)],
)
def test_parameters_that_repeat(entry, expected):
    assert repeats.repeats({"model.lr": {"values": [1, 2]}, "data.fold": entry}) == expected
