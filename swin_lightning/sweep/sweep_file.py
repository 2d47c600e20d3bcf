"""Sweep files in the format of W&B, read and checked before anything starts."""

import difflib
import itertools
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from swin_lightning.errors import UserError

KEYS = (
    "name", "description", "program", "project", "entity", "method", "metric", "parameters", "command",
    "early_terminate", "run_cap",
)  # fmt: skip
METHODS = ("grid", "random", "bayes")
GOALS = ("maximize", "minimize")
PARAMETER_KEYS = ("value", "values", "probabilities", "distribution", "min", "max", "mu", "sigma", "q", "a", "b")
PROGRAMS = (["swin-lightning"], ["python", "-m", "swin_lightning"], ["${interpreter}", "-m", "swin_lightning"])


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file.

    Args:
        path: The file.
        config: What it says; this is what W&B gets.
        arguments: Those of `swin-lightning` in its command, without `${args}`.
    """

    path: Path
    config: dict[str, Any]
    arguments: tuple[str, ...]

    @property
    def metric(self) -> str:
        """Name of the metric that decides."""
        return str(self.config["metric"]["name"])

    @property
    def goal(self) -> str:
        """`maximize` or `minimize`."""
        return str(self.config["metric"]["goal"])

    @property
    def engine_config(self) -> dict[str, Any]:
        """The part that decides which trials come and which are stopped, without what only W&B's server knows."""
        kept = ("method", "metric", "parameters", "early_terminate")
        config = {key: value for key, value in self.config.items() if key in kept}
        if "early_terminate" in config:
            config["early_terminate"] = {k: v for k, v in config["early_terminate"].items() if k != "strict"}
        return config

    def command(self, parameters: dict[str, Any]) -> list[str]:
        """The command of a trial; values are written as W&B's agent writes them."""
        return [sys.executable, "-m", "swin_lightning", *self.arguments, *as_arguments(parameters)]


def as_arguments(parameters: dict[str, Any]) -> list[str]:
    """`{"model.lr": 0.1}` -> `["--model.lr=0.1"]`, as W&B's agent does it."""
    return [f"--{key}={value}" for key, value in parameters.items()]


def read_sweep(path: str | Path) -> Sweep:
    """Read and check a sweep file: its structure, every key and value against the program's options.

    Raises:
        ValueError: One line that names the file, the key, the value and the cure.
    """
    path = Path(path)
    try:
        return _read(path)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


# helpers


def _read(path: Path) -> Sweep:
    try:
        config = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError("there is no such file; those of this project are in experiments/sweeps") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise UserError(f"holds a {type(config).__name__} instead of the keys method, metric, parameters and command")
    for key in config:
        _known(str(key), KEYS, "")
    for key in ("method", "metric", "parameters", "command"):
        if not config.get(key):
            raise UserError(f"{key} is missing")
    _known(str(config["method"]), METHODS, "method ")
    metric = config["metric"]
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        raise UserError(f"metric {metric!r} needs a name and a goal, such as {{name: val/acc_best, goal: maximize}}")
    _known(str(metric.get("goal")), GOALS, "metric.goal ")
    cap = config.get("run_cap")
    if cap is not None and not (isinstance(cap, int) and cap > 0):
        raise UserError(f"run_cap {cap!r} must be a whole number above 0")
    _check_parameters(config["parameters"])
    sweep = Sweep(path, config, _arguments(config["command"]))
    _check_schema(sweep)
    _check_options(sweep)
    return sweep


def _known(word: str, words: tuple[str, ...], what: str) -> None:
    if word not in words:
        near = difflib.get_close_matches(word, words, n=1)
        cure = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(words)}"
        raise UserError(f"{what or 'key '}{word!r} is unknown; {cure}")


