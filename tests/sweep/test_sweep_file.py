"""Sweep files are found by name and checked before anything starts."""

from pathlib import Path

import pytest

from swin_lightning.errors import UserError
from swin_lightning.sweep import sweep
from swin_lightning.sweep.search import next_parameters
from swin_lightning.sweep.sweep_file import Sweep, find_sweep, read_sweep
from tests.support.cli import DIGITS, EXPERIMENTS
from tests.sweep.fake_trials import CONFIG, changed, write

FILES = sorted((EXPERIMENTS / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_bundled_sweep_files_are_valid_in_any_folder(path):
    sweep = read_sweep(path)
    text = path.read_text()
    assert f"swin-lightning sweep {path.stem}\n" in text and f"wandb sweep experiments/sweeps/{path.name}" in text
    parameters = next_parameters(sweep, [])
    assert set(parameters) == set(sweep.parameters)
    command = sweep.command(parameters)
    assert command[1:4] == ["-m", "swin_lightning", "fit"]
    assert command[-len(parameters) :] == [f"--{key}={value}" for key, value in parameters.items()]


def test_sweep_file_is_found_by_name_in_the_working_directory_first():
    for name in ("digits", "digits.yaml", "experiments/sweeps/digits.yaml"):
        assert find_sweep(name).samefile(EXPERIMENTS / "sweeps" / "digits.yaml")
    Path("experiments/sweeps").mkdir(parents=True)
    own = write(CONFIG, "experiments/sweeps/digits.yaml")
    assert find_sweep("digits").samefile(own)
    assert find_sweep(own).samefile(own)


@pytest.mark.parametrize("command", ["digits_swin_micro", "experiments/digits_swin_micro.yaml"])
def test_experiment_in_the_command_is_found_from_any_folder(command):
    path = write(changed(command=["swin-lightning", "fit", "-c", command, "${args}"]))
    assert read_sweep(path).metric == "val/acc_best"


@pytest.mark.parametrize(
    ("changes", "count", "expected"),
    [
        ({}, None, 3),
        ({}, 5, 5),
        ({"run_cap": None}, None, None),
        ({"method": "grid", "run_cap": None}, None, 6),
        ({"method": "grid"}, None, 3),
        ({"method": "grid"}, 100, 6),
        ({"method": "grid", "run_cap": None, "parameters": {"a": {"values": [1, 1, 2]}, "b": {"value": 3}}}, None, 2),
    ],
)
def test_num_trials(changes, count, expected):
    assert Sweep(Path("small.yaml"), changed(**changes), ("fit",)).num_trials(count) == expected


# errors


def parameter(name, **spec):
    return changed(parameters={name: spec})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([1, 2], "expected a mapping with the keys method, metric, parameters, command, got list"),
        (changed(metod="grid"), "unknown key 'metod'; did you mean method?"),
        (changed(method="baies"), "unknown method 'baies'; did you mean bayes?"),
        (changed(method=None), "key 'method' is missing"),
        (changed(metric={"name": "val/acc", "goal": "up"}), "metric.goal 'up'; choose one of maximize, minimize"),
        (changed(metric={"name": "val/acc", "goal": "maximise"}), "metric.goal 'maximise'; did you mean maximize?"),
        (changed(metric="val/acc"), "metric: expected a name and a goal, e.g. {name: val/acc_best, goal: maximize}"),
        (changed(run_cap=0), "run_cap: expected a positive integer, got 0"),
        (changed(parameters={5: {"value": 1}}), "parameters.5: expected the name of an option"),
        (changed(parameters={"model.lr": {"min": 1, "max": 10**40}}), "parameters.model.lr.max 1000"),
        (changed(parameters={"model.lr": {"mu": 0, "sigma": float("nan")}}), "model.lr.sigma nan: expected a number"),
        (changed(early_terminate=5), "early_terminate 5: expected a mapping such as {type: hyperband"),
        (changed(early_terminate={"type": "hyperband", "min_iter": 0}), "early_terminate.min_iter 0: expected"),
        (changed(early_terminate={"type": "hyperband", "min_iter": 3, "eta": 1}), "early_terminate.eta 1: expected a"),
        (changed(early_terminate={"type": "hyperband", "max_iter": 8, "s": 3}), "early_terminate.s 3: the first"),
        (changed(metric={"name": "val/acc_best", "goal": "maximize", "target": float("nan")}), "metric.target nan"),
        (changed(name=5), "name 5: expected text"),
        (changed(parameters=["model.lr"]), "parameters: expected a mapping of options such as model.lr, got ["),
        (changed(parameters={"model.lr": 0.1}), "model.lr: expected a mapping with value, values, or min and max"),
        (parameter("model.lrr", values=[0.1]), "model.lrr 0.1: unknown option model.lrr; did you mean model.lr?"),
        (parameter("model.lr", values=[]), "parameters.model.lr: {'values': []} does not match W&B's format"),
        (parameter("model.lr", values=[0.1, None]), 'model.lr.values [0.1, None]: null is passed as the string "None"'),
        (parameter("data.batch_size", values=[16, 64.0]), "parameters.data.batch_size 64.0: data.batch_size 64.0: "),
        (parameter("data.batch_size", min=16.0, max=64.0), "parameters.data.batch_size 16.0"),
        (parameter("model.lr", min="1e-4", max=0.1), "parameters.model.lr.min '1e-4': a string in YAML"),
        (parameter("model.lr", min=0.1, max=0.01), "min 0.1 is not less than max 0.01"),
        (parameter("model.lr", mn=0.1, max=1.0), "unknown key in parameters.model.lr: 'mn'; did you mean min?"),
        (parameter("model.lr", distribution="loguniform", min=0.1, max=1.0), "does not match W&B's format"),
        (parameter("model", parameters={"lr": {"value": 1}}), "parameters.model: nested parameters are not supported"),
        (parameter("data.init_args.batch_size", values=[16]), "data.init_args.batch_size: use data.batch_size"),
        (changed(method="grid", parameters={"model.lr": {"min": 0.1, "max": 0.2}}), "grid search needs value or"),
        (changed(command="swin-lightning fit"), "command: expected a list such as [swin-lightning, fit, -c,"),
        (changed(command=["python", "train.py", "${args}"]), "expected `swin-lightning fit ...` with ${args}"),
        (changed(command=["swin-lightning", "fit", "-c", DIGITS]), "with ${args} exactly once"),
        (changed(command=["swin-lightning", "fit", "${args_json}", "${args}"]), "${args_json} is not supported"),
        (changed(command=["swin-lightning", "fit", "-c", "nowhere.yaml", "${args}"]), "command: "),
    ],
)  # fmt: skip
def test_invalid_sweep_file_is_reported_on_one_line(config, message):
    path = write(config)
    with pytest.raises(UserError) as caught:
        sweep([path])
    text = str(caught.value)
    assert message in text and text.startswith("small.yaml: ")
    assert "\n" not in text and len(text) < 400
    assert not Path("runs").exists()


