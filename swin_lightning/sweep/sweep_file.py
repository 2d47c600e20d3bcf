"""Sweep files in W&B's format: found by name, read, and checked against the options of `swin-lightning fit`."""

import difflib
import math
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swin_lightning.errors import UserError, shorten, summarize
from swin_lightning.experiment_files import find_experiment
from swin_lightning.yaml_files import read_yaml

KEYS = (
    "name", "description", "program", "project", "entity", "method", "metric", "parameters", "command",
    "early_terminate", "run_cap",
)  # fmt: skip
METHODS = ("grid", "random", "bayes")
GOALS = ("maximize", "minimize")
PARAMETER_KEYS = ("value", "values", "probabilities", "distribution", "min", "max", "mu", "sigma", "q", "a", "b")
BOUNDS = {"min", "max", "mu", "sigma", "q", "a", "b"}
TEXTS = ("name", "description", "program", "project", "entity")
LARGEST = 1e15
PROGRAMS = (["swin-lightning"], ["python", "-m", "swin_lightning"], ["${interpreter}", "-m", "swin_lightning"])


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file.

    Args:
        path: The file.
        config: Its content, as sent to W&B.
        arguments: Arguments of `swin-lightning` in its command, without `${args}`.
    """

    path: Path
    config: dict[str, Any]
    arguments: tuple[str, ...]

    @property
    def method(self) -> str:
        """`grid`, `random` or `bayes`."""
        return str(self.config["method"])

    @property
    def metric(self) -> str:
        """Name of the metric to optimise."""
        return str(self.config["metric"]["name"])

    @property
    def goal(self) -> str:
        """`maximize` or `minimize`."""
        return str(self.config["metric"]["goal"])

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """Dotted key of an option -> its values or distribution."""
        parameters: dict[str, dict[str, Any]] = self.config["parameters"]
        return parameters

    @property
    def search_config(self) -> dict[str, Any]:
        """The part of the file that the `sweeps` library takes."""
        config = {key: self.config[key] for key in ("method", "metric", "parameters")}
        if "early_terminate" in self.config:  # `strict` is known to the W&B server only
            config["early_terminate"] = {k: v for k, v in self.config["early_terminate"].items() if k != "strict"}
        return config

    def num_trials(self, count: int | None = None) -> int | None:
        """Total number of trials: `count`, else `run_cap`; a grid has at most one per combination. None: no limit."""
        limit: int | None = count or self.config.get("run_cap")
        if self.method != "grid":
            return limit
        distinct = [{repr(value) for value in spec.get("values", [None])} for spec in self.parameters.values()]
        combinations = math.prod(len(values) for values in distinct)
        return min(limit, combinations) if limit else combinations

    def command(self, parameters: dict[str, Any]) -> list[str]:
        """The command of a trial."""
        return [sys.executable, "-m", "swin_lightning", *self.arguments, *to_arguments(parameters)]


def to_arguments(parameters: dict[str, Any]) -> list[str]:
    """`{"model.lr": 0.1}` -> `["--model.lr=0.1"]`, as W&B's agent formats them."""
    return [f"--{key}={value}" for key, value in parameters.items()]


def find_sweep(name: str) -> Path:
    """A sweep file by path or by name.

    Args:
        name: A path, or a name such as `digits`: `experiments/sweeps/digits.yaml` in the working directory, then in the
            installed package.

    Raises:
        UserError: If there is no such file.
    """
    path = Path(name)
    if path.is_file():
        return path
    try:
        return find_experiment(name if len(path.parts) > 1 else f"sweeps/{name}")
    except UserError:
        hint = "`swin-lightning experiments` lists those of this project"
        raise UserError(f"{name}: no such sweep file; {hint}") from None


def read_sweep(path: str | Path) -> Sweep:
    """Read and check a sweep file: its structure, and every parameter against the options of `swin-lightning fit`.

    Raises:
        UserError: One line with the file, the key, the value and a suggested fix.
    """
    path = Path(path)
    config = read_yaml(path)
    try:
        _check_structure(config)
        _check_parameters(config["parameters"])
        sweep = Sweep(path, config, _parse_command(config["command"]))
        _check_schema(sweep)
        _check_options(sweep)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return sweep


