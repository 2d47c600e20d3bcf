"""`swin-lightning benchmark model`: beside a twin of ours, and refused beside what answers differently."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from swin_lightning.allocator import GLIBC, ENV_VAR
from swin_lightning.benchmark import benchmark, model, peers, trainer
from swin_lightning.benchmark.measure import Contestant, paired_ratio, take_turns
from swin_lightning.commands import find
from swin_lightning.models.linear import Linear
from tests.support.cli import environment

SMALL = ["model", "--model", "swin_micro_patch4_window4_32", "--batch-size", "2", "--rounds", "2", "--threads", "1",
         "--device", "cpu"]  # fmt: skip
TWIN = "from swin_lightning.models.swin import SwinTransformer as S\nclass SwinTransformer(S):\n    "


@pytest.fixture
def official(tmp_path):
    """Write a file as the official repository's, with a body for the class."""

    def write(body):
        (tmp_path / "twin.py").write_text(TWIN + body)
        return ["--official", str(tmp_path / "twin.py"), "--only", "official"]

    return write


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("swin_lightning.benchmark.measure.MIN_SECONDS", 0.0)
    monkeypatch.setattr(model, "run_worker", lambda *_, **__: {"memory": 3_000_000})


def test_a_twin_is_measured_and_written_down(official, capsys):
    find("benchmark")([*SMALL, *official("pass")])
    out = capsys.readouterr().out
    assert "official" in out and "eval: swin_micro" in out and "train: swin_micro" in out
    (path,) = Path("runs/benchmark").glob("*.json")
    result = json.loads(path.read_text())
    for mode in ("eval", "train"):
        ours, twin = result[mode]
        assert (ours["name"], twin["name"]) == ("swin_lightning", "official")
        assert ours["ratio"] == [1, 1, 1] and 0.2 < twin["ratio"][0] < 5
        assert ours["images_per_s"] == pytest.approx(2000 / ours["ms"])
        assert twin["difference"] <= 1e-4 and twin["memory"] == 3_000_000
    # a product counts two operations, and the backward pass twice the forward
    assert 0 < result["eval"][0]["share"] < 1.5
    assert path.with_suffix(".png").stat().st_size > 5000


@pytest.mark.parametrize("body", [
    "def forward(self, x):\n        return 1.001 * super().forward(x)",
    "def forward(self, x):\n        return float('nan') * super().forward(x)",
])  # fmt: skip
def test_a_model_that_answers_differently_gets_no_ratio(official, capsys, body):
    with pytest.raises(ValueError, match="official answers differently by"):
        benchmark([*SMALL, *official(body)])
    assert "ours faster" not in capsys.readouterr().out


def test_a_model_with_other_parameters_is_named(official):
    body = "def __init__(self, **k):\n        super().__init__(**k)\n        self.extra = self.norm.__class__(2)"
    with pytest.raises(ValueError, match=r"official does not take our weights: .*extra"):
        benchmark([*SMALL, *official(body)])


def test_what_is_not_there_is_left_out_and_said(capsys):
    benchmark([*SMALL, "--eval", "--only", "official"])
    assert "official is left out: no --official FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "choose what to measure"),
        (["speed"], "choose what to measure"),
        (["model", "--model", "swin_huge"], "swin_huge: unknown"),
        (["model", "--batch-size", "0"], "--batch-size 0"),
        (["model", "--peers", "nowhere"], "nowhere: there is no such folder"),
        ([*SMALL, "--official", "nowhere.py"], "nowhere.py: there is no such Python file"),
    ],
)
def test_mistakes_are_one_line(args, words):
    with pytest.raises(ValueError, match=words):
        benchmark(args)


def test_ratios_are_of_paired_rounds():
    assert paired_ratio([2.0, 3.0, 40.0], [1.0, 1.0, 10.0]) == (3.0, 2.5, 3.5)
    assert paired_ratio([3.0], [2.0]) == (1.5, 1.5, 1.5)


def test_contestants_take_turns_and_each_begins_once():
    calls = []
    contestants = [Contestant(name, lambda name=name: calls.append(name), 1.0) for name in "abc"]
    take_turns(contestants, 3, model.torch.device("cpu"), warmup=1)
    assert "".join(calls[6:]) == "abcbcacab"
    assert [len(contestant.seconds) for contestant in contestants] == [3, 3, 3]


def test_all_parameters_differ_from_where_they_start():
    ours = peers.ours("swin_micro_patch4_window4_32", 10, 0.0)
    assert all(p.std() > 0.01 for p in ours.parameters())
    assert isinstance(ours.head, nn.Linear) and isinstance(ours.backbone.layers[0].blocks[0].attn.qkv, Linear)


def test_a_peer_is_started_without_our_allocator(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "theirs.so")
    monkeypatch.delenv(ENV_VAR, raising=False)
    assert model.plain_environment()["LD_PRELOAD"] == "theirs.so"  # not set by us
    for name, value in {**GLIBC, ENV_VAR: "glibc"}.items():
        monkeypatch.setenv(name, value)
    assert not {*GLIBC, ENV_VAR} & set(model.plain_environment())


def test_the_trainer_is_measured_against_a_bare_loop(capsys, monkeypatch):
    monkeypatch.setattr(trainer, "STEPS", 8)
    benchmark([*SMALL, "--trainer"])
    assert "bare loop" in capsys.readouterr().out


@pytest.mark.slow
def test_each_in_a_process_of_its_own(official):
    command = [sys.executable, "-m", "swin_lightning", "benchmark", *SMALL, "--processes", *official("pass")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = Path("runs/benchmark").glob("*.json")
    rows = json.loads(path.read_text())["train"]
    assert [row["name"] for row in rows] == ["swin_lightning", "official"]
    assert all(row["memory"] > 1e6 and row["difference"] <= 1e-4 for row in rows)


@pytest.mark.slow
def test_the_trainer_costs_at_most_ten_milliseconds_a_step():
    options = model.parser().parse_args([*SMALL[1:], "--batch-size", "32", "--rounds", "5"])
    found = trainer.compare(options)
    assert found["trainer_ms"] - found["bare_ms"] < 10
