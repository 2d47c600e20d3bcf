"""The trial log survives a kill while writing; metrics of a trial are read from its run folder."""

from pathlib import Path

from swin_lightning.sweep.trial_log import Trial, TrialLog, read_metrics, run_of


def test_last_line_of_a_trial_counts_and_incomplete_lines_are_ignored():
    log = TrialLog(Path())
    first, second = Trial(1, "a", {"x": 1}), Trial(2, "b", {"x": [2, 2]})
    for trial in (first, second):
        log.write(trial)
    first.state, first.metrics = "finished", {"val/acc": 0.5}
    log.write(first)
    with log.path.open("a") as file:
        file.write('{"number": 2, "id": "b", "sta')  # killed while writing
    assert log.read() == [first, second]
    second.state = "crashed"
    log.write(second)
    assert log.read() == [first, second]


def test_read_metrics_skips_empty_cells_and_values_that_are_not_finite():
    trial = Trial(1, "0a1b", {})
    assert run_of(Path(), trial) is None and read_metrics(Path(), trial) == {}
    run = Path("runs/digits/20260101-000000-0a1b")
    run.mkdir(parents=True)
    assert run_of(Path(), trial).path == run and read_metrics(Path(), trial) == {}
    (run / "metrics.csv").write_text("epoch,val/acc,val/loss\n0,0.25,\n1,nan,2.5\n2,0.75,1.5\n3,0.")
    assert read_metrics(Path(), trial) == {"epoch": [0, 1, 2, 3], "val/acc": [0.25, 0.75, 0.0], "val/loss": [2.5, 1.5]}
