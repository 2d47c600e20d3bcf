"""`python -m benchmarks.model`, with a subclass of our own model in place of the official repository."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import command, environment, model
from benchmarks.reference_models import max_difference
from swin_lightning.allocator import ENV_VAR, GLIBC
from swin_lightning.models import linear
from tests.support import cli

SMALL = ["--model", "swin_micro_patch4_window4_32", "--batch-size", "2", "--rounds", "2", "--threads", "1",
         "--device", "cpu"]  # fmt: skip
TWIN = "from swin_lightning.models.swin import SwinTransformer as Base\nclass SwinTransformer(Base):\n    "


@pytest.fixture
def official(tmp_path):
    """Options that compare with a class of this body."""

    def options(body="pass"):
        (tmp_path / "official.py").write_text(TWIN + body)
        return ["--official", str(tmp_path / "official.py"), "--only", "official"]

    return options


@pytest.fixture
def no_worker_processes(monkeypatch):
    monkeypatch.setattr(model, "run_worker", lambda *_, **__: {"memory": 3_000_000})


def test_command_measures_and_saves_both_modes(official, no_worker_processes, capsys):
    model.main([*SMALL, *official()])
    out = capsys.readouterr().out
    assert "eval: swin_micro" in out and "train: swin_micro" in out
    assert out.count("ms  images/s  of peak        relative time     MB 1st step") == 2
    (path,) = Path("runs/benchmark").glob("*.json")
    result = json.loads(path.read_text())
    version = result["versions"]["torch"]  # the metadata of CUDA builds have no suffix
    assert version.split("+")[0] == torch.__version__.split("+")[0]
    assert result["options"]["batch_size"] == 2
    assert not {"official", "peers", "output"} & set(result["options"])  # paths of this machine
    for mode in ("eval", "train"):
        ours, twin = result[mode]
        assert (ours["name"], twin["name"]) == ("swin_lightning", "official")
        assert ours["ratio"] == [1, 1, 1] and twin["ratio"][0] > 0
        assert ours["images_per_s"] == pytest.approx(2000 / ours["ms"])
        assert (ours["difference"], twin["difference"]) == (0.0, 0.0)
        assert twin["memory"] == 3_000_000
    assert path.with_suffix(".png").is_file()


def test_training_counts_three_times_the_operations_of_evaluation(official):
    options = command.parse(model.argument_parser(), SMALL)
    context = model.BenchmarkContext(options)
    assert context.flop("eval") == 2 * 2 * context.macs
    assert context.flop("train") == 3 * context.flop("eval")


def test_own_precision_is_the_default_of_the_command_line(monkeypatch):
    def precisions(*args):
        context = model.BenchmarkContext(command.parse(model.argument_parser(), [*SMALL, *args]))
        return context.precision("swin_lightning"), context.precision("timm")

    monkeypatch.setattr(
        model, "default_precision", lambda device, module, size, batch: ("bf16-mixed", f"{size} {batch}")
    )
    assert precisions() == ("32", "32")
    assert precisions("--processes") == ("bf16", "32")
    assert precisions("--processes", "--precision=32") == ("32", "32")
    assert precisions("--precision=bf16") == precisions("--precision=bf16", "--processes") == ("bf16", "bf16")


def test_reference_with_other_logits_stops_the_comparison(official, no_worker_processes, capsys):
    body = "def forward(self, x):\n        return 1.001 * super().forward(x)"
    with pytest.raises(ValueError, match="official: logits differ by"):
        model.main([*SMALL, *official(body)])
    assert "relative time" not in capsys.readouterr().out


def test_plain_is_our_model_without_the_kernels_of_this_processor(monkeypatch):
    def replaced(module):
        return sum("forward" in vars(part) for part in module.modules())

    monkeypatch.setattr(linear, "is_amd_with_avx512", lambda: True)
    context = model.BenchmarkContext(command.parse(model.argument_parser(), SMALL))
    models = dict(context.models(["plain"]))
    assert list(models) == ["swin_lightning", "plain"]
    assert replaced(models["swin_lightning"]) > 0 == replaced(models["plain"])
    assert max_difference(*models.values(), context.images) < 1e-5


def test_missing_references_are_skipped_with_a_message(no_worker_processes, capsys):
    model.main([*SMALL, "--eval", "--only", "official"])
    out, err = capsys.readouterr()
    assert err == "skipped official: needs --official FILE\n"
    assert "train:" not in out and "swin_lightning" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "swin_huge"], "--model swin_huge: unknown model"),
        (["--batch-size", "0"], "--batch-size 0 must be at least 1"),
        (["--rounds", "0"], "--rounds 0 must be at least 1"),
        (["--peer", "x"], "unrecognized arguments: --peer x; run python -m benchmarks.model --help"),
        (["--only", "tim"], "argument --only: invalid choice: 'tim'"),
        (["--peers", "nowhere"], "--peers nowhere: no such folder"),
        ([*SMALL, "--official", "nowhere.py"], "--official nowhere.py: no such Python file"),
    ],
)
def test_user_errors_are_one_line(args, message):
    with pytest.raises(ValueError, match=message) as error:
        model.main(args)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_worker_measures_one_model(official, capsys):
    model.main([*SMALL, *official(), "--train", "--worker", "official"])
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"seconds", "first", "memory", "logits"}
    assert len(found["logits"]) == 2 and len(found["logits"][0]) == 10
    assert found["seconds"] > 0 and found["first"] > 0


def test_default_environment_has_no_allocator_settings(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "theirs.so")
    monkeypatch.delenv(ENV_VAR, raising=False)
    assert environment.default_environment()["LD_PRELOAD"] == "theirs.so"  # not set by us
    for name, value in {**GLIBC, ENV_VAR: "glibc"}.items():
        monkeypatch.setenv(name, value)
    found = environment.default_environment()
    assert not set(GLIBC) & set(found) and found[ENV_VAR] == "off"


@pytest.mark.slow
def test_separate_processes(official):
    arguments = [sys.executable, "-m", "benchmarks.model", *SMALL, "--processes", *official()]
    done = subprocess.run(arguments, env=cli.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = Path("runs/benchmark").glob("*.json")
    rows = json.loads(path.read_text())["train"]
    assert [row["name"] for row in rows] == ["swin_lightning", "official"]
    assert all(row["memory"] > 1e6 and row["difference"] <= 1e-4 for row in rows)