def _check_parameters(parameters: Any) -> None:
    if not isinstance(parameters, dict):
        raise UserError(f"parameters {parameters!r} must name options of the program, such as model.lr")
    for name, spec in parameters.items():
        what = f"parameters.{name}"
        if not isinstance(spec, dict):
            raise UserError(f"{what} {spec!r} must say value, values, or min and max")
        if "parameters" in spec:
            raise UserError(f"{what} is nested; write each option in one line with its dotted key, such as model.lr")
        for key, value in spec.items():
            _known(str(key), PARAMETER_KEYS, f"{what}: key ")
            if value is None or (isinstance(value, list) and None in value):
                raise UserError(
                    f"{what}.{key} {value!r}: null reaches the program as the word None; leave the option out or give "
                    "the value that turns it off"
                )
            if key in ("min", "max", "mu", "sigma", "q") and isinstance(value, str):
                raise UserError(f"{what}.{key} {value!r} is text to YAML; write numbers with a point, such as 1.0e-4")
        if ".init_args" in name:
            short = name.replace(".init_args", "")
            raise UserError(f"{what}: write {short}, the key under which the run logs it, or it has two columns in W&B")


def _arguments(command: Any) -> tuple[str, ...]:
    if not isinstance(command, list) or not all(isinstance(part, str) for part in command):
        raise UserError(f"command {command!r} must be a list, such as [swin-lightning, fit, -c, FILE, '${{args}}']")
    parts = [part for part in command if part != "${env}"]
    program = next((p for p in PROGRAMS if parts[: len(p)] == p), None)
    if program is None or parts.count("${args}") != 1 or parts[len(program)] != "fit":
        raise UserError(f"command {' '.join(command)!r} must run `swin-lightning fit ...` and hold ${{args}} once")
    rest = [part for part in parts[len(program) :] if part != "${args}"]
    if macros := [part for part in rest if "${" in part]:
        raise UserError(f"command: {macros[0]} is not known here; use ${{args}}, and write the rest out")
    return tuple(rest)


def _check_schema(sweep: Sweep) -> None:
    """What W&B's own engine says of the file."""
    violations_of = import_engine().config.cfg.schema_violations_from_proposed_config
    for name, spec in sweep.config["parameters"].items():  # by itself, or the message would not name it
        one = {**sweep.engine_config, "parameters": {name: spec}}
        if violations := violations_of(one):
            raise UserError(f"parameters.{name} {spec} does not fit W&B's format: {' '.join(violations[0].split())}")
    continuous = [name for name, spec in sweep.config["parameters"].items() if not {"value", "values"} & spec.keys()]
    if sweep.config["method"] == "grid" and continuous:
        raise UserError(f"parameters.{continuous[0]}: a grid needs values; or use method random or bayes")


def _check_options(sweep: Sweep) -> None:
    """Every key and value, as the program's own parser sees them; continuous ones at both ends and in the middle."""
    from swin_lightning.cli import Dry, start

    candidates = {name: _candidates(name, spec) for name, spec in sweep.config["parameters"].items()}
    try:
        parser = start(Dry, list(sweep.arguments)).parser
    except UserError as error:
        raise UserError(f"command: {error}") from error
    for name, values in candidates.items():
        for value in values:
            try:
                parser.parse_args([*sweep.arguments, *as_arguments({name: value})])
            except UserError as error:
                raise UserError(f"parameters.{name} {value!r}: {error}") from error
    for row in itertools.zip_longest(*candidates.values()):  # together, since one may need another
        both = {name: value for name, value in zip(candidates, row, strict=True) if value is not None}
        try:
            parser.parse_args([*sweep.arguments, *as_arguments(both)])
        except UserError as error:
            raise UserError(f"parameters {both}: {error}") from error


def _candidates(name: str, spec: dict[str, Any]) -> list[Any]:
    if "value" in spec:
        return [spec["value"]]
    if "values" in spec:
        return list(spec["values"])
    parameter = import_engine().params.HyperParameter(name, dict(spec))
    return [plain(parameter.ppf(share)) for share in (0.001, 0.5, 0.999)]


def import_engine() -> Any:
    """W&B's search engine, the package `sweeps`, without its remark on pydantic."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sweeps
    return sweeps


def plain(value: Any) -> Any:
    """A NumPy scalar as Python's own."""
    return value.item() if hasattr(value, "item") else value