def test_options_of_a_class_are_checked_with_the_class_selected_by_another_parameter():
    losses = ["torch.nn.CrossEntropyLoss", "torch.nn.BCEWithLogitsLoss"]
    smoothing = {"model.loss.label_smoothing": {"values": [0.0, 0.1]}}
    read_sweep(write(changed(parameters={"model.loss": {"value": losses[0]}, **smoothing})))
    with pytest.raises(UserError, match=r"parameters.model.loss.label_smoothing 0.1: unknown option .*label_smoothing"):
        read_sweep(write(changed(parameters={"model.loss": {"values": losses}, **smoothing})))


def test_unreadable_file_is_reported():
    with pytest.raises(UserError, match=r"nowhere: no such sweep file; `swin-lightning experiments` lists those"):
        sweep(["nowhere"])
    Path("broken.yaml").write_text("method: [")
    with pytest.raises(UserError, match=r"broken.yaml:1: not valid YAML: "):
        sweep(["broken.yaml"])


def test_invalid_arguments_are_reported():
    with pytest.raises(UserError, match=r"random search without a limit; add run_cap or pass --count N"):
        sweep([write(changed(run_cap=None)), "--local"])
    with pytest.raises(UserError, match=r"--agents: must be at least 1, got 0"):
        sweep([write(CONFIG), "--agents", "0"])
    assert not Path("runs").exists()


def test_check_prints_a_summary_and_starts_nothing(capsys):
    sweep([write(CONFIG), "--check"])
    assert "small.yaml: OK; random search over model.lr, data.batch_size; 3 trials" in capsys.readouterr().out
    assert not Path("runs").exists()
