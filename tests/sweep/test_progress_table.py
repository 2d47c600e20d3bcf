"""Progress of a sweep in a terminal and in a log file."""

from swin_lightning.sweep.progress_table import ProgressTable, best_trial
from swin_lightning.sweep.trial_log import Trial
from tests.sweep.fake_trials import finished, make_sweep

FIRST = Trial(1, "a", {"data.batch_size": 16, "model.lr": 0.1}, "finished", {"val/acc_best": 0.5, "epoch": 4.0}, 12.3)


def test_table_has_one_row_per_trial_with_state_and_progress():
    table = ProgressTable(make_sweep(), 3).table(
        [FIRST, Trial(2, "b", {"data.batch_size": 32, "model.lr": 0.2})], {"b": {"val/acc_best": 0.25, "epoch": 1.0}}
    )
    assert [column.header for column in table.columns][-2:] == ["model.lr", "data.batch_size"]  # order of the file
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert rows == [
        ("1", "finished", "4", "0.5", "12 s", "0.1", "16"),
        ("2", "running", "1", "0.25", "0 s", "0.2", "32"),
    ]
    assert table.rows[0].style == "bold green"
    assert table.title == "small: 1 of 3 trials"


def test_number_of_trials_of_a_grid_is_shown():
    sweep = make_sweep(method="grid", run_cap=None)
    progress = ProgressTable(sweep, sweep.num_trials())
    assert progress.table([], {}).title == "small: 0 of 6 trials"
    assert progress.line(FIRST) == "trial 1/6  a  finished  val/acc_best 0.5000  12 s  data.batch_size=16  model.lr=0.1"


def test_state_changes_are_printed_once(capsys):
    progress = ProgressTable(make_sweep(), 3)
    trial = Trial(1, "a", {"model.lr": 0.1})
    for _ in range(2):
        progress.update([trial], {})
    trial.state, trial.reason = "crashed", "exit code 1: no data"
    for _ in range(2):
        progress.update([trial], {})
    assert capsys.readouterr().out.splitlines() == [
        "trial 1/3  a  running  model.lr=0.1",
        "trial 1/3  a  crashed  0 s  model.lr=0.1  exit code 1: no data",
    ]


def test_best_trial_excludes_crashed_trials_and_is_the_first_on_a_tie():
    trials = [finished(1, 0.25), finished(2, 0.5), finished(3, 0.5), finished(4, 0.75)]
    trials[3].state = "crashed"
    assert best_trial(trials, "val/acc_best", "maximize") is trials[1]
    assert best_trial(trials, "val/acc_best", "minimize") is trials[0]
    assert best_trial(trials, "val/loss", "minimize") is None