# helpers


def _check_structure(config: Any) -> None:
    required = ("method", "metric", "parameters", "command")
    if not isinstance(config, dict):
        raise UserError(f"expected a mapping with the keys {', '.join(required)}, got {type(config).__name__}")
    for key in config:
        _check_choice("key", str(key), KEYS)
    for key in required:
        if not config.get(key):
            raise UserError(f"key {key!r} is missing")
    _check_choice("method", str(config["method"]), METHODS)
    metric = config["metric"]
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise UserError(
            f"metric: expected a name and a goal, e.g. {{name: val/acc_best, goal: maximize}}, got {shorten(metric)}"
        )
    _check_choice("metric.goal", str(metric.get("goal")), GOALS)
    if "target" in metric and not _is_number(metric["target"]):
        raise UserError(f"metric.target {shorten(metric['target'])}: expected a number")
    for key in TEXTS:
        text = config.get(key, "")
        if not (isinstance(text, str) and text.replace("\n", "").isprintable()):
            raise UserError(f"{key} {shorten(text)}: expected text without control characters")
    if "early_terminate" in config:
        _check_early_terminate(config["early_terminate"])
    cap = config.get("run_cap")
    if cap is not None and not (type(cap) is int and cap > 0):
        raise UserError(f"run_cap: expected a positive integer, got {shorten(cap)}")


def _check_early_terminate(spec: Any) -> None:
    """Hyperband, with `min_iter`, or with `max_iter` and the number of brackets `s`; see W&B's format."""
    if not isinstance(spec, dict) or spec.get("type") != "hyperband":
        raise UserError(f"early_terminate {shorten(spec)}: expected a mapping such as {{type: hyperband, min_iter: 3}}")
    for key in ("min_iter", "max_iter", "s"):
        if key in spec and not (type(spec[key]) is int and spec[key] >= 1):
            raise UserError(f"early_terminate.{key} {shorten(spec[key])}: expected an integer >= 1")
    eta = spec.get("eta", 3)
    if not _is_number(eta) or not 1 < eta <= 1000:
        raise UserError(f"early_terminate.eta {shorten(eta)}: expected a number > 1 and <= 1000")
    if "max_iter" in spec and "s" in spec and spec["s"] > math.log(spec["max_iter"], eta) + 1e-9:
        raise UserError(
            f"early_terminate.s {spec['s']}: the first bracket is before the first value for max_iter "
            f"{spec['max_iter']}; lower it"
        )


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number that W&B's search library can compute with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def _check_choice(what: str, word: str, words: tuple[str, ...]) -> None:
    if word not in words:
        close = difflib.get_close_matches(word, words, n=1)
        fix = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(words)}"
        raise UserError(f"unknown {what} {word!r}; {fix}")


def _check_parameters(parameters: Any) -> None:
    if not isinstance(parameters, dict):
        raise UserError(f"parameters: expected a mapping of options such as model.lr, got {shorten(parameters)}")
    for name, spec in parameters.items():
        where = f"parameters.{name}"
        if not isinstance(name, str):
            raise UserError(f"{where}: expected the name of an option such as model.lr")
        if not isinstance(spec, dict):
            raise UserError(f"{where}: expected a mapping with value, values, or min and max, got {shorten(spec)}")
        if "parameters" in spec:
            raise UserError(f"{where}: nested parameters are not supported; use dotted keys such as model.lr")
        for key, value in spec.items():
            _check_choice(f"key in {where}:", str(key), PARAMETER_KEYS)
            if value is None or (isinstance(value, list) and None in value):
                raise UserError(
                    f'{where}.{key} {shorten(value)}: null is passed as the string "None"; omit the option or use its '
                    '"off" value'
                )
            if key in ("min", "max", "mu", "sigma", "q") and isinstance(value, str):
                raise UserError(
                    f"{where}.{key} {shorten(value)!r}: a string in YAML; write it with a decimal point: 1.0e-4"
                )
        for key in BOUNDS & spec.keys():
            if not _is_number(spec[key]):
                raise UserError(f"{where}.{key} {shorten(spec[key])}: expected a number below {LARGEST:g}")
        if ".init_args" in name:
            short = name.replace(".init_args", "")
            raise UserError(f"{where}: use {short}; runs log options without init_args, W&B would show two columns")


