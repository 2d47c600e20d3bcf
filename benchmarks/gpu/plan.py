"""What is measured on a GPU, in which order, and for how long at most."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Compile = Literal["", "default", "reduce-overhead"]


@dataclass(frozen=True)
class Case:
    """A network whose training or evaluation step is timed.

    Args:
        model: `own`, `timm` or `vit`.
        mode: `train` or `eval`.
        compile: Mode of torch.compile; empty for eager.
        operator: Own model only: window attention as the Triton operator.
        dense: Own model only: drop path computes all samples. Compiled models always do.
        half_residual: Own model only: residual of the first stage in bfloat16.
        drop_path: Stochastic depth rate of the last block.
        batch: Factor on the batch size.
    """

    model: str
    mode: str = "train"
    compile: Compile = ""
    operator: bool = False
    dense: bool = True
    half_residual: bool = False
    drop_path: float = 0.2
    batch: float = 1.0

    @property
    def name(self) -> str:
        default = asdict(Case(self.model))
        parts = [f"{key}={value}" for key, value in asdict(self).items() if key != "model" and value != default[key]]
        return " ".join([self.model, *parts])


@dataclass(frozen=True)
class Step:
    """A part of the measurement that runs in a process of its own.

    Args:
        name: Name of its files.
        minutes: Time limit.
        work: Function of `work.py`.
        argument: Its argument.
    """

    name: str
    minutes: float
    work: str
    argument: Any = None

    @property
    def file(self) -> str:
        """Name of its files without suffix."""
        return self.name.replace(" ", "_")


BASE = Case("own", compile="default")
OPERATOR = Case("own", compile="default", operator=True)

# step 0 of the plan is correctness; 1 the baselines; 3 operator and drop path; 4 options; 5 evaluation
CASES = [
    Case("own"),
    BASE,
    Case("timm"),
    Case("timm", compile="default"),
    OPERATOR,
    Case("own", compile="default", operator=True, drop_path=0.0),
    Case("timm", compile="default", drop_path=0.0),
    Case("vit", compile="default", drop_path=0.0),
    Case("vit", drop_path=0.0),
    Case("own", operator=True),
    Case("own", operator=True, dense=False),
    Case("own", compile="default", operator=True, half_residual=True),
    Case("own", compile="reduce-overhead", operator=True),
    Case("own", compile="reduce-overhead", operator=True, batch=0.5),
    Case("own", compile="default", operator=True, batch=0.5),
    Case("own", compile="default", operator=True, batch=2.0),
]
EVALUATION = [
    Case("own", "eval", "default", operator=True),
    Case("own", "eval", "default"),
    Case("timm", "eval", "default"),
    Case("vit", "eval", "default", drop_path=0.0),
    Case("own", "eval", operator=True),
]
PROFILED = [OPERATOR, Case("timm", compile="default")]


def steps() -> list[Step]:
    """All steps, in order of importance: what the time does not suffice for is missing at the end."""
    return [
        Step("correctness", 2, "correctness"),
        Step("attention", 3, "attention"),
        *(Step(f"case {case.name}", 2, "case", asdict(case)) for case in CASES),
        *(Step(f"profile {case.name}", 2, "profile", asdict(case)) for case in PROFILED),
        Step("losses", 5, "losses"),
        *(Step(f"case {case.name}", 1.5, "case", asdict(case)) for case in EVALUATION),
        Step("trainer", 2, "trainer"),
    ]