def _parse_command(command: Any) -> tuple[str, ...]:
    """The arguments of `swin-lightning` in the command of a sweep file, without `${args}`."""
    if not isinstance(command, list) or not all(isinstance(part, str) for part in command):
        raise UserError(
            f"command: expected a list such as [swin-lightning, fit, -c, FILE, '${{args}}'], got {shorten(command)}"
        )
    parts = [part for part in command if part != "${env}"]
    program = next((p for p in PROGRAMS if parts[: len(p)] == p), None)
    if program is None or parts.count("${args}") != 1 or parts[len(program)] != "fit":
        raise UserError(f"command {' '.join(command)!r}: expected `swin-lightning fit ...` with ${{args}} exactly once")
    arguments = [part for part in parts[len(program) :] if part != "${args}"]
    if macros := [part for part in arguments if "${" in part]:
        raise UserError(f"command: {macros[0]} is not supported; use ${{args}} and write out everything else")
    return tuple(arguments)


def _check_schema(sweep: Sweep) -> None:
    """Validate against the schema of the `sweeps` library."""
    violations_of = import_sweeps().config.cfg.schema_violations_from_proposed_config
    for name, spec in sweep.parameters.items():  # one at a time, because the messages do not name the parameter
        if violations := violations_of({**sweep.search_config, "parameters": {name: spec}}):
            raise UserError(
                f"parameters.{name}: {shorten(spec)} does not match W&B's format: {shorten(violations[0], 200)}"
            )
        if sweep.method == "grid" and not {"value", "values"} & spec.keys():
            raise UserError(f"parameters.{name}: grid search needs value or values; or use method random or bayes")


def _check_options(sweep: Sweep) -> None:
    """Build trials that together contain every value of every parameter, without training them."""
    from swin_lightning.sweep.trial_check import trial_error

    def error_of(parameters: dict[str, Any]) -> UserError | None:
        # without `fit`
        return trial_error([*sweep.arguments[1:], *to_arguments(parameters)], sweep.metric, sweep.goal)

    values = {name: _values_to_check(name, spec) for name, spec in sweep.parameters.items()}
    trials: list[dict[str, Any]] = []
    for turn in (1, -1):  # the ends of neighbouring parameters are combined in both directions
        for i in range(max(map(len, values.values()))):
            listed = enumerate(values.items())
            trial = {name: options[:: turn ** (k % 2)][i % len(options)] for k, (name, options) in listed}
            trials += [trial] if trial not in trials else []
    for trial in trials:
        if (whole := error_of(trial)) is None:
            continue
        if (error := error_of({})) is not None and str(error) == str(whole):
            raise UserError(str(error) if str(error).startswith("metric.") else f"command: {error}")
        given: dict[str, Any] = {}
        for name, value in trial.items():  # in order, because one option may select the class that takes the next
            given[name] = value
            if (error := error_of(given)) is not None and str(error) == str(whole):
                raise UserError(f"parameters.{name} {shorten(value)}: {error}")
        raise whole


def _values_to_check(name: str, spec: dict[str, Any]) -> list[Any]:
    """All values of a discrete parameter; both ends and the middle of a distribution."""
    if "value" in spec:
        return [spec["value"]]
    if "values" in spec:
        return list(spec["values"])
    try:
        parameter = import_sweeps().params.HyperParameter(name, dict(spec))
    except ValueError as error:
        raise UserError(f"parameters.{name}: {summarize(error)}") from error
    ends = (0.0, 1.0) if {"min", "max"} <= spec.keys() else (0.001, 0.999)
    return list(dict.fromkeys(to_python(parameter.ppf(quantile)) for quantile in (ends[0], 0.5, ends[1])))


def import_sweeps() -> Any:
    """W&B's search library `sweeps`, imported without its deprecation warning from pydantic."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sweeps
    return sweeps


def to_python(value: Any) -> Any:
    """Convert a NumPy scalar to a Python number."""
    return value.item() if hasattr(value, "item") else value
